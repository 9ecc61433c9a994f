"""A causal language model as one function of plain tensors: prefill, chunks and decoding with a KV cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...ir.errors import UnsupportedError
from .attention import as_standard_operator


@dataclass(frozen=True)
class CacheShape:
    """Heads and head sizes of the cache of one layer."""

    heads: int
    key_size: int
    value_size: int


class Decoder(torch.nn.Module):
    """A Hugging Face causal language model with its cache as plain inputs and outputs.

    Args:
        model: the model, in evaluation mode.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, past_key_values: list[list[Tensor]]
    ) -> tuple[Tensor, ...]:
        """Logits [batch, sequence, vocabulary], then keys and values [batch, heads, past + sequence, size] by layer.

        Args:
            input_ids: [batch, sequence].
            attention_mask: [batch, past + sequence], 1 for tokens and 0 for padding.
            position_ids: [batch, sequence].
            past_key_values: per layer, keys and values [batch, heads, past, size]; past may be 0.
        """
        arguments: dict[str, Any] = {"position_ids": position_ids} if takes_positions(self.model) else {}
        cache = full_cache(past_key_values)
        result = self.model(
            input_ids=input_ids, attention_mask=attention_mask, past_key_values=cache, use_cache=True, **arguments
        )
        present = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
        return (result.logits, *present)


def takes_positions(model: torch.nn.Module) -> bool:
    """Whether the model can be told the positions of its tokens (models with ALiBi cannot)."""
    import inspect

    return "position_ids" in inspect.signature(model.forward).parameters


def full_cache(layers: Sequence[Sequence[Tensor]]) -> Any:
    """A transformers cache that already holds keys and values, every layer at full length.

    ``DynamicCache`` itself would start from an empty one-dimensional tensor and concatenate to that.
    """
    from transformers.cache_utils import DynamicCache, DynamicLayer

    cache = DynamicCache()
    for keys, values in layers:
        layer = DynamicLayer()
        layer.keys, layer.values = keys, values
        layer.dtype, layer.device, layer.is_initialized = keys.dtype, keys.device, True
        cache.layers.append(layer)
    cache.layer_class_to_replicate = None
    return cache


def cache_shapes(model: torch.nn.Module) -> list[CacheShape]:
    """The shape of each layer's cache, found by running the model on ``meta`` once.

    Raises:
        UnsupportedError: the model keeps another state than keys and values.
    """
    from transformers.cache_utils import DynamicCache, DynamicLayer

    cache = DynamicCache()
    ids = torch.zeros(1, 2, dtype=torch.int64, device="meta")
    with torch.no_grad():
        model(input_ids=ids, attention_mask=torch.ones_like(ids), past_key_values=cache, use_cache=True)
    shapes = []
    for layer in cache.layers:
        if not isinstance(layer, DynamicLayer) or layer.keys is None or layer.values is None or layer.keys.dim() != 4:
            raise UnsupportedError(
                f"{type(model).__name__} keeps a {type(layer).__name__}, not keys and values",
                fix="compile one step of the model yourself with example_inputs=",
            )
        shapes.append(CacheShape(layer.keys.shape[1], layer.keys.shape[3], layer.values.shape[3]))
    if not shapes:
        raise UnsupportedError(
            f"{type(model).__name__} does not fill the cache of keys and values",
            fix="compile one step of the model yourself with example_inputs=",
        )
    return shapes


def input_names(layers: int) -> list[str]:
    """Names of the decoder's inputs, in order."""
    cache = [f"past_key_values.{layer}.{part}" for layer in range(layers) for part in ("key", "value")]
    return ["input_ids", "attention_mask", "position_ids", *cache]


def output_names(layers: int) -> list[str]:
    """Names of the decoder's outputs, in order."""
    return ["logits", *(f"present.{layer}.{part}" for layer in range(layers) for part in ("key", "value"))]


def export_decoder(
    model: torch.nn.Module, shapes: Sequence[CacheShape], dtype: torch.dtype
) -> tuple[torch.export.ExportedProgram, Any]:
    """The decoder as ``torch.export`` sees it, and its dynamic shapes: ``batch``, ``sequence`` and ``past``.

    Args:
        model: causal language model on the ``meta`` device.
        shapes: the cache of each layer.
        dtype: element type of the cache.
    """
    batch, sequence, past = 2, 3, 5  # none of them 0 or 1, which torch.export would take for constants
    ids = torch.zeros(batch, sequence, dtype=torch.int64, device="meta")
    attention_mask = torch.zeros(batch, past + sequence, dtype=torch.int64, device="meta")
    cache = [
        [
            torch.zeros(batch, shape.heads, past, size, dtype=dtype, device="meta")
            for size in (shape.key_size, shape.value_size)
        ]
        for shape in shapes
    ]
    of_batch, of_sequence, of_past = (torch.export.Dim(name) for name in ("batch", "sequence", "past"))
    dynamic_shapes = (
        {0: of_batch, 1: of_sequence},
        {0: of_batch, 1: torch.export.Dim.DYNAMIC},  # past + sequence, which Dim cannot say
        {0: of_batch, 1: of_sequence},
        [[{0: of_batch, 2: of_past}, {0: of_batch, 2: of_past}] for _ in shapes],
    )
    inputs = (ids, attention_mask, torch.zeros_like(ids), cache)
    with torch.no_grad():
        program = torch.export.export(Decoder(model), inputs, dynamic_shapes=dynamic_shapes, strict=False)
    as_standard_operator(program)
    return program, dynamic_shapes
