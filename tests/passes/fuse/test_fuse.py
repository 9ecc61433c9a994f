"""The pass: functions, metadata, remarks, options; types of blocks, resources, costs and latencies it decides by."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import pytest
from burnish.ir.errors import OptionError
from burnish.ir.infer import infer_graph
from burnish.ir.outline import inline_all
from burnish.ir.verify import verify
from burnish.passes import Fuse
from burnish.passes.base import Context
from burnish.passes.fuse.block_types import TABLE, BlockType, Verdict, classify, fused
from burnish.passes.fuse.blocking import Blocking
from burnish.passes.fuse.cost_model import CPU, GPU
from burnish.passes.fuse.fuse import BLOCK, ROLE
from burnish.passes.fuse.latency import Latencies, as_model, pattern
from burnish.passes.fuse.planner import plan
from burnish.passes.fuse.resources import REGISTERS, estimate
from burnish.passes.fuse.sizes import Sizes
from burnish.passes.fuse.structure import describe
from burnish.passes.registry import pass_class


def parsed(text: str) -> onnx_ir.Model:
    model = onnx_ir.from_proto(onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 23]> agraph {text}'))
    infer_graph(model)
    return model


TWO = """(float[B, 64] x, float[64, 64] w, float[64, 64] v) => (float[B, 64] y) {
a = Abs(x) p = MatMul(a, w) q = Relu(p) r = Exp(q) b = Abs(r) s = MatMul(b, v) y = Relu(s) }"""


def test_blocks_become_functions_with_metadata(outputs: Any) -> None:
    model = parsed(TWO)
    random = np.random.default_rng(0)
    feeds = {"x": random.standard_normal((3, 64)).astype(np.float32)}
    feeds |= {name: random.standard_normal((64, 64)).astype(np.float32) / 8 for name in ("w", "v")}
    before = outputs(model, feeds)
    outcome = Fuse(machine="gpu").run(model, Context())
    assert outcome.rewrites == {"fuse": 2}
    first, second = model.graph
    assert first.metadata_props[BLOCK] == second.metadata_props[BLOCK] == "contraction"
    body = model.functions[first.op_identifier()]
    roles = [(node.op_type, node.metadata_props[ROLE]) for node in body if node.op_type != "Constant"]
    assert roles[:2] == [("Abs", "before"), ("MatMul", "product")] and roles[2] == ("Relu", "after")
    verify(model)
    for old, new in zip(before, outputs(model, feeds), strict=True):
        assert np.array_equal(old, new)
    assert inline_all(model) == 2
    assert [node.op_type for node in model.graph].count("MatMul") == 2


def test_layers_share_a_function() -> None:
    weights = ", ".join(f"float[8, 8] w{n}" for n in range(4))
    steps = " ".join(f"p{n} = MatMul(x{n}, w{n}) x{n + 1} = Relu(p{n})" for n in range(4))
    model = parsed(f"(float[B, 8] x0, {weights}) => (float[B, 8] x4) {{ {steps} }}")
    Fuse().run(model, Context())
    assert len(model.graph) == 4 and len(model.functions) == 1


def test_nothing_to_fuse_is_said() -> None:
    outcome = Fuse().run(parsed("(float[4] x) => (float[4] y) { y = Exp(x) }"), Context())
    assert not outcome.changed
    assert [remark.reason for remark in outcome.remarks] == ["no two of 1 operators can be one kernel"]


def test_decisions_by_figures_are_said() -> None:
    model = parsed(
        "(float[B, 64] x, float[64, 64] w, float[64] b) => (float[B, 64] y) { p = MatMul(x, w) y = Add(p, b) }"
    )
    outcome = Fuse().run(model, Context())
    assert any("decisions by the figures of a CPU" in remark.reason for remark in outcome.remarks)
    assert any("contraction" in str(remark.values) for remark in outcome.remarks)


def test_options() -> None:
    assert pass_class("fuse") is Fuse
    for wrong in ({"style": "deeper"}, {"machine": "tpu"}):
        with pytest.raises(OptionError, match=r"known|mean"):
            Fuse(**wrong)  # type: ignore[arg-type]


def test_the_table_has_no_row_or_column_of_single_operators() -> None:
    assert len(TABLE) == 49
    for kind in BlockType:
        assert fused(kind, BlockType.OPAQUE)[0] is fused(BlockType.HOST, kind)[0] is Verdict.NEVER
    # Who is first matters.
    assert fused(BlockType.ONE_TO_MANY, BlockType.CONTRACTION)[0] is Verdict.IF_IT_PAYS
    assert fused(BlockType.CONTRACTION, BlockType.ONE_TO_MANY)[0] is Verdict.NEVER
    assert fused(BlockType.SHUFFLE, BlockType.REORGANIZE) == (Verdict.ALWAYS, BlockType.REORGANIZE)
    assert fused(BlockType.CONTRACTION, BlockType.CONTRACTION)[0] is Verdict.NEVER


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("(float[4] x) => (float[4] y) { y = Exp(x) }", BlockType.ONE_TO_ONE),
        ("(float[4, 4] x, float[4] b) => (float[4, 4] y) { y = Add(x, b) }", BlockType.BROADCAST),
        ("(float[4] x) => (float[2, 2] y) <int64[2] s = {2, 2}> { y = Reshape(x, s) }", BlockType.REORGANIZE),
        ("(float[4, 2] x) => (float[2, 4] y) { y = Transpose(x) }", BlockType.SHUFFLE),
        ("(float[4] x, int64[2] i) => (float[2] y) { y = Gather(x, i) }", BlockType.ONE_TO_MANY),
        ("(float[4] x) => (float[4] y) { y = Softmax(x) }", BlockType.REDUCTION),
        ("(float[4, 4] x) => (float[4, 4] y) { y = MatMul(x, x) }", BlockType.CONTRACTION),
        ("(float[4] x, int64[1] s, int64[1] e) => (float[N] y) { y = Slice(x, s, e) }", BlockType.OPAQUE),
        ("(float[4] x, int64[1] k) => (float[N] y, int64[N] i) { y, i = TopK(x, k) }", BlockType.OPAQUE),
        ("(float[4] x) => (float[4] y) { y = CumSum(x, x) }", BlockType.OPAQUE),
    ],
)
def test_types_of_operators(text: str, kind: BlockType) -> None:
    assert classify(next(iter(parsed(text).graph))) is kind


def test_blocks_are_no_larger_than_registers_allow() -> None:
    # Forty sums that are all needed at the end.
    names = [f"a{n}" for n in range(40)]
    text = " ".join(f"{name} = Exp(x{n})" for n, name in enumerate(names))
    inputs = ", ".join(f"float[1024] x{n}" for n in range(40))
    model = parsed(f"({inputs}) => (float[1024] y) {{ {text} y = Sum({', '.join(names)}) }}")
    blocking = Blocking(model)
    assert blocking.objection(range(41)) is None  # a smaller tile
    found = estimate(blocking.infos, 40, [blocking.infos[-1].node.outputs[0]])
    assert found.tile < (1024,) and found.registers <= REGISTERS
    assert estimate(blocking.infos, 80, []).objection == "80 tensors in one kernel"


def test_costs_count_what_is_computed_again() -> None:
    text = "(float[1, 64] x) => (float[4096, 64] y) <int64[2] s = {4096, 64}> { a = Erf(x) y = Expand(a, s) }"
    blocking = Blocking(parsed(text), CPU)
    both = blocking.cost([0, 1])
    assert both - CPU.launch > 4096 * 64 * 8 / CPU.arithmetic * 0.99
    assert blocking.gain(0, 1) is None
    assert blocking.reasons == {"one-to-one before one-to-many does not pay": 1}
    view = Blocking(parsed("(float[4] x) => (float[2, 2] y) <int64[2] s = {2, 2}> { y = Reshape(x, s) }"), GPU)
    assert view.cost([0]) == 0


class Clock:
    """Takes more time for each operator, or far more for two together."""

    machine = "a made-up machine"

    def __init__(self, together: float) -> None:
        self.together, self.asked = together, 0

    def __call__(self, model: onnx_ir.Model) -> float:
        self.asked += 1
        onnx.checker.check_model(onnx_ir.to_proto(model), full_check=True)
        return 1.0 if len(model.graph) == 1 else self.together


YELLOW = "(float[B, 64] x, float[64, 64] w, float[64] b) => (float[B, 64] y) { p = MatMul(x, w) y = Add(p, b) }"


@pytest.mark.parametrize(("together", "blocks"), [(1.5, 1), (2.5, 2)])
def test_measured_profit_decides(tmp_path: Path, together: float, blocks: int) -> None:
    path = tmp_path / "table" / "latencies.json"
    clock = Clock(together)
    found = plan(parsed(YELLOW), latencies=Latencies(path, clock))
    assert len(found.blocks) == blocks and found.measured and not found.modelled
    asked = clock.asked
    assert asked == 3
    assert len(json.loads(path.read_text())) == 3
    # Another process, another model with other names: nothing is measured again.
    again = plan(parsed(YELLOW.replace("p", "q")), latencies=Latencies(path, clock))
    assert len(again.blocks) == blocks and clock.asked == asked
    # A machine that cannot measure reads the table of one that could.
    carried = Latencies(path)
    assert carried.machine == Clock.machine
    assert len(plan(parsed(YELLOW), latencies=carried).blocks) == blocks


def test_without_an_entry_the_model_of_the_machine_decides() -> None:
    table = Latencies(None, None, "nowhere")
    found = plan(parsed(YELLOW), latencies=table)
    assert found.modelled and not found.measured and table.missing


def test_the_pass_asks_the_context(tmp_path: Path) -> None:
    clock = Clock(2.5)
    model = parsed(YELLOW)
    outcome = Fuse(latencies=str(tmp_path / "t.json")).run(model, Context(latency=clock))
    assert not outcome.changed and clock.asked == 3
    assert any("measured latencies" in remark.reason for remark in outcome.remarks)


def test_patterns_are_free_of_names_and_hold_sizes() -> None:
    one, other = parsed(YELLOW), parsed(YELLOW.replace("64", "32"))
    sizes = Sizes.of_graph(one.graph)
    same = pattern(list(parsed(YELLOW.replace("p", "q")).graph), sizes)
    assert pattern(list(one.graph), sizes) == same != pattern(list(other.graph), sizes)
    small = as_model(list(one.graph), {"": 23}, sizes)
    assert [list(value.shape or ()) for value in small.graph.inputs] == [[1, 64], [64, 64], [64]]


def test_sizes() -> None:
    model = parsed("(float[B, S, 4] x) => (float[B, S, 4] y) { y = Exp(x) }")
    x = model.graph.inputs[0]
    assert Sizes.of_graph(model.graph).bytes(x) == 1 * 128 * 4 * 4
    assert Sizes.of_graph(model.graph, {"B": 2, "S": 3}).bytes(x) == 2 * 3 * 4 * 4
    assert describe(next(iter(model.graph)), Sizes()).dims == ("B", "S", "4")
