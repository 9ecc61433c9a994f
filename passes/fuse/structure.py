"""Whether nodes can be computed by one kernel: at most one product, reductions over the same rows, and what follows
them in places that the same program has at hand.

A value in front of every reduction and product of a block is *free*: it can be computed at any place, wherever an index
expression points. What a reduction or product makes, and everything made of that, is *anchored*: the program that
computed it holds it, so it can be combined with what is at the same place (or, for reductions, in the same row), and
stored through an index map, but not picked up at another place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import onnx_ir

from ...ir.graph import attribute, is_op
from ...ir.outline import embedded
from ...ir.traits import Kind, kind, reduced_axes
from .block_types import POOLS, BlockType, classify
from .sizes import Sizes, dims_of

TILE_ROW = 128
"""The longest row, in elements, that a tile of a product's result holds whole."""

_STORED = frozenset("Reshape Flatten Squeeze Unsqueeze Transpose DepthToSpace SpaceToDepth Slice Split Concat".split())
"""Movements whose index map can be turned round, so that a program can store what it holds where it belongs."""

Dims: TypeAlias = "tuple[str, ...] | None"
_Space: TypeAlias = "tuple[Any, ...]"


@dataclass(frozen=True, eq=False)
class Info:
    """What the planner knows of one node.

    Attributes:
        node: the node.
        type: its type alone.
        movement: whether it computes nothing.
        view: whether it needs no kernel, since its result is its input with other sizes.
        dims: the shape of its first output.
        rows: for a reduction, what must agree with other reductions of a block: shape of input 0 and the axes.
        row: for a reduction, how many elements are combined into one.
        fixed: whether that number does not depend on named sizes.
        overlaps: for a pool, whether its windows do.
        sources: data inputs that nodes make (operands that say how, such as shapes, left out).
        keeps: for a reduction, whether its result has the rank of its input.
    """

    node: onnx_ir.Node
    type: BlockType
    movement: bool
    view: bool
    dims: Dims
    rows: _Space = ()
    row: int = 1
    overlaps: bool = False
    sources: tuple[onnx_ir.Value, ...] = ()
    keeps: bool = True
    fixed: bool = True


def describe(node: onnx_ir.Node, sizes: Sizes, host: bool = False) -> Info:
    """What the planner knows of ``node``; ``host`` says that it works out sizes."""
    type_ = BlockType.HOST if host else classify(node)
    movement = kind(node) is Kind.MOVEMENT or is_op(node, "Identity")
    view = is_op(node, "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity")
    rows: _Space = ()
    row, overlaps, keeps, fixed = 1, False, True, True
    first = node.inputs[0] if node.inputs else None
    if type_ is BlockType.REDUCTION and first is not None:
        dims, axes = dims_of(first), reduced_axes(node)
        if node.op_type in POOLS:
            window = attribute(node, "kernel_shape", [])
            steps = attribute(node, "strides", [1] * len(window))
            spread = attribute(node, "dilations", [1] * len(window))
            overlaps = any(s < w for s, w in zip(steps, window, strict=True)) or any(d != 1 for d in spread)
            for size in window:
                row *= size
            rows = ("window", node)
        elif axes is None:
            rows, row = ("group", node), sizes.elements(first)
        else:
            assert first.shape is not None
            for axis in axes:
                row *= sizes.dim(first.shape[axis])
                fixed = fixed and isinstance(first.shape[axis], int)
            rows = ("rows", dims, axes) if dims is not None else ("rows", node)
            keeps = bool(attribute(node, "keepdims", 1)) or kind(node) is Kind.NORMALIZATION
    data = node.inputs if not movement or is_op(node, "Concat") else node.inputs[: 2 if _two(node) else 1]
    sources = tuple(v for v in data if v is not None and v.producer() is not None)
    return Info(node, type_, movement, view, dims_of(node.outputs[0]), rows, row, overlaps, sources, keeps, fixed)


def _two(node: onnx_ir.Node) -> bool:
    return is_op(node, "Gather", "GatherElements")


@dataclass
class Shape:
    """What :func:`examine` found out about a block.

    Attributes:
        objection: why it cannot be one kernel; None if it can.
        anchored: values that hang on a reduction or product.
    """

    objection: str | None = None
    anchored: dict[onnx_ir.Value, _Space] = field(default_factory=dict)


def examine(block: Sequence[Info], outputs: Sequence[onnx_ir.Value]) -> Shape:
    """Whether the nodes of ``block``, in topological order, can be one kernel that leaves ``outputs`` behind."""
    found = Shape()
    if len(block) == 1:
        return found
    state = _State(found.anchored)
    for info in block:
        reason = state.add(info)
        if reason is not None:
            found.objection = reason
            return found
    found.objection = state.close(outputs)
    return found


class _State:
    """Goes through a block node by node."""

    def __init__(self, spaces: dict[onnx_ir.Value, _Space]) -> None:
        self.spaces = spaces
        self.product: Info | None = None
        self.reduction: Info | None = None
        self.places: dict[_Space, Dims] = {}
        """By space of anchored values, the shape of all places in it."""
        self.made: set[onnx_ir.Value] = set()

    def add(self, info: Info) -> str | None:
        """Take up the next node; the reason if that cannot be."""
        if info.type in (BlockType.OPAQUE, BlockType.HOST):
            return f"{info.node.op_type} runs alone"
        if any(v is not None and v in self.made and v not in info.sources for v in info.node.inputs):
            return f"what {info.node.op_type} takes for a size is computed in the block"
        held = [(value, self.spaces[value]) for value in info.sources if value in self.spaces]
        self.made.update(info.node.outputs)
        if info.type is BlockType.CONTRACTION:
            return self._contraction(info, held)
        if info.type is BlockType.REDUCTION:
            return self._reduction(info, held)
        if not held:
            return None
        return self._movement(info, held) if info.movement else self._elementwise(info, held)

    def _contraction(self, info: Info, held: list[tuple[onnx_ir.Value, _Space]]) -> str | None:
        if self.product is not None:
            return "two products"
        if self.reduction is not None or held:
            return "a reduction in front of a product"
        self.product = info
        for index, value in enumerate(info.node.outputs):
            self._hold(value, ("product", index), dims_of(value))
        return None

    def _hold(self, value: onnx_ir.Value, space: _Space, dims: Dims) -> None:
        self.spaces[value] = space
        self.places.setdefault(space, dims)

    def _reduction(self, info: Info, held: list[tuple[onnx_ir.Value, _Space]]) -> str | None:
        first = info.node.inputs[0]
        if any(value is not first for value, _ in held):
            return "a parameter of a normalization is computed by a reduction or product"
        other = self.reduction
        if other is not None and (other.rows != info.rows or info.rows[0] != "rows"):
            return "reductions over different rows"
        space = held[0][1] if held else None
        if self.product is not None:
            if space is None:
                return "a reduction beside a product"
            if info.row > TILE_ROW or not info.fixed:
                length = str(info.row) if info.fixed else "a size that is not fixed"
                return f"rows of {length} do not fit into a tile of the product"
            if info.overlaps:
                return "overlapping windows across tiles of the product"
            if other is None and self.places[space] != dims_of(first):
                return "a reduction of a part of the product"
            if other is not None and space != ("rows",):
                return "reductions in different places"
        elif space is not None and space != ("rows",):
            return "a reduction of what was moved after another one"
        self.reduction = info
        inside = dims_of(first)
        self.places.setdefault(("rows",), inside)
        if space is not None and space != ("rows",):
            # What the product made stands in these rows from now on.
            for value, where in list(self.spaces.items()):
                if where == space:
                    self.spaces[value] = ("rows",)
        if info.rows[0] == "window":
            self._hold(info.node.outputs[0], ("window",), info.dims)
        elif info.rows[0] == "group" or info.dims == inside or info.keeps:
            self.spaces[info.node.outputs[0]] = ("rows",)
            for value in info.node.outputs[1:]:
                self.spaces[value] = ("rows",)
        else:
            self._hold(info.node.outputs[0], ("squeezed",), info.dims)
        return None

    def _elementwise(self, info: Info, held: list[tuple[onnx_ir.Value, _Space]]) -> str | None:
        spaces = {space for _, space in held}
        if len(spaces) > 1:
            return f"{info.node.op_type} combines what stands in different places"
        space = spaces.pop()
        full = self.places[space]
        if full is None or info.dims is None:
            return "a shape is not known"
        if space == ("rows",):
            assert self.reduction is not None
            if info.dims != full and info.dims != self._reduced(full):
                return f"{info.node.op_type} leaves the rows of the reduction"
            if any(len(dims_of(value) or ()) != len(full) for value, _ in held):
                return f"{info.node.op_type} leaves the rows of the reduction"
        elif info.dims != full:
            return f"{info.node.op_type} repeats what a reduction or product makes"
        for value in info.node.outputs:
            self.spaces[value] = space
        return None

    def _reduced(self, full: tuple[str, ...]) -> tuple[str, ...]:
        assert self.reduction is not None
        if self.reduction.rows[0] != "rows" or len(self.reduction.rows) < 3:
            return full
        return tuple("1" if axis in self.reduction.rows[2] else dim for axis, dim in enumerate(full))

    def _movement(self, info: Info, held: list[tuple[onnx_ir.Value, _Space]]) -> str | None:
        node = info.node
        if is_op(node, "Identity"):
            self.spaces[node.outputs[0]] = held[0][1]
            return None
        if node.op_type not in _STORED:
            return f"{node.op_type} picks elements of what a reduction or product makes"
        if held[0][1] == ("squeezed",) and is_op(node, "Unsqueeze"):
            full = self.places[("rows",)]
            if full is not None and info.dims == self._reduced(full):
                self.spaces[node.outputs[0]] = ("rows",)
                return None
        how = tuple(sorted((name, str(attr.value)) for name, attr in node.attributes.items()))
        operands = tuple(_operand(value) for value in node.inputs if value not in info.sources)
        shapes = tuple(dims_of(value) for value, _ in held)
        for index, value in enumerate(node.outputs):
            # The same movement of the same places ends in the same places.
            parents = tuple(space for _, space in held)
            unique = value if any(shape is None for shape in shapes) else None
            space = ("moved", node.op_type, how, operands, parents, shapes, index, dims_of(value), unique)
            self._hold(value, space, dims_of(value))
        return None

    def close(self, outputs: Sequence[onnx_ir.Value]) -> str | None:
        """The reason why what is left behind cannot be."""
        free = [value for value in outputs if value not in self.spaces]
        if self.product is not None:
            return "what stands in front of a product is read elsewhere, too" if free else None
        if self.reduction is not None:
            full = self.places[("rows",)]
            if any(full is None or dims_of(value) != full for value in free):
                return "what stands in front of a reduction is read elsewhere in another shape"
            return None
        counts = {_volume(value) for value in free}
        if len(counts) > 1:
            return "results of different sizes"
        return None


def _operand(value: onnx_ir.Value | None) -> Any:
    tensor = None if value is None else embedded(value)
    return value if tensor is None else tensor.tobytes()


def _volume(value: onnx_ir.Value) -> Any:
    """Equal for values of the same number of elements."""
    dims = dims_of(value)
    if dims is None:
        return value
    number = 1
    names = []
    for dim in dims:
        if dim.isdigit():
            number *= int(dim)
        else:
            names.append(dim)
    return number, tuple(sorted(names))
