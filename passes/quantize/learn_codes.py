"""``LearnCodes``: what ``Quantize`` left learns the outputs of the model as it came."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir

from ...ir.errors import OptionError, UnsupportedError
from ...ir.graph import SPARSITY, Graph, attribute, is_op, module_path, tensor_of
from ...ir.rewrite import Editor
from ...ir.weights import Widened
from .. import selectors
from ..base import Coded, CodeTraining, Context, Outcome, Pass, Stage, without_data
from ..training import check_precision
from .beside import LEVELS, ORIGINAL
from .methods.rtn import Array
from .tensors import small, stored

RULE = "learn codes"
_NORMALIZATIONS = ("LayerNormalization", "RMSNormalization", "GroupNormalization", "InstanceNormalization")
_INTEGERS = (onnx_ir.DataType.UINT4, onnx_ir.DataType.UINT8)


@dataclass(frozen=True)
class LearnCodes(Pass):
    """Train the codes and scales of quantized weights on the outputs of the model as it came (survey, section 3.4).

    Quantization-aware training without labels (LLM-QAT, Liu et al. 2023; ZeroQuant's distillation, Yao et al. 2022):
    calibration inputs go through both models, and the divergence of the next-token distributions is made small, or the
    relative squared error of the outputs for what is no language model. Every product makes up for the errors of all
    others, which rounding product by product cannot. Codes stay codes of the same bits and groups. The weights begin
    as ``Quantize`` rounded them, so the better that was, the fewer steps are needed; minutes on a CPU, gradients come
    from the reference backend. It takes more data than rounding does: hundreds of inputs, of the kind that the model
    will see. Behind ``Quantize``. Inputs of products may be quantized, too: rounding counts as the identity there, and
    scales that are constants learn (LSQ, Esser et al. 2020).

    Attributes:
        steps: of Adam.
        batch: calibration inputs of each step.
        rate: of learning at its highest, in steps of a code; it rises over the first tenth and falls to zero as a
            cosine. All weights move at once, so large models want small rates.
        scale_rate: rate of the scales, of weights and of inputs, relative to ``rate``; scales move by shares of
            themselves.
        float_rate: rate of biases and of the weights of normalizations, relative to ``rate``; 0 leaves them alone.
        hidden: what the errors of the results of normalizations weigh beside that of the outputs, where these can be
            compared (rotation and smoothing change them): more to learn from in each step.
        pooled: what the error of the mean over tokens weighs, of outputs [batch, tokens, width] of what is no language
            model: embeddings are made of it, and errors that all tokens share are all that is left of them there.
        outputs: names of the outputs that count; all of floating point if empty, the logits of a language model.
        include: selectors of the products to train; all if empty.
        precision: ``"float32"``, ``"bfloat16"`` (of products), or ``"auto"``: bfloat16 where this CPU multiplies it
            faster.
        seed: of the order of the inputs.

    Raises:
        OptionError: a number that makes no sense, or (when run) an output that does not exist.
        CalibrationError: (when run) there are no calibration inputs.
        UnsupportedError: (when run) something computes with codes of activations as they are.
        SelectorError: a malformed selector, or (when run) one that matches nothing.
    """

    stage = Stage.QUANTIZE
    approximate = True
    needs_original = True

    steps: int = 200
    batch: int = 8
    rate: float = 0.0015
    scale_rate: float = 0.25
    float_rate: float = 0.4
    hidden: float = 1.0
    pooled: float = 1.0
    outputs: str | Sequence[str] = ()
    include: str | Sequence[str] = ()
    precision: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        sensible = self.steps >= 1 and self.batch >= 1 and self.seed >= 0 and self.rate > 0
        if not sensible or min(self.scale_rate, self.float_rate, self.hidden, self.pooled) < 0:
            raise OptionError(
                f"steps={self.steps!r}, batch={self.batch!r}, rate={self.rate!r}, scale_rate={self.scale_rate!r}, "
                f"float_rate={self.float_rate!r}, hidden={self.hidden!r}, pooled={self.pooled!r} cannot be",
                where="LearnCodes", fix="use steps=200, batch=8, rate=0.0015 and leave the others",
            )  # fmt: skip
        check_precision(self.precision, "LearnCodes")
        for name in ("include", "outputs"):
            value = getattr(self, name)
            object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(value))
        selectors.parse_all(self.include)

    def run(self, graph: Graph, context: Context) -> Outcome:
        """Train, and write codes, scales and float constants back."""
        outcome, edit = Outcome(), Editor(graph, RULE)
        if context.learn_codes is None:
            raise without_data("LearnCodes")
        steps = _steps(graph)
        sources = [node for node in graph.graph if is_op(node, "DequantizeLinear") and ORIGINAL in node.meta]
        products = {source: _products(source) for source in sources}
        nodes = [node for group in products.values() for node in group]
        chosen = selectors.selected(nodes, self.include, "quantized products")
        taken = []
        for source in sources:
            if not products[source]:
                outcome.skipped(module_path(source), "its codes stay: no product multiplies by them")
            elif any(SPARSITY in node.metadata_props for node in products[source]):
                outcome.missed(module_path(source), "its codes stay: zeros of a pattern would move")
            elif any(node in chosen for node in products[source]):
                taken.append(source)
        if not taken:
            outcome.missed("", "there is nothing to train: no product has codes that Quantize made")
            return outcome
        coded = [_coded(source) for source in taken]
        floats = _floats(graph) if self.float_rate else []
        how = CodeTraining(
            self.steps, self.batch, self.rate, self.scale_rate, self.float_rate, self.hidden, self.pooled,
            tuple(self.outputs), self.precision, self.seed,
        )  # fmt: skip
        learned, constants, (before, after) = context.learn_codes(coded, floats, steps, how)
        values = {"steps": self.steps, "loss_before": before, "loss_after": after}
        if not after < before:
            outcome.missed("", f"left as it was: {self.steps} steps took the loss from {before:.4g} to {after:.4g}",
                           **values)  # fmt: skip
            return outcome
        moved = total = 0
        for source, one, (codes, scales) in zip(taken, coded, learned, strict=True):
            moved += int((codes != one.codes).sum())
            total += codes.size
            _write(edit, source, codes, scales)
            outcome.count(RULE)
        for value, array in constants.items():
            tensor = tensor_of(value)
            assert tensor is not None
            value.const_value = onnx_ir.Tensor(array.astype(tensor.dtype.numpy()), dtype=tensor.dtype, name=value.name)
        outcome.applied(
            module_path(taken[0]),
            f"{len(taken)} weights and {len(constants)} other constants trained for {self.steps} steps: the loss went "
            f"from {before:.4g} to {after:.4g}, {moved / total:.1%} of the codes moved",
            moved=moved / total, **values,
        )  # fmt: skip
        return outcome


def _products(source: onnx_ir.Node) -> list[onnx_ir.Node]:
    """Products by what a ``DequantizeLinear`` makes, directly or transposed."""
    found = []
    for node, index in source.outputs[0].uses():
        if is_op(node, "MatMul", "Gemm") and index == 1:
            found.append(node)
        elif is_op(node, "Transpose"):
            found += [n for n, i in node.outputs[0].uses() if is_op(n, "MatMul", "Gemm") and i == 1]
    return found


def _coded(source: onnx_ir.Node) -> Coded:
    """A quantized weight, as groups along an axis."""
    tensors = [tensor_of(value) for value in source.inputs]
    codes, scales, zeros = (None if tensor is None else tensor.numpy() for tensor in tensors)
    assert codes is not None and scales is not None and zeros is not None
    axis, block = int(attribute(source, "axis", 1)), int(attribute(source, "block_size", 0))
    if not block:
        # One scale a channel is one group along the other axis.
        axis = 1 - axis
        block, scales, zeros = codes.shape[axis], np.expand_dims(scales, axis), np.expand_dims(zeros, axis)
    tensor, _ = source.meta[ORIGINAL]
    return Coded(
        source.outputs[0], codes.astype(np.uint8), scales.astype(np.float32), zeros.astype(np.uint8), axis, block,
        source.meta[LEVELS], np.asarray(tensor.numpy(), np.float32),
    )  # fmt: skip


def _write(edit: Editor, source: onnx_ir.Node, codes: Array, scales: Array) -> None:
    """Other codes and scales in the place of those of a ``DequantizeLinear``."""
    old_codes, old_scales = source.inputs[0], source.inputs[1]
    assert old_codes is not None and old_scales is not None and old_codes.dtype in _INTEGERS
    assert old_scales.dtype is not None and old_scales.shape is not None
    half = isinstance(old_scales.const_value, Widened)
    kind = onnx_ir.DataType.FLOAT16 if half else old_scales.dtype
    numbers = onnx_ir.Tensor(scales.reshape(old_scales.shape.numpy()).astype(kind.numpy()), dtype=kind)
    edit.at(source)
    new = [
        edit.initializer(small(codes, old_codes.dtype), f"{old_codes.name}.learned"),
        edit.initializer(stored(numbers, old_scales.dtype), f"{old_scales.name}.learned"),
    ]
    for index, value in enumerate(new):
        source.replace_input_with(index, value)
    for value in (old_codes, old_scales):
        if not value.uses():
            edit.drop_initializer(value)


def _steps(graph: Graph) -> list[onnx_ir.Value]:
    """Scales of activations that are numbers in the file.

    Raises:
        UnsupportedError: something other than a ``DequantizeLinear`` reads codes.
    """
    found: dict[onnx_ir.Value, None] = {}
    for node in graph.graph:
        readers = {use.node for value in node.outputs[:1] for use in value.uses()}
        if is_op(node, "DynamicQuantizeLinear") or (
            is_op(node, "QuantizeLinear") and not all(is_op(reader, "DequantizeLinear") for reader in readers)
        ):
            raise UnsupportedError(
                "something computes with the codes of an activation, and no gradient passes that",
                where=module_path(node), fix="train behind quantize(scheme=...), before anything else",
            )  # fmt: skip
        if is_op(node, "QuantizeLinear"):
            scale = node.inputs[1]
            if scale is not None and scale.is_initializer() and scale.dtype == onnx_ir.DataType.FLOAT:
                found[scale] = None
    return list(found)


def _floats(graph: Graph) -> list[onnx_ir.Value]:
    """Biases of products, and weights and biases of normalizations."""
    found: dict[onnx_ir.Value, None] = {}
    for node in graph.graph:
        if is_op(node, *_NORMALIZATIONS):
            values = list(node.inputs[1:])
        elif is_op(node, "Gemm"):
            values = list(node.inputs[2:])
        elif is_op(node, "Add"):
            made = [v is not None and v.producer() is not None and is_op(v.producer(), "MatMul") for v in node.inputs]
            values = [v for v in node.inputs] if any(made) else []
        else:
            continue
        for value in values:
            if value is not None and value.is_initializer() and value.dtype == onnx_ir.DataType.FLOAT:
                tensor = tensor_of(value)
                if tensor is not None and tensor.size == max(tensor.shape.numpy(), default=0) > 1:
                    found[value] = None
    return list(found)
