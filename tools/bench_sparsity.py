"""Ways to prune SmolLM2, alone and together: perplexity, divergence, size, time and memory.

``python -m burnish.tools.bench_sparsity`` measures as :mod:`.recipe_rows` says, into ``benchmarks/sparsity.json``, and
writes the tables of ``docs/pruning.md``.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..compiler.plots import plot_frontier
from .bench_results import Check, fill, note_on_seconds, row_seconds
from .recipe_rows import FLOAT, ROOT, Bench, Recipe

_ERRORS = "propagate=errors"
_24 = "pattern='2:4'"
_RECOVERY = "distill(steps=150,rate=1e-4)"
_FINAL = "rotate,quantize"

UNSTRUCTURED: dict[str, Recipe] = {
    "50 % magnitude": Recipe("prune(metric=magnitude)", data=0),
    "50 % Wanda": Recipe("prune(metric=wanda)"),
    "50 % Wanda + OWL": Recipe("prune(metric=wanda,layer_ratios=owl)"),
    "50 % Wanda + DSnoT": Recipe("prune(metric=wanda,refine_mask=true)"),
    "50 % RIA": Recipe("prune(metric=ria)"),
    "50 % RIA + OWL": Recipe("prune(metric=ria,layer_ratios=owl)"),
    "50 % RIA + DSnoT": Recipe("prune(metric=ria,refine_mask=true)"),
    "50 % SparseGPT": Recipe("prune(metric=sparsegpt)"),
    "50 % SparseGPT + OWL": Recipe("prune(metric=sparsegpt,layer_ratios=owl)"),
    "50 % Wanda + least squares": Recipe("prune(metric=wanda,reconstruct=least_squares)"),
    "50 % SparseGPT + least squares": Recipe("prune(metric=sparsegpt,reconstruct=least_squares)"),
    **{
        f"50 % {name} + propagation": Recipe(f"prune(metric={name.lower()},{_ERRORS})")
        for name in ("Wanda", "RIA", "SparseGPT")
    },
    "50 % SparseGPT + distillation": Recipe(f"prune(metric=sparsegpt),{_RECOVERY}", data=64),
    "2:4 magnitude": Recipe(f"prune(metric=magnitude,{_24})", data=0),
    "2:4 Wanda": Recipe(f"prune(metric=wanda,{_24})"),
    "2:4 Wanda + permutation": Recipe(f"prune(metric=wanda,{_24},permute=true)"),
    "2:4 Wanda + DSnoT": Recipe(f"prune(metric=wanda,{_24},refine_mask=true)"),
    "2:4 RIA": Recipe(f"prune(metric=ria,{_24})"),
    "2:4 RIA + permutation": Recipe(f"prune(metric=ria,{_24},permute=true)"),
    "2:4 SparseGPT": Recipe(f"prune(metric=sparsegpt,{_24})"),
    "2:4 SparseGPT + permutation": Recipe(f"prune(metric=sparsegpt,{_24},permute=true)"),
    "2:4 SparseGPT + propagation": Recipe(f"prune(metric=sparsegpt,{_24},{_ERRORS})"),
    "2:4 SparseGPT + distillation": Recipe(f"prune(metric=sparsegpt,{_24}),{_RECOVERY}", data=64),
}


def _structured(share: int) -> dict[str, Recipe]:
    ratio = f"ratio={share / 100}"
    plain = "compensate=off,distribution=uniform"
    return {
        f"{share} % structures, magnitude": Recipe(f"prune_structures({ratio},metric=magnitude,{plain})", data=0),
        f"{share} % structures, FLAP": Recipe(f"prune_structures({ratio},metric=flap,compensate=bias)"),
        f"{share} % structures": Recipe(f"prune_structures({ratio})", keep=True),
        f"{share} % structures + distillation": Recipe(f"prune_structures({ratio}),{_RECOVERY}", data=64),
    }


RECIPES: dict[str, Recipe] = {
    FLOAT: Recipe("default", data=0, keep=True),
    **UNSTRUCTURED,
    **_structured(10),
    **_structured(20),
    **_structured(30),
    "4 bits g64": Recipe(_FINAL, keep=True),
    "20 % structures + 4 bits g64": Recipe(f"prune_structures(ratio=0.2),{_FINAL}", keep=True),
    "20 % structures + distillation + 4 bits g64": Recipe(
        f"prune_structures(ratio=0.2),{_RECOVERY},{_FINAL}", data=64, keep=True
    ),
    "2:4 SparseGPT + 4 bits g64": Recipe(f"prune(metric=sparsegpt,{_24}),quantize"),
}
"""Rows by name, in the order of the table."""


def loss(rows: Mapping[str, Any], name: str, text: str = "perplexity") -> float:
    """The increase of log-perplexity by a recipe, on held-out text or on ``"news"``."""
    return math.log(rows[name][text] / rows[FLOAT][text])


def checks(rows: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Limits on the rows that are there."""
    found: list[Check] = []

    def compare(name: str, better: str, worse: str, limit: float, text: str = "perplexity") -> None:
        if all(each in rows for each in (FLOAT, better, worse)):
            found.append(Check(name, loss(rows, better, text) / loss(rows, worse, text), limit, "×"))

    compare("50 %: Wanda's loss against magnitude's", "50 % Wanda", "50 % magnitude", 0.5)
    compare("50 %: SparseGPT's loss against Wanda's", "50 % SparseGPT", "50 % Wanda", 0.85)
    # Those who proposed RIA calibrate on one text and judge by another.
    compare("50 %: RIA's loss against Wanda's", "50 % RIA", "50 % Wanda", 1.0)
    compare("50 %: RIA's loss against Wanda's, news", "50 % RIA", "50 % Wanda", 1.0, "news")
    compare("2:4: RIA's loss against Wanda's, news", "2:4 RIA", "2:4 Wanda", 1.0, "news")
    compare("50 %: loss with recovery against Wanda's", "50 % SparseGPT + distillation", "50 % Wanda", 0.6)
    compare("50 %: loss with least squares against Wanda's", "50 % Wanda + least squares", "50 % Wanda", 0.6)
    for metric in ("Wanda", "RIA", "SparseGPT"):
        with_, without = f"50 % {metric} + propagation", f"50 % {metric}"
        compare(f"50 %: {metric}'s loss with propagation against without", with_, without, 1.0)
    for metric in ("Wanda", "RIA", "SparseGPT"):
        with_, without = f"2:4 {metric} + permutation", f"2:4 {metric}"
        compare(f"2:4: {metric}'s loss with permutation against without", with_, without, 1.0)
    compare("2:4: Wanda's loss against magnitude's", "2:4 Wanda", "2:4 magnitude", 0.5)
    compare("2:4: SparseGPT's loss against Wanda's", "2:4 SparseGPT", "2:4 Wanda", 1.0)
    for share in (10, 20, 30):
        start = f"{share} % structures"
        compare(f"{start}: FLAP's loss against magnitude's", f"{start}, FLAP", f"{start}, magnitude", 0.7)
        compare(f"{start}: loss against FLAP's", start, f"{start}, FLAP", 1.0)
        compare(f"{start}: loss with recovery against without", f"{start} + distillation", start, 1.0)
    for name, limit in (("50 % SparseGPT", 600), ("50 % Wanda", 120)):
        if name in rows:
            found.append(Check(f"{name}: time", rows[name]["seconds"], limit, "s"))
    if "50 % SparseGPT" in rows:
        peak = rows["50 % SparseGPT"]["peak_anonymous_bytes"] / 2**30
        found.append(Check("50 % SparseGPT: memory", round(peak, 2), 3.0, "GiB"))
    return [check.to_json() for check in found]


def table(rows: Mapping[str, Any]) -> str:
    """The rows, in Markdown."""
    lines = [
        "| recipe | perplexity | against float32 | loss in nats | news | MB | time, s | peak GB |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, row in rows.items():
        ratio = row["perplexity"] / rows[FLOAT]["perplexity"]
        peak = row["peak_anonymous_bytes"] / 1e9
        lines.append(
            f"| {name} | {row['perplexity']:.2f} | {ratio:.3f}× | {loss(rows, name):.3f} | {row['news']:.1f} | "
            f"{row['megabytes']:.0f} | {row_seconds(row)} | {peak:.1f} |"
        )
    return "\n".join(lines) + note_on_seconds(rows)


def publish(rows: Mapping[str, Any], path: Path) -> None:
    """Draw size and loss of pruned structures, and write the tables of the page."""
    structures = [name for share in (10, 20, 30) for name in _structured(share) if name in rows]
    points = [(name, rows[name]["megabytes"], loss(rows, name)) for name in structures]
    # Magnitude's structures, thousands of times the perplexity, would leave no room for the others.
    points = [point for point in points if point[2] < 2]
    if len(points) > 1:
        plot_frontier(
            points, ROOT / "docs" / "images" / "pruning.svg", x="megabytes", y="loss on held-out text, nats a token"
        )
    document = ROOT / "docs" / "pruning.md"
    results = json.loads(path.read_text(encoding="utf-8"))
    asked = ["| asked | measured | limit | |", "|---|---:|---:|---|"]
    for check in results["checks"]:
        asked.append(
            f"| {check['name']} | {check['value']:.3g} {check['unit']} | {check['limit']} | "
            f"{'met' if check['passed'] else 'MISSED'} |"
        )
    blocks = {"recipes": table(rows), "asked": "\n".join(asked)}
    document.write_text(fill(document.read_text(encoding="utf-8"), blocks), encoding="utf-8")


BENCH = Bench("burnish.tools.bench_sparsity", "sparsity.json", RECIPES, checks, publish)

if __name__ == "__main__":
    sys.exit(BENCH.main())
