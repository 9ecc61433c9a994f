"""``Quantize`` with calibration inputs: the pass around ``passes/quantize/methods/gptq.py``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx.reference
import onnx_ir
import pytest
from burnish.ir.errors import CalibrationError, ModelError, OptionError
from burnish.ir.graph import MODULE
from burnish.ir.rewrite import Editor
from burnish.passes.base import Context, Observe, Outcome
from burnish.passes.quantize import Quantize
from burnish.passes.statistics import Hessian, Observer

WIDTH, HIDDEN = 96, 160
_RANDOM = np.random.default_rng(0)
TOKENS = (
    _RANDOM.standard_normal((4 * HIDDEN, WIDTH))
    @ (_RANDOM.standard_normal((WIDTH, WIDTH)) * np.arange(1, WIDTH + 1) ** -0.7).T
).astype(np.float32)


class Observed:
    """Statistics of a graph with one input ``x``, computed by the evaluator of onnx; counts what is asked."""

    def __init__(self, model: onnx_ir.Model, tokens: np.ndarray = TOKENS) -> None:
        self.model, self.tokens = model, tokens
        self.asked: list[list[str]] = []

    def __call__(self, values: Sequence[onnx_ir.Value], observer: Observer) -> dict[str, np.ndarray]:
        assert observer == Hessian()
        names = [value.name or "" for value in values]
        self.asked.append(names)
        copy = onnx_ir.from_proto(onnx_ir.to_proto(self.model))
        made = {value.name: value for node in copy.graph for value in node.outputs}
        copy.graph.outputs[:] = [made[name] for name in names if name in made]
        found = {"x": self.tokens}
        if copy.graph.outputs:
            results = onnx.reference.ReferenceEvaluator(onnx_ir.to_proto(copy)).run(None, {"x": self.tokens})
            found.update(zip([v.name for v in copy.graph.outputs], results, strict=True))
        return {name: (found[name].T @ found[name] / len(found[name])).astype(np.float32) for name in names}


class Model:
    """``up``, ``gate`` (torch's layout) of x, ``down`` (ONNX's layout) of their product, and a tied table."""

    def __init__(self, *, seed: int = 0, dtype: Any = np.float32) -> None:
        random = np.random.default_rng(seed)
        self.weights: dict[str, np.ndarray] = {}
        self.model = onnx_ir.Model(onnx_ir.Graph([], [], nodes=[], opset_imports={"": 23}, name="g"), ir_version=10)
        x = onnx_ir.Value(
            name="x", type=onnx_ir.TensorType(onnx_ir.DataType.FLOAT), shape=onnx_ir.Shape(["batch", WIDTH])
        )
        self.model.graph.inputs.append(x)
        self.edit = Editor(self.model, "test")

        def weight(name: str, *shape: int) -> onnx_ir.Value:
            self.weights[name] = random.standard_normal(shape).astype(dtype)
            return self.edit.initializer(self.weights[name], name)

        up = self.product(x, self.op("Transpose", weight("up", HIDDEN, WIDTH), perm=[1, 0]), "up")
        gate = self.product(x, self.op("Transpose", weight("gate", HIDDEN, WIDTH), perm=[1, 0]), "gate")
        hidden = self.op("Mul", up, gate)
        down = self.product(hidden, weight("down", HIDDEN, WIDTH), "down")
        self.table = weight("table", 3000, WIDTH)
        ids = self.op("Cast", self.op("ReduceMax", x, keepdims=0), to=7)
        rows = self.op("Gather", self.table, ids)
        head = self.product(down, self.op("Transpose", self.table, perm=[1, 0]), "head")
        self.model.graph.outputs.extend([head, rows])
        self.inputs = {"up": x, "gate": x, "down": hidden, "table": down}

    def op(self, op_type: str, *inputs: onnx_ir.Value, **attributes: Any) -> onnx_ir.Value:
        return self.edit.op(op_type, inputs, attributes)

    def product(self, x: onnx_ir.Value, weight: onnx_ir.Value, module: str) -> onnx_ir.Value:
        value = self.op("MatMul", x, weight)
        node = value.producer()
        assert node is not None
        node.metadata_props[MODULE] = module
        return value

    def quantized(self, observe: Observe | None = None, **options: Any) -> Outcome:
        outcome = Quantize(**options).run(self.model, Context(observe=observe))
        onnx.checker.check_model(onnx_ir.to_proto(self.model), full_check=True)
        return outcome

    def restored(self) -> dict[str, np.ndarray]:
        """Every weight as the graph now has it."""
        nodes = [node for node in self.model.graph if node.op_type == "DequantizeLinear"]
        graph = onnx.helper.make_graph(
            [onnx_ir.to_proto(node) for node in nodes],
            "dequantize",
            [],
            [onnx.helper.make_tensor_value_info(str(node.outputs[0].name), 1, None) for node in nodes],
            [self.bytes(value) for value in self.model.graph.initializers.values()],
        )
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 23)])
        results = onnx.reference.ReferenceEvaluator(model).run(None, {})
        names = [str(node.inputs[0].name).removesuffix(".codes") for node in nodes if node.inputs[0] is not None]
        return dict(zip(names, results, strict=True))

    @staticmethod
    def bytes(value: onnx_ir.Value) -> onnx.TensorProto:
        assert value.const_value is not None
        proto = onnx_ir.to_proto(value.const_value)
        assert isinstance(proto, onnx.TensorProto)
        proto.name = value.name or ""
        return proto


def figures(outcome: Outcome) -> dict[str, dict[str, Any]]:
    return {r.values["weight"]: dict(r.values) for r in outcome.remarks if r.kind == "applied" and "weight" in r.values}


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("group_size", [32, 64, 0])
def test_outputs_lose_less_than_by_rounding_to_nearest(group_size: int, symmetric: bool) -> None:
    """By a factor of 4 for the input, whose channels correlate; both layouts, K = 96 and 160 not all divided by 64."""
    both = {}
    for method in ("rtn", "gptq"):
        model = Model()
        observe = Observed(model.model)
        hessians = observe(list(dict.fromkeys(model.inputs.values())), Hessian())
        outcome = model.quantized(observe, method=method, group_size=group_size, symmetric=symmetric)
        errors = {}
        for name, found in model.restored().items():
            difference = found - model.weights[name]
            hessian = hessians[model.inputs[name].name or ""]
            channels = difference.T if name == "down" else difference
            power = model.weights[name].T if name == "down" else model.weights[name]
            errors[name] = float(np.trace(channels @ hessian @ channels.T) / np.trace(power @ hessian @ power.T))
        both[method] = errors
    assert both["gptq"].keys() == both["rtn"].keys() == {"up", "gate", "down", "table"}
    for name in ("up", "gate"):
        assert both["gptq"][name] * 4 < both["rtn"][name]
    for name in ("down", "table"):
        assert both["gptq"][name] < 0.8 * both["rtn"][name]
    for name, values in figures(outcome).items():
        assert values["method"] == "gptq" and "damping" not in values
        assert values["output_error"] == pytest.approx(both["gptq"][name], rel=0.02)
        assert values["output_error_rtn"] == pytest.approx(both["rtn"][name], rel=0.02)


def test_one_question_one_hessian_for_each_distinct_input() -> None:
    model = Model()
    observe = Observed(model.model)
    model.quantized(observe)
    assert observe.asked == [[str(model.inputs[name].name) for name in ("up", "down", "table")]]


def test_auto_follows_the_data() -> None:
    for observed in (False, True):
        model = Model()
        outcome = model.quantized(Observed(model.model) if observed else None)
        assert all(("method" in values) == observed for values in figures(outcome).values())


def test_rtn_asks_for_nothing() -> None:
    model = Model()
    observe = Observed(model.model)
    model.quantized(observe, method="rtn")
    assert observe.asked == []


def test_tied_table_is_rounded_for_the_head() -> None:
    model = Model()
    outcome = model.quantized(Observed(model.model), include=["head", "op:Gather"])
    assert outcome.rewrites == {"quantize weights": 1}
    assert figures(outcome)["table"]["output_error"] < 0.8 * figures(outcome)["table"]["output_error_rtn"]


def test_eight_bits_and_overrides() -> None:
    model = Model()
    outcome = model.quantized(Observed(model.model), overrides={"down": "w8a16"}, exclude="gate")
    found = figures(outcome)
    assert {name: values["bits"] for name, values in found.items()} == {"up": 4, "down": 8, "table": 4}
    assert "output_error" not in found["down"]  # rounded to nearest, as good as any
    model = Model()
    outcome = model.quantized(Observed(model.model), method="gptq", overrides={"down": "w8a16"}, exclude="gate")
    assert figures(outcome)["down"]["output_error"] < 1e-4


@pytest.mark.parametrize("options", [{"method": "gptq"}, {"method": "gptq", "exclude": "*"}])
def test_gptq_without_data(options: dict[str, Any]) -> None:
    model = Model()
    with pytest.raises(CalibrationError, match="calibration="):
        model.quantized(**options)
    assert not any(node.op_type == "DequantizeLinear" for node in model.model.graph)


def test_unknown_method() -> None:
    with pytest.raises(OptionError, match="did you mean 'gptq'"):
        Quantize(method="gtpq")


def test_embedding_that_no_product_multiplies_by() -> None:
    model = Model()
    table = model.edit.initializer(np.random.default_rng(1).standard_normal((3000, WIDTH)).astype(np.float32), "words")
    rows = model.op("Gather", table, model.edit.ints([3, 5]))
    model.model.graph.outputs.append(rows)
    outcome = model.quantized(Observed(model.model))
    reasons = {r.values["weight"]: r.reason for r in outcome.remarks if r.kind == "missed"}
    assert reasons == {"words": "rounded to nearest: no product multiplies by it"}
    assert outcome.remarks[-1].values["embeddings"] == 2 and "words" in model.restored()


def test_input_of_unknown_size() -> None:
    model = Model()
    node = next(node for node in model.model.graph if node.metadata_props.get(MODULE) == "down")
    assert node.inputs[0] is not None
    node.inputs[0].shape = None
    outcome = Quantize().run(model.model, Context(observe=Observed(model.model)))
    reasons = {r.values["weight"]: r.reason for r in outcome.remarks if r.kind == "missed"}
    assert reasons == {"down": "rounded to nearest: the size of its product's input is not known"}


def test_a_weight_shared_by_two_products_serves_both_inputs() -> None:
    model = Model()
    weight = model.edit.initializer(np.random.default_rng(1).standard_normal((WIDTH, WIDTH)).astype(np.float32), "both")
    x = model.inputs["up"]
    first = model.product(x, weight, "first")
    second = model.product(model.op("Neg", model.op("Exp", x)), weight, "second")
    model.model.graph.outputs.extend([first, second])
    outcome = model.quantized(Observed(model.model, TOKENS / 4), include=["first", "second"])
    values = figures(outcome)["both"]
    assert values["output_error"] < 0.5 * values["output_error_rtn"]


def test_same_data_same_bytes() -> None:
    written = []
    for _ in range(2):
        model = Model()
        model.quantized(Observed(model.model))
        written.append(onnx_ir.to_proto(model.model).SerializeToString(deterministic=True))
    assert written[0] == written[1]


def test_inputs_that_are_zero_everywhere() -> None:
    """A Hessian of zeros: every weight is rounded to nearest, with a finite figure."""
    model = Model()
    outcome = model.quantized(Observed(model.model, np.zeros((8, WIDTH), np.float32)), include="up")
    assert figures(outcome)["up"]["output_error"] == 0.0
    step = 2 * np.abs(model.weights["up"]).max() / 15
    assert np.abs(model.restored()["up"] - model.weights["up"]).max() < 3 * step


def test_damping_that_had_to_be_raised_is_told() -> None:
    model = Model()

    def bent(values: Sequence[onnx_ir.Value], observer: Observer) -> dict[str, np.ndarray]:
        hessian = np.eye(WIDTH, dtype=np.float32)
        hessian[0, 1] = hessian[1, 0] = 1.05
        return {value.name or "": hessian for value in values}

    outcome = model.quantized(bent, include="up")
    assert figures(outcome)["up"]["damping"] == pytest.approx(0.1)


def test_half_precision() -> None:
    model = Model(dtype=np.float32)
    x = model.op("Cast", model.inputs["up"], to=int(onnx_ir.DataType.FLOAT16))
    weight = np.random.default_rng(1).standard_normal((64, WIDTH)).astype(np.float16)
    turned = model.op("Transpose", model.edit.initializer(weight, "half"), perm=[1, 0])
    model.model.graph.outputs.append(model.product(x, turned, "half"))
    outcome = model.quantized(Observed(model.model), include="half")
    values = figures(outcome)["half"]
    assert values["output_error"] * 4 < values["output_error_rtn"]
    scales = model.model.graph.initializers["half.scales"].const_value
    assert scales is not None and scales.dtype == onnx_ir.DataType.FLOAT16


def test_weight_that_is_not_finite_names_itself() -> None:
    model = Model()
    model.weights["up"][3, 3] = np.nan
    with pytest.raises(ModelError, match="weight 'up'"):
        model.quantized(Observed(model.model), include="up")
