"""Where the left side of an equation stands in a graph, modulo commutativity and, where allowed, associativity."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import onnx_ir

from ...ir.graph import attribute, constant, dims, is_op, tensor_of
from ...ir.symbolic import Dim, same
from ...ir.traits import reduced_axes
from .equation import Condition, Equation
from .terms import ASSOCIATIVE, ONNX, REDUCTIONS, Apply, Number, Term, Variable

LIMIT = 1 << 16
"""Elements; larger constants are ordinary values to the table, their numbers are not read."""
_WIDEST = 8
"""Operands of a flattened sum or product; of more, only the node's own are looked at."""


@dataclass(frozen=True)
class Group:
    """Several operands of a sum or product, taken together."""

    op: str
    members: tuple[onnx_ir.Value, ...]


@dataclass(frozen=True)
class Axes:
    """What the reductions of a match have in common.

    Attributes:
        axes: counted from the end.
        keep: whether the reduced dimensions stay.
        rank: of what is reduced.
        sizes: of the reduced dimensions.
    """

    axes: tuple[int, ...]
    keep: bool
    rank: int
    sizes: tuple[Dim, ...]

    def alike(self, other: Axes) -> bool:
        """Whether two reductions go over the same places."""
        return (self.axes, self.keep, self.rank) == (other.axes, other.keep, other.rank) and all(
            map(same, self.sizes, other.sizes)
        )


Operand: TypeAlias = "onnx_ir.Value | Group"


@dataclass(frozen=True)
class Match:
    """One way in which an equation holds at a node.

    Attributes:
        equation: the row.
        node: the last node of the left side.
        bound: values by name.
        axes: of the reductions in it.
        rest: further operands of the root's sum or product.
    """

    equation: Equation
    node: onnx_ir.Node
    bound: dict[str, Operand]
    axes: Axes | None
    rest: tuple[onnx_ir.Value, ...]


@dataclass(frozen=True)
class _State:
    bound: dict[str, Operand]
    axes: Axes | None = None

    def bind(self, name: str, operand: Operand) -> _State:
        return _State({**self.bound, name: operand}, self.axes)


def matches(equation: Equation, node: onnx_ir.Node, *, regroup: bool) -> Iterator[Match]:
    """Every way in which the left side of ``equation`` ends at ``node``.

    Args:
        equation: a row of the table.
        node: its operator is the root of the left side.
        regroup: whether sums and products may be grouped in another way (extrema and logic always may).
    """
    pattern = equation.pattern
    assert isinstance(pattern, Apply)
    search = _Search(regroup)
    root = node.outputs[0]
    if not search.free(pattern.op):
        for state in search.match(pattern, root, _State({})):
            if _holds(equation, state, root):
                yield Match(equation, node, state.bound, state.axes, ())
        return
    found = search.operands(root, pattern.op)
    if found is None or len(found) < len(pattern.args):
        return
    for state, left in search.assign(pattern.op, pattern.args, found, _State({}), whole=False):
        if _holds(equation, state, root):
            yield Match(equation, node, state.bound, state.axes, tuple(left))


class _Search:
    def __init__(self, regroup: bool) -> None:
        self.regroup = regroup

    def free(self, op: str) -> bool:
        """Whether operands of ``op`` may be grouped at will."""
        return op in ASSOCIATIVE and (self.regroup or op in ("max", "min", "and", "or"))

    def operands(self, operand: Operand, op: str) -> list[onnx_ir.Value] | None:
        """Operands of a sum or product, nested ones taken together where that is allowed; None if it is none."""
        if isinstance(operand, Group):
            return list(operand.members) if operand.op == op else None
        direct = _direct(operand, op)
        if direct is None or not self.free(op):
            return direct
        wide: list[onnx_ir.Value] = []
        for value in direct:
            inner = None if len(value.uses()) > 1 or value.is_graph_output() else self.operands(value, op)
            wide.extend([value] if inner is None else inner)
        return wide if len(wide) <= _WIDEST else direct

    def match(self, term: Term, operand: Operand, state: _State) -> Iterator[_State]:
        if isinstance(term, Variable):
            known = state.bound.get(term.name)
            if known is not None:
                if _equal(known, operand):
                    yield state
            elif not term.constant or (isinstance(operand, onnx_ir.Value) and is_constant(operand)):
                yield state.bind(term.name, operand)
        elif isinstance(term, Number):
            if isinstance(operand, onnx_ir.Value) and _is_number(operand, term.value):
                yield state
        elif term.op in ASSOCIATIVE:
            found = self.operands(operand, term.op)
            if found is not None:
                for result, _ in self.assign(term.op, term.args, found, state, whole=True):
                    yield result
        elif isinstance(operand, onnx_ir.Value):
            yield from self._plain(term, operand, state)

    def _plain(self, term: Apply, value: onnx_ir.Value, state: _State) -> Iterator[_State]:
        node = value.producer()
        if node is None:
            return
        inputs = _inputs(node, term)
        if inputs is None:
            return
        if term.op in REDUCTIONS:
            axes = axes_of(node)
            if axes is None or (state.axes is not None and not state.axes.alike(axes)):
                return
            state = _State(state.bound, axes)
        states = [state]
        for argument, operand in zip(term.args, inputs, strict=True):
            states = [after for before in states for after in self.match(argument, operand, before)]
        yield from states

    def assign(
        self, op: str, terms: Sequence[Term], operands: list[onnx_ir.Value], state: _State, *, whole: bool
    ) -> Iterator[tuple[_State, list[onnx_ir.Value]]]:
        """Give each term an operand of its own; with ``whole`` all are given, the last new name taking what is left."""
        if not terms:
            if not whole or not operands:
                yield state, operands
            return
        index = min(range(len(terms)), key=lambda i: _freedom(terms[i], state))
        term, others = terms[index], [*terms[:index], *terms[index + 1 :]]
        if whole and not others and len(operands) > 1:
            if isinstance(term, Variable):
                for after in self.match(term, Group(op, tuple(operands)), state):
                    yield after, []
            return
        seen: set[onnx_ir.Value] = set()
        for i, operand in enumerate(operands):
            if operand in seen:
                continue
            seen.add(operand)
            for after in self.match(term, operand, state):
                yield from self.assign(op, others, [*operands[:i], *operands[i + 1 :]], after, whole=whole)


def _freedom(term: Term, state: _State) -> int:
    """How many operands a term is likely to match: the fewest go first."""
    if isinstance(term, Number):
        return 0
    if isinstance(term, Apply):
        return 1
    if term.name in state.bound:
        return 0
    return 2 if term.constant else 3


def _direct(value: onnx_ir.Value, op: str) -> list[onnx_ir.Value] | None:
    """The operands of the node that makes ``value``, if that is ``op``; a square is a product of two."""
    node = value.producer()
    if is_op(node, ONNX[op]):
        assert node is not None
        inputs = [v for v in node.inputs if v is not None]
        return inputs if len(inputs) > 1 else None
    if op == "*" and is_op(node, "Pow"):
        assert node is not None
        base, exponent = node.inputs[0], node.inputs[1]
        if base is not None and exponent is not None and _is_number(exponent, 2.0) and dims(exponent) in ((), (1,)):
            return [base, base]
    return None


def _inputs(node: onnx_ir.Node, term: Apply) -> list[onnx_ir.Value] | None:
    """What the node computes ``term`` of; None if it computes something else."""
    if term.op == "recip" and is_op(node, "Div"):
        over, under = node.inputs[0], node.inputs[1]
        return [under] if over is not None and under is not None and _is_number(over, 1.0) else None
    if not is_op(node, ONNX[term.op]) or (term.op == "<<" and attribute(node, "direction") != "LEFT"):
        return None
    inputs = [v for v in (node.inputs[:1] if term.op in REDUCTIONS else node.inputs) if v is not None]
    return inputs if len(inputs) == len(term.args) else None


def axes_of(node: onnx_ir.Node) -> Axes | None:
    """What a reduction goes over; None if that is not known."""
    shape, axes = dims(node.inputs[0]), reduced_axes(node)
    if shape is None or axes is None or not axes:
        return None
    sizes = tuple(shape[axis] for axis in axes)
    keep = bool(attribute(node, "keepdims", 1))
    return Axes(tuple(axis - len(shape) for axis in axes), keep, len(shape), sizes)


def is_constant(value: onnx_ir.Value) -> bool:
    """Whether ``value`` is a constant whose numbers may be read."""
    tensor = tensor_of(value)
    return tensor is not None and 0 < tensor.size <= LIMIT and tensor.dtype != onnx_ir.DataType.STRING


def _is_number(value: onnx_ir.Value, number: float) -> bool:
    array = constant(value, limit=1)
    return array is not None and array.size == 1 and bool(np.all(array == np.asarray(number, array.dtype)))


def _equal(a: Operand, b: Operand) -> bool:
    if isinstance(a, Group) and isinstance(b, Group):
        return a.op == b.op and sorted(map(id, a.members)) == sorted(map(id, b.members))
    return a is b


def _holds(equation: Equation, state: _State, root: onnx_ir.Value) -> bool:
    """Whether the conditions of an equation hold."""
    for name, condition in equation.where:
        operand = state.bound[name]
        if condition is Condition.SMALL:
            if isinstance(operand, Group):
                return False
            continue  # the cost decides; what is as large as the result cannot win
        if isinstance(operand, Group):
            return False
        shape = dims(operand)
        if shape is None:
            return False
        if condition is Condition.SCALAR and not all(dim == 1 for dim in shape):
            return False
        if condition is Condition.POSITIVE and not _positive(operand):
            return False
        if condition is Condition.UNREDUCED and not _unreduced(shape, state.axes):
            return False
    alike = [
        dims(v) for n, c in equation.where if c is Condition.LIKE and isinstance(v := state.bound[n], onnx_ir.Value)
    ]
    if any(shape is None or len(shape) != len(alike[0] or ()) for shape in alike):
        return False
    if any(not all(map(same, shape or (), alike[0] or ())) for shape in alike[1:]):
        return False
    small = [state.bound[n] for n, c in equation.where if c is Condition.SMALL]
    return not small or _smaller([v for v in small if isinstance(v, onnx_ir.Value)], root)


def _positive(value: onnx_ir.Value) -> bool:
    array = constant(value, limit=LIMIT)
    return array is not None and array.size > 0 and bool(np.all(array > 0) and np.all(np.isfinite(array)))


def _unreduced(shape: Sequence[Dim], axes: Axes | None) -> bool:
    if axes is None or len(shape) > axes.rank:
        return False
    if not axes.keep:
        # The reduced dimensions go: only a single number stays where it is.
        return not shape or list(shape) == [1]
    return all(-axis > len(shape) or shape[axis] == 1 for axis in axes.axes)


def _smaller(values: Sequence[onnx_ir.Value], root: onnx_ir.Value) -> bool:
    """Whether what the values broadcast to together lacks a dimension of the result."""
    whole = dims(root)
    if whole is None:
        return False
    for axis, dim in enumerate(reversed(whole), start=1):
        if dim == 1:
            continue
        shapes = [dims(value) for value in values]
        if all(shape is not None and (axis > len(shape) or shape[-axis] == 1) for shape in shapes):
            return True
    return False
