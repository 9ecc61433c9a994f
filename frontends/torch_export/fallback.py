"""The other way in: ``torch.onnx.export``, for what no rule translates."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import onnx_ir
import sympy
import torch
from torch.export import ExportedProgram

from ...ir.errors import UnsupportedError
from ...ir.graph import WORKING_OPSET, Graph, all_nodes


def export_decomposed(
    program: ExportedProgram,
    reason: str,
    unknown: Sequence[str],
    input_names: Sequence[str],
    output_names: Sequence[str],
    symbols: Mapping[sympy.Symbol, str],
    without_weights: bool,
) -> Graph:
    """The graph that ``torch.onnx.export`` makes of a program, with this package's names.

    Args:
        program: the program.
        reason: why it did not go the direct way, for messages.
        unknown: operators without a rule.
        input_names: names of the inputs, in order.
        output_names: names of the outputs, in order.
        symbols: names of the symbols of its dimensions.
        without_weights: the program was traced without weights, which this way cannot serve.

    Raises:
        UnsupportedError: it fails as well.
    """
    named = ", ".join(unknown) or reason
    if without_weights:
        raise UnsupportedError(f"a model traced without its weights cannot be imported: {reason}", where=named)
    try:
        with torch.no_grad():
            exported = torch.onnx.export(program, dynamo=True, opset_version=WORKING_OPSET, verbose=False)
    except Exception as error:
        raise UnsupportedError(
            f"neither way of importing the model works: {reason}; torch.onnx.export: {_cause(error)}",
            where=named,
            fix="replace the operator in the model, or add a rule for it in frontends/torch_export/rules",
        ) from error
    assert exported is not None
    graph: Graph = exported.model
    if len(graph.graph.inputs) != len(input_names) or len(graph.graph.outputs) != len(output_names):
        raise UnsupportedError(
            f"torch.onnx.export changed the number of inputs or outputs ({reason})", where=named
        )  # fmt: skip
    _rename(graph, input_names, output_names)
    _rename_dims(graph, {str(symbol): name for symbol, name in symbols.items()})
    return graph


def _rename(graph: Graph, input_names: Sequence[str], output_names: Sequence[str]) -> None:
    wanted = set(input_names) | set(output_names)
    for node in all_nodes(graph):
        for value in node.outputs:
            if value.name in wanted:
                value.name = f"{value.name}_inner"
    for value, name in zip(graph.graph.inputs, input_names, strict=True):
        value.name = name
    for value, name in zip(graph.graph.outputs, output_names, strict=True):
        if value.is_graph_input():
            continue
        value.name = name


def _rename_dims(graph: Graph, names: Mapping[str, str]) -> None:
    if not names:
        return
    pattern = re.compile(r"\b(" + "|".join(map(re.escape, names)) + r")\b")

    def renamed(value: onnx_ir.Value) -> None:
        if value.shape is None or value.shape.is_static():
            return
        new = [
            d if isinstance(d, int) or d.value is None else pattern.sub(lambda m: names[m[1]], d.value)
            for d in value.shape
        ]
        value.shape = onnx_ir.Shape(new)

    for value in graph.graph.inputs:
        renamed(value)
    for node in all_nodes(graph):
        for value in node.outputs:
            renamed(value)


def _cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"
