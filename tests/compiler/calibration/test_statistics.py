"""Statistics of values: against NumPy on eager activations, in segments, cached, in bounded memory."""

import tracemalloc
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import burnish
import numpy as np
import onnx_ir
import pytest
import torch
import transformers
from burnish.compiler.cache import Cache
from burnish.compiler.calibration.statistics import Statistics
from burnish.compiler.inputs import Calibration
from burnish.frontends.huggingface.folder import import_folder
from burnish.frontends.imported import Imported
from burnish.frontends.onnx_file import import_onnx
from burnish.ir.errors import CalibrationError
from burnish.ir.graph import is_op, module_path
from burnish.ir.signature import NamedSignature, TensorSpec
from burnish.passes.base import Context, Outcome, Pass, Stage
from burnish.passes.statistics import AbsMax, Hessian, Histogram, L2Norm, Magnitudes, Mean, MeanAbs, MinMax, Observer

OBSERVERS: dict[Observer, Callable[[np.ndarray], np.ndarray]] = {
    AbsMax(): lambda x: np.abs(x).max(0),
    MinMax(): lambda x: np.stack([x.min(0), x.max(0)]),
    Mean(): lambda x: x.mean(0),
    MeanAbs(): lambda x: np.abs(x).mean(0),
    L2Norm(): lambda x: np.sqrt((x * x).sum(0)),
    Magnitudes(): lambda x: np.stack([np.abs(x).max(0), np.abs(x).mean(0), (x * x).mean(0)]),
    Hessian(): lambda x: x.T @ x / len(x),
}
"""Each observer on tokens [T, K] in float64."""


@dataclass(frozen=True)
class Decoder:
    """A small Llama, calibration inputs of several lengths, and what its linear layers read on them, [T, K] each."""

    folder: Path
    imported: Imported
    batches: list[np.ndarray]
    read: dict[str, np.ndarray]


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=128,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    folder = tmp_path_factory.mktemp("llama")
    model.save_pretrained(folder)
    generator = np.random.default_rng(0)
    batches = [generator.integers(0, 128, (rows, length)) for rows, length in ((2, 40), (1, 33), (3, 25))]
    read: dict[str, list[np.ndarray]] = {}

    def watch(name: str) -> Callable[..., None]:
        return lambda _, args: read.setdefault(name, []).append(args[0].double().reshape(-1, args[0].shape[-1]).numpy())

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(watch(name))
    with torch.no_grad():
        for ids in batches:
            model(torch.from_numpy(ids))
    return Decoder(
        folder, import_folder(folder), batches, {name: np.concatenate(arrays) for name, arrays in read.items()}
    )


def products(graph: onnx_ir.Model) -> dict[str, onnx_ir.Value]:
    """What the products by weights read, by module path."""
    found = {}
    for node in graph.graph:
        value = node.inputs[0] if is_op(node, "MatMul") else None
        if value is not None and value.shape is not None and isinstance(value.shape[-1], int):
            found[module_path(node)] = value
    return found


@dataclass(frozen=True)
class Ask(Pass):
    """Asks for a statistic of what all products read."""

    stage = Stage.SMOOTH
    observer: Observer
    got: Any

    def run(self, graph: onnx_ir.Model, context: Context) -> Outcome:
        values = products(graph)
        given = context.statistics(list(values.values()), self.observer)
        self.got.update({path: np.array(given[value.name]) for path, value in values.items()})
        outcome = Outcome()
        outcome.skipped("", "only looks")
        return outcome


def ask(model: Any, calibration: Iterable[Any] | None, observer: Observer) -> dict:
    """The statistic of what all products read, through ``burnish.compile``."""
    got: dict[str, np.ndarray] = {}
    burnish.compile(model, passes=[Ask(observer, got)], calibration=calibration, cache=False)
    return got


def distance(given: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(given - expected).max() / np.abs(expected).max())


@pytest.fixture
def opened(decoder: Decoder, tmp_path: Path) -> Callable[..., tuple[Statistics, dict[str, onnx_ir.Value]]]:
    """The decoder's statistics object and the values that its products read."""

    def make(batches: Any = None, **options: Any) -> tuple[Statistics, dict[str, onnx_ir.Value]]:
        imported, graph = decoder.imported, decoder.imported.graph.clone()
        given = decoder.batches if batches is None else batches
        data = Calibration(given, imported.signature, imported.decoder)
        return Statistics(graph, data, tmp_path, **options), products(graph)

    return make


@pytest.mark.parametrize("observer", OBSERVERS, ids=lambda observer: type(observer).__name__)
def test_decoder_agrees_with_eager(opened: Callable, decoder: Decoder, observer: Observer) -> None:
    stats, values = opened()
    with stats:
        got = stats(list(values.values()), observer)
        assert (len(values), len(got)) == (3 * 7 + 1, 3 * 4 + 1)
        for path, expected in decoder.read.items():
            # float32 activations after three layers: 1e-6; a Hessian squares it.
            assert distance(got[values[path].name], OBSERVERS[observer](expected)) < 1e-5


@pytest.mark.parametrize("observer", OBSERVERS, ids=lambda observer: type(observer).__name__)
def test_file_agrees_with_numpy(network: Callable, observer: Observer) -> None:
    made = network()
    generator = np.random.default_rng(1)
    batches = [generator.standard_normal((rows, 64), np.float32) for rows in (7, 1, 30)]
    got = list(ask(made.path, batches, observer).values())
    assert len(got) == 2
    x = np.concatenate(batches).astype(np.float64)
    w1, b = (onnx_ir.from_proto(made.proto).graph.initializers[name].const_value.numpy() for name in ("w1", "b"))
    for given, expected in zip(got, (x, np.maximum(x @ w1 + b, 0)), strict=True):
        assert given.dtype == np.float32
        assert distance(given, OBSERVERS[observer](expected)) < 1e-5


def test_segments_agree_with_one_run(opened: Callable, decoder: Decoder) -> None:
    whole, values = opened()
    pieces, same = opened(memory=200_000)
    with whole, pieces:
        one = whole(list(values.values()), Hessian())
        other = pieces(list(same.values()), Hessian())
        assert (whole.runs, whole.segments) == (1, 1)
        assert pieces.runs == 1 and pieces.segments >= 6
        assert list(one) == list(other) and len(one) == 3 * 4 + 1
        for name in one:
            np.testing.assert_allclose(one[name], other[name], rtol=1e-5, atol=1e-6)


def test_few_values_flow_between_segments(opened: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between blocks: the residual stream, and what all layers share (mask, cosines, sines)."""
    from burnish.compiler.calibration import statistics as module

    seen = []
    real = module.split
    monkeypatch.setattr(module, "split", lambda *args: seen.extend(real(*args)) or seen)
    stats, values = opened(memory=400_000)
    with stats:
        stats(list(values.values()), Hessian())
    assert len(seen) >= 3
    assert all(1 <= len(segment.carried) <= 5 for segment in seen[:-1]) and seen[-1].carried == ()


def test_order_of_batches_and_how_they_are_cut(opened: Callable, decoder: Decoder) -> None:
    rows = [row[None] for ids in decoder.batches for row in ids]
    for batches in (decoder.batches[::-1], rows):
        first, values = opened()
        second, same = opened(batches)
        with first, second:
            for observer in (AbsMax(), Hessian()):
                one = first(list(values.values()), observer)
                other = second(list(same.values()), observer)
                for name in one:
                    np.testing.assert_allclose(one[name], other[name], rtol=1e-4, atol=1e-5)


def test_the_same_twice_is_bit_equal(opened: Callable) -> None:
    results = []
    for _ in range(2):
        stats, values = opened()
        with stats:
            results.append({k: np.array(v) for k, v in stats(list(values.values()), Hessian()).items()})
    for name, one in results[0].items():
        np.testing.assert_array_equal(one, results[1][name])


def test_one_run_serves_who_asks_again(opened: Callable) -> None:
    stats, values = opened()
    with stats:
        some = list(values.values())
        stats(some[:5], Mean())
        stats(some[:3], Mean())
        assert stats.runs == 1
        stats(some, Mean())
        assert stats.runs == 2
        stats(some, AbsMax())
        assert stats.runs == 3


def test_several_statistics_take_one_run(opened: Callable) -> None:
    asked = (Hessian(), Histogram(), AbsMax())
    stats, values = opened(memory=1 << 18)
    with stats:
        some = list(values.values())
        stats.together([(some, Hessian()), (some, Histogram()), (some[:2], AbsMax())])
        assert stats.runs == 1 and stats.segments > 1
        got = {observer: stats(some[: 2 if observer == AbsMax() else None], observer) for observer in asked}
        assert stats.runs == 1
        stats(some, AbsMax())
        assert stats.runs == 2  # of what was not asked for before
    other, values = opened(memory=1 << 18)
    with other:
        for observer, found in got.items():
            alone = other([value for value in values.values() if value.name in found], observer)
            assert list(alone) == list(found)
            for name, array in found.items():
                np.testing.assert_array_equal(array, alone[name])


@pytest.mark.parametrize("spec", ["prune(metric=sparsegpt,refine_mask=true)", "prune_structures(metric=wanda)"])
def test_passes_share_a_run(network: Callable, spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[int] = []
    leave = Statistics.__exit__
    monkeypatch.setattr(Statistics, "__exit__", lambda self, *how: (runs.append(self.runs), leave(self, *how))[1])
    data = [np.random.default_rng(seed).standard_normal((64, 64)).astype(np.float32) for seed in range(4)]
    burnish.compile(network().path, passes=f"canonicalize,{spec}", calibration=data, cache=False)
    assert runs == [1]


def test_a_changed_graph_is_observed_anew(opened: Callable) -> None:
    stats, values = opened()
    path, value = list(values.items())[-1]
    with stats:
        before = np.array(stats([value], AbsMax())[value.name])
        assert path == "lm_head"
        norm = value.producer()
        weight = next(read for read in norm.inputs if read.is_initializer())
        weight.const_value = onnx_ir.Tensor(2 * weight.const_value.numpy(), name=weight.name)
        after = stats([value], AbsMax())[value.name]
        assert stats.runs == 2
        np.testing.assert_allclose(after, 2 * before, rtol=1e-6)


def test_results_on_disk_serve_the_next_compilation(opened: Callable, decoder: Decoder, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    cache.folder.mkdir()
    expected = None
    for batches, runs in ((decoder.batches, 1), (decoder.batches, 0), (decoder.batches[:2], 1)):
        stats, values = opened(batches, cache=cache)
        with stats:
            got = stats(list(values.values()), AbsMax())
            assert stats.runs == runs
            if expected is None:
                expected = {name: np.array(array) for name, array in got.items()}
            elif runs == 0:
                assert all(np.array_equal(got[name], expected[name]) for name in got)
    damaged = next(file for file in cache.folder.rglob("*.npy"))
    damaged.write_bytes(b"no array")
    stats, values = opened(cache=cache)
    with stats:
        got = stats(list(values.values()), AbsMax())
        assert all(np.array_equal(got[name], expected[name]) for name in got)


def test_memory_is_bounded(tmp_path: Path) -> None:
    """Twelve Hessians of 512 channels: 12 bytes a number are 3.1 MB each, 38 MB together."""
    generator = np.random.default_rng(0)
    size = 512
    values = [
        onnx_ir.Value(name="x", type=onnx_ir.TensorType(onnx_ir.DataType.FLOAT), shape=onnx_ir.Shape(["b", size]))
    ]
    nodes, weights = [], []
    for i in range(12):
        tensor = onnx_ir.Tensor(generator.standard_normal((size, size), np.float32) / 20, name=f"w{i}")
        weight = onnx_ir.Value(name=f"w{i}", type=values[0].type, shape=tensor.shape, const_value=tensor)
        weights.append(weight)
        node = onnx_ir.node("MatMul", [values[-1], weight])
        node.outputs[0].name = f"y{i}"
        node.outputs[0].type, node.outputs[0].shape = values[0].type, values[0].shape
        nodes.append(node)
        values.append(node.outputs[0])
    graph = onnx_ir.Graph(values[:1], values[-1:], nodes=nodes, initializers=weights, opset_imports={"": 23}, name="g")
    imported = import_onnx(onnx_ir.Model(graph, ir_version=10))
    batches = [generator.standard_normal((64, size), np.float32) for _ in range(4)]
    peaks = {}
    observed = [
        imported.graph.graph.inputs[0],
        *(node.outputs[0] for node in imported.graph.graph if node.outputs[0].name[0] == "y"),
    ]
    for memory in (1 << 30, 8 << 20):
        stats = Statistics(imported.graph, Calibration(batches, imported.signature), tmp_path, memory=memory)
        with stats:
            tracemalloc.start()
            stats(observed[:12], Hessian())
            peaks[memory] = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
    # The runtime's own memory is not traced: float64 totals, 25 MB against those of two values.
    assert peaks[1 << 30] > 20 << 20
    assert peaks[8 << 20] < 10 << 20


def test_nothing_is_left_behind(opened: Callable, tmp_path: Path) -> None:
    stats, values = opened(memory=200_000)
    with stats:
        stats(list(values.values()), AbsMax())
        assert any(tmp_path.iterdir())
    assert not any(tmp_path.iterdir())


def test_few_tokens_for_a_hessian_are_said(opened: Callable) -> None:
    stats, values = opened([np.arange(70)])
    with stats:
        stats(list(values.values()), Hessian())
    assert {remark.values["channels"] for remark in stats.remarks} == {128}
    assert all("128 channels is singular: it was measured on 70 tokens" in remark.reason for remark in stats.remarks)
    assert sorted(remark.node for remark in stats.remarks) == [f"model.layers.{i}.mlp" for i in range(3)]


def test_values_that_cannot_be_observed(opened: Callable) -> None:
    stats, values = opened()
    graph = next(iter(values.values())).producer().graph
    ids = next(value for value in graph.inputs if value.name == "input_ids")
    key = next(value for value in graph.inputs if value.name == "past_key_values.0.key")
    constant = next(iter(graph.initializers.values()))
    with stats:
        for value, why in (
            (constant, "it is constant"),
            (ids, "element type is INT64"),
            (onnx_ir.Value(name="elsewhere"), "not a value of the main graph"),
        ):
            with pytest.raises(CalibrationError, match=why):
                stats([value], AbsMax())
        assert key.shape is not None
        key.shape = onnx_ir.Shape([*key.shape[:3], "size"])
        with pytest.raises(CalibrationError, match="size of its channel axis is not known"):
            stats([key], AbsMax())


def test_a_graph_input_alone(network: Callable, tmp_path: Path) -> None:
    imported = import_onnx(str(network().path))
    x = network().x
    with Statistics(imported.graph, Calibration([x], imported.signature), tmp_path) as stats:
        given = stats(list(imported.graph.graph.inputs), AbsMax())
        np.testing.assert_array_equal(given["x"], np.abs(x).max(0))


def test_old_opsets_and_half_precision(tmp_path: Path) -> None:
    """Before opset 18, reductions took their axes as an attribute; float16 is observed in float32."""
    generator = np.random.default_rng(0)
    x = generator.standard_normal((6, 8)).astype(np.float16)
    for opset in (11, 17, 18):
        inside = onnx_ir.Value(
            name="x", type=onnx_ir.TensorType(onnx_ir.DataType.FLOAT16), shape=onnx_ir.Shape(["b", 8])
        )
        node = onnx_ir.node("Neg", [inside])
        node.outputs[0].name, node.outputs[0].type, node.outputs[0].shape = "y", inside.type, inside.shape
        graph = onnx_ir.Graph([inside], node.outputs, nodes=[node], opset_imports={"": opset}, name="g")
        model = onnx_ir.Model(graph, ir_version=8)
        signature = NamedSignature((TensorSpec("x", "FLOAT16", ("b", 8)),), ())
        with Statistics(model, Calibration([x], signature), tmp_path) as stats:
            for observer, expected in OBSERVERS.items():
                given = stats([node.outputs[0]], observer)["y"]
                assert distance(given, expected(-x.astype(np.float64))) < 1e-6


@pytest.mark.parametrize("observer", OBSERVERS, ids=lambda observer: type(observer).__name__)
def test_values_that_overflow_are_named(network: Callable, observer: Observer) -> None:
    made = network()
    good, bad = np.ones((2, 64), np.float32), np.full((2, 64), 1e38, np.float32)
    with pytest.raises(CalibrationError, match="is NaN or infinite on a calibration input") as error:
        ask(made.path, [good, bad], observer)
    assert error.value.where == "calibration input 1"
    assert error.value.fix


def test_without_data(network: Callable) -> None:
    with pytest.raises(CalibrationError, match="calibration inputs are needed") as error:
        ask(network().path, None, AbsMax())
    assert "calibration=" in str(error.value.fix) and "--calibration" in str(error.value.fix)
    assert not Context().has_calibration


def test_a_compiled_decoder(decoder: Decoder) -> None:
    """Through ``compile``: after canonicalize and recover, from a generator of plain tokens."""
    got: dict[str, np.ndarray] = {}
    compiled = burnish.compile(decoder.folder, passes=[Ask(Hessian(), got)], calibration=iter(decoder.batches))
    assert len(got) == 22
    for path, expected in decoder.read.items():
        assert distance(got[path], OBSERVERS[Hessian()](expected)) < 1e-5
    reasons = [group.reason for group in compiled.report.backend]
    assert not any("were not read" in reason for reason in reasons)
