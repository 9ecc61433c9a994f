"""Editing: names, types, provenance, outputs, subgraphs, functions; and rules written as patterns."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir
import pytest
from burnish.ir.errors import PassError, VerificationError
from burnish.ir.graph import MODULE, RULE, SOURCE
from burnish.ir.infer import infer_graph
from burnish.ir.rewrite import Editor, provenance
from burnish.ir.rules import MatchFailureError, MatchResult, Rule, apply_rules
from burnish.ir.verify import verify


def node(model: onnx_ir.Model, op_type: str) -> onnx_ir.Node:
    return next(n for n in model.graph.all_nodes() if n.op_type == op_type)


def ops(model: onnx_ir.Model) -> list[str]:
    return [n.op_type for n in model.graph]


@pytest.fixture
def model(parse: Any) -> onnx_ir.Model:
    graph: onnx_ir.Model = parse("agraph (float[B, 4] x) => (float[B, 4] y) { h = Relu(x) e = Exp(h) y = Neg(e) }")
    infer_graph(graph)
    return graph


def test_insertion_infers_and_keeps_provenance(model: onnx_ir.Model) -> None:
    exp = node(model, "Exp")
    exp.metadata_props.update({MODULE: "a.b", SOURCE: "exp_1", RULE: "first"})
    edit = Editor(model, "second").at(exp)
    value = edit.op("Add", [exp.inputs[0], edit.initializer(np.ones(4, np.float32), "ones")])
    assert str(value.shape) == "[B,4]" and value.dtype == onnx_ir.DataType.FLOAT
    made = value.producer()
    assert made is not None
    assert dict(made.metadata_props) == {MODULE: "a.b", SOURCE: "exp_1", RULE: "first;second"}
    assert ops(model) == ["Relu", "Add", "Exp", "Neg"]
    assert edit.made == [made]


def test_provenance_of_several_nodes() -> None:
    nodes = [onnx_ir.Node("", "Relu", [], metadata_props={MODULE: f"model.layers.0.{end}"}) for end in ("q", "k.x")]
    assert provenance(nodes, "r") == {MODULE: "model.layers.0", RULE: "r"}
    assert provenance([], "r") == {RULE: "r"}


def test_names_are_fresh(model: onnx_ir.Model) -> None:
    edit = Editor(model, "r").at(None)
    assert [edit.fresh("h") for _ in range(3)] == ["h_1", "h_2", "h_3"]
    other = Editor(model, "s", names=edit.names)
    assert other.fresh("h") == "h_4"


def test_fresh_names_stay_cheap(model: onnx_ir.Model) -> None:
    edit = Editor(model, "r")
    assert len({edit.fresh("n") for _ in range(20_000)}) == 20_000


def test_graph_output_keeps_its_name(model: onnx_ir.Model) -> None:
    neg = node(model, "Neg")
    edit = Editor(model, "r").at(neg)
    edit.replace(neg.outputs[0], edit.op("Abs", [neg.inputs[0]]))
    assert edit.sweep([neg]) == 1
    assert [v.name for v in model.graph.outputs] == ["y"] and ops(model) == ["Relu", "Exp", "Abs"]
    verify(model)


def test_graph_output_replaced_by_an_input(model: onnx_ir.Model) -> None:
    edit = Editor(model, "r").at(None)
    last = model.graph.outputs[0].producer()
    edit.replace(model.graph.outputs[0], model.graph.inputs[0])
    assert last is not None
    assert edit.sweep([last]) == 3
    assert ops(model) == ["Identity"] and model.graph.outputs[0].name == "y" and model.graph.inputs[0].name == "x"
    verify(model)


def test_graph_output_replaced_by_an_initializer(model: onnx_ir.Model) -> None:
    edit = Editor(model, "r").at(None)
    model.graph.outputs[0].shape = None
    edit.replace(model.graph.outputs[0], edit.initializer(np.zeros((1, 4), np.float32), "zero"))
    verify(model)
    assert model.graph.outputs[0].name == "y"


def test_one_value_for_two_outputs(parse: Any) -> None:
    model = parse("agraph (float[4] x) => (float[4] y, float[4] z) { y = Relu(x) z = Relu(x) }")
    y, z = model.graph.outputs
    edit = Editor(model, "same").at(None)
    last = z.producer()
    edit.replace(z, y)
    edit.sweep([last])
    assert [v.name for v in model.graph.outputs] == ["y", "z"] and ops(model) == ["Relu", "Identity"]
    verify(model)


def test_an_input_that_is_an_output_cannot_be_replaced(parse: Any) -> None:
    model = parse("agraph (float[4] x) => (float[4] x, float[4] y) { y = Relu(x) }")
    with pytest.raises(VerificationError, match="input and an output"):
        Editor(model, "r").at(None).replace(model.graph.inputs[0], model.graph.outputs[1])


def test_replacement_that_reads_what_it_replaces(model: onnx_ir.Model) -> None:
    x = model.graph.inputs[0]
    edit = Editor(model, "r").at(node(model, "Relu"))
    edit.replace(x, edit.op("Abs", [x]))
    assert ops(model) == ["Abs", "Relu", "Exp", "Neg"]
    verify(model)


def test_type_that_contradicts_is_refused(model: onnx_ir.Model) -> None:
    edit = Editor(model, "bad rule").at(node(model, "Neg"))
    shorter = edit.op("ReduceSum", [model.graph.inputs[0], edit.ints([1])], {"keepdims": 0})
    with pytest.raises(VerificationError, match=r"'bad rule' replaces 'e'.*recorded shape \[B\], inferred \[B, 4\]"):
        edit.replace(node(model, "Exp").outputs[0], shorter)


def test_what_is_known_of_the_old_value_is_kept(model: onnx_ir.Model) -> None:
    edit = Editor(model, "r").at(node(model, "Neg"))
    new = edit.op("Custom", [model.graph.inputs[0]], domain="my", shape=[None, 4])
    edit.replace(node(model, "Exp").outputs[0], new)
    assert str(new.shape) == "[B,4]" and new.dtype == onnx_ir.DataType.FLOAT
    assert model.opset_imports["my"] == 1


def test_sweep_takes_chain_and_initializers(parse: Any) -> None:
    model = parse(
        """agraph (float[4] x) => (float[4] y) <float[4] w = {1, 2, 3, 4}> {
            a = Add(x, w) b = Exp(a) y = Relu(x) c = Neg(b) }"""
    )
    assert Editor(model, "r").sweep([node(model, "Neg")]) == 3
    assert ops(model) == ["Relu"] and not model.graph.initializers


def test_sweep_stops_at_what_is_used(model: onnx_ir.Model) -> None:
    assert Editor(model, "r").sweep([node(model, "Exp")]) == 0


BRANCHES = """agraph (bool c, float[4] x) => (float[4] y) {
    h = Relu(x) k = Abs(x)
    y = If(c) <then_branch = t () => (float[4] a) { a = Neg(h) },
               else_branch = e () => (float[4] b) { b = Exp(h) }> }"""


def test_uses_in_subgraphs_are_replaced(parse: Any) -> None:
    model = parse(BRANCHES)
    edit = Editor(model, "r").at(node(model, "If"))
    edit.replace(node(model, "Relu").outputs[0], node(model, "Abs").outputs[0])
    assert edit.sweep([node(model, "Relu")]) == 1
    verify(model)


def test_insertion_into_a_subgraph(parse: Any) -> None:
    model = parse(BRANCHES)
    neg = node(model, "Neg")
    edit = Editor(model, "r").at(neg)
    ones = edit.initializer(np.ones(4, np.float32), "ones")
    edit.replace(neg.outputs[0], edit.op("Mul", [neg.inputs[0], ones]))
    edit.sweep([neg])
    assert ops(model) == ["Relu", "Abs", "If"] and node(model, "Mul").outputs[0].name == "a"
    verify(model)
    # The output of a branch must be made in the branch.
    exp = node(model, "Exp")
    edit.at(exp).replace(exp.outputs[0], node(model, "Abs").outputs[0])
    edit.sweep([exp])
    assert node(model, "Identity").outputs[0].name == "b"
    verify(model)


def test_sweep_frees_what_only_a_subgraph_read(parse: Any) -> None:
    model = parse(BRANCHES)
    edit = Editor(model, "r").at(None)
    branch = node(model, "If")
    edit.replace(model.graph.outputs[0], node(model, "Abs").outputs[0])
    assert edit.sweep([branch]) == 2
    assert ops(model) == ["Abs"]
    verify(model)


def test_functions_get_constants_of_their_own(parse: Any) -> None:
    model = parse(
        """<ir_version: 10, opset_import: ["" : 23, "burnish" : 1]>
        agraph (float[2] x) => (float[2] y) { y = burnish.Twice(x) }
        <domain: "burnish", opset_import: ["" : 23]> Twice (a) => (b) { b = Add(a, a) }"""
    )
    (function,) = model.functions.values()
    (add,) = list(function)
    edit = Editor(model, "r").at(add)
    edit.replace(add.outputs[0], edit.op("Mul", [add.inputs[0], edit.initializer(np.full(1, 2, np.float32), "two")]))
    edit.sweep([add])
    assert [n.op_type for n in function] == ["Constant", "Mul"] and not model.graph.initializers
    assert [v.name for v in function.outputs] == ["b"]
    verify(model)


class SigmoidTimes(Rule):
    name = "x * sigmoid(x) => swish(x)"
    commutative = True

    def pattern(self, op: Any, x: Any) -> Any:
        return op.Mul(x, op.Sigmoid(x))

    def check(self, context: Any, x: onnx_ir.Value, **_: Any) -> Any:
        if x.shape is None or len(x.shape) != 2:
            return MatchResult().fail("not a matrix")
        return True

    def rewrite(self, edit: Editor, x: onnx_ir.Value, **_: Any) -> onnx_ir.Value:
        return edit.op("HardSwish", [x])


def rules_model(parse: Any, body: str) -> onnx_ir.Model:
    model: onnx_ir.Model = parse(f"agraph (float[B, 4] x) => (float[B, 4] y) {{ {body} }}")
    infer_graph(model)
    return model


@pytest.mark.parametrize("operands", ["x, s", "s, x"])
def test_rule_positive(parse: Any, operands: str) -> None:
    model = rules_model(parse, f"s = Sigmoid(x) y = Mul({operands})")
    report = apply_rules(model, [SigmoidTimes()])
    assert report.rewrites == {SigmoidTimes.name: 1} and report.near_misses == []
    assert ops(model) == ["HardSwish"]
    made = model.graph.node(0)
    assert made.metadata_props[RULE] == SigmoidTimes.name and model.graph.outputs[0].name == "y"
    verify(model)


def test_rule_negative(parse: Any) -> None:
    model = rules_model(parse, "s = Sigmoid(x) e = Exp(x) y = Mul(e, s)")
    assert apply_rules(model, [SigmoidTimes()]).rewrites == {}
    assert ops(model) == ["Sigmoid", "Exp", "Mul"]


def test_rule_near_miss(parse: Any) -> None:
    model = parse("agraph (float[4] x) => (float[4] y) { s = Sigmoid(x) y = Mul(x, s) }")
    report = apply_rules(model, [SigmoidTimes()])
    assert report.rewrites == {}
    assert {reason for _, _, reason in report.near_misses} == {"not a matrix"}


@pytest.mark.parametrize(("shared", "expected"), [(False, {}), (True, {SigmoidTimes.name: 1})])
def test_inner_value_with_another_use(parse: Any, shared: bool, expected: dict[str, int]) -> None:
    model = rules_model(parse, "s = Sigmoid(x) m = Mul(x, s) y = Add(m, s)")

    class Shared(SigmoidTimes):
        pass

    Shared.shared = shared
    assert apply_rules(model, [Shared()]).rewrites == expected
    verify(model)


def test_rule_that_gives_up_leaves_nothing_behind(parse: Any) -> None:
    class GivesUp(SigmoidTimes):
        def rewrite(self, edit: Editor, x: onnx_ir.Value, **_: Any) -> onnx_ir.Value:
            edit.op("Relu", [edit.op("Add", [x, edit.initializer(np.ones(4, np.float32), "ones")])])
            raise MatchFailureError("changed its mind")

    model = rules_model(parse, "s = Sigmoid(x) y = Mul(x, s)")
    report = apply_rules(model, [GivesUp()])
    assert report.rewrites == {} and report.near_misses[0][2] == "changed its mind"
    assert ops(model) == ["Sigmoid", "Mul"] and not model.graph.initializers


def test_rule_with_the_wrong_number_of_values(parse: Any) -> None:
    class TwoForOne(SigmoidTimes):
        def rewrite(self, edit: Editor, x: onnx_ir.Value, **_: Any) -> Any:
            return [x, x]

    with pytest.raises(PassError, match="returned 2 values for the 1 outputs"):
        apply_rules(rules_model(parse, "s = Sigmoid(x) y = Mul(x, s)"), [TwoForOne()])


def test_pattern_of_two_outputs_keeps_the_order(parse: Any) -> None:
    """What reads the first output stands before the node that makes the second."""

    class Both(Rule):
        name = "relu(x), exp(relu(x)) => ..."

        def pattern(self, op: Any, x: Any) -> Any:
            relu = op.Relu(x)
            return relu, op.Exp(relu)

        def rewrite(self, edit: Editor, x: onnx_ir.Value, **_: Any) -> Any:
            return edit.op("Abs", [x]), edit.op("Cosh", [x])

    model = parse("agraph (float[4] x) => (float[4] y, float[4] z) { r = Relu(x) y = Neg(r) e = Exp(r) z = Tan(e) }")
    report = apply_rules(model, [Both()])
    assert sum(report.rewrites.values()) == 1
    verify(model)
