"""Raising the opset of an imported model, node by node, where that provably keeps its meaning.

``onnx.version_converter`` loses functions and metadata and serializes the weights; this touches only the operators
whose meaning or form really changed between two opsets, and refuses a model as a whole when one of them has no exact
counterpart. What changed was read off the operator schemas; :func:`_form_changed` compares them again at run time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import onnx
import onnx_ir

from ..ir.graph import WORKING_OPSET, Graph, all_nodes, attribute, rank
from ..ir.rewrite import Editor

Edit = Callable[[Editor], object]

OLDEST = 7
"""Before opset 7, broadcasting and dropout worked differently; such models keep their opset."""


class KeepOpset(Exception):
    """A node cannot be expressed in the newer opset; the message says why."""


def raise_opset(graph: Graph, target: int = WORKING_OPSET) -> str | None:
    """Raise the standard opset of ``graph`` to ``target`` in place, or leave it entirely alone.

    Returns:
        None if the opset was raised or was high enough; else the reason why the model keeps its opset.
    """
    version = graph.opset_imports.get("")
    if version is None or version >= target:
        return None
    if version < OLDEST:
        return f"opset {version} is older than {OLDEST}, where operators broadcast differently"
    if graph.functions:
        return "the model has local functions, whose bodies are written for its own opset"
    plan: list[tuple[onnx_ir.Node, Edit]] = []
    for node in all_nodes(graph):
        if node.domain not in ("", "ai.onnx"):
            continue
        try:
            plan.extend((node, edit) for edit in _edits(node, version, target))
        except KeepOpset as reason:
            return f"{node.op_type} {node.name!r}: {reason}"
    names: set[str] | None = None
    for node, edit in plan:
        editor = Editor(graph, "raise opset", scope=node.graph, names=names).at(node)
        names = editor.names
        edit(editor)
    graph.opset_imports[""] = target
    return None


def _edits(node: onnx_ir.Node, version: int, target: int) -> list[Edit]:
    """The edits that ``node`` needs, oldest first.

    Raises:
        KeepOpset: one of them is not possible.
    """
    adapters = _ADAPTERS.get(node.op_type, ())
    edits = []
    for since, adapter in adapters:
        if version < since <= target:
            edit = adapter(node)
            if edit is not None:
                edits.append(edit)
    if not adapters and _form_changed(node.op_type, version, target):
        raise KeepOpset(f"its form changed between opsets {version} and {target}")
    return edits


@lru_cache(maxsize=4096)
def _form_changed(op_type: str, version: int, target: int) -> bool:
    """Whether the schemas differ in more than added types, optional inputs and attributes."""
    try:
        old = onnx.defs.get_schema(op_type, version, "")
        new = onnx.defs.get_schema(op_type, target, "")
    except onnx.defs.SchemaError:
        # Not an ONNX operator: some runtimes keep operators of their own in the standard domain.
        return True
    if old.since_version == new.since_version:
        return False
    if new.deprecated:
        return True
    before, after = list(old.inputs), list(new.inputs)
    if len(after) < len(before) or any(i.option != j.option for i, j in zip(before, after, strict=False)):
        return True
    if any(i.option == onnx.defs.OpSchema.FormalParameterOption.Single for i in after[len(before) :]):
        return True
    if any(
        name not in new.attributes or new.attributes[name].default_value != attr.default_value
        for name, attr in old.attributes.items()
    ):
        return True
    types = {t for c in old.type_constraints for t in c.allowed_type_strs}
    return not types <= {t for c in new.type_constraints for t in c.allowed_type_strs}


def _keep(reason: str) -> Callable[[onnx_ir.Node], Edit | None]:
    def adapter(node: onnx_ir.Node) -> Edit | None:
        raise KeepOpset(reason)

    return adapter


def _set_input(node: onnx_ir.Node, index: int, value: onnx_ir.Value) -> None:
    if len(node.inputs) <= index:
        node.resize_inputs(index + 1)
    node.replace_input_with(index, value)


def _ints_to_inputs(*names: str, first: int = 1, scalar: bool = False) -> Callable[[onnx_ir.Node], Edit | None]:
    """Integer attributes ``names`` become inputs, from input ``first`` on."""

    def adapter(node: onnx_ir.Node) -> Edit | None:
        if not any(name in node.attributes for name in names):
            return None

        def edit(editor: Editor) -> None:
            for i, name in enumerate(names):
                values = attribute(node, name)
                node.attributes.pop(name, None)
                if values is not None and values != []:
                    data: Sequence[int] = [values] if scalar and isinstance(values, int) else values
                    _set_input(node, first + i, editor.ints(data, name))

        return edit

    return adapter


def _softmax(node: onnx_ir.Node) -> Edit | None:
    axis, dimensions = attribute(node, "axis", 1), rank(node.inputs[0])
    last = axis == -1 or (dimensions is not None and axis % dimensions == dimensions - 1)

    def keep_axis(editor: Editor) -> None:
        node.attributes.add(onnx_ir.AttrInt64("axis", -1))

    def through_matrix(editor: Editor) -> None:
        # Until opset 12 the dimensions from `axis` on were one: the softmax of a matrix.
        value = node.inputs[0]
        shape = editor.op("Shape", [value])
        matrix = editor.op("Flatten", [value], {"axis": axis})
        result = editor.op(node.op_type, [matrix], {"axis": -1})
        editor.replace(node.outputs[0], editor.op("Reshape", [result, shape]))
        editor.sweep([node])

    return keep_axis if last else through_matrix


def _split_count(node: onnx_ir.Node) -> Edit | None:
    if (len(node.inputs) > 1 and node.inputs[1] is not None) or "split" in node.attributes:
        return None
    return lambda editor: node.attributes.add(onnx_ir.AttrInt64("num_outputs", len(node.outputs)))


def _floats_to_inputs(*names: str, first: int = 1) -> Callable[[onnx_ir.Node], Edit | None]:
    """Float attributes ``names`` become scalar inputs of the element type of the first input."""

    def adapter(node: onnx_ir.Node) -> Edit | None:
        if not any(name in node.attributes for name in names):
            return None
        value = node.inputs[0]
        if value is None or value.dtype is None or not value.dtype.is_floating_point():
            raise KeepOpset("the element type of its input is not known to be a float")
        dtype = value.dtype.numpy()

        def edit(editor: Editor) -> None:
            for i, name in enumerate(names):
                number = attribute(node, name)
                node.attributes.pop(name, None)
                if number is not None:
                    _set_input(node, first + i, editor.initializer(np.asarray(number, dtype=dtype), name))

        return edit

    return adapter


def _batch_normalization(node: onnx_ir.Node) -> Edit | None:
    if sum(bool(v.uses() or v.is_graph_output()) for v in node.outputs) > 1:
        raise KeepOpset("it is in training mode")
    if attribute(node, "spatial", 1) != 1:
        raise KeepOpset("it normalizes each position on its own")
    return lambda editor: node.attributes.pop("spatial", None)


def _dropout(node: onnx_ir.Node) -> Edit | None:
    if len(node.outputs) > 1 and (node.outputs[1].uses() or node.outputs[1].is_graph_output()):
        raise KeepOpset("its mask is used")
    return lambda editor: node.attributes.pop("ratio", None)


def _roi_align(node: onnx_ir.Node) -> Edit | None:
    if "coordinate_transformation_mode" in node.attributes:
        return None
    return lambda editor: node.attributes.add(onnx_ir.AttrString("coordinate_transformation_mode", "output_half_pixel"))


def _grid_sample(node: onnx_ir.Node) -> Edit | None:
    name = {"bilinear": "linear", "bicubic": "cubic"}.get(attribute(node, "mode", "bilinear"))
    return None if name is None else lambda editor: node.attributes.add(onnx_ir.AttrString("mode", name))


def _erf(node: onnx_ir.Node) -> Edit | None:
    value = node.inputs[0]
    if value is None or value.dtype is None or not value.dtype.is_floating_point():
        raise KeepOpset("the element type of its input is not known to be a float")
    return None


def _scatter(node: onnx_ir.Node) -> Edit | None:
    def edit(editor: Editor) -> None:
        node.op_type = "ScatterElements"

    return edit


_AXES = _ints_to_inputs("axes")
_ADAPTERS: dict[str, tuple[tuple[int, Callable[[onnx_ir.Node], Edit | None]], ...]] = {
    "BatchNormalization": ((14, _batch_normalization),),
    "Clip": ((11, _floats_to_inputs("min", "max")),),
    "DFT": ((20, _keep("its axis became an input with another default")),),
    "Dropout": ((12, _dropout),),
    "Erf": ((13, _erf),),
    "GridSample": ((20, _grid_sample),),
    "GroupNormalization": ((21, _keep("its scale and bias are per group, later ones per channel")),),
    "Hardmax": ((13, _softmax),),
    "LogSoftmax": ((13, _softmax),),
    "Pad": ((11, _ints_to_inputs("pads")), (11, _floats_to_inputs("value", first=2))),
    "ReduceSum": ((13, _AXES),),
    "Resize": ((11, _keep("it rounds coordinates in a way that later opsets lack")),),
    "RoiAlign": ((16, _roi_align),),
    "Scan": ((9, _keep("its inputs changed")),),
    "Scatter": ((11, _scatter),),
    "Slice": ((10, _ints_to_inputs("starts", "ends", "axes")),),
    "Softmax": ((13, _softmax),),
    "Split": ((13, _ints_to_inputs("split")), (18, _split_count)),
    "Squeeze": ((13, _AXES),),
    "TopK": ((10, _ints_to_inputs("k", scalar=True)),),
    "Unsqueeze": ((13, _AXES),),
    "Upsample": ((9, _keep("it was replaced by Resize, which rounds differently")), (10, _keep("it was removed"))),
}
_ADAPTERS |= {
    f"Reduce{kind}": ((18, _AXES),)
    for kind in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")
}
# Operators with an entry above have been compared by hand; all others by `_form_changed`.
