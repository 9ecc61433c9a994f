"""Dimensions as SymPy expressions: conversion, equality and arithmetic.

A dimension is an int or an ``onnx_ir.SymbolicDim`` whose text is an expression over named sizes; ``SymbolicDim(None)``
is unknown. Named sizes are integers that may be zero (a cache starts empty), so nothing here simplifies
``Max(past, 1)`` to ``past``. Arithmetic on two ints never reaches SymPy, and every symbolic result is cached by text.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import TypeAlias

import onnx_ir
import sympy

Dim: TypeAlias = int | onnx_ir.SymbolicDim
Dims: TypeAlias = tuple[Dim, ...]

UNKNOWN = onnx_ir.SymbolicDim(None)
"""A dimension of which nothing is known."""


def symbol(name: str) -> sympy.Symbol:
    """The SymPy symbol of a named size: an integer of at least zero."""
    return sympy.Symbol(name, integer=True, nonnegative=True)


def remainder(left: sympy.Expr, right: sympy.Expr) -> sympy.Expr:
    """``left mod right`` with the sign of ``right``.

    SymPy 1.14 squares a remainder that has a factor: ``Mod(2*Mod(a, 6), 3)`` becomes ``Mod(2*Mod(a, 6)**2, 3)``. Such
    a one is spelled by its floor, which nothing that rebuilds the expression can evaluate wrongly.
    """
    if any(term.is_Mul and term.has(sympy.Mod) for term in sympy.Add.make_args(sympy.expand(left))):
        return left - right * sympy.floor(left / right)
    return sympy.Mod(left, right)


def largest(*exprs: sympy.Expr) -> sympy.Expr:
    """The largest of some, a whole factor of all before it: ``2*Max(a, 3*b)`` for ``Max(2*a, 6*b)``.

    SymPy 1.14 takes an even number's sixth for whole (it looks at the powers of two alone), and so loses the floor of
    ``Max(2*a, 6*b)/6``. What is written this way is not known to be even.
    """
    return _factored(sympy.Max, exprs)


def smallest(*exprs: sympy.Expr) -> sympy.Expr:
    """The smallest of some, a whole factor of all before it (see ``largest``)."""
    return _factored(sympy.Min, exprs)


def _factored(function: Callable[..., sympy.Expr], exprs: tuple[sympy.Expr, ...]) -> sympy.Expr:
    parts = [expr.as_content_primitive() for expr in exprs if expr != 0]
    if len(parts) == 0 or not all(content.is_Integer for content, _ in parts):
        return function(*exprs)
    factor = sympy.gcd_list([content for content, _ in parts])
    others = [sympy.Integer(0)] if len(parts) < len(exprs) else []
    return factor * function(*(content / factor * primitive for content, primitive in parts), *others)


@lru_cache(maxsize=65536)
def _parse(text: str) -> sympy.Expr:
    if text.isidentifier():
        return symbol(text)
    expr = _parse_expression(text)
    # An imported file may name a dimension anything ("batch size?"): it is then one opaque symbol, until inference of
    # the whole graph gives it a name that can stand in an expression.
    return symbol(text) if expr is None else expr


def readable(text: str) -> bool:
    """Whether the name of a dimension can stand in an expression."""
    return text.isidentifier() or _parse_expression(text) is not None


_NAME = re.compile(r"[A-Za-z_][\w.]*")
_FUNCTIONS: dict[str, Callable[..., sympy.Expr]] = {
    "Max": largest,
    "Min": smallest,
    "Mod": remainder,
    "ceiling": sympy.ceiling,
    "floor": sympy.floor,
    "max": largest,
    "min": smallest,
    "mod": remainder,
    "sqrt": sympy.sqrt,
}
_OPERATORS: dict[type[ast.operator], Callable[[sympy.Expr, sympy.Expr], sympy.Expr]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Div: lambda a, b: a / b,
    ast.FloorDiv: lambda a, b: sympy.floor(a / b),
    ast.Mod: remainder,
    ast.Pow: lambda a, b: a**b,
}


def _parse_expression(text: str) -> sympy.Expr | None:
    """The expression that ``text`` spells; None if it spells none.

    ``onnx_ir`` has a parser, too, but one that takes every name for positive and so drops the maximum of
    ``Max(1, past)`` while reading.
    """
    names: dict[str, str] = {}

    def stand_in(match: re.Match[str]) -> str:
        name = match.group()
        if name in _FUNCTIONS and text[match.end() :].lstrip().startswith("("):
            return name
        # Names may hold dots and be words of Python.
        return names.setdefault(name, f"_{len(names)}_")

    try:
        tree = ast.parse(_NAME.sub(stand_in, text).strip(), mode="eval")
        return _build(tree.body, {alias: name for name, alias in names.items()})
    except (SyntaxError, KeyError, ValueError, TypeError, ZeroDivisionError):
        return None


def _build(node: ast.expr, names: Mapping[str, str]) -> sympy.Expr:
    if isinstance(node, ast.Name):
        return symbol(names[node.id])
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return sympy.Integer(node.value)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_build(node.operand, names)
    if isinstance(node, ast.BinOp):
        return _OPERATORS[type(node.op)](_build(node.left, names), _build(node.right, names))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return _FUNCTIONS[node.func.id](*(_build(a, names) for a in node.args))
    raise ValueError(f"not an expression of sizes: {ast.dump(node)}")


def known(dim: Dim | None) -> bool:
    """Whether anything is known of a dimension."""
    return isinstance(dim, int) or (dim is not None and dim.value is not None)


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
        return UNKNOWN
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
    return a.value == b.value or _difference(a.value, b.value) == 0


def contradict(a: Dim | None, b: Dim | None) -> bool:
    """Whether two dimensions can never be equal: different ints, or expressions a nonzero constant apart."""
    if isinstance(a, int) and isinstance(b, int):
        return a != b
    if a is None or b is None or isinstance(a, int) or isinstance(b, int) or a.value is None or b.value is None:
        return False
    return a.value != b.value and _difference(a.value, b.value) not in (0, None)


def capped(a: Dim, b: Dim) -> bool:
    """Whether ``a`` is ``min(b, c)`` for some number ``c`` of at least 1 (a slice of ``b`` up to a limit).

    Where two such dimensions broadcast, the result is ``b``: they are equal, or the limit was passed and they do not.
    """
    if isinstance(a, int) or isinstance(b, int) or a.value is None or b.value is None:
        return False
    return "Min(" in a.value and _capped(a.value, b.value)


@lru_cache(maxsize=65536)
def _capped(a: str, b: str) -> bool:
    whole = _parse(b)
    factor, low = _parse(a).as_coeff_Mul()
    if not isinstance(low, sympy.Min):
        return False
    limits = [sympy.expand(factor * x) for x in low.args]
    return sympy.expand(whole) in limits and all(x == whole or x.is_positive for x in limits)


def merge(a: Dim | None, b: Dim | None) -> Dim:
    """One of two dimensions that must be equal: the int, else the first that is known."""
    if isinstance(b, int) and not isinstance(a, int):
        return b
    if known(a):
        assert a is not None
        return a
    return UNKNOWN if b is None else b


@lru_cache(maxsize=65536)
def _difference(a: str, b: str) -> int | None:
    """``a − b`` if that is a constant."""
    difference = sympy.expand(_parse(a) - _parse(b))
    return int(difference) if difference.is_Integer else None


def add(a: Dim, b: Dim) -> Dim:
    """``a + b``."""
    if isinstance(a, int) and isinstance(b, int):
        return a + b
    return _combine("+", a, b)


def sub(a: Dim, b: Dim) -> Dim:
    """``a − b``."""
    if isinstance(a, int) and isinstance(b, int):
        return a - b
    return _combine("-", a, b)


def mul(a: Dim, b: Dim) -> Dim:
    """``a · b``."""
    if isinstance(a, int) and isinstance(b, int):
        return a * b
    if (isinstance(a, int) and a == 0) or (isinstance(b, int) and b == 0):
        return 0
    return _combine("*", a, b)


def floor_div(a: Dim, b: Dim) -> Dim:
    """``floor(a / b)``; unknown for a zero divisor."""
    if isinstance(b, int) and b == 0:
        return UNKNOWN
    if isinstance(a, int) and isinstance(b, int):
        return a // b
    return _combine("//", a, b)


def ceil_div(a: Dim, b: int) -> Dim:
    """``ceil(a / b)`` for a positive divisor."""
    return floor_div(add(a, b - 1), b)


def exact_div(a: Dim, b: Dim) -> Dim:
    """``a / b`` where the quotient is known to be an integer; unknown where it is not one, or for a zero divisor."""
    if isinstance(b, int) and b == 0:
        return UNKNOWN
    if isinstance(a, int) and isinstance(b, int):
        return a // b if a % b == 0 else UNKNOWN
    return _combine("/", a, b)


def modulo(a: Dim, b: Dim) -> Dim:
    """``a mod b`` with the sign of ``b``; unknown for a zero divisor."""
    if isinstance(b, int) and b == 0:
        return UNKNOWN
    if isinstance(a, int) and isinstance(b, int):
        return a % b
    return _combine("%", a, b)


def minimum(a: Dim, b: Dim) -> Dim:
    """The smaller of two."""
    if isinstance(a, int) and isinstance(b, int):
        return min(a, b)
    return _combine("min", a, b)


def maximum(a: Dim, b: Dim) -> Dim:
    """The larger of two."""
    if isinstance(a, int) and isinstance(b, int):
        return max(a, b)
    return _combine("max", a, b)


def product(dims: Iterable[Dim]) -> Dim:
    """The product of all; 1 of none."""
    result: Dim = 1
    for dim in dims:
        result = mul(result, dim)
    return result


def total(dims: Iterable[Dim]) -> Dim:
    """The sum of all; 0 of none."""
    result: Dim = 0
    for dim in dims:
        result = add(result, dim)
    return result


@lru_cache(maxsize=65536)
def nonnegative(dim: Dim) -> bool:
    """Whether a dimension is at least zero whatever the symbols are."""
    if isinstance(dim, int):
        return dim >= 0
    expr = to_expr(dim)
    return expr is not None and bool(expr.is_nonnegative)


@lru_cache(maxsize=65536)
def integral(dim: Dim) -> bool:
    """Whether a dimension is an integer whatever the symbols are."""
    if isinstance(dim, int):
        return True
    expr = to_expr(dim)
    return expr is not None and bool(expr.is_integer)


@lru_cache(maxsize=65536)
def _combine(operator: str, a: Dim, b: Dim) -> Dim:
    left, right = to_expr(a), to_expr(b)
    if left is None or right is None:
        return UNKNOWN
    if operator == "+":
        result = left + right
    elif operator == "-":
        result = sympy.expand(left - right)
    elif operator == "*":
        result = left * right
    elif operator == "//":
        quotient = _quotient(_unfloored(left) if right.is_Integer and right > 0 else left, right)
        result = quotient if quotient.is_integer else _floor(quotient)
    elif operator == "/":
        result = _quotient(left, right)
    elif operator == "%":
        result = remainder(left, right)
    elif operator == "min":
        result = smallest(left, right)
    else:
        result = largest(left, right)
    return to_dim(result)


def _floor(expr: sympy.Expr) -> sympy.Expr:
    """The floor, its constant term brought to [0, 1): floor(a/2 − 1/2) and floor(a/2 + 1/2) − 1 read the same."""
    whole = sympy.floor(expr.as_coeff_Add()[0])
    return sympy.floor(expr - whole) + whole


def _unfloored(expr: sympy.Expr) -> sympy.Expr:
    """``e + n`` for ``floor(e) + n``: divided by a whole number and floored again, both are equal."""
    terms = sympy.Add.make_args(expr)
    floors = [t for t in terms if isinstance(t, sympy.floor)]
    if len(floors) != 1 or not all(t.is_integer for t in terms):
        return expr
    return sympy.Add(floors[0].args[0], *(t for t in terms if t is not floors[0]))


def _quotient(left: sympy.Expr, right: sympy.Expr) -> sympy.Expr:
    quotient = left / right
    if right.is_Integer or quotient.is_integer:
        # (8·a + 16) / 8 = a + 2
        return sympy.expand(quotient) if left.is_Add else quotient
    return sympy.cancel(quotient)


def evaluate(dim: Dim | None, sizes: Mapping[str, int]) -> int | None:
    """The size of a dimension once its symbols have these sizes; None if a symbol is missing or nothing is known."""
    if isinstance(dim, int):
        return dim
    expr = to_expr(dim)
    if expr is None:
        return None
    value = expr.xreplace({s: sympy.Integer(sizes[s.name]) for s in expr.free_symbols if s.name in sizes})
    return int(value) if value.is_Integer else None


def symbols_of(dim: Dim | None) -> frozenset[str]:
    """Names of the sizes that a dimension is made of."""
    if dim is None or isinstance(dim, int) or dim.value is None:
        return frozenset()
    return frozenset([dim.value]) if dim.value.isidentifier() else _symbols(dim.value)


@lru_cache(maxsize=65536)
def _symbols(text: str) -> frozenset[str]:
    return frozenset(s.name for s in _parse(text).free_symbols)
