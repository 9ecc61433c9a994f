"""The translation rules, grouped by subject; importing this package registers them."""

from . import (
    activation,
    arithmetic,
    attention,
    conversion,
    convolution,
    creation,
    functions,
    indexing,
    logic,
    matrix,
    normalization,
    recurrent,
    reduction,
    reshaping,
    sorting,
)

__all__ = [
    "activation",
    "arithmetic",
    "attention",
    "conversion",
    "convolution",
    "creation",
    "functions",
    "indexing",
    "logic",
    "matrix",
    "normalization",
    "recurrent",
    "reduction",
    "reshaping",
    "sorting",
]
