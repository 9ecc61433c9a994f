"""How much of the attention in model files is found again.

Each family of :mod:`.coverage_families` that has attention is compiled twice: as traced from PyTorch, and as a file in
the form that exporters wrote in 2021 (:mod:`.decompose`: opset 13, neither attention nor normalizations as operators).
``python -m burnish.tools.coverage_attention`` writes the table of ``docs/attention.md``.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ..compiler.api import compile as compile_model
from ..compiler.model import CompiledModel
from ..frontends.torch_module import import_module
from .bench_results import fill
from .coverage import EXAMPLE, SIZES, TOLERANCE, made, relative_error
from .coverage_families import FAMILIES, Family
from .decompose import decompose

ATTENTION = ("Attention", "MultiHeadAttention", "GroupQueryAttention")
TARGET = Path(__file__).resolve().parents[1] / "docs" / "attention.md"


class _Count(TorchDispatchMode):  # type: ignore[no-untyped-call]  # its base has no annotations
    """Counts attention as it is computed: by a kernel for it, or by a softmax over scores of rank 4."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        fused = name.startswith("_scaled_dot_product") and not name.endswith("backward")
        if fused or (name in ("_softmax", "_safe_softmax") and result.ndim == 4):
            self.found += 1
        return result


@dataclass(frozen=True)
class Row:
    """What was found in one form of one family.

    Attributes:
        expected: attention as PyTorch computes it.
        traced: attention nodes that run, compiled from the module.
        file: the same, compiled from the file of 2021.
        errors: largest relative error of the two against eager PyTorch, over all sizes.
        reasons: why some were missed.
    """

    name: str
    expected: int
    traced: int
    file: int
    errors: tuple[float, float]
    reasons: tuple[str, ...]


def expected(model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> int:
    """How often ``model`` computes attention on ``inputs``."""
    with _Count() as count:
        # With gradients: without, some modules take a kernel that hides what it computes.
        model(**inputs)
    return int(count.found)


def measure(name: str, family: Family) -> Row | None:
    """Compile both forms of a family and compare them with eager PyTorch; None if it has no attention."""
    model, example = made(family), family.inputs(*EXAMPLE)
    wanted = expected(model, example)
    if wanted == 0:
        return None
    traced = compile_model(model, example, dynamic_shapes=dict(family.dynamic), cache=False, progress=False)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        imported = import_module(model, (), example, family.dynamic)
        decompose(imported.graph)
        onnx_ir.save(imported.graph, path)
        old = compile_model(str(path), cache=False, progress=False)
        errors = [0.0, 0.0]
        for batch, length in SIZES:
            inputs = family.inputs(batch, length)
            with torch.no_grad():
                want = model(**inputs)
            errors[0] = max(errors[0], relative_error(traced(**inputs), want))
            leaves = [leaf for leaf in torch.utils._pytree.tree_leaves(want) if isinstance(leaf, torch.Tensor)]
            got = old(**{key: value for key, value in inputs.items() if key in {spec.name for spec in old.inputs}})
            errors[1] = max(errors[1], relative_error(list(got) if isinstance(got, tuple) else [got], leaves))
    reasons = {
        remark.reason
        for compiled in (traced, old)
        for record in compiled.report.passes
        for remark in record.remarks
        if remark.kind == "missed" and "ttention" in remark.reason
    }
    return Row(name, wanted, _found(traced), _found(old), (errors[0], errors[1]), tuple(sorted(reasons)))


def _found(compiled: CompiledModel) -> int:
    counts = compiled.report.operators
    return sum(count for name, count in counts.items() if name.rpartition(".")[2] in ATTENTION)


def table(rows: Sequence[Row]) -> str:
    """The table, in Markdown."""
    lines = [
        "| family | attention | found, from PyTorch | error | found, from the file of 2021 | error | missed because |",
        "|---|---:|---:|---:|---:|---:|---|",
    ]
    for row in rows:
        one, other = row.errors
        reasons = "; ".join(row.reasons)
        lines.append(
            f"| {row.name} | {row.expected} | {row.traced} | {one:.1e} | {row.file} | {other:.1e} | {reasons} |"
        )
    return "\n".join(lines)


def good(row: Row) -> bool:
    """Whether all was found and both forms compute the same."""
    return row.traced == row.file == row.expected and max(row.errors) <= TOLERANCE


def main(arguments: list[str] | None = None) -> None:
    """Measure every family and write the table; exits with 1 if one is not good."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--output", type=Path, default=TARGET)
    parser.add_argument("--only", nargs="*", default=list(FAMILIES), help="these families; nothing is written")
    options = parser.parse_args(arguments)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    rows = []
    for name in options.only:
        row = measure(name, FAMILIES[name])
        if row is None:
            continue
        rows.append(row)
        print(f"{'ok  ' if good(row) else 'MISS'} {row}", flush=True)
    if list(options.only) == list(FAMILIES):
        page = options.output.read_text(encoding="utf-8")
        options.output.write_text(fill(page, {"attention": table(rows)}), encoding="utf-8")
    if not all(map(good, rows)):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
