"""Deep-Fusion (Aminabadi et al. 2022, DeepSpeed Inference): four blocks for each layer of a transformer.

With few rows a product is bound by reading its weights, and starting kernels costs as much as running them. A layer
then becomes: (1) normalization and the products for queries, keys and values, (2) attention, (3) output projection,
residual sum, normalization and the first products of the feed-forward part, (4) its last product and the residual sum.
The parts are found by following data from the attention, not by names; what was fused before stays together.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir

from ...ir.graph import is_op, tensor_of
from .block_types import BlockType
from .blocking import Blocking

_DEPTH = 4
"""Blocks without a product that may lie between two parts of a layer."""


def deepen(blocking: Blocking) -> tuple[int, list[tuple[onnx_ir.Node, str]]]:
    """Make four blocks of each layer that is recognized: (layers, near misses with reasons)."""
    layers = 0
    missed: list[tuple[onnx_ir.Node, str]] = []
    for node in [member for member, info in enumerate(blocking.infos) if _scores(info.node)]:
        core = _Layer(blocking, blocking.quotient.home[node])
        parts = core.parts()
        if isinstance(parts, str):
            missed.append((blocking.infos[node].node, parts))
            continue
        together = [sorted(n for name in part for n in blocking.quotient.members[name]) for part in parts]
        taken = {name for part in parts for name in part}
        rest = [group for name, group in blocking.quotient.members.items() if name not in taken]
        if blocking.rebuild([*rest, *together]):
            layers += 1
        else:
            missed.append((blocking.infos[node].node, "its blocks would wait for each other"))
    return layers, missed


def _scores(node: onnx_ir.Node) -> bool:
    """Whether a node is an attention, or the product of queries and keys of one that was taken apart."""
    if node.op_type in ("Attention", "MultiHeadAttention", "GroupQueryAttention"):
        return True
    return is_op(node, "MatMul") and not _weighs(node) and _before_softmax(node)


def _before_softmax(node: onnx_ir.Node) -> bool:
    value = node.outputs[0]
    for _ in range(_DEPTH):
        users = {user for user, _ in value.uses()}
        if len(users) != 1:
            return False
        (user,) = users
        if is_op(user, "Softmax"):
            return True
        if not is_op(user, "Mul", "Div", "Add", "Where", "Cast"):
            return False
        value = user.outputs[0]
    return False


def _weighs(node: onnx_ir.Node) -> bool:
    """Whether a product has a constant operand: a weight, in whatever way it is stored."""
    return any(_constant(value) for value in node.inputs[:2])


def _constant(value: onnx_ir.Value | None, depth: int = 4) -> bool:
    if value is None or tensor_of(value) is not None:
        return value is not None
    maker = value.producer()
    if maker is None or depth == 0 or not is_op(maker, "Transpose", "DequantizeLinear", "Cast", "Reshape"):
        return False
    return all(_constant(inner, depth - 1) for inner in maker.inputs if inner is not None)


class _Layer:
    """The blocks around one attention."""

    def __init__(self, blocking: Blocking, core: int) -> None:
        self._blocking, self._quotient, self._core = blocking, blocking.quotient, core

    def parts(self) -> list[set[int]] | str:
        """The blocks of the four parts; why there are none."""
        attention = self._attention()
        if isinstance(attention, str):
            return attention
        projections, between = self._towards(attention)
        if not projections:
            return "no products with weights make queries, keys and values"
        attention |= between
        norms = [name for name in self._common(projections, before=True) if self._kind(name) is BlockType.REDUCTION]
        first = projections | set(norms[:1])
        after = self._next(attention, lambda name: self._weighs(name))
        if len(after) != 1:
            return f"{len(after)} products with weights read the attention"
        second = [name for name in self._quotient.after[after[0]] if self._kind(name) is BlockType.REDUCTION]
        if not second:
            return "no normalization follows the output projection"
        feed = [n for n in self._next({second[0]}, self._weighs) if not self._leads_to_attention(n)]
        # The last product reads the normalization, too, where that is the residual.
        feed = [name for name in feed if not any(self._feeds(other, name) for other in feed if other != name)]
        if not feed:
            return "no product with weights follows the second normalization"
        gates = {name for name in self._quotient.after[feed[0]] if name not in feed and not self._products(name)}
        last = [name for name in self._next({*feed, *gates}, self._weighs) if name not in feed]
        if len(last) != 1:
            return f"{len(last)} products with weights end the feed-forward part"
        inner = {name for name in gates if last[0] in self._quotient.after[name]}
        return [first, attention, {after[0], second[0], *feed, *inner}, {last[0]}]

    def _kind(self, name: int) -> BlockType:
        return self._blocking.types[name]

    def _nodes(self, name: int) -> list[onnx_ir.Node]:
        return [self._blocking.infos[member].node for member in self._quotient.members[name]]

    def _products(self, name: int) -> list[onnx_ir.Node]:
        members = (self._blocking.infos[member] for member in self._quotient.members[name])
        return [info.node for info in members if info.type is BlockType.CONTRACTION]

    def _weighs(self, name: int) -> bool:
        products = self._products(name)
        return bool(products) and all(is_op(n, "MatMul", "Gemm") and _weighs(n) for n in products)

    def _attention(self) -> set[int] | str:
        """The attention's blocks: one, or those of scores, softmax and the product with the values."""
        if any(not is_op(node, "MatMul", "Gemm") for node in self._products(self._core)):
            return {self._core}
        found = {self._core}
        reached = self._next(found, lambda name: bool(self._products(name)), through=found)
        values = [name for name in reached if not self._weighs(name)]
        return found | {values[0]} if len(values) == 1 else f"{len(values)} products read the scores"

    def _next(self, start: Iterable[int], wanted: object, through: set[int] | None = None) -> list[int]:
        """The nearest blocks after ``start`` that are wanted; blocks without a product are looked through."""
        assert callable(wanted)
        found: list[int] = []
        front = set(start)
        seen = set(front)
        for _ in range(_DEPTH):
            following = {name for block in front for name in self._quotient.after[block]} - seen
            seen |= following
            found += sorted(name for name in following if wanted(name))
            front = {n for n in following if not self._products(n) and self._kind(n) is not BlockType.HOST}
            if found or not front:
                if through is not None:
                    through.update(self._between(through, found))
                return found
        return found

    def _between(self, start: set[int], end: Iterable[int]) -> set[int]:
        ends = list(end)
        inside = {name for block in start for name in self._quotient.after[block]} - set(ends) - start
        return {n for n in inside if any(e in self._quotient.after[n] for e in ends) and not self._products(n)}

    def _towards(self, attention: set[int]) -> tuple[set[int], set[int]]:
        """Products with weights that feed the attention, and blocks without a product on the way."""
        found: set[int] = set()
        between: set[int] = set()
        front = {need for name in attention for need in self._quotient.before[name]} - attention
        for _ in range(_DEPTH):
            found |= {name for name in front if self._weighs(name)}
            middle = {n for n in front if not self._products(n) and self._kind(n) is not BlockType.HOST}
            before = {need for name in middle for need in self._quotient.before[name]}
            feeding = {name for name in middle if any(self._weighs(need) for need in self._quotient.before[name])}
            between |= feeding
            front = before - attention - found - between
            if not front:
                break
        return found, between

    def _common(self, blocks: set[int], *, before: bool) -> list[int]:
        """Blocks that all of ``blocks`` read."""
        table = self._quotient.before if before else self._quotient.after
        shared = set.intersection(*(set(table[name]) for name in blocks))
        return sorted(shared - blocks)

    def _feeds(self, a: int, b: int) -> bool:
        """Whether what goes into the product of block ``b`` comes from block ``a``; what is added behind it may."""
        members = self._quotient.members[b]
        inside = set(members)
        stack = [n for n in members if self._blocking.infos[n].type is BlockType.CONTRACTION]
        seen = set(stack)
        while stack:
            for need in self._blocking.needs[stack.pop()]:
                home = self._quotient.home[need]
                if home != b and (home == a or self._quotient.reaches(a, home)):
                    return True
                if need in inside and need not in seen:
                    seen.add(need)
                    stack.append(need)
        return False

    def _leads_to_attention(self, name: int) -> bool:
        return any(_scores(node) for after in self._quotient.after[name] for node in self._nodes(after))
