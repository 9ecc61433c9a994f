"""Every way to round weights, alone and together, on SmolLM2: perplexity, divergence, size, time and memory.

Each row is compiled in a process of its own and measured on the artifact in another. Rows that ``methods.json`` holds
already are kept; ``--again`` measures them anew, ``--only TEXT`` takes the rows whose name contains the text.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..compiler.accuracy import log_softmax
from ..compiler.api import export
from ..compiler.benchmark.machine import describe_machine
from ..compiler.plots import plot_frontier
from ..ir.errors import ModelError
from .bench_results import Check, fill, method_table, write_results
from .fetch import model_path
from .memory import measure
from .perplexity import file_logits, negative_log_likelihood, perplexity
from .text import calibration_text, held_out_text, load_tokenizer, news_text, windows

ROOT = Path(__file__).resolve().parents[1]
FLOAT = "float32"
STATIC_PLAIN, STATIC_SMOOTH = "W8A8 static, RTN", "W8A8 static, SmoothQuant 0.8 + RTN"
W3_PLAIN = "3 bits g128 products RTN"


@dataclass(frozen=True)
class Recipe:
    """A row of the table.

    Attributes:
        passes: the specification.
        data: how many calibration sequences of 512 tokens it gets.
        limit: what the ratio of perplexities must not be above, if something is asked of it.
    """

    passes: str
    data: int = 32
    limit: float | None = None


_TABLE = "overrides={'lm_head':'w8a16'}"
_W3 = "bits=3,group_size=128,overrides={'lm_head':'float'}"

_DYNAMIC = "quantize(scheme=w8a8,method=rtn)"
_STATIC = "quantize(scheme=w8a8_static,method=rtn)"
_OWQ = "keep_columns=2,keep_in=['*.down_proj','*.o_proj']"
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
    "g64 rotation + GPTQ, refined + LoRC, rank 8": Recipe("rotate,quantize,compensate_low_rank(exclude=lm_head)"),
    "mix of 4.6 bits: g64, q and k symmetric, rotation + GPTQ, refined + OWQ of down and o, 64 sequences": Recipe(
        f"rotate,quantize({_OWQ},{_SYMMETRIC})", data=64, limit=1.08
    ),
    "g32 RTN": Recipe("quantize(group_size=32)", data=0),
    "g32 GPTQ, refined": Recipe("quantize(group_size=32)"),
    "g32 rotation + GPTQ, refined": Recipe("rotate,quantize(group_size=32)", limit=1.10),
    "g32 RTN, table in 8 bits": Recipe(f"quantize(group_size=32,{_TABLE})", data=0),
    "g32 rotation + GPTQ, refined, table in 8 bits": Recipe(f"rotate,quantize(group_size=32,{_TABLE})", limit=1.06),
    "3 bits g128 products RTN": Recipe(f"quantize({_W3})", data=0),
    "3 bits g128 products GPTQ, refined": Recipe(f"quantize({_W3})"),
    "3 bits g128 products rotation + GPTQ, refined": Recipe(f"rotate,quantize({_W3})"),
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
    "W8A8 by token, SmoothQuant + GPTQ": Recipe("smoothquant,quantize(scheme=w8a8)"),
    "W8A8 by token, rotation + SmoothQuant + GPTQ": Recipe("rotate,smoothquant,quantize(scheme=w8a8)", limit=1.01),
    STATIC_PLAIN: Recipe(_STATIC),
    "W8A8 static, least square ranges, RTN": Recipe("quantize(scheme=w8a8_static,method=rtn,ranges=mse)"),
    "W8A8 static, SmoothQuant 0.5 + RTN": Recipe(f"smoothquant,{_STATIC}"),
    "W8A8 static, SmoothQuant searched + RTN": Recipe(f"smoothquant(alpha=search),{_STATIC}"),
    STATIC_SMOOTH: Recipe(f"smoothquant(alpha=0.8),{_STATIC}"),
    "auto for size, perplexity + 9 %": Recipe("rotate,quantize(scheme=auto,objective=size,budget=0.09)"),
    "W8A8 static, SmoothQuant 0.8 + GPTQ": Recipe("smoothquant(alpha=0.8),quantize(scheme=w8a8_static)"),
}
"""Rows by name, in the order of the table."""


def compress(name: str, folder: Path) -> None:
    """Compile SmolLM2 by a recipe into a folder."""
    recipe = RECIPES[name]
    calibration = None
    if recipe.data:
        tokens = windows(load_tokenizer(model_path("smollm2")), calibration_text(), recipe.data)
        calibration = [{"input_ids": row[None]} for row in tokens]
    # Nothing but compressing is measured: outputs are compared by the other process.
    source = model_path("smollm2")
    export(source, folder, passes=recipe.passes, calibration=calibration, cache=False, verify="off")


def divergence(reference: np.ndarray[Any, Any], logits: np.ndarray[Any, Any]) -> float:
    """Sum over positions of KL(p ‖ q) in nats, p by the reference: both ``[positions, vocabulary]``."""
    total = 0.0
    for start in range(0, len(logits), 64):
        p, q = (log_softmax(part[start : start + 64].astype(np.float64)) for part in (reference, logits))
        total += float((np.exp(p) * (p - q)).sum())
    return total


def judge(folder: Path, reference: Path, count: int) -> dict[str, float]:
    """Perplexity, divergence from the reference's logits and agreement on held-out text, and perplexity on news.

    Args:
        folder: the compiled model.
        reference: where the logits of float32 are kept; written if it is not there.
        count: windows of 512 tokens.
    """
    ids = windows(load_tokenizer(model_path("smollm2")), held_out_text(), count)
    forward = file_logits(folder)
    own = not reference.exists()
    total = kl = agree = 0.0
    scratch = reference.with_suffix(".partial")
    shape = (count, ids.shape[1], 49152)
    kept = (
        np.lib.format.open_memmap(scratch, "w+", np.float32, shape)
        if own
        else np.lib.format.open_memmap(reference, "r")
    )
    for index, window in enumerate(ids):
        logits = forward(window[None])[0]
        if own:
            kept[index] = logits
        total += negative_log_likelihood(logits[:-1], window[1:])
        kl += divergence(kept[index][:-1], logits[:-1])
        agree += float((kept[index][:-1].argmax(axis=-1) == logits[:-1].argmax(axis=-1)).sum())
    if own:
        scratch.replace(reference)
    tokens = count * (ids.shape[1] - 1)
    news = windows(load_tokenizer(model_path("smollm2")), news_text(), count)
    return {
        "perplexity": math.exp(total / tokens),
        "divergence": kl / tokens,
        "agreement": agree / tokens,
        "news": perplexity(forward, news),
    }


def row(name: str, work: Path, count: int) -> dict[str, Any]:
    """One row, its two steps in processes of their own."""
    folder = work / f"methods-{list(RECIPES).index(name)}"
    shutil.rmtree(folder, ignore_errors=True)
    work.mkdir(parents=True, exist_ok=True)
    me = [sys.executable, "-m", "burnish.tools.bench_methods"]
    try:
        usage = measure([*me, "--compress", name, str(folder)])
        if usage.status:
            raise ModelError(f"compiling ended with status {usage.status}", where=name)
        reference = work / f"methods-float32-{count}.npy"
        command = [*me, "--judge", str(folder), str(reference), "--windows", str(count)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        figures = json.loads(done.stdout.splitlines()[-1])
        manifest = json.loads((folder / "burnish.json").read_text())
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    weights = manifest.get("weights")
    return {
        "passes": RECIPES[name].passes,
        "sequences": RECIPES[name].data,
        **figures,
        "bits_per_weight": round(8 * manifest["weight_bytes"] / weights, 4) if weights else 32.0,
        "seconds": usage.seconds,
        "peak_anonymous_bytes": usage.peak_anonymous,
        "windows": count,
    }


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


def _chosen(name: str, only: str) -> bool:
    return name == only if only in RECIPES else only in name


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the rows that are missing and write ``methods.json`` and its table."""
    parser = argparse.ArgumentParser(prog="python -m burnish.tools.bench_methods", description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", metavar="TEXT", help="the row of this name, or those that contain it")
    parser.add_argument("--again", action="store_true", help="measure rows that are there already, too")
    parser.add_argument("--windows", type=int, default=8, help="windows of 512 tokens of held-out text")
    parser.add_argument("--work", type=Path, default=Path("build/bench"), help="where compiled models go")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks", help="where methods.json goes")
    parser.add_argument("--render", action="store_true", help="measure nothing, write the table from the results")
    parser.add_argument("--list", action="store_true", help="print the rows and whether they are measured")
    parser.add_argument("--compress", nargs=2, metavar=("ROW", "FOLDER"), help=argparse.SUPPRESS)
    parser.add_argument("--judge", nargs=2, metavar=("FOLDER", "LOGITS"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.compress:
        compress(options.compress[0], Path(options.compress[1]))
        return 0
    if options.judge:
        print(json.dumps(judge(Path(options.judge[0]), Path(options.judge[1]), options.windows)))
        return 0
    path = options.out / "methods.json"
    kept = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else {}
    if options.list:
        for name in RECIPES:
            print(f"{'measured' if name in kept else 'missing '} {name}")
        return 0
    failed = 0
    if not options.render:
        wanted = [name for name in RECIPES if _chosen(name, options.only) and (options.again or name not in kept)]
        if FLOAT not in kept and FLOAT not in wanted:
            wanted.insert(0, FLOAT)
        for name in wanted:
            kept[name] = row(name, options.work, options.windows)
            print(f"{name}: {kept[name]}", flush=True)
            # Written after each row, so that what is measured is not measured again.
            ordered = {known: kept[known] for known in RECIPES if known in kept}
            results = {"model": "SmolLM2-135M-Instruct", "rows": ordered, "checks": checks(ordered)}
            failed = write_results(path, results | {"machine": describe_machine()})
    if options.out != ROOT / "benchmarks":
        return failed
    draw(kept, ROOT / "docs" / "images" / "methods.svg")
    document = ROOT / "docs" / "quantization.md"
    table = method_table(json.loads(path.read_text(encoding="utf-8")))
    document.write_text(fill(document.read_text(encoding="utf-8"), {"methods": table}), encoding="utf-8")
    return failed


if __name__ == "__main__":
    sys.exit(main())
