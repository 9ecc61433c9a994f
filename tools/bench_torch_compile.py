"""``torch.compile(backend="burnish")`` beside eager PyTorch and Inductor: time of a call and of the first one.

Inductor runs with ``freezing``, as Burnish does: parameters are constants. ``--only NAME`` measures one model again and
keeps the figures of the others. ``--fill`` writes the table into ``docs/torch_compile.md``.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..compiler.benchmark import Scenario, Side, benchmark
from ..compiler.benchmark.machine import cores, describe_machine
from ..compiler.progress import terminal_progress
from .bench_results import Check, checks_table, fill, machine_line, write_results
from .torch_compile_models import CASES, WAYS, first_call

ROOT = Path(__file__).resolve().parents[1]
_SPEEDUP = {"eager": 1.5, "inductor": 1.2}
"""Geometric mean of the speed-ups to reach."""
_COMPILE = 0.5
"""Part of Inductor's time until the first result."""
_DIFFERENCE = 1e-3
"""Largest difference of outputs, as a part of their range: sums in another order."""


def first_calls(name: str, repeats: int) -> dict[str, list[float]]:
    """Seconds of the first call of each compiler, in processes of their own, with empty caches, alternated."""
    found: dict[str, list[float]] = {way: [] for way in WAYS if way != "eager"}
    for _ in range(repeats):
        for way, seconds in found.items():
            with tempfile.TemporaryDirectory(prefix="burnish-first-call-") as cache:
                own = {"TORCHINDUCTOR_CACHE_DIR": f"{cache}/inductor", "BURNISH_CACHE": f"{cache}/burnish"}
                environment = dict(os.environ, **own, OMP_NUM_THREADS=str(cores()))
                command = [sys.executable, "-m", "burnish.tools.bench_torch_compile", "--first-call", f"{name}/{way}"]
                done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
            seconds.append(float(done.stdout.strip().splitlines()[-1]))
    return found


def measure(name: str, rounds: int, repeats: int) -> dict[str, Any]:
    """Figures of one model: times of a call in alternated rounds, largest differences, times of the first call."""
    case = CASES[name]
    sides = [Side(way, f"burnish.tools.torch_compile_models:side:{name}/{way}", eager=True) for way in WAYS]
    with terminal_progress() as progress:
        result = benchmark(
            *sides,
            scenarios=[Scenario("call", "run")],
            inputs=case.inputs(np.random.default_rng(0)),
            rounds=rounds,
            progress=progress,
        )
    print(f"{case.title}\n{result}", flush=True)
    figures = result.to_json()
    figures["first_call_seconds"] = first_calls(name, repeats)
    figures["speedup"] = {
        other: 1 / result.ratio("call", "burnish", other) for other in WAYS if other != "burnish"
    }  # fmt: skip
    figures["title"] = case.title
    return figures


def checks(cases: Mapping[str, Any]) -> list[Check]:
    """What has to hold over all models."""
    found = []
    for other, wanted in _SPEEDUP.items():
        mean = math.exp(statistics.fmean(math.log(case["speedup"][other]) for case in cases.values()))
        found.append(Check(f"time of a call against {other}, geometric mean", 1 / mean, 1 / wanted, "×"))
    part = statistics.geometric_mean(
        statistics.median(case["first_call_seconds"]["burnish"])
        / statistics.median(case["first_call_seconds"]["inductor"])
        for case in cases.values()
    )
    found.append(Check("time of the first call against inductor, geometric mean", part, _COMPILE, "×"))
    for case in cases.values():
        found.append(Check(f"{case['title']}: difference, of range", case["difference"]["burnish"], _DIFFERENCE, ""))
    return found


def table(results: Mapping[str, Any]) -> str:
    """Markdown: a row a model, then the checks."""
    lines = [
        "| model | eager | Inductor, freezing | Burnish | against eager | against Inductor | first call: Inductor "
        "| Burnish |",
        "| --- |" + " ---: |" * 7,
    ]
    for case in results["cases"].values():
        times = case["scenarios"]["call"]
        cells = [
            f"{times[way]['median_ms']:.1f} ms ± {times[way]['iqr_ms']:.1f}" for way in ("eager", "inductor", "burnish")
        ]
        cells += [f"{case['speedup'][other]:.2f}×" for other in ("eager", "inductor")]
        cells += [f"{statistics.median(case['first_call_seconds'][way]):.1f} s" for way in ("inductor", "burnish")]
        lines.append(f"| {case['title']} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", machine_line(results), "", checks_table(results)])


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write ``benchmarks/torch_compile.json``."""
    parser = argparse.ArgumentParser(prog="python -m burnish.tools.bench_torch_compile", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--first-calls", type=int, default=3, help="processes whose first call is timed, of each side")
    parser.add_argument("--only", choices=tuple(CASES), help="one model")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks", help="where torch_compile.json goes")
    parser.add_argument("--fill", action="store_true", help="write the table into the documentation, measure nothing")
    parser.add_argument("--first-call", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    path = options.out / "torch_compile.json"
    if options.first_call:
        name, _, way = options.first_call.partition("/")
        print(first_call(name, way, cores()))
        return 0
    results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"cases": {}}
    if not options.fill:
        names = [options.only] if options.only else list(CASES)
        measured = {name: measure(name, options.rounds, options.first_calls) for name in names}
        cases = {**results["cases"], **measured}
        results = {"cases": {name: cases[name] for name in CASES if name in cases}, "machine": describe_machine()}
        for case in results["cases"].values():
            case.pop("machine", None)
        results["checks"] = [check.to_json() for check in checks(results["cases"])]
        return write_results(path, results)
    document = ROOT / "docs" / "torch_compile.md"
    text = fill(document.read_text(encoding="utf-8"), {"figures": table(results)})
    document.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
