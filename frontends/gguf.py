"""GGUF files of Llama-like models: dequantized tensor by tensor when read, and from there on a Hugging Face model."""

from __future__ import annotations

import contextlib
import json
import logging
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir
import torch

from ..ir.errors import ModelError, UnsupportedError
from ..ir.remarks import Remark
from ..ir.weights import Array
from .gguf_file import GgufFile, GgufTensor, open_gguf
from .huggingface.folder import import_checkpoint
from .huggingface.skeleton import build, need_transformers
from .imported import Imported

_VOCABULARY = "tokenizer.ggml.tokens"
_FIELDS = {
    "context_length": "max_position_embeddings",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "embedding_length": "hidden_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}


@dataclass(frozen=True)
class Architecture:
    """How a model's conversion to GGUF changed it.

    Attributes:
        fields: what it calls the fields of its configuration, besides those that all have.
        interleaved: whether rows of the query and key projections were reordered for rotary embeddings of neighbours.
        norm_offset: what was added to the weights of its norms.
    """

    fields: dict[str, str]
    interleaved: bool = False
    norm_offset: float = 0.0


ARCHITECTURES = {
    "llama": Architecture({"rope.dimension_count": "head_dim", "attention.key_length": "head_dim"}, interleaved=True),
    "qwen2": Architecture({}),
    "qwen3": Architecture({"attention.key_length": "head_dim"}),
    "gemma": Architecture({"attention.key_length": "head_dim"}, norm_offset=1.0),
}
"""By ``general.architecture``; the model type of transformers has the same name."""


def import_gguf(path: str | Path, *, dtype: str = "float32") -> Imported:
    """The decoder in a GGUF file, as :func:`~.huggingface.import_folder` imports it.

    Args:
        path: the file.
        dtype: element type of the weights in the graph: ``float32``, ``float16`` or ``bfloat16``.

    Raises:
        ModelError: the file is damaged, lacks tensors, or does not describe a model.
        UnsupportedError: transformers or gguf is missing, or the model is not Llama-like.
    """
    file = open_gguf(Path(path))
    transformers = need_transformers()
    name = file.metadata.get("general.architecture")
    if name not in ARCHITECTURES:
        raise UnsupportedError(
            f"the architecture {name!r} is not read from GGUF files",
            where=str(file.path),
            fix=f"use one of {', '.join(ARCHITECTURES)}, or the Hugging Face folder of the model",
        )
    architecture = ARCHITECTURES[name]
    with _quiet():
        config = _config(file, name, architecture)
        cls = transformers.AutoModelForCausalLM._model_mapping[type(config)]
        config.architectures = [cls.__name__]
        stored = _tensors(file, name, architecture, cls, config)
        imported = import_checkpoint(
            cls,
            config,
            stored,
            where=str(file.path),
            route="gguf",
            dtype=dtype,
            companions=_companions(file, config),
            end_tokens=() if config.eos_token_id is None else (config.eos_token_id,),
            buffers=_rope_factors(file, config),
        )
    if _VOCABULARY not in file.metadata:
        imported.remarks.append(Remark("skipped", "", "the file holds no vocabulary: no tokenizer is written"))
    return imported


def _config(file: GgufFile, name: str, architecture: Architecture) -> Any:
    """The configuration that the metadata describe."""
    from transformers import AutoConfig

    own = {key.removeprefix(f"{name}."): value for key, value in file.metadata.items() if key.startswith(f"{name}.")}
    missing = [key for key in ("block_count", "embedding_length", "attention.head_count") if key not in own]
    if missing:
        raise ModelError(f"the metadata lack {name}.{missing[0]}", where=str(file.path), fix="convert the model again")
    if own.get("expert_count"):
        raise UnsupportedError(
            f"a mixture of {own['expert_count']} experts is not read from GGUF files",
            where=str(file.path),
            fix="use the Hugging Face folder of the model",
        )
    fields = {hf: own[key] for key, hf in (_FIELDS | architecture.fields).items() if key in own}
    fields["rope_parameters"] = _rope(file, own)
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None:
        raise ModelError("the file lacks the tensor token_embd.weight", where=str(file.path))
    fields["vocab_size"] = embedding.shape[0]
    fields["tie_word_embeddings"] = "output.weight" not in file.tensors
    if name == "llama":
        fields["attention_bias"] = "blk.0.attn_q.bias" in file.tensors
    for token in ("bos", "eos", "unknown", "padding"):
        key = {"unknown": "unk", "padding": "pad"}.get(token, token)
        fields[f"{key}_token_id"] = file.metadata.get(f"tokenizer.ggml.{token}_token_id")
    try:
        return AutoConfig.for_model(name, **fields)
    except Exception as error:
        raise ModelError(
            f"the metadata do not describe a model: {type(error).__name__}: {error}",
            where=str(file.path),
            fix="convert the model again",
        ) from error


def _rope(file: GgufFile, own: dict[str, Any]) -> dict[str, Any]:
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": own.get("rope.freq_base", 10000.0)}
    kind = own.get("rope.scaling.type", "none")
    if kind == "linear":
        return rope | {"rope_type": "linear", "factor": own.get("rope.scaling.factor", 1.0)}
    if kind != "none":
        raise UnsupportedError(
            f"rotary embeddings scaled by {kind!r} are not read from GGUF files",
            where=str(file.path),
            fix="use the Hugging Face folder of the model",
        )
    return rope


def _rope_factors(file: GgufFile, config: Any) -> dict[str, torch.Tensor]:
    """The inverse frequencies of models whose file divides them by a tensor (Llama 3.1)."""
    factors = file.tensors.get("rope_freqs.weight")
    if factors is None:
        return {}
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    base = 1.0 / config.rope_parameters["rope_theta"] ** (np.arange(0, size, 2, dtype=np.float32) / size)
    values = torch.from_numpy((base / factors.read(onnx_ir.DataType.FLOAT)).astype(np.float32))
    return {"model.rotary_emb.inv_freq": values, "model.rotary_emb.original_inv_freq": values}


def _tensors(file: GgufFile, name: str, architecture: Architecture, cls: Any, config: Any) -> dict[str, GgufTensor]:
    """The file's tensors by the names that transformers gives them."""
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    kind = next(arch for arch, text in MODEL_ARCH_NAMES.items() if text == name)
    known = get_tensor_name_map(kind, config.num_hidden_layers)
    model, _ = build(cls, config, torch.float32)
    names: dict[str, str] = {}
    for parameter in model.state_dict():
        module, _, suffix = parameter.rpartition(".")
        found = known.get_name(module)
        if found is not None:
            names[f"{found}.{suffix}"] = parameter
    result: dict[str, GgufTensor] = {}
    for tensor in file.tensors.values():
        if tensor.name != "rope_freqs.weight":
            restored = replace(tensor, restore=_restore(tensor.name, architecture, config))
            result[names.get(tensor.name, tensor.name)] = restored
    return result


def _restore(name: str, architecture: Architecture, config: Any) -> Callable[[Array], Array] | None:
    """What undoes the conversion of one tensor."""
    if architecture.norm_offset and name.endswith("norm.weight"):
        return lambda values: values - np.float32(architecture.norm_offset)
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(name.split(".")[-2])
    if architecture.interleaved and heads is not None:
        return lambda values: split_halves(values, heads)
    return None


def split_halves(values: Array, heads: int) -> Array:
    """Rows of a query or key projection from pairs of neighbours back to two halves of each head.

    Rotary embeddings turn row ``i`` with row ``i + size/2`` in transformers, and row ``2i`` with ``2i + 1`` in
    llama.cpp.

    Args:
        values: [heads * size, ...].
        heads: number of heads.
    """
    size = values.shape[0] // heads
    return values.reshape(heads, size // 2, 2, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)


def _companions(file: GgufFile, config: Any) -> dict[str, Path | bytes]:
    """The tokenizer and the configurations as files."""
    from transformers import GenerationConfig

    files = _tokenizer(file.path) if _VOCABULARY in file.metadata else {}
    files["config.json"] = config.to_json_string().encode()
    generation = GenerationConfig.from_model_config(config).to_diff_dict()
    files["generation_config.json"] = (json.dumps(generation, indent=2) + "\n").encode()
    return files


def _tokenizer(path: Path) -> dict[str, Path | bytes]:
    """The files that transformers would save of the tokenizer.

    Raises:
        ModelError: the metadata describe none that transformers knows.
    """
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        try:
            AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name).save_pretrained(folder)
        except Exception as error:
            raise ModelError(
                f"the tokenizer cannot be read: {type(error).__name__}: {error}",
                where=str(path),
                fix="convert the model again, with its tokenizer",
            ) from error
        return {each.name: each.read_bytes() for each in sorted(folder.iterdir())}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the messages of transformers about fields that it does not use."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
