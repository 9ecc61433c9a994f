"""Which operators a generated kernel can compute, and how."""

from __future__ import annotations

from . import elementwise, movement, quantization, reduction, resampling  # noqa: F401  they register their rules
from .registry import EXPRESSIONS, Operator, Rule, fusible

__all__ = ["EXPRESSIONS", "Operator", "Rule", "fusible"]
