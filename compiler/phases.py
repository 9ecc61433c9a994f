"""The graphs of a decoder beside its general one: for generation with the cache in place, and for prompts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import onnx_ir

from ..backends.onnxruntime.generation import Unfit, generation_graph
from ..backends.onnxruntime.writer import write_beside
from ..ir.errors import UnsupportedError
from ..ir.graph import attribute
from ..ir.remarks import Remark
from ..ir.signature import DecoderSpec
from .artifact import GENAI_FILE, GENERATION_FILE, MANIFEST_KEY, PREFILL_FILE, REPORT_KEY, data_file
from .generation.genai import genai_config
from .storage import relocate


def add_generation(model: Path, spec: DecoderSpec) -> tuple[tuple[str, ...], list[Remark]]:
    """Write the generation graph of a decoder beside it, on the same weights, and what ``onnxruntime-genai`` asks for.

    Args:
        model: the ONNX file that was just written.
        spec: of the decoder.

    Returns:
        The names of the new files, and what there is to say.
    """
    graph = onnx_ir.load(model)
    try:
        window = generation_graph(graph, spec)
    except Unfit as reason:
        return (), [Remark("missed", "", f"generate copies the cache at each step: {reason}")]
    for key in (MANIFEST_KEY, REPORT_KEY):
        graph.metadata_props.pop(key, None)
    size = write_beside(graph, model.with_name(GENERATION_FILE))
    far = f" over a window of {window} tokens" if window > 0 else ""
    what = f"generate runs {spec.layers} GroupQueryAttention{far}, the cache written in place"
    remarks = [Remark("applied", "", what, {"file": GENERATION_FILE, "bytes": size})]
    takes = [value.name or "" for value in graph.graph.inputs]
    heads = next(attribute(node, "num_heads", 0) for node in graph.graph if node.op_type == "GroupQueryAttention")
    config = genai_config(spec, heads, takes, _known_tokens(model.parent))
    model.with_name(GENAI_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return (GENERATION_FILE, GENAI_FILE), remarks


def _known_tokens(folder: Path) -> dict[str, int]:
    """Ids of the first and the padding token, where the configuration beside the model names them."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    names = ("bos_token_id", "pad_token_id")
    return {name: config[name] for name in names if isinstance(config.get(name), int)}


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
