"""``Prune`` on graphs: zeros where they were asked for, said so, and kept by what runs after it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir
import pytest
from burnish.ir.errors import CalibrationError, OptionError, SelectorError
from burnish.ir.graph import SPARSITY, constant
from burnish.ir.verify import verify
from burnish.passes import Prune, Quantize
from burnish.passes.base import Context, Zeros
from burnish.passes.sparsify.pattern import Pattern, follows

Array = np.ndarray[Any, Any]
Feeds = Mapping[str, Array]
Outputs = Callable[[onnx_ir.Model, Feeds], list[Array]]
Calibrated = Callable[[onnx_ir.Model, Feeds], Context]
Parse = Callable[..., onnx_ir.Model]

MLP = """g (float[T, 64] x) => (float[T, 64] y) {
    a = MatMul(x, w1) b = Add(a, b1) r = Relu(b) y = MatMul(r, w2)
}"""


def _mlp(parse: Parse) -> tuple[onnx_ir.Model, Feeds]:
    graph = parse(MLP, w1=(64, 96), b1=(96,), w2=(96, 64))
    generator = np.random.default_rng(0)
    mix = generator.standard_normal((64, 64)) * np.exp(generator.standard_normal(64))
    return graph, {"x": (generator.standard_normal((256, 64)) @ mix).astype(np.float32)}


def _products(graph: onnx_ir.Model) -> list[Array]:
    found = []
    for node in graph.graph:
        if node.op_type == "MatMul":
            weights = constant(node.inputs[1])
            assert weights is not None
            found.append(weights.T)
    return found


@pytest.mark.parametrize("metric", ["magnitude", "wanda", "ria", "sparsegpt", "auto"])
@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_half_of_the_weights_go(parse: Parse, calibrated: Calibrated, metric: str, pattern: str) -> None:
    graph, feeds = _mlp(parse)
    outcome = Prune(metric=metric, pattern=pattern).run(graph, calibrated(graph, feeds))
    verify(graph)
    for weights in _products(graph):
        assert abs(float((weights == 0).mean()) - 0.5) < 0.01
        assert pattern == "unstructured" or follows(weights, Pattern(2, 4))
    marks = [node.metadata_props.get(SPARSITY) for node in graph.graph if node.op_type == "MatMul"]
    assert marks == [f"{pattern} 0.5000"] * 2
    assert "nothing faster here" in outcome.remarks[-1].reason and outcome.remarks[-1].kind == "missed"


def test_what_ria_compares_and_how_much_inputs_say(parse: Parse, calibrated: Calibrated) -> None:
    """By default each row loses as much; half of the inputs are tiny, which does not matter to the exponent 0."""
    graph, feeds = _mlp(parse)
    kept: dict[str, Array] = {}
    for name, options in {"row": {}, "matrix": {"compare": "matrix"}, "none": {"exponent": 0.0}}.items():
        pruned = graph.clone()
        scaled = {"x": feeds["x"] * np.where(np.arange(64) < 32, 1e-3, 1).astype(np.float32)}
        Prune(metric="ria", **options).run(pruned, calibrated(pruned, scaled))  # type: ignore[arg-type]
        kept[name] = _products(pruned)[0] != 0
    assert (kept["row"].sum(axis=1) == 32).all() and not (kept["matrix"].sum(axis=1) == 32).all()
    assert kept["row"][:, :32].mean() < 0.1 and abs(kept["none"][:, :32].mean() - 0.5) < 0.05


def test_what_zeros_are_worth_here_is_measured_and_told(parse: Parse) -> None:
    """A request that cannot pay is done, with a warning that shows the ratio; tall blocks hear of `CompactZeros`."""

    def cost(m: int, k: int, n: int, scheme: Any) -> float:
        return 1.04 if isinstance(scheme, Zeros) else 1.0

    for pattern, more in (("unstructured", False), ("32x1", True), ("8x8", False)):
        graph, _ = _mlp(parse)
        outcome = Prune(pattern=pattern, metric="magnitude").run(graph, Context(cost=cost))
        last = outcome.remarks[-1]
        assert last.kind == "missed" and last.values["time_ratio"] == 1.04
        assert "measured on this machine, a product with these zeros takes 1.04 times" in last.reason
        assert ("CompactZeros" in last.reason) == more
        assert outcome.changed


def test_the_order_of_methods_on_outputs(parse: Parse, calibrated: Calibrated, outputs: Outputs) -> None:
    graph, feeds = _mlp(parse)
    want = outputs(graph, feeds)[0]
    errors = {}
    for name, options in {
        "magnitude": {"metric": "magnitude"}, "wanda": {"metric": "wanda"}, "sparsegpt": {"metric": "sparsegpt"},
        "fit": {"metric": "wanda", "reconstruct": "least_squares"},
    }.items():  # fmt: skip
        copy = graph.clone()
        Prune(**options).run(copy, calibrated(copy, feeds))
        errors[name] = float(np.linalg.norm(outputs(copy, feeds)[0] - want))
    assert errors["sparsegpt"] < errors["wanda"] < errors["magnitude"]
    assert errors["fit"] < errors["wanda"]


def test_channels_are_permuted_without_a_trace(parse: Parse, calibrated: Calibrated, outputs: Outputs) -> None:
    """A permutation alone changes nothing; with it the pattern loses less."""
    graph, feeds = _mlp(parse)
    w2 = np.random.default_rng(1).standard_normal((96, 64)).astype(np.float32)
    w2[:24] *= 8
    value = graph.graph.initializers["w2"]
    value.const_value = onnx_ir.Tensor(w2, name="w2")
    want = outputs(graph, feeds)[0]
    errors = []
    for permute in (False, True):
        copy = graph.clone()
        nodes = len(copy.graph)
        outcome = Prune(pattern="2:4", metric="wanda", permute=permute).run(copy, calibrated(copy, feeds))
        assert len(copy.graph) == nodes
        errors.append(float(np.linalg.norm(outputs(copy, feeds)[0] - want)))
        assert any("96 channels permuted" in remark.reason for remark in outcome.remarks) == permute
    assert errors[1] < errors[0]


def test_ratios_and_selectors(parse: Parse) -> None:
    graph, _ = _mlp(parse)
    names = ["one", "two"]
    for name, node in zip(names, [node for node in graph.graph if node.op_type == "MatMul"], strict=True):
        node.name = name
    outcome = Prune(ratios={f"name:{names[0]}": 0.25}, exclude=f"name:{names[1]}").run(graph, Context())
    shares = [float((weights == 0).mean()) for weights in _products(graph)]
    assert shares == [pytest.approx(0.25, abs=0.01), 0.0]
    assert any("not selected" in remark.reason for remark in outcome.remarks)
    with pytest.raises(SelectorError):
        Prune(include="nowhere").run(graph, Context())


@pytest.mark.parametrize("kind", ["owl", "global"])
def test_layers_differ_and_the_whole_does_not(parse: Parse, calibrated: Calibrated, kind: str) -> None:
    graph, feeds = _mlp(parse)
    Prune(metric="wanda", layer_ratios=kind).run(graph, calibrated(graph, feeds))
    products = _products(graph)
    whole = sum(int((w == 0).sum()) for w in products) / sum(w.size for w in products)
    assert whole == pytest.approx(0.5, abs=0.02)
    assert float((products[0] == 0).mean()) != float((products[1] == 0).mean())


def test_zeros_stay_when_weights_are_rounded(parse: Parse, calibrated: Calibrated) -> None:
    graph, feeds = _mlp(parse)
    Prune(pattern="2:4").run(graph, calibrated(graph, feeds))
    Quantize("w4a16", group_size=32).run(graph, calibrated(graph, feeds))
    from burnish.backends.reference import Reference

    for node in graph.graph:
        if node.op_type == "MatMul":
            value = node.inputs[1]
            assert value is not None
            weights = Reference(graph).run({}, [value.name or ""])[value.name or ""].numpy().T
            assert follows(weights, Pattern(2, 4)) and (weights != 0).any()


def test_convolutions_go_by_magnitude(parse: Parse, calibrated: Calibrated) -> None:
    text = "g (float[1, 8, 6, 6] x) => (float[1, 16, 4, 4] y) { y = Conv<kernel_shape=[3, 3]>(x, w) }"
    graph = parse(text, w=(16, 8, 3, 3))
    Prune(metric="magnitude", pattern="2:4").run(graph, Context())
    weights = constant(next(iter(graph.graph)).inputs[1])
    assert weights is not None and follows(np.moveaxis(weights, 1, -1).reshape(-1, 8), Pattern(2, 4))


def test_unfit_matrices_are_told(parse: Parse) -> None:
    graph = parse("g (float[T, 50] x) => (float[T, 64] y) { y = MatMul(x, w) }", w=(50, 64))
    outcome = Prune(pattern="2:4").run(graph, Context())
    assert any("no multiple of 4" in remark.reason for remark in outcome.remarks)
    assert outcome.remarks[-1].kind == "missed" and "nothing was pruned" in outcome.remarks[-1].reason


@pytest.mark.parametrize(
    "options",
    [{"metric": "gradient"}, {"sparsity": 1.0}, {"pattern": "4:2"}, {"permute": True}, {"pattern": "2:4",
     "layer_ratios": "owl"}, {"pattern": "4x4", "refine_mask": True}, {"reconstruct": "none"}, {"compare": "column"},
     {"exponent": 1.0}, {"metric": "ria", "exponent": -1.0}],
)  # fmt: skip
def test_bad_options(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        Prune(**options)


def test_no_data(parse: Parse) -> None:
    graph, _ = _mlp(parse)
    with pytest.raises(CalibrationError):
        Prune(metric="wanda").run(graph, Context())
    with pytest.raises(CalibrationError):
        Prune(metric="magnitude", refine_mask=True).run(graph, Context())
