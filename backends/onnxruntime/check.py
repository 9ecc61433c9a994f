"""Reading back what the runtime really runs, to see that the operators asked for are still there."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import onnx
import onnx_ir

from ...ir.errors import VerificationError
from ...ir.graph import RULE, Graph, is_op, producer
from ...ir.remarks import Kind, Remark
from .session import Session

WATCHED = (
    "MatMulNBits",
    "MatMulBnb4",
    "MatMulIntegerToFloat",
    "GatherBlockQuantized",
    "Attention",
    "GroupQueryAttention",
    "RotaryEmbedding",
)
"""Operators that make a model fast and that the runtime may decompose or refuse to fuse."""


_FUSED = "QLinearConv"
"""What the runtime makes of a convolution between pairs of ``QuantizeLinear`` and ``DequantizeLinear``."""


def asked(graph: Graph) -> dict[str, int]:
    """How often each watched operator occurs in a lowered graph, made by a rewrite of ours.

    What a file held before is left to the runtime, which may well decompose it.
    """
    counts = Counter(node.op_type for node in graph.graph if node.op_type in WATCHED and RULE in node.metadata_props)
    counts[_FUSED] += sum(_on_codes(node) for node in graph.graph)
    return {name: count for name, count in counts.items() if count}


def _on_codes(node: onnx_ir.Node) -> bool:
    """Whether a convolution reads and writes codes, through pairs of ours."""
    if not is_op(node, "Conv"):
        return False
    pairs = [producer(value, "DequantizeLinear") for value in node.inputs[:2]]
    return all(pair is not None and RULE in pair.metadata_props for pair in pairs)


def running(path: str | os.PathLike[str]) -> dict[str, int]:
    """How often each operator occurs in the graph that the runtime makes of a file.

    Raises:
        ArtifactError, UnsupportedError, ModelError: the file does not load.
    """
    with tempfile.TemporaryDirectory(prefix="burnish-check-") as folder:
        target = Path(folder) / "optimized.onnx"
        Session(path, threads=1, optimized_path=target)
        model = onnx.load(str(target), load_external_data=False)
    return dict(Counter(node.op_type for node in model.graph.node))


def check_running(path: str | os.PathLike[str], expected: Mapping[str, int]) -> list[Remark]:
    """Compare what was asked for with what runs.

    Args:
        path: the file as written.
        expected: least number of each operator, from :func:`asked`.

    Raises:
        VerificationError: the runtime has fewer of one; the message says which and how many.
    """
    have = running(path)
    expected, remarks = dict(expected), []
    wanted = expected.pop(_FUSED, 0)
    if wanted:
        # The runtime's own fusion of our pairs: one that it leaves out costs time, not correctness.
        kind: Kind = "applied" if have.get(_FUSED, 0) >= wanted else "missed"
        what = f"{have.get(_FUSED, 0)} of {wanted} convolutions between pairs run as {_FUSED}"
        remarks.append(Remark(kind, "", what, {"asked": wanted, "running": have.get(_FUSED, 0)}))
    for name, wanted in expected.items():
        if have.get(name, 0) < wanted:
            raise VerificationError(
                f"{wanted} {name} were asked for, the runtime runs {have.get(name, 0)}",
                where=str(path),
                fix="report this with the versions of burnish and onnxruntime",
            )
    if not expected:
        return remarks
    text = ", ".join(f"{count} {name}" for name, count in sorted(expected.items()))
    return [*remarks, Remark("applied", "", f"the runtime runs what was asked for: {text}", dict(expected))]
