"""SmolLM2 compiled by Burnish against the file that ``torch.onnx.export`` writes: speed, memory, size, perplexity."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from ..compiler.api import export
from ..compiler.benchmark import Side, benchmark, decode, prefill
from ..compiler.progress import terminal_progress
from .baseline import baseline_path
from .bench_results import Check, write_results
from .fetch import model_path
from .perplexity import file_logits, generation_logits, perplexity
from .text import calibration_text, held_out_text, load_tokenizer, windows

BASELINE = "torch.onnx.export"
CALIBRATED = "w4a16, calibrated"
PHASES = "w4a16, calibrated, prompts w8a8"
RECIPES = {
    "default": "default",
    "w8a16": "w8a16",
    "w8a8": "w8a8",
    "w4a16": "w4a16",
    CALIBRATED: "w4a16",
    PHASES: "w4a16",
}
"""Sides by name, each with its passes."""
_SEQUENCES = 64


def compiled_folder(work: Path, name: str) -> Path:
    """SmolLM2 compiled anew by the recipe ``name`` into a folder under ``work``."""
    folder = work / f"smollm2-{name.replace(', ', '-')}"
    shutil.rmtree(folder, ignore_errors=True)
    work.mkdir(parents=True, exist_ok=True)
    calibration = None
    if name in (CALIBRATED, PHASES):
        tokens = windows(load_tokenizer(model_path("smollm2")), calibration_text(), _SEQUENCES)
        calibration = [{"input_ids": row[None]} for row in tokens]
    prefill = "w8a8" if name == PHASES else None
    export(model_path("smollm2"), folder, passes=RECIPES[name], prefill=prefill, calibration=calibration, cache=False)
    return folder


def measure(work: Path, rounds: int, eager: bool) -> dict[str, Any]:
    """Compile, measure and check; what is returned goes into ``benchmarks/decoder.json``."""
    baseline = baseline_path()
    folders = {name: compiled_folder(work, name) for name in RECIPES}
    sides = [Side(BASELINE, str(baseline)), *(Side(name, str(folder)) for name, folder in folders.items())]
    if eager:
        sides.append(Side("torch eager", "burnish.tools.baseline:eager_smollm2", eager=True))
    scenarios = [prefill(128), decode(128)]
    with terminal_progress() as progress:
        result = benchmark(*sides, scenarios=scenarios, rounds=rounds, progress=progress)
    print(result)
    ids = windows(load_tokenizer(model_path("smollm2")), held_out_text())
    perplexities = {}
    for side in sides:
        if not side.eager:  # the eager model computes what the baseline does
            logits = generation_logits if side.name == PHASES else file_logits
            perplexities[side.name] = perplexity(logits(side.source), ids)
            print(f"perplexity of {side.name}: {perplexities[side.name]:.3f}", flush=True)
    manifests = {name: json.loads((folder / "burnish.json").read_text()) for name, folder in folders.items()}
    bits = {name: 8 * m["weight_bytes"] / m["weights"] for name, m in manifests.items() if m.get("weights")}
    prefilling, decoding = (scenario.name for scenario in scenarios)
    checks = [
        Check("default: decoding against torch.onnx.export", result.ratio(decoding, "default"), 1.03, "×"),
        Check("default: prefill against torch.onnx.export", result.ratio(prefilling, "default"), 0.85, "×"),
        Check("w4a16: decoding against torch.onnx.export", result.ratio(decoding, "w4a16"), 0.33, "×"),
        Check("w4a16: peak memory", result.memory["w4a16"] / 1e6, 300.0, " MB"),
        Check("w4a16: size on disk", result.size["w4a16"] / 1e6, 80.0, " MB"),
        Check("default: perplexity against float32", perplexities["default"] / perplexities[BASELINE], 1.0005, "×"),
        Check("w8a16: perplexity against float32", perplexities["w8a16"] / perplexities[BASELINE], 1.01, "×"),
        Check(f"{CALIBRATED}: perplexity against float32", perplexities[CALIBRATED] / perplexities[BASELINE], 1.1, "×"),
        Check(f"{PHASES}: perplexity of prompts", perplexities[PHASES] / perplexities[BASELINE], 1.1, "×"),
    ]
    return {
        "model": "SmolLM2-135M-Instruct",
        **result.to_json(),
        "perplexity": perplexities,
        "bits_per_weight": bits,
        "checks": [check.to_json() for check in checks],
    }


def main(arguments: list[str] | None = None) -> int:
    """Measure and write ``decoder.json``."""
    parser = argparse.ArgumentParser(prog="python -m burnish.tools.bench_decoder", description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--work", type=Path, default=Path("build/bench"), help="where compiled models go")
    parser.add_argument("--out", type=Path, default=Path("benchmarks"), help="where decoder.json goes")
    parser.add_argument("--no-eager", action="store_true", help="leave PyTorch's eager mode out")
    options = parser.parse_args(arguments)
    return write_results(options.out / "decoder.json", measure(options.work, options.rounds, not options.no_eager))


if __name__ == "__main__":
    sys.exit(main())
