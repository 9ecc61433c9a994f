"""Sizes of tensors in bytes and elements with stand-ins for named dimensions, and whether two shapes are the same."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir

from ...ir.symbolic import Dim, Dims, evaluate, symbols_of

TYPICAL = 128
"""The size that a named dimension is taken to have while costs are compared."""
FIRST = 1
"""The same for the first dimension of an input, which is a batch."""


class Sizes:
    """Elements and bytes of values, worked out once per value.

    Args:
        given: sizes of named dimensions.
        batches: names that count as batches.
    """

    def __init__(self, given: Mapping[str, int] | None = None, batches: frozenset[str] = frozenset()) -> None:
        self._given, self._batches = dict(given or {}), batches
        self._dims: dict[str, int] = {}
        self._elements: dict[onnx_ir.Value, int] = {}

    @classmethod
    def of_graph(cls, graph: onnx_ir.Graph, given: Mapping[str, int] | None = None) -> Sizes:
        """Sizes for a graph: the first dimension of an input of more than one is a batch."""
        batches = set()
        for value in graph.inputs:
            dims = value.shape
            if dims is not None and len(dims) > 1 and not isinstance(dims[0], int):
                batches |= set(symbols_of(dims[0]))
        return cls(given, frozenset(batches))

    def names(self, dims: Dims) -> dict[str, int]:
        """Stand-ins for the named sizes in ``dims``."""
        return {name: self._name(name) for dim in dims for name in symbols_of(dim)}

    def _name(self, name: str) -> int:
        return self._given.get(name, FIRST if name in self._batches else TYPICAL)

    def dim(self, dim: Dim) -> int:
        """A dimension as a number."""
        if isinstance(dim, int):
            return dim
        text = dim.value
        if text is None:
            return TYPICAL
        found = self._dims.get(text)
        if found is None:
            number = evaluate(dim, self.names((dim,)))
            found = self._dims[text] = TYPICAL if number is None else max(0, int(number))
        return found

    def elements(self, value: onnx_ir.Value) -> int:
        """Number of elements; one for a value whose rank is not known."""
        found = self._elements.get(value)
        if found is None:
            found = 1
            for dim in () if value.shape is None else value.shape:
                found *= self.dim(dim)
            self._elements[value] = found
        return found

    def bytes(self, value: onnx_ir.Value) -> int:
        """Number of bytes, packed where elements are smaller than one."""
        bits = 32 if value.dtype is None or value.dtype == onnx_ir.DataType.STRING else value.dtype.bitwidth
        return -(-self.elements(value) * bits // 8)


def dims_of(value: onnx_ir.Value | None) -> tuple[str, ...] | None:
    """The shape of a value as comparable text; None if its rank, or a dimension, is not known."""
    if value is None or value.shape is None:
        return None
    out = []
    for dim in value.shape:
        if isinstance(dim, int):
            out.append(str(dim))
        elif dim.value is None:
            return None
        else:
            out.append(dim.value)
    return tuple(out)
