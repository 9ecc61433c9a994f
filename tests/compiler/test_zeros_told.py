"""A request that cannot pay here is done, and the report says by measurement that it does not."""

from __future__ import annotations

from pathlib import Path

import burnish
import pytest
import torch


def test_zeros_that_no_kernel_leaves_out(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 64)).eval()
    x = torch.randn(8, 64)
    compiled = burnish.compile(model, (x,), passes="prune(sparsity=0.8,metric=magnitude)", cache=str(tmp_path))
    remarks = [r for done in compiled.report.passes if done.spec.startswith("prune") for r in done.remarks]
    assert any("80.0% of the weights of 2 products are zero" in r.reason for r in remarks)
    told = remarks[-1]
    assert told.kind == "missed" and "zeros alone make nothing faster here" in told.reason
    ratio = told.values[0]["time_ratio"]
    assert f"takes {ratio:.2f} times the dense one's time" in told.reason
    # A busy machine measures roughly; without the zeros' arithmetic it would be 0.2.
    assert 0.5 < ratio < 2
    # What was asked for was done: with so many zeros the outputs are others.
    assert compiled(x).detach().numpy() != pytest.approx(model(x).detach().numpy(), rel=1e-3)
