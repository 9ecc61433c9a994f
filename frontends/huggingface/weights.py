"""Which tensor of a checkpoint is which parameter of the model, and how it becomes one."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import onnx_ir
import torch

from ...ir.errors import ModelError
from ...ir.remarks import Remark
from ...ir.weights import Array, Shared, lazy

_DTYPES = {
    torch.float32: onnx_ir.DataType.FLOAT, torch.float16: onnx_ir.DataType.FLOAT16,
    torch.bfloat16: onnx_ir.DataType.BFLOAT16, torch.float64: onnx_ir.DataType.DOUBLE,
    torch.int64: onnx_ir.DataType.INT64, torch.int32: onnx_ir.DataType.INT32, torch.bool: onnx_ir.DataType.BOOL,
    torch.int16: onnx_ir.DataType.INT16, torch.int8: onnx_ir.DataType.INT8, torch.uint8: onnx_ir.DataType.UINT8,
    torch.complex64: onnx_ir.DataType.COMPLEX64,
}  # fmt: skip


class Stored(Protocol):
    """A tensor of a checkpoint that is read when someone asks."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""

    @property
    def nbytes(self) -> int:
        """Its size in the file."""

    def read(self, dtype: onnx_ir.DataType) -> Array:
        """Its values as ``dtype``."""


def onnx_dtype(dtype: torch.dtype) -> onnx_ir.DataType:
    """The ONNX element type of a torch element type."""
    return _DTYPES[dtype]


def bind(
    model: torch.nn.Module,
    stored: Mapping[str, Stored],
    buffers: Mapping[str, torch.Tensor],
    where: str,
) -> tuple[dict[str, onnx_ir.TensorProtocol], list[Remark]]:
    """A tensor for each parameter and buffer of ``model``; tied parameters share one.

    Args:
        model: on the ``meta`` device.
        stored: the checkpoint.
        buffers: what the model computed when it was built.
        where: the folder, for messages.

    Raises:
        ModelError: the checkpoint lacks a parameter, or holds it in another shape.
    """
    state = model.state_dict(keep_vars=True)
    found, used = _match(model, state, stored)
    by_identity: dict[int, onnx_ir.TensorProtocol] = {}
    names: dict[int, list[str]] = {}
    for name, tensor in _named(model):
        names.setdefault(id(tensor), []).append(name)
    for name, given in found.items():
        if name in state:
            shape = tuple(state[name].shape)
            if tuple(given.shape.numpy()) != shape:
                raise ModelError(
                    f"{name!r} has shape {tuple(given.shape)} in the checkpoint, the configuration says {shape}",
                    where=where,
                    fix="config.json and the weights belong to different models",
                )
            by_identity.setdefault(id(state[name]), given)
    result: dict[str, onnx_ir.TensorProtocol] = {}
    missing: list[str] = []
    for name, tensor in _named(model):
        if id(tensor) in by_identity:
            result[name] = by_identity[id(tensor)]
        elif name in buffers:
            values = buffers[name].detach()
            result[name] = by_identity[id(tensor)] = onnx_ir.tensor(values.numpy(), name=name)
        else:
            missing.append(min(names[id(tensor)], key=len))
    if missing:
        missing = list(dict.fromkeys(missing))
        raise ModelError(
            f"the checkpoint lacks {len(missing)} of the model's tensors: {', '.join(missing[:4])}",
            where=where,
            fix="finish the download, or pass task= for the class that the weights belong to",
        )
    return result, _left_over(model, stored, used)


def _named(model: torch.nn.Module) -> list[tuple[str, torch.Tensor]]:
    """Parameters and buffers by every name they have."""
    return [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]


def _left_over(model: torch.nn.Module, stored: Mapping[str, Stored], used: set[str]) -> list[Remark]:
    ignored = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or []
    left = [name for name in stored if name not in used and not any(re.search(pattern, name) for pattern in ignored)]
    if not left:
        return []
    reason = f"{len(left)} tensors of the checkpoint belong to no parameter of {type(model).__name__}"
    return [Remark("skipped", "", reason, {"tensors": left[:16], "count": len(left)})]


def _match(
    model: torch.nn.Module, state: Mapping[str, torch.Tensor], stored: Mapping[str, Stored]
) -> tuple[dict[str, onnx_ir.TensorProtocol], set[str]]:
    """The tensors by the model's names, as transformers renames and converts them, and the checkpoint's names used."""
    rename, converters = _transforms(model, state)
    found: dict[str, onnx_ir.TensorProtocol] = {}
    used: set[str] = set()
    gathered: dict[str, tuple[Any, list[tuple[str, str]]]] = {}
    for key in sorted(stored, key=_natural):
        name, pattern = rename(key)
        if name not in state:
            continue
        used.add(key)
        if pattern is None:
            found[name] = _tensor(stored[key], onnx_dtype(state[name].dtype), name)
        else:
            gathered.setdefault(name, (converters[pattern], []))[1].append((pattern, key))
    for name, (converter, sources) in gathered.items():
        found.update(_converted(model, state, stored, name, converter, sources))
    return found, used


def _tensor(stored: Stored, dtype: onnx_ir.DataType, name: str) -> onnx_ir.TensorProtocol:
    return lazy(lambda: stored.read(dtype), dtype, stored.shape, name)


def _natural(key: str) -> list[tuple[int, Any]]:
    """Sorts ``experts.10`` after ``experts.9``."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in key.split(".")]


def _transforms(
    model: torch.nn.Module, state: Mapping[str, torch.Tensor]
) -> tuple[Callable[[str], tuple[str, str | None]], dict[str, Any]]:
    """A function from a stored name to (model's name, pattern of its converter), and the converters by pattern."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    mapping: Sequence[Any] = get_model_conversion_mapping(model) or []
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    prefix: str = getattr(model, "base_model_prefix", "")

    def rename(key: str) -> tuple[str, str | None]:
        name, pattern = rename_source_key(key, renamings, converters, prefix, state)
        if name not in state and key in state:
            return key, None
        return name, pattern

    return rename, {pattern: converter for converter in converters for pattern in converter.source_patterns}


def _converted(
    model: torch.nn.Module,
    state: Mapping[str, torch.Tensor],
    stored: Mapping[str, Stored],
    name: str,
    converter: Any,
    sources: Sequence[tuple[str, str]],
) -> dict[str, onnx_ir.TensorProtocol]:
    """Parameters that transformers makes of several stored tensors (experts, fused projections), computed when read."""
    wanted = state[name].dtype

    def convert(read: Callable[[Stored], torch.Tensor]) -> dict[str, torch.Tensor]:
        fresh = copy.deepcopy(converter)
        for pattern, key in sources:
            fresh.add_tensor(name, key, pattern, lambda key=key: read(stored[key]))
        made = fresh.convert(name, model=model, config=model.config)
        return {target: value[0] if isinstance(value, list) else value for target, value in made.items()}

    def values(tensor: Stored) -> torch.Tensor:
        return torch.from_numpy(np.array(tensor.read(onnx_dtype(wanted)))).to(wanted)

    outline = convert(lambda tensor: torch.empty(tensor.shape, dtype=wanted, device="meta"))
    shared = Shared(lambda: convert(values), len(outline))

    def read(target: str) -> Array:
        return shared.get()[target].contiguous().numpy()

    return {
        target: lazy(lambda target=target: read(target), onnx_dtype(wanted), tuple(value.shape), target)  # type: ignore[misc]
        for target, value in outline.items()
    }
