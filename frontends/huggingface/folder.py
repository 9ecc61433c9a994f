"""A Hugging Face folder as a graph: traced without its weights, which stay in their files until someone reads them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx_ir
import torch

from ...ir.errors import ModelError, OptionError, nearest
from ...ir.graph import MODULE
from ...ir.remarks import Remark
from ...ir.signature import DecoderSpec, NamedSignature
from ..imported import Imported, specs
from ..torch_module import import_exported
from . import decoder, forward
from .safetensors_file import open_folder
from .skeleton import build, is_causal_lm, model_class, read_config
from .weights import Stored, bind, onnx_dtype

COMPANIONS = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "chat_template.jinja", "chat_template.json", "tokenizer.model", "vocab.json", "merges.txt",
    "vocab.txt", "spiece.model", "preprocessor_config.json", "processor_config.json",
)  # fmt: skip
"""Files of a folder that whoever runs the model needs besides its weights."""

_WRAPPED = "model."
_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def import_folder(path: str | Path, *, task: str | None = None, dtype: str = "float32") -> Imported:
    """The model of a Hugging Face folder (``config.json`` and safetensors).

    A causal language model becomes a decoder with a KV cache: ``input_ids``, ``attention_mask`` ([batch, past +
    sequence]), ``position_ids`` and ``past_key_values.N.key/value`` to ``logits`` and ``present.N.key/value``. Any
    other model takes the inputs of its ``forward``.

    Args:
        path: the folder.
        task: chooses the class where ``config.architectures`` does not (``causal-lm``, ``features``, ...).
        dtype: element type of the weights in the graph: ``float32``, ``float16`` or ``bfloat16``.

    Raises:
        ModelError: the folder lacks something, or its files do not fit together.
        UnsupportedError: transformers is missing, does not know the model, or would have to run code of the folder.
        OptionError: there is no such task or dtype.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ModelError("there is no such folder", where=str(folder), fix="pass the folder that holds config.json")
    config = read_config(folder)
    cls = model_class(config, task, str(folder / "config.json"))
    stored = open_folder(folder)
    companions: dict[str, Path | bytes] = {name: folder / name for name in COMPANIONS if (folder / name).is_file()}
    return import_checkpoint(
        cls,
        config,
        stored,
        where=str(folder),
        route="huggingface",
        dtype=dtype,
        companions=companions,
        end_tokens=end_tokens(folder, config),
    )


def import_checkpoint(
    cls: Any,
    config: Any,
    stored: Mapping[str, Stored],
    *,
    where: str,
    route: str,
    dtype: str = "float32",
    companions: Mapping[str, Path | bytes] | None = None,
    end_tokens: tuple[int, ...] = (),
    buffers: Mapping[str, torch.Tensor] | None = None,
) -> Imported:
    """A model class, its configuration and its stored weights as a graph.

    Args:
        cls: class of transformers.
        config: its configuration.
        stored: weights by the names that transformers knows.
        where: the folder or file, for messages.
        route: how the model came, for the report.
        dtype: element type of the weights in the graph.
        companions: files to put beside the saved model.
        end_tokens: ids that end a sequence.
        buffers: values of computed buffers that differ from what the configuration says, by name.

    Raises:
        ModelError: the weights do not fit the configuration.
        UnsupportedError: the model cannot be traced.
        OptionError: there is no such dtype.
    """
    if dtype not in _DTYPES:
        raise OptionError(f"there is no dtype {dtype!r} for weights", fix=nearest(dtype, _DTYPES))
    element = _DTYPES[dtype]
    model, computed = build(cls, config, element)
    weights, remarks = bind(model, stored, computed | dict(buffers or {}), where)
    spec = None
    if is_causal_lm(cls):
        shapes = decoder.cache_shapes(model)
        program, dynamic_shapes = decoder.export_decoder(model, shapes, element)
        inputs, outputs = decoder.input_names(len(shapes)), decoder.output_names(len(shapes))
        spec = _decoder_spec(config, shapes, end_tokens, element)
        if not decoder.takes_positions(model):
            remarks.append(Remark("skipped", "", f"{cls.__name__} takes no positions: position_ids has no effect"))
    else:
        natural = forward.natural_inputs(model, element)
        program, dynamic_shapes, outputs = forward.export_forward(model, natural)
        inputs = list(natural)
    given = {f"{_WRAPPED}{name}": tensor for name, tensor in weights.items()}
    imported = import_exported(program, dynamic_shapes=dynamic_shapes, weights=given)
    graph = imported.graph
    _rename(graph, inputs, outputs)
    _strip(graph)
    if spec is not None:
        _name_total(graph)
    return Imported(
        graph=graph,
        signature=NamedSignature(specs(graph.graph.inputs), specs(graph.graph.outputs)),
        route=route,
        remarks=[*remarks, *imported.remarks],
        decoder=spec,
        companions=dict(companions or {}),
        source_size=sum(tensor.nbytes for tensor in stored.values()),
    )


def end_tokens(folder: Path, config: Any) -> tuple[int, ...]:
    """The ids that end a sequence, from ``generation_config.json`` or else from the configuration.

    Raises:
        ModelError: ``generation_config.json`` is not a JSON object.
    """
    path = folder / "generation_config.json"
    found = None
    if path.is_file():
        try:
            found = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
        except (ValueError, AttributeError) as error:
            raise ModelError(f"generation_config.json is not a JSON object: {error}", where=str(path)) from error
    found = getattr(config, "eos_token_id", None) if found is None else found
    if found is None:
        return ()
    return tuple(found) if isinstance(found, list) else (found,)


def _decoder_spec(
    config: Any, shapes: list[decoder.CacheShape], end: tuple[int, ...], dtype: torch.dtype
) -> DecoderSpec:
    text = config.get_text_config(decoder=True)
    return DecoderSpec(
        layers=len(shapes),
        kv_heads=shapes[0].heads,
        head_dim=shapes[0].key_size,
        vocabulary=text.vocab_size,
        context=int(getattr(text, "max_position_embeddings", None) or 0),
        end_tokens=end,
        cache_dtype=onnx_dtype(dtype).name,
    )


def _rename(graph: onnx_ir.Model, inputs: list[str], outputs: list[str]) -> None:
    """Give the graph's inputs and outputs the names that the world knows them by."""
    taken = {*inputs, *outputs}
    kept = {id(value) for value in (*graph.graph.inputs, *graph.graph.outputs)}
    for node in graph.graph:
        for value in node.outputs:
            if value.name in taken and id(value) not in kept:
                value.name = f"{value.name}_inner"
    for value, name in zip(graph.graph.inputs, inputs, strict=True):
        value.name = name
    for value, name in zip(graph.graph.outputs, outputs, strict=True):
        value.name = name


def _strip(graph: onnx_ir.Model) -> None:
    """Names of weights and module paths as the user knows them, without the function that was traced around."""
    for node in graph.graph:
        path = node.metadata_props.get(MODULE)
        if path is not None:
            node.metadata_props[MODULE] = "" if f"{path}." == _WRAPPED else path.removeprefix(_WRAPPED)
    taken = {name for name in graph.graph.initializers if name is not None}
    for value in list(graph.graph.initializers.values()):
        name = (value.name or "").removeprefix(_WRAPPED)
        if name not in taken:
            value.name = name


def _name_total(graph: onnx_ir.Model) -> None:
    """The mask is as long as past and sequence together; ``torch.export`` has no way to name that."""
    total = onnx_ir.SymbolicDim("past + sequence")
    mask = next(value for value in graph.graph.inputs if value.name == "attention_mask")
    assert mask.shape is not None
    mask.shape = onnx_ir.Shape([mask.shape[0], total])
