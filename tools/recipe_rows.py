"""Tables of recipes on SmolLM2: each compiled in a process of its own, and judged in another on the artifact.

Perplexity and divergence from float32 on held-out text, perplexity on news, size, time and memory. Rows that the
results
hold already are kept; ``--again`` measures them anew, ``--only TEXT`` takes the rows whose name contains the text.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..compiler.accuracy import log_softmax
from ..compiler.api import export
from ..compiler.benchmark.machine import cpu_model, describe_machine
from ..ir.errors import ModelError
from .bench_results import write_results
from .fetch import model_path
from .memory import measure
from .perplexity import file_logits, negative_log_likelihood, perplexity
from .text import calibration_text, held_out_text, load_tokenizer, news_text, windows

ROOT = Path(__file__).resolve().parents[1]
FLOAT = "float32"
Rows = Mapping[str, Any]


@dataclass(frozen=True)
class Recipe:
    """A row of the table.

    Attributes:
        passes: the specification.
        data: how many calibration sequences of 512 tokens it gets.
        others: how many sequences of the same topics, between these, it gets to judge by itself.
        limit: what the ratio of perplexities must not be above, if something is asked of it.
        keep: whether the artifact stays, for measurements of its speed.
    """

    passes: str
    data: int = 32
    others: int = 0
    limit: float | None = None
    keep: bool = False


@dataclass(frozen=True)
class Bench:
    """A table of recipes.

    Attributes:
        module: that ``python -m`` runs.
        file: name of the results.
        recipes: rows by name, in the order of the table.
        checks: what is asked of the rows that are there.
        publish: draws and writes pages out of (rows, path of the results).
    """

    module: str
    file: str
    recipes: Mapping[str, Recipe]
    checks: Callable[[Rows], list[dict[str, Any]]]
    publish: Callable[[Rows, Path], None]

    def main(self, arguments: Sequence[str] | None = None) -> int:
        """Measure the rows that are missing, write the results and what is made of them."""
        parser = argparse.ArgumentParser(prog=f"python -m {self.module}", description=(__doc__ or "").splitlines()[0])
        parser.add_argument("--only", default="", metavar="TEXT", help="the row of this name, or those that contain it")
        parser.add_argument("--again", action="store_true", help="measure rows that are there already, too")
        parser.add_argument("--windows", type=int, default=8, help="windows of 512 tokens of held-out text")
        parser.add_argument("--work", type=Path, default=Path("build/bench"), help="where compiled models go")
        parser.add_argument("--out", type=Path, default=ROOT / "benchmarks", help=f"where {self.file} goes")
        parser.add_argument("--render", action="store_true", help="measure nothing, write the table from the results")
        parser.add_argument("--list", action="store_true", help="print the rows and whether they are measured")
        parser.add_argument("--compress", nargs=2, metavar=("ROW", "FOLDER"), help=argparse.SUPPRESS)
        parser.add_argument("--judge", nargs=2, metavar=("FOLDER", "LOGITS"), help=argparse.SUPPRESS)
        parser.add_argument("--float32", action="store_true", help=argparse.SUPPRESS)
        options = parser.parse_args(arguments)
        if options.compress:
            compress(self.recipes[options.compress[0]], Path(options.compress[1]))
            return 0
        if options.judge:
            folder, logits = map(Path, options.judge)
            print(json.dumps(judge(folder, logits, options.windows, keep=options.float32)))
            return 0
        path = options.out / self.file
        kept = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else {}
        if options.list:
            for name in self.recipes:
                print(f"{'measured' if name in kept else 'missing '} {name}")
            return 0
        failed = 0
        if not options.render:
            for name in self._wanted(options.only, options.again, kept):
                kept[name] = self.row(name, options.work, options.windows)
                print(f"{name}: {kept[name]}", flush=True)
                # Written after each row, so that what is measured is not measured again.
                kept = {known: kept[known] for known in self.recipes if known in kept}
                results = {"model": "SmolLM2-135M-Instruct", "rows": kept, "checks": self.checks(kept)}
                failed = write_results(path, results | {"machine": describe_machine()})
        if options.out == ROOT / "benchmarks":
            self.publish(kept, path)
        return failed

    def _wanted(self, only: str, again: bool, kept: Rows) -> list[str]:
        wanted = [
            name
            for name in self.recipes
            if (name == only if only in self.recipes else only in name) and (again or name not in kept)
        ]
        return wanted if FLOAT in kept or FLOAT in wanted else [FLOAT, *wanted]

    def folder(self, work: Path, name: str) -> Path:
        """Where the artifact of a row is."""
        return work / f"{Path(self.file).stem}-{list(self.recipes).index(name)}"

    def row(self, name: str, work: Path, count: int) -> dict[str, Any]:
        """One row, its two steps in processes of their own."""
        recipe = self.recipes[name]
        reference = work / f"float32-{count}.npy"
        if name != FLOAT and not reference.exists():
            self.row(FLOAT, work, count)
        folder = self.folder(work, name)
        shutil.rmtree(folder, ignore_errors=True)
        work.mkdir(parents=True, exist_ok=True)
        me = [sys.executable, "-m", self.module]
        try:
            before = _cpu_seconds()
            usage = measure([*me, "--compress", name, str(folder)])
            worked = _cpu_seconds() - before
            if usage.status:
                raise ModelError(f"compiling ended with status {usage.status}", where=name)
            command = [*me, "--judge", str(folder), str(reference), "--windows", str(count)]
            if name == FLOAT:
                command.append("--float32")
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            figures = json.loads(done.stdout.splitlines()[-1])
            manifest = json.loads((folder / "burnish.json").read_text())
        finally:
            if not recipe.keep:
                shutil.rmtree(folder, ignore_errors=True)
        weights = manifest.get("weights")
        return {
            "passes": recipe.passes,
            "sequences": recipe.data,
            **figures,
            "bits_per_weight": round(8 * manifest["weight_bytes"] / weights, 4) if weights else 32.0,
            "megabytes": round(manifest["weight_bytes"] / 1e6, 1),
            "seconds": usage.seconds,
            "cpu_seconds": round(worked, 1),
            "cpu": cpu_model(),
            "peak_anonymous_bytes": usage.peak_anonymous,
            "windows": count,
        }


def _cpu_seconds() -> float:
    """What all ended children of this process have computed."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def compress(recipe: Recipe, folder: Path) -> None:
    """Compile SmolLM2 by a recipe into a folder."""
    calibration = evaluation = None
    if recipe.data:
        # Every second of almost twice as many are the same windows; the others lie between them.
        step = 2 if recipe.others else 1
        tokens = windows(load_tokenizer(model_path("smollm2")), calibration_text(), step * (recipe.data - 1) + 1)
        feeds = [{"input_ids": row[None]} for row in tokens]
        calibration, between = feeds[::step], feeds[1::2]
        evaluation = [between[at] for at in np.linspace(0, len(between) - 1, recipe.others).astype(int)] or None
    # Nothing but compressing is measured: outputs are compared by the other process.
    source = model_path("smollm2")
    export(
        source, folder, passes=recipe.passes, calibration=calibration, evaluation=evaluation, cache=False, verify="off"
    )


def divergence(reference: np.ndarray[Any, Any], logits: np.ndarray[Any, Any]) -> float:
    """Sum over positions of KL(p ‖ q) in nats, p by the reference: both ``[positions, vocabulary]``."""
    total = 0.0
    for start in range(0, len(logits), 64):
        p, q = (log_softmax(part[start : start + 64].astype(np.float64)) for part in (reference, logits))
        total += float((np.exp(p) * (p - q)).sum())
    return total


def judge(folder: Path, reference: Path, count: int, *, keep: bool = False) -> dict[str, float]:
    """Perplexity, divergence from the reference's logits and agreement on held-out text, and perplexity on news.

    Args:
        folder: the compiled model.
        reference: where the logits of float32 are kept.
        count: windows of 512 tokens.
        keep: the model is float32, whose logits are to be kept there.

    Raises:
        ModelError: there are no logits of float32.
    """
    if not keep and not reference.exists():
        raise ModelError("the logits of float32 are not there", where=str(reference), fix="measure its row first")
    ids = windows(load_tokenizer(model_path("smollm2")), held_out_text(), count)
    forward = file_logits(folder)
    total = kl = agree = 0.0
    scratch = reference.with_suffix(".partial")
    shape = (count, ids.shape[1], 49152)
    kept = (
        np.lib.format.open_memmap(scratch, "w+", np.float32, shape)
        if keep
        else np.lib.format.open_memmap(reference, "r")
    )
    for index, window in enumerate(ids):
        logits = forward(window[None])[0]
        if keep:
            kept[index] = logits
        total += negative_log_likelihood(logits[:-1], window[1:])
        kl += divergence(kept[index][:-1], logits[:-1])
        agree += float((kept[index][:-1].argmax(axis=-1) == logits[:-1].argmax(axis=-1)).sum())
    if keep:
        scratch.replace(reference)
    tokens = count * (ids.shape[1] - 1)
    news = windows(load_tokenizer(model_path("smollm2")), news_text(), count)
    return {
        "perplexity": math.exp(total / tokens),
        "divergence": kl / tokens,
        "agreement": agree / tokens,
        "news": perplexity(forward, news),
    }
