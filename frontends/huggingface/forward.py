"""Any Hugging Face model that is no causal language model, as one function of its natural inputs."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...ir.errors import UnsupportedError
from .attention import as_standard_operator


@dataclass(frozen=True)
class Natural:
    """An input: its example shape, element type, and the names of its dynamic dimensions by axis."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    dynamic: Mapping[int, str] = field(default_factory=dict)


class Forward(torch.nn.Module):
    """A model whose inputs are given by position, and whose named tensors come back as a tuple.

    Args:
        model: the model, in evaluation mode.
        inputs: names of its inputs.
        outputs: filled with the names of the outputs when the model runs.
    """

    def __init__(self, model: torch.nn.Module, inputs: list[str], outputs: list[str]) -> None:
        super().__init__()
        self.model = model
        self._inputs, self._outputs = inputs, outputs

    def forward(self, inputs: list[Tensor]) -> tuple[Tensor, ...]:
        """The tensors of the model's output, in its order; caches and intermediate states are left out."""
        arguments: dict[str, Any] = dict(zip(self._inputs, inputs, strict=True))
        if "use_cache" in inspect.signature(self.model.forward).parameters:
            arguments["use_cache"] = False
        result = self.model(**arguments)
        named = {name: value for name, value in result.items() if isinstance(value, Tensor)}
        self._outputs[:] = named
        return tuple(named.values())


def natural_inputs(model: Any, dtype: torch.dtype) -> dict[str, Natural]:
    """The inputs that a model of this configuration takes, in the order of its ``forward``.

    Raises:
        UnsupportedError: it takes none that Burnish knows how to make.
    """
    config = model.config
    parameters = inspect.signature(model.forward).parameters
    main = model.main_input_name
    known: dict[str, Natural] = {}
    both = "input_ids" in parameters and "pixel_values" in parameters
    rows = "text_batch" if both else "batch"
    text = Natural((2, 7), torch.int64, {0: rows, 1: "sequence"})
    known["input_ids"] = known["attention_mask"] = text
    if (getattr(config, "type_vocab_size", 0) or 0) > 1:
        known["token_type_ids"] = text
    vision = getattr(config, "vision_config", config)
    size = getattr(vision, "image_size", None) or 224
    height, width = (size, size) if isinstance(size, int) else tuple(size)
    channels = getattr(vision, "num_channels", 3)
    known["pixel_values"] = Natural((3 if both else 2, channels, height, width), dtype, {0: "batch"})
    if main == "input_features" and hasattr(config, "num_mel_bins"):
        frames = 2 * config.max_source_positions
        known["input_features"] = Natural((2, config.num_mel_bins, frames), dtype, {0: "batch"})
        del known["attention_mask"]
    if getattr(config, "is_encoder_decoder", False):
        known["decoder_input_ids"] = Natural((2, 5), torch.int64, {0: rows, 1: "decoder_sequence"})
    if main == "pixel_values" and not both:
        known = {"pixel_values": known["pixel_values"]}
    chosen = {name: known[name] for name in parameters if name in known}
    if main not in chosen:
        raise UnsupportedError(
            f"{type(model).__name__} takes {main!r}, of which the configuration does not say the shape",
            fix="load the model yourself and compile it with example_inputs=",
        )
    return chosen


def export_forward(model: Any, inputs: Mapping[str, Natural]) -> tuple[torch.export.ExportedProgram, Any, list[str]]:
    """The model as ``torch.export`` sees it, its dynamic shapes, and the names of its outputs.

    Args:
        model: on the ``meta`` device.
        inputs: what it takes.
    """
    outputs: list[str] = []
    longest = _longest(model.config)
    dims = {
        name: torch.export.Dim(name, max=longest if "sequence" in name else None)
        for natural in inputs.values()
        for name in natural.dynamic.values()
    }
    values = [torch.zeros(natural.shape, dtype=natural.dtype, device="meta") for natural in inputs.values()]
    dynamic = [{axis: dims[name] for axis, name in natural.dynamic.items()} for natural in inputs.values()]
    with torch.no_grad():
        program = torch.export.export(
            Forward(model, list(inputs), outputs), (values,), dynamic_shapes=(dynamic,), strict=False
        )
    as_standard_operator(program)
    return program, (dynamic,), outputs


def _longest(config: Any) -> int | None:
    """The longest sequence that the table of positions has rows for; None if there is no table."""
    text = getattr(config, "text_config", config)
    found = getattr(text, "max_position_embeddings", None)
    return found if isinstance(found, int) and found > 1 else None
