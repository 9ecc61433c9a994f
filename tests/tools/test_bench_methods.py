"""The table of methods: what is asked of it, and its picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from burnish.passes.spec import implied, parse
from burnish.tools.bench_methods import RECIPES, STATIC_PLAIN, STATIC_SMOOTH, best_of, checks, draw
from burnish.tools.recipe_rows import FLOAT


def row(perplexity: float, bits: float = 4.6, divergence: float = 0.1) -> dict[str, Any]:
    return {"perplexity": perplexity, "bits_per_weight": bits, "divergence": divergence}


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_one(name: str) -> None:
    assert implied(parse(RECIPES[name].passes))


def test_limits_on_what_was_measured() -> None:
    rows = {
        FLOAT: row(10.0), STATIC_PLAIN: row(20.0), STATIC_SMOOTH: row(11.0),
        "g64 rotation + GPTQ, refined": row(11.6),
    }  # fmt: skip
    found = {check["name"]: check for check in checks(rows)}
    smoothing = next(check for name, check in found.items() if name.startswith(STATIC_SMOOTH))
    assert smoothing["value"] == pytest.approx(0.1) and smoothing["passed"]
    assert not found["g64 rotation + GPTQ, refined: perplexity against float32"]["passed"]
    assert not checks({FLOAT: row(10.0)})


def test_the_best_row_of_a_kind() -> None:
    rows = {"3 bits a": row(30), "3 bits b": row(20), "g64": row(1)}
    assert best_of(rows, "3 bits") == "3 bits b" and best_of(rows, "5 bits") == ""


def test_the_picture_leaves_out_what_is_off_the_scale(tmp_path: Path) -> None:
    rows = {FLOAT: row(1, 32, 0), "a": row(1, 4.6, 0.2), "b": row(1, 8.5, 0.01), "lost": row(1, 4, 3.0)}
    draw(rows, tmp_path / "images" / "m.svg")
    assert (tmp_path / "images" / "m.svg").stat().st_size > 5000
