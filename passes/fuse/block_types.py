"""Types of blocks, and which two may become one: DNNFusion's tables 2 and 3 with Many-to-Many taken apart.

Read literally the paper forbids a layer normalization in one kernel, because a reduction and what follows it are both
Many-to-Many or broadcast. Here a *reduction*, over axes of an iteration space that its neighbours share, is told from a
*contraction* (a product, a convolution, attention), which has an iteration space of its own and never meets another.
Elementwise operators that broadcast an operand are told from operators that copy elements (Expand, Gather): the paper
calls both One-to-Many, but a broadcast operand is only read again.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable

import onnx_ir

from ...ir.graph import is_op, tensor_of
from ...ir.index_maps import index_map
from ...ir.symbolic import known
from ...ir.traits import Kind, Mapping, broadcasts, reduced_axes, trait


class BlockType(enum.Enum):
    """What a block, or a single operator, does to its iteration space."""

    ONE_TO_ONE = "one-to-one"
    REORGANIZE = "reorganize"
    SHUFFLE = "shuffle"
    BROADCAST = "broadcast"
    ONE_TO_MANY = "one-to-many"
    REDUCTION = "reduction"
    CONTRACTION = "contraction"
    HOST = "host"
    """Works out sizes, a few numbers made of shapes; no kernel of the device."""
    OPAQUE = "opaque"
    """Runs alone: control flow, sorting, recurrences, whatever the table of traits does not know."""


class Verdict(enum.Enum):
    """What the table says of two neighbours."""

    ALWAYS = "always"
    IF_IT_PAYS = "if it pays"
    NEVER = "never"


O, R, S, B, M, D, C = (  # noqa: E741 - the letters of the table below
    BlockType.ONE_TO_ONE,
    BlockType.REORGANIZE,
    BlockType.SHUFFLE,
    BlockType.BROADCAST,
    BlockType.ONE_TO_MANY,
    BlockType.REDUCTION,
    BlockType.CONTRACTION,
)
_ORDER = (O, R, S, B, M, D, C)

# Rows: who is first; columns: who is second, in the order O R S B M D C. "!" always, "?" if it pays, "x" never; the
# letter is the type of both together. Departures from table 3: One-to-Many before Many-to-Many is "never" in the paper;
# a broadcast operand, or an index expression in front of a reduction or a product, costs no more than reading it.
# One-to-One before One-to-Many is "always"; what an Expand repeats is computed again each time.
_ROWS = {
    O: "O! R! S! B! M? D! C!",
    R: "R! R! R! B? M? D? C?",
    S: "S! R! S! B? M? D? C?",
    B: "B! B? B? B? M? D? C?",
    M: "M! M? M? M? M? D? C?",
    D: "D! D? D? D? Dx D? Cx",
    C: "C! C? C? C? Cx C? Cx",
}
_LETTERS = dict(zip("ORSBMDC", _ORDER, strict=True))
_MARKS = {"!": Verdict.ALWAYS, "?": Verdict.IF_IT_PAYS, "x": Verdict.NEVER}

TABLE: dict[tuple[BlockType, BlockType], tuple[Verdict, BlockType]] = {
    (first, second): (_MARKS[cell[1]], _LETTERS[cell[0]])
    for first, row in _ROWS.items()
    for second, cell in zip(_ORDER, row.split(), strict=True)
}
"""Verdict and type of the fused block, by (type of the first, type of the second)."""

_ALONE = frozenset(
    "LSTM GRU RNN CausalConvWithState DFT STFT DeformConv NhwcMaxPool MoE QMoE CumSum CumProd Hardmax Det MaxRoiPool "
    "RoiAlign ReverseSequence GridSample AffineGrid Col2Im MaxUnpool Compress Scatter ScatterElements ScatterND "
    "TensorScatter OneHot DynamicQuantizeLinear LinearAttention LpPool LRN MeanVarianceNormalization BitCast "
    "EmbedLayerNormalization CenterCropPad GatherND".split()
)
"""Operators whose elements are not made of a fixed set of others that an expression could name, or whose kernels are
too special to take part in another's."""
POOLS = frozenset(("MaxPool", "AveragePool"))
_ASKED = frozenset(("Slice", "Pad"))
"""Movements whose index map depends on operands that may be computed."""
HOST_SIZE = 64
"""Elements of the largest tensor that the host works out."""


def fused(first: BlockType, second: BlockType) -> tuple[Verdict, BlockType]:
    """What the table says of ``first`` followed by ``second``."""
    return TABLE.get((first, second), (Verdict.NEVER, BlockType.OPAQUE))


def classify(node: onnx_ir.Node) -> BlockType:
    """The type of a single node; ``OPAQUE`` where shapes or axes are missing that a kernel would need."""
    row = trait(node)
    if row is None or node.op_type in _ALONE or any(_no_tensor(value) for value in (*node.inputs, *node.outputs)):
        return BlockType.OPAQUE
    if any(attr.type in (onnx_ir.AttributeType.GRAPH, onnx_ir.AttributeType.GRAPHS) for attr in _attributes(node)):
        return BlockType.OPAQUE
    if row.kind is Kind.CONTRACTION:
        return BlockType.CONTRACTION
    if row.kind is Kind.ELEMENTWISE:
        if any(value.uses() or value.is_graph_output() for value in node.outputs[1:]):
            return BlockType.OPAQUE  # the mask of a Dropout
        return BlockType.BROADCAST if broadcasts(node) else BlockType.ONE_TO_ONE
    if row.kind in (Kind.REDUCTION, Kind.NORMALIZATION):
        known = node.op_type in POOLS or node.op_type == "GroupNormalization" or reduced_axes(node) is not None
        return BlockType.REDUCTION if known else BlockType.OPAQUE
    if row.kind is Kind.MOVEMENT:
        fixed = all(_sized(value) for value in (node.inputs[0], *node.outputs))
        if not fixed or (node.op_type in _ASKED and index_map(node) is None):
            return BlockType.OPAQUE
        return _MOVEMENTS[row.mapping]
    return BlockType.OPAQUE


def host_nodes(nodes: Iterable[onnx_ir.Node]) -> set[onnx_ir.Node]:
    """Nodes that work out sizes: made of shapes and constants alone, and no more than a few numbers.

    Args:
        nodes: in topological order.
    """
    found: set[onnx_ir.Node] = set()
    for node in nodes:
        if is_op(node, "Shape", "Size"):
            found.add(node)
        elif all(_few(value) for value in node.outputs):
            made = [value for value in node.inputs if value is not None and tensor_of(value) is None]
            if made and all(value.producer() in found for value in made):
                found.add(node)
    return found


def _few(value: onnx_ir.Value) -> bool:
    dims = value.shape
    if dims is None or len(dims) > 1 or not all(isinstance(dim, int) for dim in dims):
        return False
    return all(isinstance(dim, int) and dim <= HOST_SIZE for dim in dims)


def _sized(value: onnx_ir.Value | None) -> bool:
    return value is not None and value.shape is not None and all(map(known, value.shape))


_MOVEMENTS = {
    Mapping.ONE_TO_ONE: BlockType.ONE_TO_ONE,
    Mapping.REORGANIZE: BlockType.REORGANIZE,
    Mapping.SHUFFLE: BlockType.SHUFFLE,
    Mapping.ONE_TO_MANY: BlockType.ONE_TO_MANY,
    Mapping.MANY_TO_MANY: BlockType.OPAQUE,
}


def _attributes(node: onnx_ir.Node) -> list[onnx_ir.Attr]:
    return list(node.attributes.values())


def _no_tensor(value: onnx_ir.Value | None) -> bool:
    """Whether a value is a sequence, an optional or a tensor of strings, or has no known rank."""
    if value is None or (not value.name and not value.uses()):
        return False
    if type(value.type) is not onnx_ir.TensorType or value.shape is None:
        return True
    return value.dtype == onnx_ir.DataType.STRING
