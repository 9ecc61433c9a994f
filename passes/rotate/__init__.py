"""Rotations that are folded into the weights: outliers are spread over many channels before rounding."""

from .rotate import Rotate

__all__ = ["Rotate"]
