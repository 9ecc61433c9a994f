"""The translation rules, grouped by subject; importing this package registers them."""

from . import (
    attention,
    convolution,
    creation,
    elementwise,
    indexing,
    matrix,
    normalization,
    recurrent,
    reduction,
    reshaping,
    sorting,
)

__all__ = [
    "attention",
    "convolution",
    "creation",
    "elementwise",
    "indexing",
    "matrix",
    "normalization",
    "recurrent",
    "reduction",
    "reshaping",
    "sorting",
]
