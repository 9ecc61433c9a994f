"""What bringing the 30-layer SmolLM2 decoder in costs, beside ``torch.export`` and ``torch.onnx.export``, in one run.

``python -m burnish.tools.frontend_cost [--json FILE]`` needs some minutes, nearly all of them in ``torch.onnx.export``.
"""

from __future__ import annotations

import argparse
import json
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
from .fetch import model_path

T = TypeVar("T")


def frontend_cost() -> dict[str, Any]:
    """Seconds of each step, and the two ratios.

    ``import_ratio`` is import and canonicalization over ``torch.export.export`` of the same module;
    ``whole_ratio`` is ``torch.onnx.export`` over the whole way from the model's file to an ONNX file.
    """
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
    import_ratio = (seconds["import"] + seconds["canonicalize"]) / seconds["torch.export.export"]
    return {
        "machine": describe_machine(),
        "seconds": seconds,
        "import_ratio": round(import_ratio, 4),
        "whole_ratio": round(seconds["torch.onnx.export"] / seconds["file to file"], 2),
    }


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
    """Measure, print, and write the figures if asked to."""
    parser = argparse.ArgumentParser(prog="python -m burnish.tools.frontend_cost", description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args(arguments)
    figures = frontend_cost()
    text = json.dumps(figures, indent=2)
    if options.json:
        options.json.write_text(text + "\n")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
