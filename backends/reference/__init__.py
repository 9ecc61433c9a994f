"""The reference backend: any graph, node by node with PyTorch. Slow and right, and differentiable."""

from __future__ import annotations

from .executor import Reference

__all__ = ["Reference"]
