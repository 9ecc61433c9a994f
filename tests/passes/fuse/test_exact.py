"""The exact planner, and how near the greedy one comes to it."""

from __future__ import annotations

from collections.abc import Callable

import onnx
import onnx_ir
import pytest
from burnish.ir.errors import UnsupportedError
from burnish.ir.infer import infer_graph
from burnish.passes.fuse.blocking import Blocking
from burnish.passes.fuse.cost_model import CPU, GPU, Machine
from burnish.passes.fuse.exact import LARGEST, best_partition
from burnish.passes.fuse.partition import check
from burnish.passes.fuse.planner import plan

NEAR = 1.05
"""Greedy cost over exact cost that is allowed."""


def compare(model: onnx_ir.Model, machine: Machine) -> float:
    """Greedy over exact; 1 where both cost nothing."""
    blocking = Blocking(model, machine)
    exact, groups = best_partition(blocking)
    check(model, [[blocking.infos[member].node for member in group] for group in groups])
    greedy = plan(model, machine=machine).seconds
    return greedy / exact if exact else 1.0


def test_the_best_plan_of_a_small_graph() -> None:
    text = """<ir_version: 10, opset_import: ["" : 23]>
    g (float[64, 64] x, float[64, 64] w) => (float[64, 64] y) {
    a = Relu(x) p = MatMul(a, w) s = Sigmoid(p) m = Mul(p, s) q = MatMul(m, w) y = Add(q, x) }"""
    model = onnx_ir.from_proto(onnx.parser.parse_model(text))
    infer_graph(model)
    blocking = Blocking(model)
    seconds, groups = best_partition(blocking)
    assert len(groups) == 2  # two products
    assert seconds == pytest.approx(blocking.total(groups), abs=1e-11) == pytest.approx(plan(model).seconds, abs=1e-11)


def test_large_graphs_are_refused(network: Callable[[int, int], onnx_ir.Model]) -> None:
    with pytest.raises(UnsupportedError, match=str(LARGEST)):
        best_partition(Blocking(network(0, 40)))


def graphs(network: Callable[[int, int], onnx_ir.Model], seeds: range) -> list[onnx_ir.Model]:
    made = [network(seed, 3 + seed % 8) for seed in seeds]
    return [model for model in made if len(model.graph) <= 12]


@pytest.mark.parametrize("machine", [GPU, CPU], ids=["gpu", "cpu"])
def test_greedy_is_near_the_best(network: Callable[[int, int], onnx_ir.Model], machine: Machine) -> None:
    ratios = {seed: compare(model, machine) for seed, model in enumerate(graphs(network, range(40)))}
    assert len(ratios) > 20
    assert max(ratios.values()) <= NEAR, ratios


@pytest.mark.slow
@pytest.mark.parametrize("machine", [GPU, CPU], ids=["gpu", "cpu"])
def test_greedy_is_near_the_best_on_many(network: Callable[[int, int], onnx_ir.Model], machine: Machine) -> None:
    ratios = [compare(model, machine) for model in graphs(network, range(1000, 1300))]
    assert max(ratios) <= NEAR, sorted(ratios)[-10:]
