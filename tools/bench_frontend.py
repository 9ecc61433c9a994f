"""What bringing the 30-layer SmolLM2 decoder in costs, beside ``torch.export`` and ``torch.onnx.export``, in one run.

Nearly all of the minutes it needs go into ``torch.onnx.export``.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from ..backends.onnxruntime.lower import lower
from ..backends.onnxruntime.writer import write
from ..compiler.benchmark.machine import describe_machine
from ..frontends.gguf import import_gguf
from ..frontends.torch_module import import_exported
from ..passes.base import Context
from ..passes.canonicalize import Canonicalize
from .baseline import DecoderWithCache, eager_smollm2, example, export_decoder
from .bench_results import Check, write_results
from .fetch import model_path

T = TypeVar("T")


def bench_frontend() -> dict[str, Any]:
    """Measure and check; what is returned goes into ``benchmarks/frontend.json``."""
    seconds: dict[str, float] = {}

    def timed(name: str, work: Callable[[], T]) -> T:
        started = time.perf_counter()
        result = work()
        seconds[name] = round(time.perf_counter() - started, 3)
        return result

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model: Any = eager_smollm2()
        program = timed("torch.export.export", lambda: _trace(model))
        graph = timed("import", lambda: import_exported(program)).graph
        timed("canonicalize", lambda: Canonicalize().run(graph, Context()))
        timed("file to file", lambda: _whole(model_path("smollm2"), folder / "ours.onnx"))
        timed("torch.onnx.export", lambda: export_decoder(model, folder / "theirs.onnx"))
    imported = (seconds["import"] + seconds["canonicalize"]) / seconds["torch.export.export"]
    whole = seconds["file to file"] / seconds["torch.onnx.export"]
    checks = [
        Check("import and canonicalize against torch.export.export", imported, 0.15, "×"),
        Check("GGUF file to ONNX file against torch.onnx.export", whole, 1 / 3, "×"),
    ]
    return {"seconds": seconds, "checks": [check.to_json() for check in checks], "machine": describe_machine()}


def _trace(model: Any) -> torch.export.ExportedProgram:
    layers = range(model.config.num_hidden_layers)
    batch, sequence, past = (torch.export.Dim(name) for name in ("batch", "sequence", "past"))
    with torch.no_grad():
        return torch.export.export(
            DecoderWithCache(model),
            example(model.config),
            dynamic_shapes=(
                {0: batch, 1: sequence},
                {0: batch, 1: torch.export.Dim.DYNAMIC},
                {0: batch, 1: sequence},
                [[{0: batch, 2: past}, {0: batch, 2: past}] for _ in layers],
            ),
            strict=False,
        )


def _whole(source: Path, path: Path) -> None:
    graph = import_gguf(source).graph
    Canonicalize().run(graph, Context())
    lower(graph)
    write(graph, path)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write ``frontend.json``."""
    parser = argparse.ArgumentParser(prog="python -m burnish.tools.bench_frontend", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks"), help="where frontend.json goes")
    options = parser.parse_args(arguments)
    return write_results(options.out / "frontend.json", bench_frontend())


if __name__ == "__main__":
    sys.exit(main())
