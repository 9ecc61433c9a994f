"""``PruneExperts`` on a small Mixtral: rarely used experts go, the outputs are those of a router that avoids them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir
import pytest
import torch
from burnish.ir.errors import CalibrationError, OptionError
from burnish.ir.graph import tensor_of
from burnish.ir.verify import verify
from burnish.passes import PruneExperts
from burnish.passes.base import Context, Outcome
from burnish.passes.prune.experts import find
from burnish.tools.coverage_families import FAMILIES
from burnish.tools.coverage_pruning import outputs, prepared

Array = np.ndarray[Any, Any]
Calibrated = Callable[[onnx_ir.Model, Mapping[str, Array]], Context]


@pytest.fixture(scope="module")
def mixtral() -> tuple[onnx_ir.Model, Mapping[str, Array]]:
    return prepared("Mixtral")


def test_layers_are_found(mixtral: Any) -> None:
    layers = find(mixtral[0].clone(), Outcome())
    assert [(layer.count, layer.chosen, len(layer.stacks)) for layer in layers] == [(4, 2, 2), (4, 2, 2)]


def test_half_of_the_experts_go(mixtral: Any, calibrated: Calibrated) -> None:
    graph, feeds = mixtral[0].clone(), mixtral[1]
    before = outputs(graph, feeds)[0]
    outcome = PruneExperts(ratio=0.5).run(graph, calibrated(graph, feeds))
    verify(graph)
    assert outcome.rewrites == {"prune experts": 4}
    stacks = [t for v in graph.graph.initializers.values() if (t := tensor_of(v)) is not None and len(t.shape) == 3]
    assert [int(t.shape[0]) for t in stacks] == [2, 2, 2, 2]
    after = outputs(graph, feeds)[0]
    assert after.shape == before.shape and np.isfinite(after).all()
    assert all(0 <= remark.values["usage"] <= 0.5 for remark in outcome.remarks)


def test_outputs_are_those_of_a_router_that_avoids_them(mixtral: Any, calibrated: Calibrated) -> None:
    """The same choice in PyTorch: the removed experts' logits are as low as can be."""
    graph, feeds = mixtral[0].clone(), mixtral[1]
    outcome = PruneExperts(ratio=0.25).run(graph, calibrated(graph, feeds))
    gone = [remark.values["removed"] for remark in outcome.remarks]
    from burnish.tools.coverage import made

    model = made(FAMILIES["Mixtral"])
    for layer, removed in zip(model.model.layers, gone, strict=True):  # type: ignore[union-attr, arg-type]
        gate, weight = layer.mlp.gate, layer.mlp.gate.weight

        def closed(hidden: torch.Tensor, gate: Any = gate, weight: Any = weight, removed: Any = removed) -> Any:
            hidden = hidden.reshape(-1, weight.shape[1])
            logits = torch.nn.functional.linear(hidden, weight)
            logits[:, removed] = -1e30
            shares = torch.softmax(logits.float(), -1)
            top = shares.topk(gate.top_k, -1)
            return logits, top.values / top.values.sum(-1, keepdim=True), top.indices

        gate.forward = closed
    with torch.no_grad():
        want = model(**{key: torch.from_numpy(value) for key, value in feeds.items()}).logits.numpy()
    got = outputs(graph, feeds)[0]
    assert np.abs(got - want).max() < 1e-5 * np.abs(want).max()


def test_what_cannot_be(mixtral: Any, calibrated: Calibrated, parse: Any) -> None:
    graph, feeds = mixtral[0].clone(), mixtral[1]
    outcome = PruneExperts(ratio=0.9).run(graph, calibrated(graph, feeds))
    assert outcome.rewrites == {"prune experts": 4}  # two of four are needed by each token
    with pytest.raises(CalibrationError):
        PruneExperts().run(mixtral[0].clone(), Context())
    with pytest.raises(OptionError):
        PruneExperts(ratio=1.0)
    plain = parse("g (float[T, 8] x) => (float[T, 8] y) { y = MatMul(x, w) }", w=(8, 8))
    assert "no mixture of experts" in PruneExperts().run(plain, Context()).remarks[-1].reason
