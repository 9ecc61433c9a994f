"""Quantization passes."""

from .scheme import Scheme
from .weights import Quantize

__all__ = ["Quantize", "Scheme"]
