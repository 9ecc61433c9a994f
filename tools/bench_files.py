"""Real ONNX files compiled with ``default`` against the files as they came: never slower, equal outputs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..compiler.api import export
from ..compiler.benchmark import Scenario, Side, benchmark
from ..compiler.benchmark.machine import describe_machine
from ..compiler.progress import terminal_progress
from .baseline import minilm_path
from .bench_results import Check, write_results
from .fetch import model_path

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Case:
    """A file and inputs for it."""

    name: str
    file: Callable[[], Path]
    inputs: Callable[[np.random.Generator], dict[str, Array]]


def _image(name: str, *shape: int) -> Callable[[np.random.Generator], dict[str, Array]]:
    return lambda generator: {name: generator.standard_normal(shape, np.float32)}


def _sentences(batch: int, length: int) -> Callable[[np.random.Generator], dict[str, Array]]:
    return lambda generator: {
        "input_ids": generator.integers(1000, 30000, (batch, length)),
        "attention_mask": np.ones((batch, length), np.int64),
        "token_type_ids": np.zeros((batch, length), np.int64),
    }


CASES = (
    Case("PP-OCRv6 detector, 640 × 640", lambda: model_path("ppocr_det"), _image("x", 1, 3, 640, 640)),
    Case("PP-OCRv6 recognizer, 48 × 320", lambda: model_path("ppocr_rec"), _image("x", 1, 3, 48, 320)),
    Case("YOLOv8n, 320 × 320", lambda: model_path("yolov8n"), _image("images", 1, 3, 320, 320)),
    Case(
        "magika, batch 1",
        lambda: model_path("magika"),
        lambda generator: {"bytes": generator.integers(0, 257, (1, 2048)).astype(np.int32)},
    ),
    Case("MiniLM, 1 × 128", minilm_path, _sentences(1, 128)),
    Case("MiniLM, 8 × 128", minilm_path, _sentences(8, 128)),
)


def measure(cases: tuple[Case, ...], work: Path, rounds: int) -> dict[str, Any]:
    """Compile, measure and check each case; what is returned goes into ``benchmarks/files.json``."""
    figures: dict[str, Any] = {}
    checks: list[Check] = []
    work.mkdir(parents=True, exist_ok=True)
    for case in cases:
        original, compiled = case.file(), work / f"{case.file().stem}.onnx"
        for left in work.glob(f"{compiled.name}*"):
            left.unlink()
        export(original, compiled, passes="default", cache=False)
        inputs = case.inputs(np.random.default_rng(0))
        with terminal_progress() as progress:
            result = benchmark(
                Side("as it came", str(original)),
                Side("default", str(compiled)),
                scenarios=[Scenario("call", "run")],
                inputs=inputs,
                rounds=rounds,
                progress=progress,
            )
        print(f"{case.name}\n{result}", flush=True)
        figures[case.name] = result.to_json()
        figures[case.name].pop("machine")
        checks.append(
            Check(f"{case.name}: time against the file as it came", result.ratio("call", "default"), 1.03, "×")
        )
        checks.append(Check(f"{case.name}: difference, of range", result.difference["default"], 1e-4, ""))
    return {"cases": figures, "checks": [check.to_json() for check in checks], "machine": describe_machine()}


def main(arguments: list[str] | None = None) -> int:
    """Measure and write ``files.json``."""
    parser = argparse.ArgumentParser(prog="python -m burnish.tools.bench_files", description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", default="", help="cases whose name holds this text")
    parser.add_argument("--work", type=Path, default=Path("build/bench"), help="where compiled models go")
    parser.add_argument("--out", type=Path, default=Path("benchmarks"), help="where files.json goes")
    options = parser.parse_args(arguments)
    cases = tuple(case for case in CASES if options.only in case.name)
    return write_results(options.out / "files.json", measure(cases, options.work, options.rounds))


if __name__ == "__main__":
    sys.exit(main())
