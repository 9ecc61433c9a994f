"""The tables of pruning: recipes that exist, limits, and what a speed-up is compared with."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from burnish.ir.errors import ModelError
from burnish.passes.spec import check_order, implied, parse
from burnish.tools.bench_pruned_speed import ACCURACY, COMPOSED, DECODERS, ENCODERS, composition, efficiency, tables
from burnish.tools.bench_pruned_speed import checks as speed_checks
from burnish.tools.bench_sparsity import RECIPES, checks, loss, table
from burnish.tools.recipe_rows import FLOAT, judge


@pytest.mark.parametrize(
    "spec", [*(r.passes for r in RECIPES.values()), *ENCODERS.values(), *DECODERS.values(), *COMPOSED.values()]
)
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


def test_time_beside_other_work_is_marked() -> None:
    rows = {FLOAT: _row(10), "50 % Wanda": _row(20) | {"cpu_seconds": 71.2, "cpu": "some processor"}}
    text = table(rows)
    assert (
        "| 71† |" in text and "| 100 |" in text and text.endswith("† seconds of all cores together, on some processor.")
    )


def _speed(ratio: float) -> dict[str, Any]:
    return {"median_ms": 100 * ratio, "iqr_ms": 1.0, "ratio": ratio}


def test_speed_tables_and_limits() -> None:
    """A fifth removed and 0.8 of the time is ideal; 0.95 of it is 84 % of the ideal; one operator more is a mask."""
    times = {FLOAT: _speed(1), "10 %": _speed(0.9), "20 %": _speed(0.95), "30 %": _speed(0.9)}
    files = {
        name: {"operators": {"MatMul": 3} | ({"Mul": 1} if name == "30 %" else {}), "weights": 9} for name in times
    }
    composed = {name: _speed(0.5 if "bits" in name else 1) for name in COMPOSED}
    results = {
        "smollm2": {"scenarios": {"prefill 128": times}, "files": files},
        "composed": {"scenarios": {"decode": composed}},
        "bytes": dict.fromkeys(COMPOSED, 5_000_000),
        "seconds": dict.fromkeys(COMPOSED, 9.0),
        "machine": {"cpu": "c", "cores": 2, "system": "s", "python": "3", "versions": {}},
    }
    found = {check.name: check.passed for check in speed_checks(results)}
    assert found["SmolLM2 20 %, prefill 128: ideal against measured speed-up"]
    assert not found["SmolLM2 30 %, prefill 128: ideal against measured speed-up"]
    assert found["smollm2 10 %: operators that float32 has not"]
    assert not found["smollm2 30 %: operators that float32 has not"]
    blocks = tables(results, dict.fromkeys(ACCURACY, 0.25))
    assert "| SmolLM2, prefill 128: 20 % | 95.0 ms ± 1.0 | 0.95× | 0.84 |" in blocks["speed"]
    assert composition(results, {FLOAT: 0.0}) == blocks["composition"].replace("0.250", "–").replace("–", "0.000", 1)


def test_half_the_weights_in_half_the_time_is_ideal() -> None:
    assert efficiency(0.5, 0.5) == 1.0 and efficiency(0.8, 0.4) == pytest.approx(0.75)


def test_rows_are_compared_with_float32_and_nothing_else(tmp_path: Path) -> None:
    """Logits that are not there are not taken from whatever is judged first."""
    with pytest.raises(ModelError, match="logits of float32"):
        judge(tmp_path / "pruned", tmp_path / "float32-8.npy", 8)
    assert not list(tmp_path.iterdir())
