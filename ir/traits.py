"""What operators are: one table that every analysis reads, so that no pass keeps a list of its own.

Per operator: its kind, its DNNFusion mapping type (Niu et al. 2021, table 2), the axes that it reduces, its index map
(``ir/index_maps.py``) and its cost (``ir/cost.py``). Softmax, normalizations and reductions are Many-to-Many in the
paper; the kind tells them from contractions, which do not fuse with one another.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import onnx_ir

from .graph import attribute, constant, rank
from .shapes.elementwise import BINARY, COMPARISONS, UNARY
from .shapes.reduction import REDUCTIONS
from .symbolic import same

ONNX, MICROSOFT, ATEN = "", "com.microsoft", "aten"


class Kind(enum.Enum):
    """What an operator does to its iteration space."""

    ELEMENTWISE = "elementwise"
    """Each output element from the input elements at the same (broadcast) place."""
    REDUCTION = "reduction"
    """Combines elements along axes of its own iteration space: sums, maxima, softmax's denominators."""
    CONTRACTION = "contraction"
    """Sums products over an axis of two operands: matrix products, convolutions, attention."""
    MOVEMENT = "movement"
    """Computes nothing: moves, repeats or selects elements."""
    NORMALIZATION = "normalization"
    """A reduction whose result is applied to the same elements."""
    CONSTANT = "constant"
    """Needs no tensor: constants, ranges, random numbers."""
    CONTROL = "control"
    """Holds subgraphs, or handles sequences and optionals."""
    OTHER = "other"
    """Anything else: sorting, detection, strings."""


class Mapping(enum.IntEnum):
    """DNNFusion's mapping types, in the paper's order of complexity."""

    ONE_TO_ONE = 0
    REORGANIZE = 1
    SHUFFLE = 2
    ONE_TO_MANY = 3
    MANY_TO_MANY = 4


AxesOf: TypeAlias = Callable[[onnx_ir.Node], "tuple[int, ...] | None"]


@dataclass(frozen=True)
class Trait:
    """The row of one operator.

    Attributes:
        kind: what it does to its iteration space.
        mapping: its mapping type where no operand is broadcast.
        work: arithmetic operations per output element (elementwise), per input element (reduction, normalization);
            contractions have formulas of their own in ``ir/cost.py``.
        axes: the axes of input 0 that it reduces or normalizes over, from a node; None if it reduces none.
    """

    kind: Kind
    mapping: Mapping
    work: int = 0
    axes: AxesOf | None = None


TRAITS: dict[tuple[str, str], Trait] = {}
"""The table, by (domain, operator)."""


def trait(node: onnx_ir.Node) -> Trait | None:
    """The table's row for a node; None for an operator that is not in it."""
    return TRAITS.get(("" if node.domain == "ai.onnx" else node.domain, node.op_type))


def kind(node: onnx_ir.Node) -> Kind:
    """The kind of a node; ``OTHER`` for an operator that is not in the table."""
    row = trait(node)
    return Kind.OTHER if row is None else row.kind


def mapping(node: onnx_ir.Node) -> Mapping:
    """The mapping type of a node: elementwise operators that broadcast an operand are One-to-Many.

    An operator that is not in the table takes the most complex type.
    """
    row = trait(node)
    if row is None:
        return Mapping.MANY_TO_MANY
    if row.kind is Kind.ELEMENTWISE and row.mapping is Mapping.ONE_TO_ONE and broadcasts(node):
        return Mapping.ONE_TO_MANY
    return row.mapping


def broadcasts(node: onnx_ir.Node) -> bool:
    """Whether some operand of an elementwise node that is no single number has another shape than the output."""
    out = node.outputs[0].shape
    for value in node.inputs:
        if value is None or value.shape is None or out is None:
            continue
        if all(d == 1 for d in value.shape):
            continue
        if len(value.shape) != len(out) or not all(map(same, value.shape, out)):
            return True
    return False


def reduced_axes(node: onnx_ir.Node) -> tuple[int, ...] | None:
    """The axes of input 0, counted from the front, that a reduction, softmax or normalization goes over.

    None if the node reduces none, or if rank or axes are not known.
    """
    row = trait(node)
    return None if row is None or row.axes is None else row.axes(node)


def _front(axes: list[int], dimensions: int) -> tuple[int, ...]:
    return tuple(sorted(a % dimensions for a in axes)) if dimensions else ()


def _listed(node: onnx_ir.Node) -> tuple[int, ...] | None:
    """Axes as a list, given as attribute or second input; none given: all."""
    dimensions = rank(node.inputs[0])
    if dimensions is None:
        return None
    axes = attribute(node, "axes")
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        given = constant(node.inputs[1], limit=64)
        if given is None:
            return None
        axes = [int(a) for a in given.reshape(-1)]
    if not axes:
        return () if attribute(node, "noop_with_empty_axes", 0) else tuple(range(dimensions))
    return _front(axes, dimensions)


def _single(default: int) -> AxesOf:
    def axes(node: onnx_ir.Node) -> tuple[int, ...] | None:
        dimensions = rank(node.inputs[0])
        return None if dimensions is None else _front([attribute(node, "axis", default)], dimensions)

    return axes


def _trailing(node: onnx_ir.Node) -> tuple[int, ...] | None:
    """All axes from attribute ``axis`` on, as LayerNormalization counts."""
    dimensions = rank(node.inputs[0])
    if dimensions is None:
        return None
    return tuple(range(attribute(node, "axis", -1) % dimensions, dimensions)) if dimensions else ()


def _spatial(node: onnx_ir.Node) -> tuple[int, ...] | None:
    """All axes after batch and channel."""
    dimensions = rank(node.inputs[0])
    return None if dimensions is None else tuple(range(2, dimensions))


def _last(node: onnx_ir.Node) -> tuple[int, ...] | None:
    dimensions = rank(node.inputs[0])
    return None if dimensions is None else (dimensions - 1,)


def _add(row: Trait, names: str, domain: str = ONNX) -> None:
    for name in names.split():
        TRAITS[domain, name] = row


def _fill() -> None:
    one, many, spread = Mapping.ONE_TO_ONE, Mapping.MANY_TO_MANY, Mapping.ONE_TO_MANY
    # The shape rules know which operators keep the shape of their input; those that also mix elements follow below.
    _add(Trait(Kind.ELEMENTWISE, one, 1), " ".join([*UNARY, *BINARY, *COMPARISONS]))
    _add(Trait(Kind.ELEMENTWISE, one, 1), "Where IsNaN IsInf BatchNormalization Trilu PRelu")
    _add(Trait(Kind.ELEMENTWISE, one, 2), "QuantizeLinear DequantizeLinear LeakyRelu ThresholdedRelu Shrink Softsign")
    _add(Trait(Kind.ELEMENTWISE, one, 3), "HardSigmoid HardSwish Elu Celu Selu Softplus Clip")
    _add(Trait(Kind.ELEMENTWISE, one, 4), "Sigmoid Tanh Swish")
    _add(Trait(Kind.ELEMENTWISE, one, 8), "Gelu Mish Erf")
    _add(Trait(Kind.ELEMENTWISE, one, 5), "SwiGLU")
    _add(Trait(Kind.ELEMENTWISE, one), "Cast CastLike BitCast Identity Dropout")
    _add(Trait(Kind.ELEMENTWISE, one, 8), "Gelu BiasGelu FastGelu QuickGelu", MICROSOFT)

    _add(Trait(Kind.REDUCTION, many, 1, _listed), " ".join(REDUCTIONS))
    _add(Trait(Kind.REDUCTION, many, 1, _single(0)), "ArgMax ArgMin")
    _add(Trait(Kind.REDUCTION, many, 1, _spatial), "GlobalAveragePool GlobalMaxPool GlobalLpPool")
    _add(Trait(Kind.REDUCTION, many, 1), "CumSum CumProd MaxPool AveragePool LpPool MaxRoiPool RoiAlign Hardmax Det")
    _add(Trait(Kind.REDUCTION, many, 2), "DynamicQuantizeLinear")

    _add(Trait(Kind.NORMALIZATION, many, 5, _single(-1)), "Softmax LogSoftmax")
    _add(Trait(Kind.NORMALIZATION, many, 3, _single(-1)), "LpNormalization")
    _add(Trait(Kind.NORMALIZATION, many, 8, _trailing), "LayerNormalization")
    _add(Trait(Kind.NORMALIZATION, many, 5, _trailing), "RMSNormalization SimplifiedLayerNormalization")
    _add(Trait(Kind.NORMALIZATION, many, 8, _spatial), "InstanceNormalization")
    _add(Trait(Kind.NORMALIZATION, many, 8), "GroupNormalization LRN MeanVarianceNormalization")
    _add(Trait(Kind.NORMALIZATION, many, 9, _last), "SkipLayerNormalization EmbedLayerNormalization", MICROSOFT)
    _add(Trait(Kind.NORMALIZATION, many, 6, _last), "SkipSimplifiedLayerNormalization", MICROSOFT)

    contraction = Trait(Kind.CONTRACTION, many)
    _add(contraction, "MatMul Gemm MatMulInteger QLinearMatMul Einsum Conv ConvInteger QLinearConv ConvTranspose")
    _add(contraction, "DeformConv Attention LinearAttention LSTM GRU RNN CausalConvWithState DFT STFT")
    _add(contraction, "MatMulNBits MatMulBnb4 MatMulFpQ4 FusedMatMul TransposeMatMul FusedGemm FusedConv", MICROSOFT)
    _add(contraction, "DynamicQuantizeMatMul MatMulIntegerToFloat QGemm QLinearConv NhwcMaxPool QAttention", MICROSOFT)
    _add(contraction, "GroupQueryAttention MultiHeadAttention Attention SparseAttention LinearAttention", MICROSOFT)
    _add(contraction, "DecoderMaskedMultiHeadAttention MoE QMoE", MICROSOFT)

    _add(Trait(Kind.MOVEMENT, one), "Concat Slice Split")
    _add(Trait(Kind.MOVEMENT, Mapping.REORGANIZE), "Reshape Flatten Squeeze Unsqueeze")
    _add(Trait(Kind.MOVEMENT, Mapping.SHUFFLE), "Transpose DepthToSpace SpaceToDepth ReverseSequence")
    _add(Trait(Kind.MOVEMENT, spread), "Expand Tile Gather GatherElements GatherND Pad CenterCropPad Resize Upsample")
    _add(Trait(Kind.MOVEMENT, spread), "GridSample OneHot AffineGrid Col2Im MaxUnpool")
    _add(Trait(Kind.MOVEMENT, many), "Scatter ScatterElements ScatterND TensorScatter Compress")
    _add(Trait(Kind.MOVEMENT, spread, 2), "GatherBlockQuantized", MICROSOFT)
    # Rotates pairs of elements: two products and a sum each.
    _add(Trait(Kind.ELEMENTWISE, one, 3), "RotaryEmbedding")
    _add(Trait(Kind.ELEMENTWISE, one, 3), "RotaryEmbedding", MICROSOFT)

    constant_ = Trait(Kind.CONSTANT, one)
    _add(constant_, "Constant ConstantOfShape Range EyeLike Shape Size RandomNormal RandomNormalLike RandomUniform")
    _add(constant_, "RandomUniformLike Bernoulli Multinomial HannWindow HammingWindow BlackmanWindow MelWeightMatrix")

    control = Trait(Kind.CONTROL, many)
    _add(control, "If Loop Scan SequenceMap SequenceAt SequenceConstruct SequenceEmpty SequenceErase SequenceInsert")
    _add(control, "SequenceLength ConcatFromSequence SplitToSequence Optional OptionalGetElement OptionalHasElement")

    other = Trait(Kind.OTHER, many)
    _add(other, "TopK Unique NonZero NonMaxSuppression NegativeLogLikelihoodLoss SoftmaxCrossEntropyLoss")
    _add(other, "StringConcat StringNormalizer StringSplit RegexFullMatch TfIdfVectorizer ImageDecoder")


_fill()
