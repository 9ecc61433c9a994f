"""Which model families compile, which way, and how closely they agree with eager PyTorch.

``python -m burnish.tools.coverage`` measures all of them and writes ``docs/coverage.md``.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..compiler.api import compile as compile_model
from ..frontends.torch_module import import_module
from ..ir.graph import SOURCE
from .coverage_families import FAMILIES, Family

EXAMPLE = (2, 7)
SIZES = ((1, 5), (3, 9), (4, 17))
"""(batch, sequence length) at which eager and compiled are compared; the example's is none of them."""
TOLERANCE = 1e-4
"""Largest error, relative to the largest element of each output, in float32."""
TARGET = Path(__file__).resolve().parents[1] / "docs" / "coverage.md"


@dataclass(frozen=True)
class Coverage:
    """What was found for one family.

    Attributes:
        name: the family.
        route: the way the model came in.
        operators: number of different ATen operators translated.
        nodes: nodes of the imported graph.
        errors: largest relative error at each of :data:`SIZES`.
    """

    name: str
    route: str
    operators: int
    nodes: int
    errors: tuple[float, ...]


def measure(name: str, family: Family | None = None, passes: Any = "default") -> Coverage:
    """Compile a small random model of a family and compare it with eager PyTorch."""
    family = family or FAMILIES[name]
    model = made(family)
    example = family.inputs(*EXAMPLE)
    imported = import_module(model, (), example, family.dynamic)
    sources = {node.metadata_props.get(SOURCE, "").split(": ")[-1] for node in imported.graph.graph}
    compiled = compile_model(model, example, dynamic_shapes=dict(family.dynamic), passes=passes, progress=False)
    errors = []
    for batch, length in SIZES:
        inputs = family.inputs(batch, length)
        with torch.no_grad():
            want = model(**inputs)
        errors.append(_error(compiled(**inputs), want))
    operators = sum(source.startswith(("aten.", "transformers.")) for source in sources)
    return Coverage(name, compiled.report.route, operators, len(imported.graph.graph), tuple(errors))


def made(family: Family) -> torch.nn.Module:
    """The family's model with the same random weights each time."""
    torch.manual_seed(0)
    model = family.build().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                # The usual 0.02 would leave every output near zero and every attention flat.
                parameter.normal_(0, 0.15)
    return model


def _error(got: Any, want: Any) -> float:
    return relative_error(got, want) if type(got) is type(want) else float("inf")


def relative_error(got: Any, want: Any) -> float:
    """The largest difference of any output, relative to that output's largest element; infinite if shapes differ."""
    ours, theirs = _tensors(got), _tensors(want)
    if [t.shape for t in ours] != [t.shape for t in theirs]:
        return float("inf")
    return max(
        float((a - b).abs().max() / b.abs().max().clamp_min(1e-30)) for a, b in zip(ours, theirs, strict=True)
    )  # fmt: skip


def _tensors(value: Any) -> list[torch.Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]


def table(rows: Sequence[Coverage]) -> str:
    """The page, in Markdown."""
    sizes = " | ".join(f"{batch} × {length}" for batch, length in SIZES)
    lines = [
        "# Coverage",
        "",
        "Small random models of each family, compiled with the preset `default`, against eager PyTorch in float32: the",
        "largest difference relative to the largest element of each output, at three batch × sequence sizes, none of",
        f"which is the example's ({EXAMPLE[0]} × {EXAMPLE[1]}). Vision models and the LSTM vary the batch only.",
        f"The limit is {TOLERANCE:g}. Written by `python -m burnish.tools.coverage`.",
        "",
        f"| family | way in | ATen operators | nodes imported | {sizes} |",
        f"|---|---|---:|---:|{'---:|' * len(SIZES)}",
    ]
    for row in rows:
        errors = " | ".join(f"{error:.1e}" for error in row.errors)
        lines.append(f"| {row.name} | `{row.route}` | {row.operators} | {row.nodes} | {errors} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure every family and write the page; exits with 1 if one is beyond the limit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--output", type=Path, default=TARGET)
    output: Path = parser.parse_args().output
    logging.getLogger("transformers").setLevel(logging.ERROR)
    rows = []
    for name in FAMILIES:
        rows.append(measure(name))
        print(f"{name}: {rows[-1].route}, {max(rows[-1].errors):.1e}", flush=True)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(table(rows), encoding="utf-8")
    if any(max(row.errors) > TOLERANCE for row in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
