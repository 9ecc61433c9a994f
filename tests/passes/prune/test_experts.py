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
from burnish.passes.statistics import Moments
from burnish.tools.coverage import made
from burnish.tools.coverage_families import FAMILIES
from burnish.tools.coverage_pruning import imported, outputs, prepared

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


def test_merged_experts_share_the_mean_of_their_weights(mixtral: Any, calibrated: Calibrated) -> None:
    """The same in PyTorch: all of a group have the mean by usage, the router is as it was."""
    graph, feeds = mixtral[0].clone(), mixtral[1]
    usages = [layer.shares for layer in find(graph, Outcome())]
    used = calibrated(graph, feeds).statistics(usages, Moments())
    usage = [used[value.name or ""][0] for value in usages]
    outcome = PruneExperts(ratio=0.5, merge=True).run(graph, calibrated(graph, feeds))
    verify(graph)
    stacks = [t for v in graph.graph.initializers.values() if (t := tensor_of(v)) is not None and len(t.shape) == 3]
    assert [int(t.shape[0]) for t in stacks] == [2, 2, 2, 2]
    told = [remark for remark in outcome.remarks if remark.kind == "applied"]
    assert all("4 experts became 2" in remark.reason for remark in told)
    # Random experts have nothing in common.
    assert len(outcome.remarks) == 4 and "little in common" in outcome.remarks[1].reason
    model = made(FAMILIES["Mixtral"])
    for layer, remark, shares in zip(model.model.layers, told, usage, strict=True):  # type: ignore[union-attr, arg-type]
        assert sorted(e for group in remark.values["groups"] for e in group) == [0, 1, 2, 3]
        for weight in (layer.mlp.experts.gate_up_proj, layer.mlp.experts.down_proj):
            for members in remark.values["groups"]:
                mix = torch.as_tensor(shares[members] / shares[members].sum(), dtype=torch.float32)
                weight.data[members] = torch.einsum("e,eij->ij", mix, weight.data[members]).expand(len(members), -1, -1)
    with torch.no_grad():
        want = model(**{key: torch.from_numpy(value) for key, value in feeds.items()}).logits.numpy()
    got = outputs(graph, feeds)[0]
    assert np.abs(got - want).max() < 1e-5 * np.abs(want).max()


def _in_pairs() -> torch.nn.Module:
    """A Mixtral whose experts 2 and 3 nearly are 0 and 1, which the router prefers for the same tokens."""
    model = made(FAMILIES["Mixtral"])
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for layer in model.model.layers:  # type: ignore[union-attr]
            weights = (layer.mlp.gate.weight, layer.mlp.experts.gate_up_proj, layer.mlp.experts.down_proj)  # type: ignore[union-attr]
            for weight in weights:
                noise = 0.1 * weight[:2].std() * torch.randn(weight[:2].shape, generator=generator)  # type: ignore[index, operator]
                weight[2:] = weight[:2] + noise  # type: ignore[index, operator]
    return model


def test_merging_beats_dropping_where_experts_are_alike(calibrated: Calibrated) -> None:
    """Without its pair a token's second expert is the wrong one; merged, both are what they nearly were."""
    graph, feeds = imported(_in_pairs(), FAMILIES["Mixtral"])
    want = outputs(graph, feeds)[0]
    errors = {}
    for merge in (False, True):
        pruned = graph.clone()
        outcome = PruneExperts(ratio=0.5, merge=merge).run(pruned, calibrated(pruned, feeds))
        if merge:
            assert [remark.values["groups"] for remark in outcome.remarks] == [[[0, 2], [1, 3]]] * 2
        errors[merge] = float(np.linalg.norm(outputs(pruned, feeds)[0] - want) / np.linalg.norm(want))
    assert errors[True] < 0.5 * errors[False]


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
