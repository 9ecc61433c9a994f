"""How a caller's arguments become graph inputs, and graph outputs what the caller expects back.

Nothing here imports torch or onnx: a saved model is called through this module alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from .errors import InputError, nearest


@dataclass(frozen=True)
class TensorSpec:
    """Name, element type (ONNX spelling, e.g. ``"FLOAT"``) and shape (ints and expressions) of an input or output."""

    name: str
    dtype: str
    shape: tuple[int | str, ...] | None


class Signature(Protocol):
    """Binds a call to a graph and restores its result. Implementations live in the frontends.

    ``flatten`` raises :class:`~.errors.InputError` for arguments that do not fit.
    """

    @property
    def inputs(self) -> Sequence[TensorSpec]:
        """What the graph takes."""

    @property
    def outputs(self) -> Sequence[TensorSpec]:
        """What the graph gives."""

    def flatten(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Graph inputs by name, in the caller's own tensor type."""

    def unflatten(self, outputs: Sequence[Any]) -> Any:
        """The caller's structure out of the graph's outputs."""


@dataclass(frozen=True)
class NamedSignature:
    """Arguments by position or by input name; one output comes back as it is, several as a tuple."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def flatten(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Graph inputs by name.

        Raises:
            InputError: an input is missing, unknown, given twice, or does not fit its specification.
        """
        names = [spec.name for spec in self.inputs]
        if len(args) > len(names):
            raise InputError(
                f"{len(args)} inputs given, the model takes {len(names)}",
                where="the call of the model",
                fix=f"pass {', '.join(names)}",
            )
        feeds = dict(zip(names, args, strict=False))
        for name, value in kwargs.items():
            if name in feeds:
                raise InputError(
                    f"input {name!r} is given twice",
                    where="the call of the model",
                    fix="pass it by position or by name",
                )
            if name not in names:
                raise InputError(
                    f"the model has no input {name!r}", where="the call of the model", fix=nearest(name, names)
                )
            feeds[name] = value
        missing = [name for name in names if name not in feeds]
        if missing:
            raise InputError(
                f"input {', '.join(map(repr, missing))} is missing",
                where="the call of the model",
                fix=f"pass {', '.join(names)}",
            )
        symbols: dict[str, tuple[int, str]] = {}
        return {spec.name: check_input(spec, feeds[spec.name], symbols) for spec in self.inputs}

    def unflatten(self, outputs: Sequence[Any]) -> Any:
        """The only output, or all of them as a tuple."""
        return outputs[0] if len(outputs) == 1 else tuple(outputs)


# ONNX names of the element types, by the name that NumPy, ml_dtypes and torch share.
_ONNX_NAMES = {
    "bool": "BOOL", "int8": "INT8", "int16": "INT16", "int32": "INT32", "int64": "INT64",
    "uint8": "UINT8", "uint16": "UINT16", "uint32": "UINT32", "uint64": "UINT64",
    "float16": "FLOAT16", "float32": "FLOAT", "float64": "DOUBLE", "bfloat16": "BFLOAT16",
    "complex64": "COMPLEX64", "complex128": "COMPLEX128", "object": "STRING",
    "float8_e4m3fn": "FLOAT8E4M3FN", "float8_e5m2": "FLOAT8E5M2",
}  # fmt: skip
_NUMPY_NAMES = {onnx: name for name, onnx in _ONNX_NAMES.items()}


def dtype_name(value: Any) -> str:
    """The ONNX name of the element type of a NumPy array or torch tensor."""
    name = str(value.dtype).removeprefix("torch.")
    if name.startswith(("<U", "str")):
        return "STRING"
    return _ONNX_NAMES.get(name, name.upper())


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The NumPy type (``ml_dtypes`` where NumPy has none) of an ONNX element type.

    Raises:
        KeyError: no array has this type.
    """
    numpy_name = _NUMPY_NAMES[name]
    try:
        return np.dtype(numpy_name)
    except TypeError:
        import ml_dtypes

        found: np.dtype[Any] = np.dtype(getattr(ml_dtypes, numpy_name))
        return found


def check_input(spec: TensorSpec, value: Any, symbols: dict[str, tuple[int, str]]) -> Any:
    """``value`` as something with a dtype and a shape, checked against ``spec``.

    Args:
        spec: what the model wants.
        value: a NumPy array, a torch tensor, or numbers in (nested) lists.
        symbols: sizes that named dimensions had in the inputs before, and where; extended here.

    Raises:
        InputError: wrong element type, rank, size or device.
    """
    if spec.dtype.lower().startswith(("sequence(", "optional(", "seq(", "map(")):
        # Lists and optional values have no shape to check; the runtime looks at their elements.
        return value
    if not (hasattr(value, "dtype") and hasattr(value, "shape")):
        try:
            value = np.asarray(value, dtype=_NUMPY_NAMES.get(spec.dtype))
        except (TypeError, ValueError) as error:
            raise InputError(
                f"input {spec.name!r} is a {type(value).__name__}, the model takes a tensor",
                where=f"input {spec.name!r}",
                fix=f"pass a NumPy array or torch tensor of type {spec.dtype}",
            ) from error
    device = getattr(value, "device", None)
    if device is not None and str(getattr(device, "type", device)) == "meta":
        raise InputError(
            f"input {spec.name!r} is on device {str(device)!r}, where tensors hold no numbers",
            where=f"input {spec.name!r}",
            fix="pass a tensor with numbers",
        )
    given = dtype_name(value)
    if given != spec.dtype:
        raise InputError(
            f"input {spec.name!r} has element type {given}, the model takes {spec.dtype}",
            where=f"input {spec.name!r}",
            fix=f"convert it to {_NUMPY_NAMES.get(spec.dtype, spec.dtype.lower())}",
        )
    if spec.shape is None:
        return value
    if len(value.shape) != len(spec.shape):
        raise InputError(
            f"input {spec.name!r} has {len(value.shape)} dimensions {tuple(value.shape)}, "
            f"the model takes {len(spec.shape)}: ({', '.join(map(str, spec.shape))})",
            where=f"input {spec.name!r}",
            fix="reshape it, or compile with inputs of this rank",
        )
    for axis, (want, have) in enumerate(zip(spec.shape, value.shape, strict=True)):
        where = f"dimension {axis} of input {spec.name!r}"
        if isinstance(want, int):
            if have != want:
                raise InputError(
                    f"{where} is {have}, the model was compiled for exactly {want}",
                    where=f"input {spec.name!r}",
                    fix="compile with dynamic_shapes= that names this dimension, or pass this size",
                )
        elif want.isidentifier():
            size, first = symbols.setdefault(want, (int(have), where))
            if size != have:
                raise InputError(
                    f"{where} is {have}, but {want!r} is {size} in {first}; they must be equal",
                    where=f"input {spec.name!r}",
                    fix=f"pass inputs that agree in {want!r}",
                )
    return value


@dataclass(frozen=True)
class DecoderSpec:
    """What ``generate`` must know of a causal language model with a KV cache.

    Attributes:
        layers: number of layers; layer ``N`` has ``past_key_values.N.key`` and ``.value``,
            each [batch, kv_heads, past, head_dim].
        kv_heads: key/value heads of each layer.
        head_dim: size of a head.
        vocabulary: number of logits.
        context: longest sequence the model was made for.
        end_tokens: ids that end a sequence.
    """

    layers: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    context: int
    end_tokens: tuple[int, ...] = ()
    cache_dtype: str = "FLOAT"
