"""How many nodes ONNX Runtime really runs: of graphs as they were imported, and as Burnish compiles them.

Both are counted in what the runtime's own optimizer makes of the file. *Movement* are nodes that only arrange data:
reshapes, transposes, concatenations, slices, casts, changes between layouts. Models of ``torch.compile`` are compiled
as it does it, the others as ``burnish.compile`` does it with ``default``; kernels are chosen by rules of thumb, so that
the counts are the same on every machine.

    python -m burnish.tools.dispatched [MODEL...] [--document docs/fusion.md]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from ..backends.onnxruntime.lower import lower
from ..backends.onnxruntime.session import Session
from ..backends.onnxruntime.writer import write
from ..compiler.pipeline import run_passes
from ..frontends.gguf import import_gguf
from ..frontends.huggingface.folder import import_folder
from ..frontends.torch_export.dynamo import import_traced, trace_captured
from ..frontends.torch_export.sharing import divide
from ..ir.graph import Graph
from ..passes.base import Context
from ..passes.spec import implied, parse
from .bench_results import fill
from .fetch import model_path
from .torch_compile_models import CASES, made

ROOT = Path(__file__).resolve().parents[1]
BLOCK = "dispatched"
"""Name of the table in the document."""
MOVEMENT = frozenset(
    ("Reshape", "Transpose", "Concat", "Split", "Slice", "Squeeze", "Unsqueeze", "Flatten", "Expand", "Identity",
     "Cast", "Shape", "ReorderInput", "ReorderOutput")
)  # fmt: skip


def captured(model: torch.nn.Module, inputs: Sequence[Any]) -> Graph:
    """The first graph that TorchDynamo captures of a call, imported."""
    found: list[Graph] = []

    def grab(module: torch.fx.GraphModule, given: Sequence[Any]) -> Callable[..., Any]:
        traced = trace_captured(divide(module).module, given)
        found.append(import_traced(traced, given).graph)
        return module.forward

    with torch.no_grad():
        torch.compile(model, backend=grab)(*inputs)
    return found[0]


def _case(name: str) -> Graph:
    feeds = CASES[name].inputs(np.random.default_rng(0))
    return captured(made(name), [torch.from_numpy(array) for array in feeds.values()])


MODELS: dict[str, tuple[str, Callable[[], Graph]]] = {
    **{name: (f"{case.title}, `torch.compile`", partial(_case, name)) for name, case in CASES.items()},
    "minilm_file": ("MiniLM, any size", lambda: import_folder(model_path("minilm")).graph),
    "smollm2_file": ("SmolLM2-135M with cache, any size", lambda: import_gguf(model_path("smollm2")).graph),
}
"""Title and graph of each model, by name."""


@dataclass(frozen=True)
class Count:
    """Nodes that the runtime runs, and how many of them only arrange data."""

    nodes: int
    movement: int

    def __str__(self) -> str:
        return f"{self.nodes} ({self.movement})"


def executed(graph: Graph) -> Count:
    """Count what the runtime makes of a graph."""
    with tempfile.TemporaryDirectory(prefix="burnish-count-") as folder:
        path, target = Path(folder) / "model.onnx", Path(folder) / "optimized.onnx"
        write(graph, path)
        Session(path, threads=1, optimized_path=target)
        nodes = onnx.load(str(target), load_external_data=False).graph.node
    return Count(len(nodes), sum(node.op_type in MOVEMENT for node in nodes))


def row(name: str) -> str:
    """A line of the table."""
    title, make = MODELS[name]
    graph = make()
    before = executed(graph)
    run_passes(graph, implied(parse("default")), Context())
    lower(graph)
    after = executed(graph)
    return f"| {title} | {before} | {after} | {before.nodes / after.nodes:.1f} |"


def table(names: Sequence[str]) -> str:
    """Markdown: a row a model."""
    lines = ["| model | as imported | compiled | rate |", "| --- | ---: | ---: | ---: |"]
    for name in names:
        lines.append(row(name))
        print(lines[-1], flush=True)
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Count, print, and fill the table of a document."""
    parser = argparse.ArgumentParser(prog="python -m burnish.tools.dispatched", description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"of {', '.join(MODELS)}; all if none is named")
    parser.add_argument("--document", type=Path, help="Markdown file whose table is filled")
    options = parser.parse_args(arguments)
    if unknown := set(options.models) - MODELS.keys():
        parser.error(f"there is no model {sorted(unknown)[0]!r}")
    text = table(options.models or list(MODELS))
    if options.document is not None:
        options.document.write_text(fill(options.document.read_text(encoding="utf-8"), {BLOCK: text}), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
