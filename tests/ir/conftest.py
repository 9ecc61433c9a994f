"""Fixtures of the tests of ``ir/``."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir
import pytest

Parse = Callable[[str], onnx_ir.Model]
Run = Callable[[onnx.ModelProto, Mapping[str, Any], list[str] | None], dict[str, np.ndarray[Any, Any]]]


@pytest.fixture(scope="session")
def parse() -> Parse:
    """A model from text in ONNX's own syntax; ``graph(...)`` alone gets the working opset."""

    def parse_text(text: str, opset: int = 23) -> onnx_ir.Model:
        head = "" if text.lstrip().startswith("<") else f'<ir_version: 10, opset_import: ["" : {opset}]>\n'
        return onnx_ir.from_proto(onnx.parser.parse_model(head + text))

    return parse_text


@pytest.fixture(scope="session")
def run() -> Run:
    """Runs a model in ONNX Runtime without optimization; every value in ``names`` becomes an output."""
    import onnxruntime

    def execute(
        model: onnx.ModelProto, feeds: Mapping[str, Any], names: list[str] | None = None
    ) -> dict[str, np.ndarray[Any, Any]]:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        have = {v.name for v in copy.graph.output}
        for name in names or []:
            if name not in have:
                copy.graph.output.append(onnx.ValueInfoProto(name=name))
        session = onnxruntime.InferenceSession(copy.SerializeToString(), options, providers=["CPUExecutionProvider"])
        outputs = [v.name for v in session.get_outputs()]
        return dict(zip(outputs, session.run(outputs, dict(feeds)), strict=True))

    return execute


@pytest.fixture(scope="session")
def value_of() -> Callable[[onnx_ir.Model, str], onnx_ir.Value]:
    """A value of the main graph by name."""

    def find(model: onnx_ir.Model, name: str) -> onnx_ir.Value:
        for value in model.graph.inputs:
            if value.name == name:
                return value
        for node in model.graph.all_nodes():
            for value in node.outputs:
                if value.name == name:
                    return value
        return model.graph.initializers[name]

    return find
