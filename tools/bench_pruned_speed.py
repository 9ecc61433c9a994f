"""What removed structures save on ONNX Runtime: prompts of SmolLM2 at 10, 20 and 30 %, MiniLM at 20
and 40 % of its arithmetic (its embeddings, half of its weights, cannot go).

Speed of all in one run, a process a side; the cosine of MiniLM's embeddings on sentences that nothing was calibrated
on. The ideal is a time that falls as the removed share of the weights. Writes ``benchmarks/pruned_speed.json`` and the
tables of ``docs/pruning.md``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..compiler.api import export
from ..compiler.benchmark import Scenario, Side, prefill
from ..compiler.benchmark.machine import describe_machine
from .bench_eight_bits import Encoder, embeddings, measure_sides
from .bench_results import Check, fill, write_results
from .fetch import model_path
from .recipe_rows import ROOT
from .text import calibration_text, load_tokenizer, windows

FLOAT = "float32"
_PLAIN = "metric=magnitude,compensate=off,distribution=uniform"
_ENCODER_WAYS = {
    " magnitude": f"prune_structures({{ratio}},{_PLAIN})",
    " FLAP": "prune_structures({ratio},metric=flap,compensate=bias)",
    "": "prune_structures({ratio})",
    " + distillation": "prune_structures({ratio}),distill(steps=200,rate=2e-4,batch=2)",
}
ENCODERS: dict[str, str] = {FLOAT: "default"} | {
    f"{share} %{name}": recipe.format(ratio=f"ratio={share / 100},of=flops")
    for share in (20, 40)
    for name, recipe in _ENCODER_WAYS.items()
}
"""MiniLM's recipes."""
DECODERS: dict[str, str] = {FLOAT: "default"} | {
    f"{share} %": f"prune_structures(ratio={share / 100})" for share in (10, 20, 30)
}
"""SmolLM2's recipes."""


def efficiency(time_ratio: float, removed: float) -> float:
    """The speed-up as a share of the ideal one, ``1 / (1 - removed)``."""
    return (1 - removed) / time_ratio


def encoders(work: Path, rounds: int, checks: list[Check]) -> dict[str, Any]:
    """MiniLM: cosine and time of 8 x 128."""
    encoder = Encoder()
    sides, cosine, weights = [], dict[str, float](), dict[str, int]()
    expected: np.ndarray[Any, Any] | None = None
    for number, (name, passes) in enumerate(ENCODERS.items()):
        folder = work / f"minilm-pruned-{number}"
        calibration = None if name == FLOAT or "magnitude" in name else encoder.calibration(128)
        report = export(
            model_path("minilm"), folder, passes=passes, calibration=calibration, overwrite=True, verify="off"
        )
        found = embeddings(folder, encoder)
        expected = found if expected is None else expected
        cosine[name] = float((found * expected).sum(axis=1).mean())
        weights[name] = report.weight_bytes // 4
        if name == FLOAT or name.endswith("%"):
            sides.append(Side(name, str(folder)))
        print(f"MiniLM {name}: cosine {cosine[name]:.4f}", flush=True)
    generator = np.random.default_rng(0)
    inputs = {
        "input_ids": generator.integers(1000, 30000, (8, 128)),
        "attention_mask": np.ones((8, 128), np.int64),
        "token_type_ids": np.zeros((8, 128), np.int64),
    }
    result = measure_sides(sides, [Scenario("call", "run")], rounds, inputs)
    for share in (20, 40):
        name = f"{share} %"
        ratio = result.ratio("call", name)
        removed = share / 100
        checks.append(
            Check(f"MiniLM {share} %: ideal against measured speed-up", 1 / efficiency(ratio, removed), 1.25, "×")
        )
        checks.append(
            Check(
                f"MiniLM {share} %: 1 - cosine against FLAP's",
                (1 - cosine[name]) / (1 - cosine[f"{name} FLAP"]),
                1,
                "×",
            )
        )
        checks.append(
            Check(f"MiniLM {share} %: 1 - cosine with recovery against without",
                  (1 - cosine[f"{name} + distillation"]) / (1 - cosine[name]), 1, "×")
        )  # fmt: skip
    return result.to_json() | {"cosine": cosine, "weights": weights}


def decoders(work: Path, rounds: int, checks: list[Check]) -> dict[str, Any]:
    """SmolLM2: time of prompts; few calibration inputs, for shapes are what counts here."""
    encode = load_tokenizer(model_path("smollm2"))
    calibration = [{"input_ids": row[None]} for row in windows(encode, calibration_text(), 8)]
    sides = []
    for number, (name, passes) in enumerate(DECODERS.items()):
        folder = work / f"smollm2-pruned-{number}"
        export(model_path("smollm2"), folder, passes=passes, overwrite=True, verify="off",
               calibration=None if name == FLOAT else calibration)  # fmt: skip
        sides.append(Side(name, str(folder)))
    scenarios = [prefill(128), prefill(512)]
    result = measure_sides(sides, scenarios, rounds, None)
    for name in list(DECODERS)[1:]:
        removed = int(name.split()[0]) / 100
        for scenario in scenarios:
            found = efficiency(result.ratio(scenario.name, name), removed)
            checks.append(
                Check(f"SmolLM2 {name}: ideal against measured speed-up, {scenario.name}", 1 / found, 1.25, "×")
            )
    return result.to_json()


def tables(results: Mapping[str, Any]) -> dict[str, str]:
    """The blocks of the page."""
    lines = ["| | time | against float32 |", "|---|---:|---:|"]
    for model, name in (("smollm2", "SmolLM2"), ("minilm", "MiniLM")):
        for scenario, sides in results[model]["scenarios"].items():
            for side, timing in sides.items():
                lines.append(f"| {name}, {scenario}: {side} | {timing['median_ms']:.1f} ms | {timing['ratio']:.2f}× |")
    cosine = results["minilm"]["cosine"]
    rows = ["| MiniLM | mean cosine with float32, 200 sentences |", "|---|---:|"]
    rows += [f"| {name} | {value:.4f} |" for name, value in cosine.items()]
    return {"speed": "\n".join(lines), "encoder": "\n".join(rows)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write the results and the tables."""
    parser = argparse.ArgumentParser(
        prog="python -m burnish.tools.bench_pruned_speed", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--work", type=Path, default=Path("build/bench"), help="where compiled models go")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks", help="where pruned_speed.json goes")
    options = parser.parse_args(arguments)
    options.work.mkdir(parents=True, exist_ok=True)
    checks: list[Check] = []
    results: dict[str, Any] = {"minilm": encoders(options.work, options.rounds, checks)}
    results["smollm2"] = decoders(options.work, options.rounds, checks)
    results |= {"checks": [check.to_json() for check in checks], "machine": describe_machine()}
    failed = write_results(options.out / "pruned_speed.json", results)
    if options.out == ROOT / "benchmarks":
        document = ROOT / "docs" / "pruning.md"
        document.write_text(fill(document.read_text(encoding="utf-8"), tables(results)), encoding="utf-8")
    return failed


if __name__ == "__main__":
    sys.exit(main())
