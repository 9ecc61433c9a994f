"""Benchmarks: each side in its own process, rounds alternated, honest figures."""

from __future__ import annotations

import json
import math
import os
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from burnish.compiler.benchmark import Result, Scenario, Side, Timing, benchmark, decode, prefill
from burnish.compiler.benchmark.machine import describe_machine, peak_memory
from burnish.compiler.benchmark.onnx_side import OnnxSide, find_model, make_inputs, model_bytes
from burnish.compiler.benchmark.result import largest_difference
from burnish.ir.errors import InputError, ModelError, OptionError

Write = Callable[..., Path]


@pytest.fixture(autouse=True)
def short_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("burnish.compiler.benchmark.runner._TURN", 0.01)
    monkeypatch.setattr("burnish.compiler.benchmark.runner._PAUSE", 0.0)


def test_two_files(linear_file: Write) -> None:
    seen: list[tuple[int, int, str]] = []
    first, second = linear_file("one.onnx"), linear_file("two.onnx", scale=1.5, input_name="other")
    result = benchmark(first, second, dims={"batch": 3}, rounds=5, threads=1, progress=lambda *now: seen.append(now))
    assert [side.name for side in result.sides] == ["one.onnx", "two.onnx"]
    assert {name: len(timing.rounds) for name, timing in result.timings["call"].items()} == {
        "one.onnx": 5,
        "two.onnx": 5,
    }
    assert 0 < result.ratio("call", "two.onnx") < 100
    assert result.size == {"one.onnx": first.stat().st_size, "two.onnx": second.stat().st_size}
    assert result.difference["two.onnx"] > 0.05  # outputs half as large again
    assert seen[0][0] == 0
    assert seen[-1][0] == seen[-1][1]
    # ONNX Runtime and NumPy alone; torch would need more than 200 MB.
    assert all(20e6 < size < 150e6 for size in result.memory.values())


def test_same_file_twice_has_equal_outputs(linear_file: Write) -> None:
    path = linear_file()
    result = benchmark(path, str(path), inputs={"x": np.ones((2, 8), np.float32)}, rounds=5, threads=1)
    assert result.difference == {"linear.onnx (2)": 0.0}
    written = json.loads(json.dumps(result.to_json()))
    assert written["sides"]["linear.onnx"]["source"] == "linear.onnx"  # no path of this machine
    assert written["scenarios"]["call"]["linear.onnx"]["ratio"] == 1.0
    assert written["machine"]["versions"]["onnxruntime"]
    assert "largest difference" in str(result)


def test_streams_give_the_same(linear_file: Write) -> None:
    path = linear_file()
    sides = [path, Side("streams", str(path), streams=2)]
    result = benchmark(*sides, dims={"batch": 6}, rounds=5, threads=2)
    assert result.difference["streams"] < 1e-6
    assert result.to_json()["sides"]["streams"]["streams"] == 2
    with pytest.raises(OptionError, match="streams=2 with 1 threads"):
        benchmark(sides[1], dims={"batch": 6}, rounds=5, threads=1)


def test_streams_are_for_calls(decoder_file: Path) -> None:
    streams = Side("streams", str(decoder_file), streams=2)
    with pytest.raises(OptionError, match="is no decoder with a cache"):
        benchmark(streams, scenarios=[prefill(4)], rounds=5, threads=2)


def test_only_one_side_works_at_a_time(linear_file: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    from burnish.compiler.benchmark import runner as module

    order: list[str] = []
    ask = module._Process.ask

    def watched(self, do, **message):
        if do == "round":
            order.append(self.side.name)
        return ask(self, do, **message)

    monkeypatch.setattr(module._Process, "ask", watched)
    benchmark(linear_file("a.onnx"), linear_file("b.onnx"), dims={"batch": 1}, rounds=5, threads=1)
    assert "".join(name[0] for name in order) == "abbaabbaab"


def test_decoder_scenarios_by_default(decoder_file: Path) -> None:
    result = benchmark(decoder_file, rounds=5, threads=1)
    assert list(result.timings) == ["prefill 128", "decode, 128 past"]
    assert result.difference == {}


def test_decode_feeds_the_cache_back(decoder_file: Path) -> None:
    side = OnnxSide(decoder_file, threads=1)
    _, cache = side.start(np.array([[1, 2, 3]]))
    logits, cache = side.forward(np.array([[4]]), cache, 3)
    assert side.numpy(logits).shape == (1, 1, 32)
    assert [value.shape() for value in cache] == [[1, 2, 4, 4], [1, 2, 4, 4]]
    assert decode(128, tokens=16) == Scenario("decode, 128 past", "decode", 16, 120)
    assert prefill(7) == Scenario("prefill 7", "prefill", 7)


def test_a_module_as_a_side(linear_file: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "made_here.py").write_text("import torch\n\ndef model():\n    return torch.nn.Linear(8, 4)\n")
    monkeypatch.syspath_prepend(tmp_path)
    eager = Side("eager", "made_here:model", eager=True)
    result = benchmark(linear_file(), eager, dims={"batch": 2}, rounds=5, threads=1)
    assert result.memory["eager"] > result.memory["linear.onnx"] + 50e6
    assert result.size["eager"] == 0
    with pytest.raises(OptionError, match="there is no function 'made_here:absent'"):
        benchmark(linear_file(), Side("eager", "made_here:absent", eager=True), dims={"batch": 2}, rounds=5)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, OptionError, r"dimensions without a size: batch\n.*--dim batch=1"),
        ({"dims": {"batch": 1, "height": 2}}, OptionError, "no input has a symbolic dimension height"),
        ({"dims": {"batch": 1}, "rounds": 4}, OptionError, "4 rounds say little"),
        ({"dims": {"batch": 1}, "scenarios": [prefill(4)]}, OptionError, "is no decoder with a cache"),
        ({"inputs": {"x": np.ones((1, 9), np.float32)}}, ModelError, "Got invalid dimensions"),
        ({"inputs": {"a": np.ones(1), "b": np.ones(1)}}, InputError, "the model takes x, but the inputs are a, b"),
    ],
)
def test_refused(linear_file: Write, options: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        benchmark(linear_file(), threads=1, **options)


def test_missing_broken_and_no_models(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no such model"):
        benchmark(tmp_path / "absent.onnx")
    (tmp_path / "broken.onnx").write_bytes(b"not a model")
    with pytest.raises(ModelError, match="ONNX Runtime cannot load the model"):
        benchmark(tmp_path / "broken.onnx")
    with pytest.raises(OptionError, match="nothing to benchmark"):
        benchmark()
    with pytest.raises(OptionError, match="a int cannot be benchmarked"):
        benchmark(3)


def test_a_worker_that_dies_is_told(linear_file: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    from burnish.compiler.benchmark import runner as module

    ask = module._Process.ask

    def kill_first(self, do, **message):
        if do == "round":
            self._process.kill()
            self._process.wait()
        return ask(self, do, **message)

    monkeypatch.setattr(module._Process, "ask", kill_first)
    with pytest.raises(ModelError, match=r"'linear\.onnx' ended with status -9 during 'round'"):
        benchmark(linear_file(), dims={"batch": 1}, threads=1)


def test_no_process_is_left(linear_file: Write) -> None:
    def children() -> set[str]:
        lists = Path(f"/proc/{os.getpid()}/task").glob("*/children")
        return {child for each in lists for child in each.read_text().split()}

    if not Path(f"/proc/{os.getpid()}/task/{threading.get_native_id()}/children").exists():
        return
    before = children()
    with pytest.raises(OptionError):
        benchmark(linear_file(), threads=1)
    assert children() <= before


def test_made_inputs() -> None:
    signature = [
        {"name": "input_ids", "type": "tensor(int64)", "shape": ["batch", "length"]},
        {"name": "attention_mask", "type": "tensor(int64)", "shape": ["batch", "length"]},
        {"name": "position_ids", "type": "tensor(int64)", "shape": ["batch", "length"]},
        {"name": "pixels", "type": "tensor(float16)", "shape": ["batch", 3, None]},
        {"name": "flag", "type": "tensor(bool)", "shape": []},
    ]
    arrays = make_inputs(signature, {"batch": 2, "length": 3, "pixels:2": 5})
    assert {name: array.shape for name, array in arrays.items()} == {
        "input_ids": (2, 3), "attention_mask": (2, 3), "position_ids": (2, 3), "pixels": (2, 3, 5), "flag": (),
    }  # fmt: skip
    assert arrays["attention_mask"].min() == 1
    assert arrays["position_ids"].tolist() == [[0, 1, 2]] * 2
    assert arrays["pixels"].dtype == np.float16
    assert set(np.unique(arrays["input_ids"])) <= {0, 1}
    with pytest.raises(OptionError, match="--dim pixels:2=1"):
        make_inputs(signature[3:], {"batch": 1})
    with pytest.raises(ModelError, match=r"'s' is a tensor\(string\)"):
        make_inputs([{"name": "s", "type": "tensor(string)", "shape": [1]}], {})


def test_files_of_a_model(linear_file: Write, tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(b"x" * 10)
    (folder / "model.onnx.data").write_bytes(b"x" * 100)
    (folder / "tokenizer.json").write_bytes(b"x" * 1000)
    assert find_model(folder) == folder / "model.onnx"
    assert model_bytes(folder) == model_bytes(folder / "model.onnx") == 110
    with pytest.raises(ModelError, match="holds 0 ONNX files"):
        find_model(tmp_path / "saved" / "..")


def test_statistics() -> None:
    sides = [Side("a", "a"), Side("b", "b")]
    result = Result(sides, 2, {"call": {"a": Timing((1.0, 2.0, 10.0)), "b": Timing((2.0, 4.0, 10.0))}})
    timing = result.timings["call"]["a"]
    assert (timing.median, timing.best, timing.spread) == (2.0, 1.0, 4.5)
    assert result.ratio("call", "b") == 2.0  # of pairs, so a slow spell of the machine counts for both
    assert result.ratio("call", "a", "b") == 0.5
    result.memory = result.size = {"a": 1, "b": 2}
    assert "2000.00 ms ± 4500.00" in str(result)
    result.timings["call"]["a"] = Timing((2.5e-5,) * 3)
    assert "25.00 µs ± 0.00" in str(result)


def test_largest_difference() -> None:
    want = {"0": np.array([0.0, 10.0]), "1": np.array([1, 2])}
    assert largest_difference(want, want) == 0
    assert largest_difference(want, {"0": np.array([0.0, 10.5]), "1": want["1"]}) == 0.05
    assert largest_difference(want, {"0": np.array([0.0]), "1": want["1"]}) == math.inf
    assert largest_difference(want, {"0": want["0"]}) == math.inf
    assert largest_difference({"0": np.array([np.nan, 1.0])}, {"0": np.array([2.0, 1.0])}) == math.inf
    assert largest_difference({"0": np.array([np.nan, 1.0])}, {"0": np.array([np.nan, 1.0])}) == 0


def test_machine() -> None:
    machine = describe_machine()
    assert machine["cores"] >= 1
    assert machine["cpu"]
    assert set(machine["versions"]) == {"burnish", "onnxruntime", "numpy", "torch"}
    assert 10e6 < peak_memory() < 1e12
