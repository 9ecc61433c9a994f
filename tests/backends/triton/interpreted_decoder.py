"""Run by ``test_calls.py`` in a process of its own with the interpreter: ``burnish.compile`` of a decoder in 4 bits."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import burnish
import onnx_ir
import torch
from burnish.backends.reference import Reference
from burnish.ir.infer import infer_graph
from interpreted_calls import DECODER, TOLERANCE, decode, filled


def main() -> None:
    """Two backends run the same codes; a saved model is the same again."""
    graph = filled(DECODER)
    infer_graph(graph)
    compiled = burnish.compile(graph, backend="triton", passes="w4a16", cache=False)
    right = burnish.compile(graph, backend="reference", passes="w4a16", cache=False)
    limit = TOLERANCE[torch.float32]
    with tempfile.TemporaryDirectory() as folder:
        compiled.save(Path(folder) / "saved")
        right.save(Path(folder) / "right.onnx")
        loaded = burnish.load(Path(folder) / "saved")
        assert loaded.session.source == compiled.session.source
        for call in ("rotate_and_append(", "w4a16(", "gated=True, paired=True"):
            assert call in loaded.session.source, f"no {call} in\n{loaded.session.source}"
        decode(loaded.session, Reference(onnx_ir.load(Path(folder) / "right.onnx")), torch.float32, limit)
    said = [group.reason for group in compiled.report.backend]
    assert any("PyTorch's kernels are the better choice in float32" in reason for reason in said), said
    print("all right")


if __name__ == "__main__":
    main()
