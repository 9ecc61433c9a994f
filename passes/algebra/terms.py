"""Terms: what stands on the two sides of an equation, read from text such as ``a * b + a * c``.

The text is Python's expression syntax: ``+ - * / @ ** <<``, ``and``, ``or``, ``not`` and calls of the functions below.
``a ** 2`` is the product of ``a`` with itself. Names match any value; ``k``, ``m`` and ``n`` only constants.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

CONSTANTS = frozenset("kmn")
"""Names that stand for constant tensors."""


@dataclass(frozen=True)
class Variable:
    """Any value, the same wherever the name stands."""

    name: str

    @property
    def constant(self) -> bool:
        """Whether only constants match."""
        return self.name in CONSTANTS


@dataclass(frozen=True)
class Number:
    """A constant of which every element is this number."""

    value: float


@dataclass(frozen=True)
class Apply:
    """An operator on terms."""

    op: str
    args: tuple[Term, ...]


Term: TypeAlias = "Variable | Number | Apply"

ASSOCIATIVE = frozenset(("+", "*", "max", "min", "and", "or"))
"""Operators whose operands may be grouped and ordered at will (sums and products up to rounding)."""

ONNX: dict[str, str] = {
    "+": "Add",
    "-": "Sub",
    "*": "Mul",
    "/": "Div",
    "@": "MatMul",
    "<<": "BitShift",
    "pow": "Pow",
    "neg": "Neg",
    "and": "And",
    "or": "Or",
    "not": "Not",
    "max": "Max",
    "min": "Min",
    "where": "Where",
    "abs": "Abs",
    "ceil": "Ceil",
    "cos": "Cos",
    "erf": "Erf",
    "exp": "Exp",
    "floor": "Floor",
    "log": "Log",
    "recip": "Reciprocal",
    "relu": "Relu",
    "round": "Round",
    "sigmoid": "Sigmoid",
    "sign": "Sign",
    "sin": "Sin",
    "softplus": "Softplus",
    "sqrt": "Sqrt",
    "tanh": "Tanh",
    "sum": "ReduceSum",
    "mean": "ReduceMean",
    "prod": "ReduceProd",
    "top": "ReduceMax",
    "bottom": "ReduceMin",
}
"""The ONNX operator behind each operator of terms."""

REDUCTIONS = frozenset(("sum", "mean", "prod", "top", "bottom"))
"""Reductions; all those of one equation go over the same axes."""

_BINARY: dict[type[ast.operator], str] = {
    ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.MatMult: "@", ast.LShift: "<<", ast.Pow: "pow",
}  # fmt: skip


@functools.cache
def parse(text: str) -> Term:
    """The term that ``text`` spells; raises ValueError for what is none."""
    return _term(ast.parse(text, mode="eval").body, text)


def _term(node: ast.expr, text: str) -> Term:
    if isinstance(node, ast.Name):
        return Variable(node.id)
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return Number(float(node.value))
    if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        left, right = _term(node.left, text), _term(node.right, text)
        if isinstance(node.op, ast.Pow) and right == Number(2.0):
            return Apply("*", (left, left))
        return Apply(_BINARY[type(node.op)], (left, right))
    if isinstance(node, ast.BoolOp):
        return Apply("and" if isinstance(node.op, ast.And) else "or", tuple(_term(v, text) for v in node.values))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.Not):
        inner = _term(node.operand, text)
        if isinstance(inner, Number):
            return Number(-inner.value)
        return Apply("neg" if isinstance(node.op, ast.USub) else "not", (inner,))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ONNX:
        return Apply(node.func.id, tuple(_term(argument, text) for argument in node.args))
    raise ValueError(f"{ast.unparse(node)!r} in {text!r} is no term")


def flat(term: Term) -> Term:
    """Nested sums of sums and products of products as one of many operands; squares stay products of two."""
    if not isinstance(term, Apply):
        return term
    args: list[Term] = []
    for argument in map(flat, term.args):
        if term.op in ASSOCIATIVE and isinstance(argument, Apply) and argument.op == term.op:
            args.extend(argument.args)
        else:
            args.append(argument)
    return Apply(term.op, tuple(args))


def variables(term: Term) -> Iterator[Variable]:
    """Every variable, as often as it stands there."""
    if isinstance(term, Variable):
        yield term
    elif isinstance(term, Apply):
        for argument in term.args:
            yield from variables(argument)


def operators(term: Term) -> Iterator[str]:
    """Every operator, as often as it stands there."""
    if isinstance(term, Apply):
        yield term.op
        for argument in term.args:
            yield from operators(argument)
