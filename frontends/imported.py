"""What every frontend hands to the compiler."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ..ir.graph import Graph
from ..ir.remarks import Remark
from ..ir.signature import DecoderSpec, Signature


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
