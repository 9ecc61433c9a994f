"""The graphs of a decoder beside its general one: for generation with the cache in place, and for prompts."""

from __future__ import annotations

import shutil
from pathlib import Path

import onnx_ir

from ..backends.onnxruntime.generation import Unfit, generation_graph
from ..backends.onnxruntime.writer import write_beside
from ..ir.errors import UnsupportedError
from ..ir.remarks import Remark
from ..ir.signature import DecoderSpec
from .artifact import GENERATION_FILE, MANIFEST_KEY, PREFILL_FILE, REPORT_KEY, data_file
from .storage import relocate


def add_generation(model: Path, spec: DecoderSpec) -> tuple[str | None, list[Remark]]:
    """Write the generation graph of a decoder beside it, on the same weights.

    Args:
        model: the ONNX file that was just written.
        spec: of the decoder.

    Returns:
        The name of the new file, or None, and what there is to say.
    """
    graph = onnx_ir.load(model)
    try:
        window = generation_graph(graph, spec)
    except Unfit as reason:
        return None, [Remark("missed", "", f"generate copies the cache at each step: {reason}")]
    for key in (MANIFEST_KEY, REPORT_KEY):
        graph.metadata_props.pop(key, None)
    size = write_beside(graph, model.with_name(GENERATION_FILE))
    far = f" over a window of {window} tokens" if window > 0 else ""
    what = f"generate runs {spec.layers} GroupQueryAttention{far}, the cache written in place"
    return GENERATION_FILE, [Remark("applied", "", what, {"file": GENERATION_FILE, "bytes": size})]


def add_prefill(source: Path, model: Path) -> tuple[str, ...]:
    """Move the generation graph of another compilation of the same decoder beside ``model``, for prompts.

    Args:
        source: the ONNX file of the other compilation; its folder is used up.
        model: the ONNX file of this one.

    Returns:
        The names of the new files.

    Raises:
        UnsupportedError: either of them has no generation graph.
    """
    for file in (source, model):
        if not file.with_name(GENERATION_FILE).exists():
            raise UnsupportedError(
                "prompts cannot have a graph of their own: this decoder has no cache that is written in place",
                where="prefill=",
                fix="leave prefill out; the report without it says why",
            )
    target, data = model.with_name(PREFILL_FILE), data_file(source)
    if not data.exists():
        shutil.move(source.with_name(GENERATION_FILE), target)
        return (PREFILL_FILE,)
    weights = data_file(target)
    shutil.move(data, weights)
    relocate(source.with_name(GENERATION_FILE), target, weights.name)
    return (PREFILL_FILE, weights.name)
