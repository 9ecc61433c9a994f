"""The tables of pruning: recipes that exist, limits, and what a speed-up is compared with."""

from __future__ import annotations

import math
from typing import Any

import pytest
from burnish.passes.spec import check_order, implied, parse
from burnish.tools.bench_pruned_speed import DECODERS, ENCODERS, efficiency
from burnish.tools.bench_sparsity import RECIPES, checks, loss, table
from burnish.tools.recipe_rows import FLOAT


@pytest.mark.parametrize("spec", [*(r.passes for r in RECIPES.values()), *ENCODERS.values(), *DECODERS.values()])
def test_every_recipe_is_one(spec: str) -> None:
    check_order(implied(parse(spec)))


def _row(perplexity: float) -> dict[str, Any]:
    return {"perplexity": perplexity, "news": 2 * perplexity, "megabytes": 538.1, "seconds": 100.0, "divergence": 0.1,
            "peak_anonymous_bytes": 2 << 30}  # fmt: skip


def test_limits_on_what_was_measured() -> None:
    rows = {FLOAT: _row(10), "50 % Wanda": _row(20), "50 % SparseGPT": _row(18)}
    assert loss(rows, "50 % Wanda") == pytest.approx(math.log(2))
    found = {check["name"]: check for check in checks(rows)}
    assert found["50 %: SparseGPT's loss against Wanda's"]["value"] == pytest.approx(
        math.log(1.8) / math.log(2), rel=1e-3
    )
    assert found["50 %: SparseGPT's loss against Wanda's"]["passed"]
    assert found["50 % SparseGPT: memory"]["passed"] and found["50 % Wanda: time"]["passed"]
    assert "| 50 % Wanda | 20.00 | 2.000× | 0.693 |" in table(rows)


def test_half_the_weights_in_half_the_time_is_ideal() -> None:
    assert efficiency(0.5, 0.5) == 1.0 and efficiency(0.8, 0.4) == pytest.approx(0.75)
