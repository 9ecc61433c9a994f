"""Puts rounded weights in the place of a weight in the graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx_ir

from ...ir.errors import ModelError
from ...ir.graph import FLOAT_INPUTS, module_path, tensor_of
from ...ir.noise import WEIGHT_NOISE
from ...ir.rewrite import Editor
from . import beside, formats, offsets
from .calibrated import Rounded
from .methods import noise, rtn
from .scheme import PER_CHANNEL, Scheme
from .targets import Weight
from .tensors import Tensors, deferred, described, packs, precision, stored_bytes


def where(weight: Weight) -> str:
    """Module path of the first user of a weight, for remarks."""
    return module_path((weight.users or [weight.readers[0][0]])[0])


def store(edit: Editor, weight: Weight, scheme: Scheme, order: Mapping[onnx_ir.Node, int]) -> dict[str, Any]:
    """Store a weight in a format that is no integer."""
    edit.at(min((node for node, _ in weight.readers), key=lambda node: order[node]), weight.users)
    try:
        restored, figures = formats.write(edit, weight, scheme)
    except FloatingPointError as error:
        where = f"weight {weight.value.name!r}"
        raise ModelError(f"{error}", where=where, fix="exclude it, or repair the model") from error
    take_place(edit, weight, restored)
    return figures


def take_place(edit: Editor, weight: Weight, restored: onnx_ir.Value) -> None:
    """Let all readers of a weight read another value, and forget the weight."""
    for node, index in weight.readers:
        node.replace_input_with(index, restored)
    if weight.value.is_initializer():
        edit.drop_initializer(weight.value)
    elif (constant := weight.value.producer()) is not None:
        edit.sweep([constant])


def nearest(
    weight: Weight, scheme: Scheme, late: dict[str, Any], held: onnx_ir.TensorProtocol | None = None
) -> Tensors:
    """Codes, scales and zero points by rounding to nearest, when they are read; ``late`` then gets their noise.

    ``held`` are the offsets of its groups, if it has any.
    """
    tensor = tensor_of(weight.value)
    assert tensor is not None
    source = tensor if held is None else offsets.left(weight, held)
    turned, packed, kind = weight.layout == "kn", packs(weight, scheme), precision(weight, scheme)

    def compute() -> rtn.Codes:
        array = source.numpy()
        try:
            codes = rtn.quantize(array, scheme, transposed=turned, packed=packed, precision=kind.numpy())
        except FloatingPointError as error:
            where = f"weight {weight.value.name!r}"
            raise ModelError(f"{error}", where=where, fix="exclude it, or repair the model") from error
        late[WEIGHT_NOISE] = noise.weight_noise(
            array, codes, scheme, transposed=turned, packed=packed, signal=None if held is None else tensor.numpy()
        )
        return codes

    return deferred(compute, weight, scheme)


def keep(edit: Editor, weight: Weight, rounded: Rounded, figures: Mapping[str, Any]) -> dict[str, Any]:
    """Put the kept columns beside every product by a weight; figures for the report."""
    if rounded.columns is None or rounded.kept is None:
        return {}
    for node in weight.products:
        beside.columns(edit, node, rounded.columns, rounded.kept)
    size = figures["bytes"] + rounded.kept.nbytes
    return {
        "kept_columns": len(rounded.columns),
        "bytes": size,
        "bits_per_weight": round(size * 8 / figures["weights"], 4),
    }


def rewrite(
    edit: Editor,
    weight: Weight,
    scheme: Scheme,
    tensors: Tensors,
    order: Mapping[onnx_ir.Node, int],
    held: onnx_ir.TensorProtocol | None = None,
) -> dict[str, Any]:
    """Put a ``DequantizeLinear`` over codes in the place of a weight; figures for the report.

    ``held`` are the offsets of its groups, which the codes do not stand for.
    """
    tensor = tensor_of(weight.value)
    assert tensor is not None
    n, k = weight.channels
    anchor = min((node for node, _ in weight.readers), key=lambda node: order[node])
    edit.at(anchor, weight.users)
    codes, scales, zeros = tensors
    name = weight.value.name or "weight"
    axis = 1 if weight.layout == "nk" else 0
    blocked = scheme.group_size != PER_CHANNEL
    attributes: dict[str, int] = {"axis": axis if blocked else 1 - axis}
    if blocked:
        attributes["block_size"] = scheme.group_size
    inputs = [
        edit.initializer(codes, f"{name}.codes"),
        edit.initializer(scales, f"{name}.scales"),
        edit.initializer(zeros, f"{name}.zero_points"),
    ]
    new = edit.op(
        "DequantizeLinear",
        inputs,
        attributes,
        dtype=tensor.dtype,
        shape=tensor.shape.numpy(),
        hint=f"{name}.dequantize",
    )
    made = new.producer()
    assert made is not None
    made.meta[beside.ORIGINAL] = (tensor if held is None else offsets.left(weight, held), weight.layout)
    made.meta[beside.LEVELS] = scheme.levels
    if scheme.float_inputs:
        made.metadata_props[FLOAT_INPUTS] = "true"
    take_place(edit, weight, new)
    size = stored_bytes(n, k, scheme, int(tensor.dtype.itemsize))
    return described(name, n, k, scheme, size)
