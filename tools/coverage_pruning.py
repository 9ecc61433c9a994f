"""Which structures of many models can be removed, and whether removing them is right.

Each model is analysed by data flow; then units of every group are removed, and the outputs compared with those of the
model in which the weights that read these units are zero. ``python -m burnish.tools.coverage_pruning`` writes the table
of ``docs/pruning.md``.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir
import torch

from ..backends.onnxruntime.lower import lower
from ..backends.onnxruntime.session import Session
from ..backends.onnxruntime.writer import write
from ..frontends.onnx_file import import_onnx
from ..frontends.torch_module import import_module
from ..ir.graph import Graph, tensor_of
from ..ir.infer import infer_graph
from ..ir.rewrite import Editor
from ..ir.verify import verify
from ..passes import Canonicalize, Context, Recover
from ..passes.prune.analyse import analyse
from ..passes.prune.remove import gone, remove
from ..passes.prune.units import Group, find
from .baseline import minilm_path
from .bench_results import fill
from .coverage import EXAMPLE, made
from .coverage_families import FAMILIES, Family, pruning_families
from .fetch import model_path

TARGET = Path(__file__).resolve().parents[1] / "docs" / "pruning.md"
TOLERANCE = 1e-5
_UNEXPECTED = ("it is an output of the model", "computes over all of it")
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Expected:
    """What a model holds by its configuration: attentions with heads of their own, hidden layers, inner channels."""

    heads: int
    channels: int


EXPECTED: Mapping[str, Expected] = {
    "BERT": Expected(2, 2), "RoBERTa": Expected(2, 2), "DistilBERT": Expected(2, 2), "ALBERT": Expected(1, 1),
    "ELECTRA": Expected(2, 2), "GPT-2": Expected(2, 2), "GPT-J": Expected(2, 2), "OPT": Expected(2, 2),
    "Llama": Expected(2, 2), "Mistral": Expected(2, 2), "Qwen2": Expected(2, 2), "Qwen3": Expected(2, 2),
    "Gemma": Expected(2, 2), "Phi": Expected(2, 2), "Mixtral": Expected(2, 2), "T5": Expected(3, 4),
    "BART": Expected(6, 4), "Whisper": Expected(6, 5), "ViT": Expected(2, 2), "CLIP": Expected(4, 4),
    "ResNet": Expected(0, 5), "UNet": Expected(1, 3), "MLP-Mixer": Expected(0, 4), "LSTM classifier": Expected(0, 0),
    "MobileNetV1": Expected(0, 13), "MobileNetV2": Expected(0, 24), "ResNet-18": Expected(0, 12),
    "ConvNeXt": Expected(0, 4), "Swin": Expected(4, 4), "GPT-NeoX": Expected(2, 2), "Falcon": Expected(2, 2),
    "Bloom": Expected(1, 2), "DeBERTa-v2": Expected(2, 2),
}  # fmt: skip
"""T5's heads of all layers of a stack share a table of position biases, those of its cross-attentions a mask; Bloom's
of all layers share the slopes of their distances."""


NOTES: Mapping[str, str] = {"Mixtral": "the experts' weights are stacks that are read by number: see `PruneExperts`"}


@dataclass(frozen=True)
class Row:
    """What was found in a model.

    Attributes:
        groups: removable groups, heads and channels.
        units: of all groups.
        error: largest relative difference from masking, over all groups.
        misses: reasons why channels that are no stream's and no output's stay.
    """

    heads: int
    channels: int
    units: int
    error: float
    misses: tuple[str, ...]


def prepared(name: str) -> tuple[Graph, dict[str, Array]]:
    """A family's graph after the lossless passes, and inputs for it."""
    family: Family = {**FAMILIES, **pruning_families()}[name]
    return imported(made(family), family)


def imported(model: torch.nn.Module, family: Family) -> tuple[Graph, dict[str, Array]]:
    """The same of a model of a family with weights of one's own."""
    torch.manual_seed(1)
    inputs = family.inputs(*EXAMPLE)
    graph = import_module(model, (), inputs, family.dynamic).graph
    return _canonical(graph), {key: value.numpy() for key, value in inputs.items()}


def _canonical(graph: Graph) -> Graph:
    Canonicalize().run(graph, Context())
    Recover().run(graph, Context())
    infer_graph(graph)
    return graph


def outputs(graph: Graph, feeds: Mapping[str, Array]) -> list[Array]:
    """What a graph computes, on ONNX Runtime."""
    copy = graph.clone()
    lower(copy)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        write(copy, path)
        session = Session(path)
        return session.run({spec.name: feeds[spec.name] for spec in session.inputs})


def some_units(group: Group) -> list[int]:
    """Two units of a group, or one of each head of keys."""
    if group.balance is not None:
        return [int(row[i % len(row)]) for i, row in enumerate(group.balance)]
    return [0, len(group) // 2] if len(group) > 3 else [0]


def masked(graph: Graph, group: Group, units: Sequence[int]) -> Graph:
    """The graph with the weights that read some units set to zero."""
    copy = graph.clone()
    values = {value.name: value for value in copy.graph.initializers.values()}
    for base, axis in group.reads:
        tensor = tensor_of(base)
        assert tensor is not None
        array = tensor.numpy().copy()
        places: list[Any] = [slice(None)] * array.ndim
        places[axis] = np.concatenate([group.axes[base, axis][unit] for unit in units])
        array[tuple(places)] = 0
        values[base.name].const_value = onnx_ir.Tensor(array, name=base.name)
    return copy


def removal_error(graph: Graph, number: int, feeds: Mapping[str, Array]) -> float:
    """How far removing units of one group is from masking them, relative to the largest output."""
    pruned = graph.clone()
    coupling = analyse(pruned)
    group = find(coupling).groups[number]
    units = some_units(group)
    want = outputs(masked(pruned, group, units), feeds)
    remove(Editor(pruned, "remove"), coupling, gone(coupling, [r for unit in units for r in group.roots[unit]]))
    verify(pruned)
    got = outputs(pruned, feeds)
    if [a.shape for a in got] != [a.shape for a in want]:
        return float("inf")
    return max(float(np.abs(a - b).max() / max(float(np.abs(b).max()), 1e-30)) for a, b in zip(got, want, strict=True))


def measure(graph: Graph, feeds: Mapping[str, Array]) -> Row:
    """Analyse a graph and try every group."""
    found = find(analyse(graph.clone()))
    errors = [removal_error(graph, number, feeds) for number in range(len(found.groups))]
    kinds = [group.kind for group in found.groups]
    misses = dict.fromkeys(f"{where}: {reason}" for where, reason, _ in found.misses
                           if not any(text in reason for text in _UNEXPECTED))  # fmt: skip
    units = sum(len(group) for group in found.groups)
    return Row(kinds.count("heads"), kinds.count("channels"), units, max(errors, default=0.0), tuple(misses))


def files() -> dict[str, tuple[Path, dict[str, Array]]]:
    """ONNX files of real models, and inputs."""
    generator = np.random.default_rng(0)
    image = generator.random((1, 3, 320, 320), np.float32)
    ids = generator.integers(1000, 20000, (2, 16))
    encoder = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    return {
        "YOLOv8n (file)": (model_path("yolov8n"), {"images": image}),
        "MiniLM (exporter's file)": (minilm_path(), encoder),
    }


EXPECTED_FILES = {"YOLOv8n (file)": Expected(0, 59), "MiniLM (exporter's file)": Expected(6, 6)}


def table(rows: Mapping[str, Row], expected: Mapping[str, Expected]) -> str:
    """The table, in Markdown."""
    lines = ["| model | heads | channels | units | error | not found |", "|---|---:|---:|---:|---:|---|"]
    for name, row in rows.items():
        want = expected[name]
        heads, channels = f"{row.heads} of {want.heads}", f"{row.channels} of {want.channels}"
        reasons = [*row.misses, *([NOTES[name]] if name in NOTES else [])]
        missing = "" if (row.heads, row.channels) == (want.heads, want.channels) else "; ".join(reasons)
        lines.append(f"| {name} | {heads} | {channels} | {row.units} | {row.error:.0e} | {missing} |")
    return "\n".join(lines)


def main() -> None:
    """Measure every model and write the table; exits with 1 if a removal is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--output", type=Path, default=TARGET)
    output: Path = parser.parse_args().output
    logging.getLogger("transformers").setLevel(logging.ERROR)
    rows: dict[str, Row] = {}
    for name in EXPECTED:
        rows[name] = measure(*prepared(name))
        print(name, rows[name], flush=True)
    for name, (path, feeds) in files().items():
        graph = _canonical(import_onnx(path).graph)
        names = [value.name for value in graph.graph.inputs]
        if len(names) == 1:
            feeds = {names[0] or "": next(iter(feeds.values()))}
        rows[name] = measure(graph, feeds)
        print(name, rows[name], flush=True)
    text = fill(output.read_text(encoding="utf-8"), {"coverage": table(rows, {**EXPECTED, **EXPECTED_FILES})})
    output.write_text(text, encoding="utf-8")
    if any(row.error > TOLERANCE for row in rows.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
