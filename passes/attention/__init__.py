"""Passes on attention and what it remembers."""

from .linear import LinearizeAttention
from .quantize_cache import QuantizeCache
from .sparse import SparseAttention

__all__ = ["LinearizeAttention", "QuantizeCache", "SparseAttention"]
