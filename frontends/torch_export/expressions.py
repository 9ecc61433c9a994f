"""Symbolic sizes: from the expressions of ``torch.export`` to named dimensions and to graph values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import onnx_ir
import sympy
import torch
from torch.utils._sympy import functions as torch_functions

from ...ir.symbolic import Dim, largest, remainder, smallest

Size: TypeAlias = int | torch.SymInt


class Dimensions:
    """Dimensions of one exported program: each expression becomes one ``SymbolicDim``, remembered both ways.

    Args:
        names: the name of each symbol.
    """

    def __init__(self, names: Mapping[sympy.Symbol, str]) -> None:
        self.names = {s: sympy.Symbol(name, integer=True, nonnegative=True) for s, name in names.items()}
        self._dims: dict[sympy.Expr, Dim] = {}
        self._expressions: dict[str, sympy.Expr] = {}

    def dim(self, size: Size) -> Dim:
        """The dimension of a size."""
        return size if isinstance(size, int) else self.of_expression(size.node.expr)

    def of_expression(self, expr: sympy.Expr) -> Dim:
        """The dimension of an expression over the program's own symbols."""
        found = self._dims.get(expr)
        if found is None:
            found = self._convert(expr)
            self._dims[expr] = found
            if isinstance(found, onnx_ir.SymbolicDim) and found.value is not None:
                self._expressions.setdefault(found.value, expr)
        return found

    def shape(self, sizes: Any) -> tuple[Dim, ...]:
        """The dimensions of several sizes."""
        return tuple(self.dim(size) for size in sizes)

    def expression(self, dim: onnx_ir.SymbolicDim) -> sympy.Expr:
        """The expression behind a dimension that this object made."""
        assert dim.value is not None
        return self._expressions[dim.value]

    def unknown(self) -> onnx_ir.SymbolicDim:
        """A dimension of which nothing is known."""
        return onnx_ir.SymbolicDim(None)

    def _convert(self, expr: sympy.Expr) -> Dim:
        if expr.is_Integer:
            return int(expr)
        plain = _plain(expr)
        if plain is None:
            return onnx_ir.SymbolicDim(None)
        for symbol in plain.free_symbols:
            if symbol not in self.names:
                # A size known only at run time, such as the number of non-zero elements.
                self.names[symbol] = sympy.Symbol(symbol.name, integer=True, nonnegative=True)
        plain = plain.xreplace(self.names)
        return int(plain) if plain.is_Integer else onnx_ir.SymbolicDim(str(plain))


_SAME = {torch_functions.Max: largest, torch_functions.Min: smallest}
_QUOTIENTS = (torch_functions.FloorDiv, torch_functions.CleanDiv)
_REMAINDERS = (torch_functions.Mod, torch_functions.PythonMod)


def _plain(expr: sympy.Expr) -> sympy.Expr | None:
    """``expr`` in SymPy's own functions; None if it holds something that has no name there."""
    if not expr.args:
        return expr
    args: list[sympy.Expr] = []
    for arg in expr.args:
        plain = _plain(arg)
        if plain is None:
            return None
        args.append(plain)
    if isinstance(expr, _QUOTIENTS):
        return sympy.floor(args[0] / args[1])
    if isinstance(expr, _REMAINDERS):
        return remainder(args[0], args[1])
    for theirs, function in _SAME.items():
        if isinstance(expr, theirs):
            return function(*args)
    if isinstance(expr, (sympy.Add, sympy.Mul, sympy.Pow, sympy.Max, sympy.Min, sympy.Mod, sympy.floor)):
        return expr.func(*args)
    return None
