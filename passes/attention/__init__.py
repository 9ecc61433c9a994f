"""Passes on attention and what it remembers."""

from .quantize_cache import QuantizeCache

__all__ = ["QuantizeCache"]
