"""Every way to round weights, alone and together, on SmolLM2: perplexity, divergence, size, time and memory.

``python -m burnish.tools.bench_methods`` measures as :mod:`.recipe_rows` says, into ``benchmarks/methods.json``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..compiler.plots import plot_frontier
from .bench_results import Check, fill, method_table
from .recipe_rows import FLOAT, ROOT, Bench, Recipe

STATIC_PLAIN, STATIC_SMOOTH = "W8A8 static, RTN", "W8A8 static, SmoothQuant 0.8 + RTN"
W3_PLAIN = "3 bits g128 products RTN"


_TABLE = "overrides={'lm_head':'w8a16'}"
_W3 = "bits=3,group_size=128,overrides={'lm_head':'float'}"

_DYNAMIC = "quantize(scheme=w8a8,method=rtn)"
_STATIC = "quantize(scheme=w8a8_static,method=rtn)"
_AUTO = "quantize(scheme=auto,objective=size,budget={budget})"
_OWQ = "keep_columns=2,keep_in=['*.down_proj','*.o_proj']"
_WIDE = "overrides={'lm_head':{'group_size':64}}"
_GRID = "group_size=32,offsets=true,half_scales=true,method=rtn,overrides={'lm_head':{'bits':8,'offsets':false}}"
_SYMMETRIC = "overrides={'*.q_proj':{'symmetric':true},'*.k_proj':{'symmetric':true}}"

RECIPES: dict[str, Recipe] = {
    FLOAT: Recipe("default", data=0),
    "g64 RTN": Recipe("quantize", data=0),
    "g64 clip search": Recipe("quantize(method=clip)"),
    "g64 AWQ + clip search": Recipe("scale_salient_channels,quantize(method=clip)"),
    "g64 RTN + LoRC, rank 8": Recipe("quantize(method=rtn),compensate_low_rank(exclude=lm_head)"),
    "g64 OWQ, 4 columns": Recipe("quantize(keep_columns=4)"),
    "g64 AWQ + RTN": Recipe("scale_salient_channels,quantize(method=rtn)"),
    "g64 rotation + RTN": Recipe("rotate,quantize", data=0),
    "g64 GPTQ": Recipe("quantize(rounds=0)"),
    "g64 GPTQ, refined": Recipe("quantize"),
    "g64 AWQ + GPTQ, refined": Recipe("scale_salient_channels,quantize"),
    "g64 rotation + GPTQ": Recipe("rotate,quantize(rounds=0)"),
    "g64 rotation + GPTQ, refined": Recipe("rotate,quantize", limit=1.15),
    "g64 rotation + GPTQ, refined + propagation": Recipe("rotate,quantize(propagate=errors)"),
    "g64 rotation + GPTQ, refined + LoRC, rank 8": Recipe("rotate,quantize,compensate_low_rank(exclude=lm_head)"),
    "mix of 4.6 bits: g64, q and k symmetric, rotation + GPTQ, refined + OWQ of down and o, 64 sequences": Recipe(
        f"rotate,quantize({_OWQ},{_SYMMETRIC})", data=64, limit=1.08
    ),
    "mix of 4.6 bits: g32, table g64, half scales, rotation + GPTQ, refined": Recipe(
        f"rotate,quantize(group_size=32,half_scales=true,{_WIDE})", limit=1.08
    ),
    "g32 RTN": Recipe("quantize(group_size=32)", data=0),
    "g32 GPTQ, refined": Recipe("quantize(group_size=32)"),
    "g32 rotation + GPTQ, refined": Recipe("rotate,quantize(group_size=32)", limit=1.10),
    "g32, half scales, rotation + GPTQ, refined": Recipe("rotate,quantize(group_size=32,half_scales=true)", limit=1.10),
    "g32 rotation + GPTQ, refined + propagation": Recipe("rotate,quantize(group_size=32,propagate=errors)"),
    "g32 RTN with offsets, half scales, table in 8 bits": Recipe(f"quantize({_GRID})", data=0),
    "g32 RTN, table in 8 bits": Recipe(f"quantize(group_size=32,{_TABLE})", data=0),
    "g32 rotation + GPTQ, refined, table in 8 bits": Recipe(f"rotate,quantize(group_size=32,{_TABLE})", limit=1.06),
    "3 bits g128 products RTN": Recipe(f"quantize({_W3})", data=0),
    "3 bits g128 products GPTQ, refined": Recipe(f"quantize({_W3})"),
    "3 bits g128 products rotation + GPTQ, refined": Recipe(f"rotate,quantize({_W3})"),
    "3 bits g128 products rotation + GPTQ, refined + propagation": Recipe(f"rotate,quantize({_W3},propagate=errors)"),
    "g64 OmniQuant's clipping": Recipe("quantize(method=learned_clip)"),
    "g64 SignRound": Recipe("quantize(method=signround)"),
    "g64 rotation + SignRound": Recipe("rotate,quantize(method=signround)"),
    "NF4 g64 products": Recipe("quantize(scheme=nf4)", data=0),
    "4 bits g64 symmetric products RTN": Recipe("quantize(symmetric=true,overrides={'lm_head':'float'})", data=0),
    "FP8 products": Recipe("quantize(scheme=fp8)", data=0),
    "8 bits g64 RTN": Recipe("quantize(scheme=w8a16)", data=0),
    "W8A8 groups (ZeroQuant)": Recipe("quantize(scheme=w8a8_groups)", data=0),
    "W8A8 by token, RTN": Recipe(_DYNAMIC, data=0),
    "W8A8 by token, LLM.int8()": Recipe("quantize(scheme=w8a8,outliers=6.0)"),
    "W8A8 by token, SmoothQuant + RTN": Recipe(f"smoothquant,{_DYNAMIC}"),
    "W8A8 by token, Outlier Suppression+ + RTN": Recipe(f"suppress_outliers,{_DYNAMIC}"),
    "W8A8 by token, FPTQ's equalization + RTN": Recipe(f"equalize_log,{_DYNAMIC}"),
    "W8A8 by token, SmoothQuant + GPTQ": Recipe("smoothquant,quantize(scheme=w8a8,fixed_inputs=0)"),
    "W8A8 by token, rotation + SmoothQuant + GPTQ": Recipe(
        "rotate,smoothquant,quantize(scheme=w8a8,fixed_inputs=0)", limit=1.01
    ),
    "W8A8 by token where they differ, rotation + SmoothQuant + GPTQ": Recipe(
        "rotate,smoothquant,quantize(scheme=w8a8)", limit=1.01
    ),
    "W8A8 by token, rotation + SmoothQuant + GPTQ + propagation": Recipe(
        "rotate,smoothquant,quantize(scheme=w8a8,fixed_inputs=0,propagate=errors)"
    ),
    STATIC_PLAIN: Recipe(_STATIC),
    "W8A8 static, least square ranges, RTN": Recipe("quantize(scheme=w8a8_static,method=rtn,ranges=mse)"),
    "W8A8 static, SmoothQuant 0.5 + RTN": Recipe(f"smoothquant,{_STATIC}"),
    "W8A8 static, SmoothQuant searched + RTN": Recipe(f"smoothquant(alpha=search),{_STATIC}"),
    STATIC_SMOOTH: Recipe(f"smoothquant(alpha=0.8),{_STATIC}"),
    "auto for size, perplexity + 9 %": Recipe("rotate," + _AUTO.format(budget=0.09), others=4),
    "auto for size, perplexity + 7 %": Recipe("rotate," + _AUTO.format(budget=0.07), others=4),
    "auto for size, perplexity + 6.8 %, 12 windows": Recipe("rotate," + _AUTO.format(budget=0.068), others=12),
    "auto for size, perplexity + 6.8 %": Recipe("rotate," + _AUTO.format(budget=0.068), others=4),
    "auto for size, perplexity + 6.5 %": Recipe("rotate," + _AUTO.format(budget=0.065), others=4),
    "auto for size, perplexity + 0.4 %, not rotated": Recipe(_AUTO.format(budget=0.004), others=4),
    "auto for size, perplexity + 0.45 %, not rotated": Recipe(_AUTO.format(budget=0.0045), others=4),
    "auto for size, perplexity + 0.5 %, not rotated": Recipe(_AUTO.format(budget=0.005), others=4),
    "W8A8 static, SmoothQuant 0.8 + GPTQ": Recipe("smoothquant(alpha=0.8),quantize(scheme=w8a8_static)"),
}
"""Rows by name, in the order of the table."""


def checks(rows: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Limits on the rows that are there."""
    found = []
    for name, recipe in RECIPES.items():
        if recipe.limit is not None and name in rows and FLOAT in rows:
            ratio = rows[name]["perplexity"] / rows[FLOAT]["perplexity"]
            found.append(Check(f"{name}: perplexity against float32", ratio, recipe.limit, "×").to_json())
    for name, other, what in (
        (STATIC_PLAIN, STATIC_SMOOTH, "increase of perplexity that smoothing leaves of a static scale"),
        (W3_PLAIN, best_of(rows, "3 bits"), "increase of perplexity that the best recipe leaves of 3 bits"),
    ):
        if name in rows and other in rows and FLOAT in rows:
            plain, better = (rows[one]["perplexity"] - rows[FLOAT]["perplexity"] for one in (name, other))
            limit = 1 / 3 if name == STATIC_PLAIN else 1 / 10
            found.append(Check(f"{other}: {what}", better / plain, round(limit, 3), "×").to_json())
    return found


def best_of(rows: Mapping[str, Any], start: str) -> str:
    """The row of least perplexity whose name begins so."""
    names = [name for name in rows if name.startswith(start)]
    return min(names, key=lambda name: float(rows[name]["perplexity"]), default="")


def draw(rows: Mapping[str, Any], path: Path) -> None:
    """Recipes by bits per weight and divergence from float32, those of sensible size and loss."""
    points = [
        (name, row["bits_per_weight"], row["divergence"])
        for name, row in rows.items()
        if 0 < row["divergence"] < 1 and row["bits_per_weight"] < 10
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    plot_frontier(points, path, x="bits per weight, all weights", y="KL divergence from float32, nats")


def publish(rows: Mapping[str, Any], path: Path) -> None:
    """Draw the picture and write the table of the page."""
    draw(rows, ROOT / "docs" / "images" / "methods.svg")
    document = ROOT / "docs" / "quantization.md"
    table = method_table(json.loads(path.read_text(encoding="utf-8")))
    document.write_text(fill(document.read_text(encoding="utf-8"), {"methods": table}), encoding="utf-8")


BENCH = Bench("burnish.tools.bench_methods", "methods.json", RECIPES, checks, publish)

if __name__ == "__main__":
    sys.exit(BENCH.main())
