"""What compiling costs in time and memory as a model grows, and what running a saved one costs.

Folders with the shape of TinyLlama-1.1B and random bfloat16 weights, with more and more layers, are compiled to 4 bits;
``--large`` adds one with the shape of Llama-2-7B (13.5 GB of weights). ``--calibrated LAYERS...`` measures GPTQ
instead, on so many layers of the shape of TinyLlama: statistics and rounding stream through segments of the graph.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..compiler.api import export
from ..compiler.benchmark.machine import describe_machine
from ..ir.errors import ModelError
from .bench_results import Check, write_results
from .fetch import model_path
from .make_folder import SHAPES, make_folder
from .memory import measure

LAYERS = (6, 11, 22)
LIMITS = {"tinyllama-1.1b": 1500.0, "llama-2-7b": 4000.0}

_RUN = """
import json, sys
import numpy as np
import burnish
from burnish.compiler.benchmark.machine import peak_memory
decoder = burnish.load(sys.argv[1])
decoder.generate(np.array([[504, 3575, 282, 4649, 314]]), max_new_tokens=16)
heavy = [name for name in ("torch", "transformers", "onnx", "onnx_ir", "sympy") if name in sys.modules]
print(json.dumps({"bytes": peak_memory(), "imported": heavy}))
"""


def compile_shape(name: str, layers: int | None, work: Path) -> dict[str, Any]:
    """Time and peak memory of compiling one folder in a process of its own."""
    shape = SHAPES[name]
    shape = replace(shape, layers=layers or shape.layers)
    source, output = work / f"{name}-{shape.layers}", work / f"{name}-{shape.layers}-w4"
    for folder in (source, output):
        shutil.rmtree(folder, ignore_errors=True)
    try:
        weights = make_folder(shape, source)
        program = "import os, sys; sys.stdout = open(os.devnull, 'w'); from burnish.compiler.cli import main; main()"
        command = [sys.executable, "-c", program, "compile", str(source), "-o", str(output)]
        usage = measure([*command, "--passes", "w4a16", "--no-cache"])
        if usage.status:
            raise ModelError(f"compiling {name} ended with status {usage.status}", where=str(source))
        size = sum(file.stat().st_size for file in output.glob("model.onnx*"))
    finally:
        for folder in (source, output):
            shutil.rmtree(folder, ignore_errors=True)
    figures = {
        "model": name,
        "layers": shape.layers,
        "weight_bytes": weights,
        "compiled_bytes": size,
        "seconds": usage.seconds,
        "peak_anonymous_bytes": usage.peak_anonymous,
    }
    print(
        f"{name}, {shape.layers} layers: {weights / 1e9:.2f} GB → {size / 1e9:.2f} GB in {usage.seconds:.0f} s, "
        f"at most {usage.peak_anonymous / 1e6:.0f} MB",
        flush=True,
    )
    return figures


def calibrated_row(count: int, work: Path, sequences: int) -> dict[str, Any]:
    """Time, processor time and peak memory of GPTQ on a folder of ``count`` layers, in a process of its own."""
    shape = replace(SHAPES["tinyllama-1.1b"], layers=count)
    source, output = work / f"gptq-{count}", work / f"gptq-{count}-w4"
    for folder in (source, output):
        shutil.rmtree(folder, ignore_errors=True)
    work.mkdir(parents=True, exist_ok=True)
    try:
        weights = make_folder(shape, source)
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        me = [sys.executable, "-m", "burnish.tools.bench_scale"]
        usage = measure([*me, "--calibrate", str(source), str(output), "--sequences", str(sequences)])
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        if usage.status:
            raise ModelError(f"compiling {count} layers ended with status {usage.status}", where=str(source))
    finally:
        for folder in (source, output):
            shutil.rmtree(folder, ignore_errors=True)
    row = {
        "layers": count,
        "sequences": sequences,
        "weight_bytes": weights,
        "seconds": usage.seconds,
        "processor_seconds": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1),
        "peak_anonymous_bytes": usage.peak_anonymous,
    }
    print(
        f"GPTQ, {count} layers: {row['seconds']:.0f} s ({row['processor_seconds']:.0f} s of processor), at most "
        f"{usage.peak_anonymous / 1e6:.0f} MB",
        flush=True,
    )
    return row


def calibrate(source: Path, output: Path, sequences: int) -> None:
    """GPTQ of a folder on sequences of 512 random tokens."""
    generator = np.random.default_rng(0)
    vocabulary = json.loads((source / "config.json").read_text())["vocab_size"]
    data = [{"input_ids": generator.integers(0, vocabulary, (1, 512))} for _ in range(sequences)]
    export(source, output, passes="quantize(scheme=w4a16)", calibration=data, cache=False, verify="off")


def run_saved(work: Path) -> dict[str, Any]:
    """Peak memory of a fresh process that loads 4-bit SmolLM2 and generates, and what it imported."""
    folder = work / "smollm2-w4a16"
    if not folder.exists():
        export(model_path("smollm2"), folder, passes="w4a16", cache=False)
    done = subprocess.run([sys.executable, "-c", _RUN, str(folder)], capture_output=True, text=True, check=True)
    figures: dict[str, Any] = json.loads(done.stdout)
    print(f"load and generate: {figures['bytes'] / 1e6:.0f} MB, imported {figures['imported'] or 'none of them'}")
    return figures


def bench_scale(work: Path, large: bool) -> dict[str, Any]:
    """Measure and check; what is returned goes into ``benchmarks/scale.json``."""
    work.mkdir(parents=True, exist_ok=True)
    saved = run_saved(work)
    rows = [compile_shape("tinyllama-1.1b", layers, work) for layers in LAYERS]
    if large:
        rows.append(compile_shape("llama-2-7b", None, work))
    checks = [
        Check("load and generate, 4-bit SmolLM2: peak memory", saved["bytes"] / 1e6, 300.0, " MB"),
        Check("load and generate: heavy packages imported", float(len(saved["imported"])), 0.0, ""),
    ]
    for row in rows:
        if row["layers"] == SHAPES[row["model"]].layers:
            peak, limit = row["peak_anonymous_bytes"] / 1e6, LIMITS[row["model"]]
            checks.append(Check(f"compiling {row['model']}: peak memory", peak, limit, " MB"))
    return {
        "compiling": rows,
        "load": saved,
        "checks": [check.to_json() for check in checks],
        "machine": describe_machine(),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write ``scale.json``."""
    parser = argparse.ArgumentParser(prog="python -m burnish.tools.bench_scale", description=__doc__.splitlines()[0])
    parser.add_argument("--large", action="store_true", help="also the shape of Llama-2-7B: 13.5 GB on disk, minutes")
    parser.add_argument("--work", type=Path, default=Path("build/bench"), help="where folders and models go")
    parser.add_argument("--out", type=Path, default=Path("benchmarks"), help="where scale.json goes")
    parser.add_argument("--calibrated", type=int, nargs="+", metavar="LAYERS", help="GPTQ of so many layers instead")
    parser.add_argument("--sequences", type=int, default=16, help="of 512 tokens, for GPTQ")
    parser.add_argument("--calibrate", type=Path, nargs=2, metavar=("SOURCE", "OUTPUT"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.calibrate:
        calibrate(options.calibrate[0], options.calibrate[1], options.sequences)
        return 0
    if options.calibrated:
        path, status = options.out / "scale.json", 0
        for count in options.calibrated:
            row = calibrated_row(count, options.work, options.sequences)
            found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"checks": []}
            before = found.get("calibrated", {}).get("rows", [])
            rows = [one for one in before if one["layers"] != count] + [row]
            rows.sort(key=lambda one: one["layers"])
            found["calibrated"] = {"rows": rows, "machine": describe_machine()}
            status = write_results(path, found)
        return status
    path = options.out / "scale.json"
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    kept = {name: before[name] for name in ("calibrated",) if name in before}
    return write_results(path, bench_scale(options.work, options.large) | kept)


if __name__ == "__main__":
    sys.exit(main())
