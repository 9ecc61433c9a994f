"""Latencies of blocks: measured, kept, and what a plan makes of them."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import onnx_ir
import pytest
from burnish.compiler.timing.latency import BlockLatency, on_gpu, on_onnxruntime
from burnish.ir.infer import infer_graph
from burnish.passes import Fuse
from burnish.passes.base import Context

TEXT = """<ir_version: 10, opset_import: ["" : 23]>
g (float[B, 32] x, float[32, 32] w, float[32] b, int64[3] i) => (float[3, 32] y) {
p = MatMul(x, w) q = Add(p, b) r = Relu(q) y = Gather(r, i) }"""


def model() -> onnx_ir.Model:
    graph = onnx_ir.from_proto(onnx.parser.parse_model(TEXT))
    infer_graph(graph)
    return graph


def test_a_block_is_one_function_and_takes_time() -> None:
    seen: list[int] = []
    real = on_onnxruntime()

    def open_model(graph: onnx_ir.Model) -> object:
        seen.append(len(graph.graph))
        return real._open(graph)

    latency = BlockLatency("here", open_model)  # type: ignore[arg-type]
    assert 0 < latency(model()) < 1
    assert seen == [1]


def test_a_plan_by_what_this_machine_measures(tmp_path: Path) -> None:
    latency = on_onnxruntime()
    path = tmp_path / "latencies.json"
    outcome = Fuse(latencies=str(path)).run(model(), Context(latency=latency))
    assert any("measured latencies" in remark.reason for remark in outcome.remarks)
    table = json.loads(path.read_text())
    assert table and all(key.startswith(latency.machine) for key in table)
    assert all(0 < seconds < 1 for seconds in table.values())


def test_without_a_gpu_there_is_nothing_to_measure_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert on_gpu() is None
