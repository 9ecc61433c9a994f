"""Run by ``test_codegen.py`` in a process of its own with the interpreter: blocks of models against the reference."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import onnx_ir
import torch
from burnish.backends.reference import Reference
from burnish.backends.triton.session import Session
from burnish.ir.graph import attribute
from burnish.passes.base import Context
from burnish.passes.fuse.fuse import Fuse
from burnish.tools.coverage_families import FAMILIES
from burnish.tools.coverage_pruning import prepared

TOLERANCE = 1e-5
"""Of the largest output: float32 sums in another order."""
SMALL = 3e-2
"""The same for bfloat16, of which a place is 2 to the power of -7; kernels round once where the reference rounds after
each operator, and the interpreter cuts where a GPU rounds."""
TEXT = ("BERT", "Llama")


def compare(name: str, session: Session, graph: onnx_ir.Model, feeds: Mapping[str, torch.Tensor], limit: float) -> None:
    with torch.no_grad():
        want = Reference(graph).run(feeds)
    for (key, b), a in zip(want.items(), session.run(feeds), strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype, (name, key, a.shape, b.shape, a.dtype, b.dtype)
        if a.numel():
            error = float((a.double() - b.double()).abs().max()) / max(float(b.double().abs().max()), 1e-6)
            assert error <= limit, f"{name}, {key}: {error:.2e}"


def strided(tensor: torch.Tensor) -> torch.Tensor:
    """The same numbers, not contiguous."""
    return torch.stack([tensor, tensor], -1)[..., 0]


def halved(graph: onnx_ir.Model, half: onnx_ir.DataType = onnx_ir.DataType.BFLOAT16) -> onnx_ir.Model:
    """The graph with float32 replaced by bfloat16, or by another type."""

    def turn(value: onnx_ir.Value) -> None:
        if value.dtype == onnx_ir.DataType.FLOAT:
            value.type = onnx_ir.TensorType(half)

    def small(tensor: onnx_ir.TensorProtocol) -> onnx_ir.TensorProtocol:
        return onnx_ir.Tensor(tensor.numpy().astype(half.numpy()), name=tensor.name)

    for value in graph.graph.initializers.values():
        assert value.const_value is not None
        if value.const_value.dtype == onnx_ir.DataType.FLOAT:
            value.const_value = small(value.const_value)
        turn(value)
    for node in graph.graph:
        for key, attr in list(node.attributes.items()):
            if attr.type == onnx_ir.AttributeType.TENSOR and attr.value.dtype == onnx_ir.DataType.FLOAT:
                node.attributes[key] = onnx_ir.Attr(key, attr.type, small(attr.value))
        if node.op_type == "Cast" and attribute(node, "to") == onnx_ir.DataType.FLOAT.value:
            node.attributes["to"] = onnx_ir.AttrInt64("to", half.value)
        for value in node.outputs:
            turn(value)
    for value in graph.graph.inputs:
        turn(value)
    return graph


def fused(graph: onnx_ir.Model) -> Session:
    outcome = Fuse().run(graph, Context(target="triton"))
    assert outcome.changed
    return Session(graph)


def main(folder: str | None, wanted: list[str]) -> None:
    """Check the models, or those wanted; the generated files are kept in ``folder`` if one is given."""
    for name in [n for n in (*TEXT, "ResNet", "UNet", "ViT") if not wanted or n in wanted]:
        graph, made = prepared(name)
        feeds = {key: torch.as_tensor(value) for key, value in made.items()}
        original = graph.clone()
        session = fused(graph)
        if folder is not None:
            (Path(folder) / f"{name.lower()}.py").write_text(session.source, encoding="utf-8")
        compare(name, session, original, feeds, TOLERANCE)
        compare(f"{name}, strided", session, original, {k: strided(v) for k, v in feeds.items()}, TOLERANCE)
        sizes = [(1, 3), (3, 11)] if name in TEXT else [(1, 1), (3, 1)]
        for batch, length in sizes:
            other = FAMILIES[name].inputs(batch, length)
            keys = dict(zip(feeds, other.values(), strict=True))
            compare(f"{name}, {batch} x {length}", session, original, keys, TOLERANCE)
        empty = {key: value[:0] for key, value in feeds.items()}
        compare(f"{name}, empty", session, original, empty, TOLERANCE)
        print(f"{name} right")
    for name in [n for n in TEXT if not wanted or f"{n}-bfloat16" in wanted]:
        graph, made = prepared(name)
        feeds = {key: torch.as_tensor(value) for key, value in made.items()}
        feeds = {k: v.to(torch.bfloat16) if v.dtype == torch.float32 else v for k, v in feeds.items()}
        graph = halved(graph)
        original = graph.clone()
        session = fused(graph)
        # Of Llama's products none has an elementwise end: sums and norms, rotations and gates of two products follow.
        assert ("Epilogue(" in session.source) == (name == "BERT"), "products with what follows them"
        if folder is not None:
            (Path(folder) / f"{name.lower()}_bfloat16.py").write_text(session.source, encoding="utf-8")
        compare(f"{name}, bfloat16", session, original, feeds, SMALL)
        print(f"{name} in bfloat16 right")
    print("all right")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None, sys.argv[2:])
