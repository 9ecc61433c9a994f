"""``PruneTokens`` on a small BERT: what goes on is what gets attention, outputs keep their rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from burnish.backends.reference import Reference
from burnish.ir.errors import OptionError
from burnish.ir.verify import verify
from burnish.passes import PruneTokens
from burnish.passes.base import Context
from burnish.tools.coverage import made
from burnish.tools.coverage_families import FAMILIES
from burnish.tools.coverage_pruning import outputs, prepared


@pytest.fixture(scope="module")
def bert() -> Any:
    return prepared("BERT")


def test_rows_are_those_of_the_shorter_sequence(bert: Any) -> None:
    """The same in PyTorch: layer 0 on all tokens, layer 1 on those that layer 0's attention goes to."""
    graph, feeds = bert[0].clone(), bert[1]
    outcome = PruneTokens(keep=0.5, after=0).run(graph, Context())
    verify(graph)
    assert outcome.rewrites == {"prune tokens": 1}
    model = made(FAMILIES["BERT"])
    model.set_attn_implementation("eager")  # type: ignore[operator]
    ids, mask = (torch.from_numpy(feeds[key]) for key in ("input_ids", "attention_mask"))
    with torch.no_grad():
        full = model(input_ids=ids, attention_mask=mask, output_hidden_states=True, output_attentions=True)
        mass = full.attentions[0].mean((1, 2))
        mass[:, 0] += 1
        count = int(np.ceil(ids.shape[1] * np.float32(0.5)))
        chosen = mass.topk(count, -1).indices.sort(-1).values
        hidden = full.hidden_states[1]
        rows = chosen[..., None].expand(-1, -1, hidden.shape[-1])
        bias = torch.where(mask.gather(1, chosen)[:, None, None].bool(), 0.0, -1e30)
        short = model.encoder.layer[1](hidden.gather(1, rows), bias)  # type: ignore[union-attr, index]
        short = short[0] if isinstance(short, tuple) else short
        want = hidden.scatter(1, rows, short)
        pooled = model.pooler(short)  # type: ignore[operator]
    got = outputs(graph, feeds)
    assert np.abs(got[0] - want.numpy()).max() < 1e-5 * float(want.abs().max())
    assert np.abs(got[1] - pooled.numpy()).max() < 1e-5


def test_twice_and_other_sizes(bert: Any) -> None:
    graph = bert[0].clone()
    outcome = PruneTokens(keep=0.5, after=(0, 1)).run(graph, Context())
    verify(graph)
    assert outcome.rewrites["prune tokens"] >= 1
    for batch, length in ((1, 5), (3, 11)):
        feeds = {"input_ids": np.random.default_rng(0).integers(3, 98, (batch, length)),
                 "attention_mask": np.ones((batch, length), np.int64)}  # fmt: skip
        found = outputs(graph, feeds)
        assert found[0].shape == (batch, length, 32) and np.isfinite(found[0]).all()


def test_later_products_are_shorter(bert: Any) -> None:
    graph, feeds = bert[0].clone(), bert[1]
    PruneTokens(keep=0.5, after=0).run(graph, Context())
    gelu = [node.outputs[0].name for node in graph.graph if node.op_type == "Gelu"]
    found = Reference(graph).run(feeds, gelu)
    lengths = [found[name].shape[1] for name in gelu]
    assert lengths == [feeds["input_ids"].shape[1], int(np.ceil(feeds["input_ids"].shape[1] / 2))]


def test_decoders_and_fixed_lengths_are_told(transformer: Any) -> None:
    outcome = PruneTokens(after=0).run(prepared("GPT-2")[0], Context())
    assert not outcome.changed and "no token leaves after attention 0" in outcome.remarks[-1].reason
    outcome = PruneTokens(after=0).run(transformer("bert")[0], Context())
    assert not outcome.changed and "the length of the sequence is fixed" in outcome.remarks[-1].reason


def test_refusals(bert: Any) -> None:
    with pytest.raises(OptionError, match="2 attentions"):
        PruneTokens(after=7).run(bert[0].clone(), Context())
    with pytest.raises(OptionError):
        PruneTokens(keep=1.5)
