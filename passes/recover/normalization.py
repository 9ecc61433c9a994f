"""``LayerNormalization`` and ``RMSNormalization`` out of means, squares and roots."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir

from ...ir.graph import attribute, constant, is_op, producer, rank
from ...ir.rewrite import Editor
from .match import Site, nodes, only_user, origin_of, reduced_axes, scalar, static_tail, strip, trailing, users
from .match import with_scalar as number_of

OPSETS = {"LayerNormalization": 17, "RMSNormalization": 23}


@dataclass(frozen=True)
class _Moment:
    """The mean square of ``deviation`` over its last ``count`` axes; that is ``x - mean``, or ``x`` (mean None)."""

    node: onnx_ir.Node
    x: onnx_ir.Value
    deviation: onnx_ir.Value
    mean: onnx_ir.Value | None
    count: int

    @property
    def operator(self) -> str:
        return "RMSNormalization" if self.mean is None else "LayerNormalization"


@dataclass(frozen=True)
class _End:
    """A value that is a normalization: ``scale`` and ``bias`` are absent or have the normalized shape."""

    output: onnx_ir.Value
    x: onnx_ir.Value
    scale: onnx_ir.Value | None
    bias: onnx_ir.Value | None


def recover_normalization(site: Site) -> None:
    """Replace every decomposed normalization over trailing axes.

    ``(x - mean(x)) / sqrt(mean((x - mean(x))^2) + eps) * scale + bias`` (Ba et al. 2016) becomes LayerNormalization,
    ``x / sqrt(mean(x^2) + eps) * scale`` (Zhang and Sennrich 2019) RMSNormalization. Scale and bias may be absent.
    """
    for node in nodes(site.graph, "ReduceMean"):
        squared = _squared(node.inputs[0])
        if squared is not None:
            _recover_at(site, node, squared)


def _squared(value: onnx_ir.Value | None) -> onnx_ir.Value | None:
    node = producer(None if value is None else strip(value), "Pow", "Mul")
    if node is None or node.inputs[0] is None or node.inputs[1] is None:
        return None
    base = strip(node.inputs[0])
    if node.op_type == "Pow":
        return base if scalar(node.inputs[1]) == 2.0 else None
    return base if strip(node.inputs[1]) is base else None


def _recover_at(site: Site, node: onnx_ir.Node, deviation: onnx_ir.Value) -> None:
    axes = reduced_axes(node)
    sub = producer(deviation, "Sub")
    x, mean = deviation, None
    if sub is not None and sub.inputs[0] is not None and sub.inputs[1] is not None:
        source, subtracted = strip(sub.inputs[0]), strip(sub.inputs[1])
        average = producer(subtracted, "ReduceMean")
        if (
            average is not None
            and average.inputs[0] is not None
            and strip(average.inputs[0]) is source
            and trailing(reduced_axes(average), source) == trailing(axes, source) is not None
        ):
            x, mean = source, subtracted
    operator = "RMSNormalization" if mean is None else "LayerNormalization"
    roots = [(add, root) for add in users(node.outputs[0], "Add") for root in users(add.outputs[0], "Sqrt", "Pow")]
    if not roots:
        return
    count = trailing(axes, x)
    if count is None:
        site.missed(node, operator, "the mean is not taken over the last axes with kept dimensions")
        return
    if site.opset < OPSETS[operator]:
        site.missed(node, operator, f"the graph has opset {site.opset}, the operator exists since {OPSETS[operator]}")
        return
    moment = _Moment(node, x, deviation, mean, count)
    for add, root in roots:
        added = number_of(add, "Add")
        if added is None:
            site.missed(node, operator, "what is added to the variance is not a constant number")
            continue
        ends = _ends(moment, root)
        if not ends:
            site.missed(node, operator, "the root does not divide the value that was squared")
        for end in ends:
            _replace(site, moment, end, added[1])


def _ends(moment: _Moment, root: onnx_ir.Node) -> list[_End]:
    """Every value that is ``deviation / root``, carried on through cast, scale and bias."""
    exponent = scalar(root.inputs[1]) if root.op_type == "Pow" else 0.5
    inverses, ends = [], []
    if exponent == -0.5:
        inverses.append(root.outputs[0])
    elif exponent == 0.5:
        for node in users(root.outputs[0], "Div", "Reciprocal"):
            if node.op_type == "Reciprocal":
                inverses.append(node.outputs[0])
            elif node.inputs[1] is not None and strip(node.inputs[1]) is root.outputs[0]:
                numerator = node.inputs[0]
                assert numerator is not None
                if scalar(numerator) == 1.0:
                    inverses.append(node.outputs[0])
                elif strip(numerator) is moment.deviation:
                    ends.extend(_after(moment, node.outputs[0]))
    for inverse in inverses:
        for node in users(inverse, "Mul"):
            other = _other(node, inverse)
            if other is moment.deviation:
                ends.extend(_after(moment, node.outputs[0]))
            elif other is not None and _is_weight(moment, other):
                ends.extend(_scaled_first(moment, node.outputs[0], other))
    return ends


def _other(node: onnx_ir.Node, value: onnx_ir.Value) -> onnx_ir.Value | None:
    """The operand of a binary node other than ``value``, both without nodes that change nothing."""
    a, b = node.inputs[0], node.inputs[1]
    if a is None or b is None:
        return None
    return strip(b) if strip(a) is strip(value) else strip(a)


def _scaled_first(moment: _Moment, factor: onnx_ir.Value, scale: onnx_ir.Value) -> list[_End]:
    """Ends of ``factor = scale / root``: times the deviation, or TensorFlow's ``x * factor + (bias - m * factor)``."""
    ends = []
    for node in users(factor, "Mul"):
        other = _other(node, factor)
        if other is moment.deviation:
            ends.append(_with_bias(moment, node.outputs[0], moment.x, scale))
        elif moment.mean is not None and other is moment.x:
            add = only_user(node.outputs[0], "Add")
            shift = None if add is None else _other(add, node.outputs[0])
            sub = producer(shift, "Sub")
            if sub is None or sub.inputs[0] is None or sub.inputs[1] is None:
                continue
            product = producer(strip(sub.inputs[1]), "Mul")
            if product is None or _other(product, factor) is not moment.mean:
                continue
            bias = strip(sub.inputs[0])
            if add is not None and _is_weight(moment, bias):
                ends.append(_End(add.outputs[0], moment.x, scale, bias))
    return ends


def _after(moment: _Moment, normalized: onnx_ir.Value) -> list[_End]:
    """Ends of a normalized value: with each scale that multiplies it, and without any for other uses."""
    x, value = moment.x, normalized
    before = producer(moment.x, "Cast")
    cast = only_user(normalized, "Cast")
    if cast is not None and before is not None and before.inputs[0] is not None:
        # Half precision: statistics in float32, cast back before the scale. That is the operator's stash_type.
        source = before.inputs[0]
        if source.dtype == attribute(cast, "to") and moment.x.dtype == onnx_ir.DataType.FLOAT:
            x, value = source, cast.outputs[0]
    ends, rest = [], value.is_graph_output()
    for node in users(value):
        other = _other(node, value) if is_op(node, "Mul") else None
        if other is not None and other is not strip(value) and _is_weight(moment, other) and other.dtype == x.dtype:
            ends.append(_with_bias(moment, node.outputs[0], x, other))
        else:
            rest = True
    if rest or not ends:
        ends.append(_with_bias(moment, value, x, None))
    return ends


def _with_bias(moment: _Moment, value: onnx_ir.Value, x: onnx_ir.Value, scale: onnx_ir.Value | None) -> _End:
    add = only_user(value, "Add") if moment.mean is not None else None
    if add is not None:
        bias = _other(add, value)
        if bias is not None and _is_weight(moment, bias) and bias.dtype == x.dtype:
            return _End(add.outputs[0], x, scale, bias)
    return _End(value, x, scale, None)


def _is_weight(moment: _Moment, value: onnx_ir.Value) -> bool:
    """Whether ``value`` has the normalized shape, leading ones aside."""
    tail = static_tail(moment.x, moment.count)
    size = rank(value)
    if tail is None or size is None or size < moment.count or rank(moment.x) is None or size > (rank(moment.x) or 0):
        return False
    shape = static_tail(value, size)
    return shape is not None and shape[size - moment.count :] == tail and all(d == 1 for d in shape[: -moment.count])


def _replace(site: Site, moment: _Moment, end: _End, epsilon: float) -> None:
    operator = moment.operator
    tail = static_tail(moment.x, moment.count)
    if tail is None:
        site.missed(moment.node, operator, "the size of the normalized axes is not known")
        return
    dtype = end.x.dtype
    reason = site.unsupported(operator, dtype)
    if dtype is None or reason is not None:
        site.missed(moment.node, operator, reason or "the element type is not known")
        return
    anchor = end.output.producer()
    assert anchor is not None
    names = "layer_norm" if moment.mean is not None else "rms_norm"
    edit = site.edit(
        f"{names}(x, scale, eps)", anchor, [moment.node, *origin_of(end.output)] if anchor is not None else []
    )
    inputs: list[onnx_ir.Value | None] = [end.x]
    if end.scale is None:
        inputs.append(edit.initializer(onnx_ir.Tensor(np.ones(tail, dtype=dtype.numpy())), f"{names}_ones"))
    else:
        inputs.append(_weight(edit, end.scale, tail))
    if end.bias is not None:
        inputs.append(_weight(edit, end.bias, tail))
    # float32 statistics are what both operators keep by default; the original has them in the type of ``moment.x``.
    stash = 1 if moment.x.dtype in (onnx_ir.DataType.FLOAT, None) else int(moment.x.dtype)
    new = edit.op(
        operator,
        inputs,
        {"axis": -moment.count, "epsilon": epsilon, "stash_type": stash},
        dtype=dtype,
        shape=end.output.shape if end.output.shape is not None else end.x.shape,
    )
    site.finish(edit, end.output, new, operator)


def _weight(edit: Editor, value: onnx_ir.Value, tail: tuple[int, ...]) -> onnx_ir.Value:
    if rank(value) == len(tail):
        return value
    array = constant(value)
    if array is not None:
        return edit.initializer(np.ascontiguousarray(array.reshape(tail)), f"{value.name}_flat")
    return edit.op("Reshape", [value, edit.ints(tail)], dtype=value.dtype, shape=tail)
