"""Compiling for backends that run on PyTorch: the passes they want, and what is said of what they generate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..ir.graph import Graph
from ..ir.remarks import Remark
from ..passes.base import Pass
from ..passes.fuse.fuse import Fuse
from .storage import writing

KERNELS_FILE = "model.py"
"""In a folder: the generated kernels, to be read; what runs is generated again from the graph."""


def on_kernels(passes: Sequence[Pass]) -> list[Pass]:
    """``passes`` with ``fuse`` at the end, if it is not among them.

    Raises:
        UnsupportedError: kernels cannot run here.
    """
    from ..backends.triton.session import device_for

    device_for()  # what cannot run is told before anything is compiled
    return list(passes) if any(isinstance(item, Fuse) for item in passes) else [*passes, Fuse()]


def describe(graph: Graph, target: str, folder: Path, decodes: bool) -> tuple[list[str], list[Remark]]:
    """Write what is generated for a graph beside it.

    Args:
        graph: after all passes.
        target: ``triton`` or ``reference``.
        folder: of the model.
        decodes: whether it is a causal language model with a cache.

    Returns:
        Names of files that belong to the model, and remarks.

    Raises:
        OutputError: the file cannot be written.
    """
    remarks = []
    if decodes:
        more = "; call the model with the cache that it returned, which grows in place" if target == "triton" else ""
        remarks.append(Remark("skipped", "", f"generate() runs on ONNX Runtime alone{more}"))
    if target != "triton":
        return [], remarks
    from ..backends.triton.codegen.program import generate
    from ..ir.infer import infer_graph

    infer_graph(graph)
    program = generate(graph)
    with writing(folder):
        (folder / KERNELS_FILE).write_text(program.source, encoding="utf-8")
    return [KERNELS_FILE], [*program.remarks, *remarks]
