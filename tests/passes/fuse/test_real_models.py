"""Fuse on the real ONNX files: valid, the same bits, and fewer nodes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest
from burnish.frontends.onnx_file import import_onnx
from burnish.ir.verify import verify
from burnish.passes import Canonicalize, Fuse
from burnish.passes.base import Context

SIZES = {"magika": {}, "silero_vad": {}, "ppocr_det": {2: 64, 3: 96}, "yolov8n": {2: 64, 3: 64}}


def run(graph: onnx_ir.Model, feeds: dict[str, Any]) -> list[Any]:
    proto = onnx_ir.to_proto(graph)
    onnx.checker.check_model(proto)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, feeds))


def made_up(value: onnx_ir.Value, sizes: dict[int, int]) -> Any:
    assert value.dtype is not None and value.shape is not None
    shape = [d if isinstance(d, int) else sizes.get(axis, 1) for axis, d in enumerate(value.shape)]
    if value.name == "sr":
        return np.asarray(16000, np.int64)
    if not value.dtype.is_floating_point():
        return np.random.default_rng(0).integers(0, 200, shape).astype(value.dtype.numpy())
    return np.random.default_rng(0).random(shape, np.float32)


@pytest.mark.parametrize("name", list(SIZES))
def test_the_same_bits(name: str, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(name)
    graph = import_onnx(path).graph
    Canonicalize().run(graph, Context())
    feeds = {value.name or "": made_up(value, SIZES[name]) for value in graph.graph.inputs}
    if name == "silero_vad":
        feeds["input"] = np.random.default_rng(0).random((1, 512), np.float32)
    before, count = run(graph, feeds), len(graph.graph)
    outcome = Fuse(machine="gpu").run(graph, Context())
    verify(graph)
    if name != "silero_vad":  # all of it stands in the branches of an If
        assert outcome.changed and len(graph.graph) < count
    for old, new in zip(before, run(graph, feeds), strict=True):
        assert np.array_equal(old, new, equal_nan=True)


def test_the_runtime_ends_with_the_same_operators(magika: Path, tmp_path: Path) -> None:
    """It inlines the functions before it optimizes, so that a run takes as long as without them."""
    graph = import_onnx(magika).graph
    Canonicalize().run(graph, Context())

    def optimized() -> Counter[str]:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
        proto = onnx_ir.to_proto(graph)
        onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)

    before = optimized()
    assert Fuse(machine="gpu").run(graph, Context()).changed
    assert optimized() == before
