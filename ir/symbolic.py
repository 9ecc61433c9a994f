"""Dimensions as SymPy expressions: conversion, equality and arithmetic."""

from __future__ import annotations

from functools import lru_cache
from typing import TypeAlias

import onnx_ir
import sympy

Dim: TypeAlias = int | onnx_ir.SymbolicDim


@lru_cache(maxsize=65536)
def _parse(text: str) -> sympy.Expr | None:
    try:
        return onnx_ir.SymbolicDim(text)._expr
    except ValueError:
        # An imported file may name a dimension anything ("batch size?"): it is then one opaque symbol.
        return sympy.Symbol(text, integer=True, positive=True)


def to_expr(dim: Dim | None) -> sympy.Expr | None:
    """The SymPy expression of a dimension; None for an unknown one."""
    if dim is None:
        return None
    if isinstance(dim, int):
        return sympy.Integer(dim)
    return None if dim.value is None else _parse(dim.value)


def to_dim(expr: sympy.Expr | int | None) -> Dim:
    """The dimension of a SymPy expression: an int if it is one."""
    if expr is None:
        return onnx_ir.SymbolicDim(None)
    if isinstance(expr, int):
        return expr
    if expr.is_Integer:
        return int(expr)
    return onnx_ir.SymbolicDim(str(expr))


def same(a: Dim | None, b: Dim | None) -> bool:
    """Whether two dimensions are known to be equal whatever the symbols are."""
    if isinstance(a, int) or isinstance(b, int):
        return isinstance(a, int) and isinstance(b, int) and a == b
    if a is None or b is None or a.value is None or b.value is None:
        return False
    return a.value == b.value or _same_text(a.value, b.value)


@lru_cache(maxsize=65536)
def _same_text(a: str, b: str) -> bool:
    left, right = _parse(a), _parse(b)
    return left is not None and right is not None and bool(sympy.expand(left - right) == 0)
