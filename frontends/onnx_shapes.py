"""Shapes of an imported model, inferred afresh: what a file says of its inner values may be out of date."""

from __future__ import annotations

import onnx
import onnx_ir

from ..ir.graph import Graph
from ..ir.remarks import Remark
from ..ir.symbolic import same

_STANDARD = frozenset(("", "ai.onnx", "ai.onnx.ml"))


def infer_shapes(graph: Graph, copy: onnx.ModelProto) -> list[Remark]:
    """Give the values of the main graph of ``graph`` the types that follow from inputs and weights.

    People edit the inputs of a file (a fixed batch made dynamic) and leave old inner shapes behind. So the shapes that
    the file gives to outputs of standard operators are not believed; those of other operators are all there is.

    Args:
        graph: edited in place; subgraphs keep what they say.
        copy: the light copy of the same model; changed.
    """
    mine = {d.dim_param for v in copy.graph.input for d in v.type.tensor_type.shape.dim}
    theirs = {d.dim_param for v in (*copy.graph.output, *copy.graph.value_info) for d in v.type.tensor_type.shape.dim}
    standard = {o for n in copy.graph.node if n.domain in _STANDARD for o in n.output}
    declared = list(copy.graph.value_info)
    del copy.graph.value_info[:]
    copy.graph.value_info.extend(info for info in declared if info.name not in standard)
    for output in copy.graph.output:
        if output.name in standard and output.type.HasField("tensor_type"):
            output.type.tensor_type.ClearField("shape")
    try:
        result = onnx.shape_inference.infer_shapes(copy, check_type=False, strict_mode=False, data_prop=True)
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError) as error:
        return [Remark("skipped", "", f"shape inference failed, so shapes are those of the file: {error}")]
    inferred = {info.name: info.type for info in (*result.graph.value_info, *result.graph.output)}
    # Inference names what it does not know unk__0, unk__1 ...; the file may have used the same names for other things.
    kept = mine | {d.dim_param for v in copy.graph.value_info for d in v.type.tensor_type.shape.dim}
    fresh: dict[str, str] = {}
    for proto in inferred.values():
        for dim in proto.tensor_type.shape.dim:
            if dim.dim_param and dim.dim_param not in kept:
                dim.dim_param = fresh.setdefault(dim.dim_param, _fresh(len(fresh), mine | theirs))
    for node in graph.graph:
        for value in node.outputs:
            if value.name in inferred:
                _set(value, inferred[value.name])
            elif node.domain in _STANDARD and not value.is_graph_output():
                value.shape = None
    return []


def _fresh(count: int, taken: set[str]) -> str:
    name = f"unknown_{count}"
    while name in taken:
        name += "_"
    return name


def _set(value: onnx_ir.Value, proto: onnx.TypeProto) -> None:
    if proto.HasField("map_type"):
        return
    try:
        kind = onnx_ir.serde.deserialize_type_proto_for_type(proto)
        shape = onnx_ir.serde.deserialize_type_proto_for_shape(proto)
    except Exception:  # onnx_ir has no type for it (a map inside a sequence): what was known stays
        return
    if kind is not None:
        value.type = kind
    if value.is_graph_output():
        value.shape = _merged(value.shape, shape)
    else:
        value.shape = shape


def _merged(declared: onnx_ir.Shape | None, inferred: onnx_ir.Shape | None) -> onnx_ir.Shape | None:
    """The declared shape of an output, corrected where inference is sure of something else."""
    if declared is None or inferred is None:
        return inferred if declared is None else declared
    if len(declared) != len(inferred):
        return inferred
    dims: list[int | onnx_ir.SymbolicDim] = []
    for old, new in zip(declared, inferred, strict=True):
        sure = isinstance(new, int) or (new.value is not None and not new.value.startswith("unknown_"))
        stale = isinstance(old, int) and sure and not same(old, new)
        dims.append(new if stale or isinstance(new, int) else old)
    return onnx_ir.Shape(dims)
