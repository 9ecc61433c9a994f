"""What every frontend hands to the compiler."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import onnx_ir

from ..ir.graph import Graph
from ..ir.remarks import Remark
from ..ir.signature import DecoderSpec, NamedSignature, Signature, TensorSpec


@dataclass
class Imported:
    """A model as a graph.

    Attributes:
        graph: the graph; weights may be lazy.
        signature: binds calls to it.
        route: the way it took: ``torch.export``, ``torch.onnx.export``, ``onnx``, ``huggingface`` or ``gguf``.
        remarks: what the frontend did that the user should know.
        decoder: set for a causal language model with a KV cache.
        companions: files to put beside the saved model (tokenizer, generation config), by file name.
        source_size: bytes of the weights as they came.
    """

    graph: Graph
    signature: Signature
    route: str
    remarks: list[Remark] = field(default_factory=list)
    decoder: DecoderSpec | None = None
    companions: dict[str, Path | bytes] = field(default_factory=dict)
    source_size: int = 0


def specs(values: Iterable[onnx_ir.Value]) -> tuple[TensorSpec, ...]:
    """Names, types and shapes of inputs or outputs of a graph."""

    def dim(size: int | onnx_ir.SymbolicDim) -> int | str:
        return size if isinstance(size, int) else str(size.value)

    return tuple(
        TensorSpec(
            name=value.name or "",
            dtype="UNDEFINED" if value.dtype is None else value.dtype.name,
            shape=None if value.shape is None else tuple(dim(size) for size in value.shape),
        )
        for value in values
    )


def retyped(imported: Imported) -> Imported:
    """The same, described as its graph is now: passes may give caches another type."""
    signature = imported.signature
    if not isinstance(signature, NamedSignature):
        return imported
    graph = imported.graph.graph
    inputs = specs(graph.inputs)
    kinds = {spec.dtype for spec in inputs if spec.name.startswith("past_key_values.")}
    decoder = imported.decoder
    if decoder is not None and len(kinds) == 1:
        decoder = replace(decoder, cache_dtype=kinds.pop())
    return replace(imported, signature=NamedSignature(inputs, specs(graph.outputs)), decoder=decoder)
