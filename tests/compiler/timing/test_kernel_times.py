"""Times of kernels on this machine: measured once, kept, and within a budget."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import burnish
import numpy as np
import onnx
import onnx_ir
import pytest
import torch
from burnish.backends.onnxruntime.session import Session
from burnish.compiler.timing import stopwatch
from burnish.compiler.timing.kernel_times import FILE, KernelTimes, asked_for
from burnish.ir.errors import OptionError
from burnish.ir.graph import Graph
from burnish.ir.rewrite import Editor
from burnish.passes import ChooseKernels, MergeProducts
from burnish.passes.spec import parse


@pytest.fixture(autouse=True)
def _busy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Count a single thread's time: other tests run beside these."""
    monkeypatch.setattr(stopwatch, "is_quiet", lambda threads: False)


def product(size: int, op: str = "MatMul") -> Graph:
    graph = onnx_ir.Graph([], [], nodes=[], opset_imports={"": 23}, name="g")
    model = onnx_ir.Model(graph, ir_version=10)
    edit = Editor(model, "test").at(None)
    x = onnx_ir.Value(name="x", type=onnx_ir.TensorType(onnx_ir.DataType.FLOAT), shape=onnx_ir.Shape([size, size]))
    graph.inputs.append(x)
    weight = edit.initializer(np.ones((size, size), np.float32), "w")
    graph.outputs.append(edit.op(op, [x, weight], dtype=onnx_ir.DataType.FLOAT, shape=[size, size]))
    return model


def test_more_work_takes_longer() -> None:
    small, large = KernelTimes(None, 5.0)([product(16), product(512)]) or (0.0, 0.0)
    assert 0 < 10 * small < large  # 32768 times the operations


def test_what_was_measured_is_known_to_the_next(tmp_path: Path) -> None:
    first = KernelTimes(tmp_path, 5.0)
    taken = first([product(16), product(32)])
    first.save()
    assert first.measured == 2 and len(json.loads((tmp_path / FILE).read_text())) == 2
    again = KernelTimes(tmp_path, 0.0)
    assert again([product(16), product(32)]) == taken
    assert again([product(16), product(64)]) is None and again.refused == 1 and again.measured == 0


def test_what_cannot_run_is_refused_not_guessed() -> None:
    times = KernelTimes(None, 5.0)
    broken = product(16)
    broken.graph[0].op_type = "NoSuchOperator"
    assert times([product(16), broken]) is None and times.refused == 1
    assert times.unlowered([broken]) is None


def test_constants_and_sizes_tell_graphs_apart(tmp_path: Path) -> None:
    times = KernelTimes(tmp_path, 5.0)
    free = product(16)
    weight = free.graph.initializers.pop("w")
    weight.const_value = None
    free.graph.inputs.append(weight)
    times([product(16), free, product(32), product(16, "Add")])
    assert times.measured == 4


def test_only_who_asks_for_it_has_a_clock() -> None:
    assert asked_for(parse("w8a16"), None) is None
    assert asked_for(parse("default,choose_kernels(seconds=1)"), None) is not None
    with pytest.raises(OptionError, match="no time"):
        ChooseKernels(-1.0)


def test_the_processor_s_own_time_is_taken_where_the_machine_is_busy() -> None:
    times = KernelTimes(None, 5.0, threads=2)
    times([product(16)])
    assert all("1 threads" in key for key in times._table._table)


class Encoder(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        layer = torch.nn.TransformerEncoderLayer(32, 4, 64, activation="gelu", batch_first=True)
        self.layers = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x: torch.Tensor) -> Any:
        return self.layers(x)


def test_the_same_machine_makes_the_same_file(tmp_path: Path) -> None:
    model, x = Encoder().eval(), torch.randn(2, 12, 32)
    files, reports = [], []
    for name in ("one", "two"):
        compiled = burnish.compile(model, x, passes="default,choose_kernels", cache=tmp_path / "cache", verify="off")
        (tmp_path / name).mkdir()
        path = tmp_path / name / "model.onnx"
        compiled.save(path)
        proto = onnx.load(path)
        kept = [entry for entry in proto.metadata_props if entry.key != "burnish.report"]
        del proto.metadata_props[:]
        proto.metadata_props.extend(kept)
        files.append(proto.SerializeToString(deterministic=True))
        reports.append(str(compiled.report))
        # Compiled anew, but with the table of the first time.
        for entry in (tmp_path / "cache").iterdir():
            if entry.is_dir():
                entry.rename(tmp_path / f"{name}-{entry.name}")
    assert files[0] == files[1]
    assert (tmp_path / "cache" / FILE).exists()
    with torch.no_grad():
        np.testing.assert_allclose(Session(tmp_path / "one" / "model.onnx").run({"x": x})[0], model(x), atol=1e-5)


def test_the_report_has_the_figures(tmp_path: Path) -> None:
    model, x = Encoder().eval(), torch.randn(2, 12, 32)
    compiled = burnish.compile(model, x, passes="default,choose_kernels", cache=tmp_path, verify="off")
    said = [remark.reason for remark in compiled.report.backend]
    assert any("LayerNormalization" in reason and "times the time" in reason for reason in said)
    plain = burnish.compile(model, x, cache=False, verify="off")
    assert not any("times the time" in remark.reason for remark in plain.report.backend)


def test_other_targets_say_that_nothing_is_measured() -> None:
    from burnish.passes.base import Context

    for item, target, why in (
        (ChooseKernels(), "triton", "not for triton"),
        (ChooseKernels(), "onnxruntime", "nothing can be timed"),
        (MergeProducts(measured=True), "onnxruntime", "nothing can be timed"),
    ):
        outcome = item.run(product(16), Context(target=target))
        assert not outcome.changed and why in outcome.remarks[0].reason
