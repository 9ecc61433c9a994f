"""How many kernels are left of how many operators: DNNFusion's fusion rate (Niu et al. 2021, table 5) on our graphs.

What is counted:

- *Operators*: the nodes of the model as exporters of 2021 wrote it (``tools/fusion_models.py``), shape arithmetic
  included; ``Constant`` nodes and what is computed from constants alone are not: no runtime of that time ran them.
- *Blocks*: whatever the planner leaves to be run by itself, a block of one operator like one of twenty. A block made of
  views alone counts, although it moves nothing; so does one that only works out sizes. Products are not merged with
  each other (``merge_products`` has a column of its own).
- *Rewriting's share*: the same planner on the same graph, canonical in both cases, without and with
  ``simplify_algebra(reassociate=True)``: blocks, operators, and time by the planner's model of a GPU.

Models that are not named keep the rows that the file of results has of them.

    python -m burnish.tools.fusion_rate [MODEL...] [--layers N] [-o benchmarks/fusion.json] [--document docs/fusion.md]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir

from ..ir.graph import Graph, tensor_of
from ..ir.infer import infer_graph
from ..passes import Canonicalize, MergeProducts
from ..passes.algebra import SimplifyAlgebra
from ..passes.base import Context, Pass
from ..passes.fuse.cost_model import GPU
from ..passes.fuse.planner import Plan, plan
from .bench_results import Check, fill, write_results
from .fusion_models import MODELS, graph_of

BLOCK = "fusion rate"
"""Name of the table in the document."""


def counted(nodes: Iterable[onnx_ir.Node]) -> list[onnx_ir.Node]:
    """The nodes, in topological order, that need an input of the model."""
    found: list[onnx_ir.Node] = []
    constant: set[onnx_ir.Value] = set()
    for node in nodes:
        read = [value for value in node.inputs if value is not None]
        if node.op_type == "Constant" or all(v in constant or tensor_of(v) is not None for v in read):
            constant.update(node.outputs)
        else:
            found.append(node)
    return found


def count_blocks(graph: Graph, found: Plan) -> int:
    """The blocks with a node that needs an input of the model."""
    needed = set(counted(graph.graph))
    return sum(any(node in needed for node in block.nodes) for block in found.blocks)


def measure(name: str, layers: int | None = None) -> dict[str, Any]:
    """Counts of one model; ``layers`` as in :func:`~.fusion_models.graph_of`."""
    graph = graph_of(name, layers)
    before = len(counted(graph.graph))
    _run(graph, [Canonicalize()])
    simplified = graph.clone()
    rewriting = _run(simplified, [SimplifyAlgebra(reassociate=True), Canonicalize()])
    merged = simplified.clone()
    _run(merged, [MergeProducts()])
    result: dict[str, Any] = {"title": MODELS[name].title, "operators": before}
    for key, version in (("without_rewriting", graph), ("blocks", simplified), ("with_merged_products", merged)):
        infer_graph(version)
        start = time.process_time()
        found = plan(version, machine=GPU)
        result[f"{key}_seconds"] = round(time.process_time() - start, 3)
        result[key] = count_blocks(version, found)
        result[f"{key}_modelled_ms"] = round(1e3 * found.seconds, 4)
        if key == "blocks":
            result["nodes_planned"] = len(counted(version.graph))
            result["nodes_canonical"] = len(counted(graph.graph))
            result["views"] = sum(block.view for block in found.blocks)
            result["types"] = _types(found)
    result["rewrites"] = rewriting
    published = MODELS[name].published
    if published is not None:
        result["published"] = {
            "operators": published.operators, "blocks": published.blocks, "fixed_patterns": published.fixed_patterns,
        }  # fmt: skip
    return result


def _types(found: Plan) -> dict[str, int]:
    counts: dict[str, int] = {}
    for block in found.blocks:
        counts[block.type.value] = counts.get(block.type.value, 0) + 1
    return counts


def _run(graph: Graph, passes: Sequence[Pass]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for step in passes:
        outcome = step.run(graph, Context())
        if isinstance(step, SimplifyAlgebra):
            counts = outcome.rewrites
    return counts


def checks_of(rows: Mapping[str, Mapping[str, Any]]) -> list[Check]:
    """Blocks of each model against DNNFusion's."""
    return [
        Check(f"{row['title']}: blocks", row["blocks"], row["published"]["blocks"], "")
        for row in rows.values()
        if "published" in row
    ]


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| model | operators | blocks | rate | without rewriting | rewriting: operators | modelled time "
        "| products merged | DNNFusion: operators → blocks | TVM's blocks |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows.values():
        published = row.get("published")
        paper = f"{published['operators']} → {published['blocks']}" if published else "–"
        fixed = str(published["fixed_patterns"]) if published else "–"
        rate = row["operators"] / row["blocks"]
        fewer = f"{row['nodes_canonical']} → {row['nodes_planned']}"
        time_ = f"{row['blocks_modelled_ms'] / row['without_rewriting_modelled_ms']:.3f}×"
        cells = [row["title"], row["operators"], row["blocks"], f"{rate:.1f}", row["without_rewriting"], fewer, time_,
                 row["with_merged_products"], paper, fixed]  # fmt: skip
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Count, print a table, and write what was asked for; the exit status is the number of targets missed."""
    summary = (__doc__ or "").partition("\n\n")[0]
    parser = argparse.ArgumentParser(prog="python -m burnish.tools.fusion_rate", description=summary)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"of {', '.join(MODELS)}; all if none is given")
    parser.add_argument("--layers", type=int, default=None, help="fewer layers than published")
    parser.add_argument("-o", "--output", type=Path, help="results as JSON")
    parser.add_argument("--document", type=Path, help=f"fill in the table between <!-- {BLOCK} --> markers")
    options = parser.parse_args(arguments)
    rows: dict[str, Any] = {}
    if options.output is not None and options.output.exists():
        rows = json.loads(options.output.read_text("utf-8"))["models"]
    for name in options.models or MODELS:
        rows[name] = measure(name, options.layers)
        print(name, json.dumps({k: v for k, v in rows[name].items() if k != "rewrites"}), file=sys.stderr)
    rows = {name: rows[name] for name in MODELS if name in rows}
    print(table(rows))
    checks = checks_of(rows)
    if options.document is not None:
        options.document.write_text(fill(options.document.read_text("utf-8"), {BLOCK: table(rows)}), "utf-8")
    if options.output is not None:
        results = {"models": rows, "checks": [check.to_json() for check in checks]}
        sys.exit(write_results(options.output, results))
    sys.exit(sum(not check.passed for check in checks))


if __name__ == "__main__":
    main()
