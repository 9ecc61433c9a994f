"""Chains of matrix products, computed in the order that costs least: ``(A·B)·C = A·(B·C)``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir
import sympy

from ...ir.graph import Graph, dims, is_op, module_path, sizes_of, tensor_of
from ...ir.rewrite import Editor
from ...ir.symbolic import Dim, same, to_expr
from ...ir.weights import lazy
from ..base import Outcome

RULE = "(a @ b) @ c => a @ (b @ c)"
_LONGEST = 8


@dataclass(frozen=True)
class _Tree:
    """An order of multiplication: one factor of the chain, or a product of two orders."""

    first: int
    last: int
    cut: int | None = None
    left: _Tree | None = None
    right: _Tree | None = None


def order_chains(graph: Graph, outcome: Outcome) -> None:
    """Reorder chains of MatMul in the main graph, in place, where that provably costs no more at any size.

    The factors are matrices, but for the first, which may be a batch of them. A product of two constants costs
    nothing: it is computed when the weights are written.
    """
    edit = Editor(graph, RULE)
    for node in list(graph.graph):
        if node.graph is None or not is_op(node, "MatMul") or _inside(node):
            continue
        factors: list[onnx_ir.Value] = []
        nodes: list[onnx_ir.Node] = []
        current = _collect(node, factors, nodes)
        if len(factors) < 3 or len(factors) > _LONGEST or current is None:
            continue
        sizes = _sizes(factors)
        if sizes is None:
            outcome.missed(module_path(node), f"{RULE}: the shapes of the factors do not follow each other")
            continue
        constants = [tensor_of(value) is not None for value in factors]
        best = _best(sizes, constants)
        if best is None or _shape(best) == _shape(current):
            if best is None:
                outcome.missed(module_path(node), f"{RULE}: which order costs less depends on sizes not known")
            continue
        if not _less(_cost(best, sizes, constants), _cost(current, sizes, constants)):
            outcome.missed(module_path(node), f"{RULE}: another order is not cheaper at all sizes")
            continue
        where = module_path(node)
        edit.at(node, nodes)
        edit.replace(node.outputs[0], _emit(edit, best, factors))
        edit.sweep([node])
        outcome.count(RULE)
        outcome.applied(where, f"{RULE}: {len(factors)} factors")


def _inside(node: onnx_ir.Node) -> bool:
    """Whether a product is only a factor of another one."""
    out = node.outputs[0]
    uses = list(out.uses())
    return len(uses) == 1 and not out.is_graph_output() and is_op(uses[0].node, "MatMul") and _matrix_like(uses[0].node)


def _matrix_like(node: onnx_ir.Node) -> bool:
    """Whether the second factor is a matrix, so that the product may be regrouped."""
    shape = dims(node.inputs[1])
    first = dims(node.inputs[0])
    return shape is not None and len(shape) == 2 and first is not None and len(first) >= 2


def _collect(node: onnx_ir.Node, factors: list[onnx_ir.Value], nodes: list[onnx_ir.Node]) -> _Tree | None:
    """The factors of a chain in order, and the order in which they are multiplied now."""
    if not _matrix_like(node):
        return None
    nodes.append(node)
    parts: list[_Tree] = []
    for value in node.inputs:
        assert value is not None
        maker = value.producer()
        tree = None
        if maker is not None and is_op(maker, "MatMul") and _inside(maker) and _matrix_like(maker):
            tree = _collect(maker, factors, nodes)
        if tree is None:
            factors.append(value)
            tree = _Tree(len(factors) - 1, len(factors) - 1)
        parts.append(tree)
    left, right = parts
    return _Tree(left.first, right.last, left.last, left, right)


def _sizes(factors: Sequence[onnx_ir.Value]) -> list[Dim] | None:
    """Rows of the first factor (its batch included), then the columns of each; None if they do not fit together."""
    first = dims(factors[0])
    if first is None:
        return None
    rows: Any = sympy.Integer(1)
    for dim in first[:-1]:
        expression = to_expr(dim)
        if expression is None:
            return None
        rows *= expression
    result: list[Any] = [rows, first[-1]]
    for value in factors[1:]:
        shape = dims(value)
        if shape is None or len(shape) != 2 or not same(shape[0], result[-1]):
            return None
        result.append(shape[1])
    return result


def _expr(size: Any) -> Any:
    return size if isinstance(size, sympy.Expr) else to_expr(size)


def _best(sizes: Sequence[Any], constants: Sequence[bool]) -> _Tree | None:
    """The cheapest order by dynamic programming; None if two orders cannot be compared."""
    count = len(constants)
    table: dict[tuple[int, int], _Tree] = {(i, i): _Tree(i, i) for i in range(count)}
    for width in range(1, count):
        for first in range(count - width):
            last = first + width
            best: _Tree | None = None
            for cut in range(first, last):
                tree = _Tree(first, last, cut, table[first, cut], table[cut + 1, last])
                if best is None:
                    best = tree
                    continue
                new, old = _cost(tree, sizes, constants), _cost(best, sizes, constants)
                if _less(new, old):
                    best = tree
                elif not _less(old, new) and sympy.expand(new - old) != 0:
                    return None
            assert best is not None
            table[first, last] = best
    return table[0, count - 1]


def _cost(tree: _Tree, sizes: Sequence[Any], constants: Sequence[bool]) -> Any:
    """Multiplications; a product of constants costs none."""
    if tree.left is None or tree.right is None or all(constants[tree.first : tree.last + 1]):
        return sympy.Integer(0)
    rows, inner, columns = (_expr(sizes[i]) for i in (tree.first, tree.left.last + 1, tree.last + 1))
    below = _cost(tree.left, sizes, constants) + _cost(tree.right, sizes, constants)
    return sympy.expand(below + rows * inner * columns)


def _less(a: Any, b: Any) -> bool:
    """Whether ``a`` is less than ``b`` for all sizes of at least one."""
    difference = sympy.expand(b - a)
    if difference.is_Integer:
        return int(difference) > 0
    shifted = sympy.expand(difference.subs({s: s + 1 for s in difference.free_symbols}, simultaneous=True))
    terms = sympy.Add.make_args(shifted)
    return bool(terms) and all(term.as_coeff_Mul()[0] >= 0 and term.is_polynomial() for term in terms)


def _shape(tree: _Tree) -> Any:
    if tree.left is None or tree.right is None:
        return tree.first
    return (_shape(tree.left), _shape(tree.right))


def _emit(edit: Editor, tree: _Tree, factors: Sequence[onnx_ir.Value]) -> onnx_ir.Value:
    if tree.left is None or tree.right is None:
        return factors[tree.first]
    left, right = _emit(edit, tree.left, factors), _emit(edit, tree.right, factors)
    a, b = tensor_of(left), tensor_of(right)
    if a is None or b is None:
        return edit.op("MatMul", [left, right])

    def compute() -> np.ndarray[Any, Any]:
        product = a.numpy().astype(np.float64) @ b.numpy().astype(np.float64)
        return np.asarray(product).astype(a.dtype.numpy())

    shape = [*sizes_of(a)[:-1], sizes_of(b)[-1]]
    return edit.initializer(lazy(compute, a.dtype, shape), f"{right.name}.product")
