"""Inputs: the user's examples and calibration data as graph inputs, and made-up ones where there are none."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..ir.errors import InputError, ModelError
from ..ir.signature import DecoderSpec, Signature, TensorSpec, numpy_dtype

Feeds = Mapping[str, Any]
"""Graph inputs by name."""

_ARITHMETIC: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.floordiv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}


def arguments(given: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments out of what a user gives as one input: a tuple, a mapping, or one tensor."""
    if given is None:
        return (), {}
    if isinstance(given, Mapping):
        return (), dict(given)
    if isinstance(given, tuple | list):
        return tuple(given), {}
    return (given,), {}


class Calibration:
    """The user's inputs, bound to the graph when they are read; can be read several times.

    Args:
        items: tuples, mappings or tensors.
        signature: of the model.

    Raises:
        InputError: ``items`` is no iterable, is empty, or (when read) an item does not fit.
    """

    def __init__(self, items: Iterable[Any], signature: Signature) -> None:
        if isinstance(items, str | bytes | Mapping) or not isinstance(items, Iterable):
            raise InputError(
                f"calibration is a {type(items).__name__}, not a list of inputs",
                where="calibration=",
                fix="pass an iterable; each item is a tuple of arguments, a mapping by name, or one tensor",
            )
        # An iterator could be read only once, by the first pass that asks.
        self._items: Iterable[Any] = list(items) if isinstance(items, Iterator) else items
        self.signature = signature
        self.read = False

    def __iter__(self) -> Iterator[Feeds]:
        self.read, empty = True, True
        for index, item in enumerate(self._items):
            empty = False
            args, kwargs = arguments(item)
            try:
                yield self.signature.flatten(args, kwargs)
            except InputError as error:
                where = f"calibration input {index}" + (f", {error.where}" if error.where else "")
                raise InputError(error.what, where=where, fix=error.fix) from error
        if empty:
            raise InputError("calibration holds no inputs", where="calibration=", fix="pass at least one")


def made_up(inputs: Sequence[TensorSpec], decoder: DecoderSpec | None = None, seed: int = 0) -> dict[str, Any]:
    """Random inputs that fit: floats from N(0, 1), masks of ones, positions counted, other integers 0 or 1.

    Args:
        inputs: what the graph takes; each named dimension gets a size of its own.
        decoder: for a causal language model, whose tokens come from the whole vocabulary.
        seed: of the random numbers.

    Raises:
        InputError: an input has no known rank, or a type that no values are made for.
    """
    generator = np.random.default_rng(seed)
    sizes: dict[str, int] = {}
    feeds: dict[str, Any] = {}
    for spec in inputs:
        if spec.shape is None:
            raise InputError(
                f"inputs cannot be made up: {spec.name!r} has no known rank",
                fix="pass example_inputs (--inputs FILE.npz)",
            )
        shape = [_size(dim, sizes) for dim in spec.shape]
        try:
            dtype = numpy_dtype(spec.dtype)
        except (KeyError, TypeError) as error:
            raise ModelError(
                f"inputs cannot be made up: {spec.name!r} is a {spec.dtype}", fix="pass example_inputs"
            ) from error
        feeds[spec.name] = _values(spec.name, dtype, shape, decoder, generator)
    return feeds


def _size(dim: int | str, sizes: dict[str, int]) -> int:
    if isinstance(dim, int):
        return dim
    try:
        return _evaluate(ast.parse(dim, mode="eval").body, sizes)
    except (SyntaxError, ValueError, ZeroDivisionError):
        return _symbol(dim, sizes)  # an imported file may name a dimension anything


def _symbol(name: str, sizes: dict[str, int]) -> int:
    if name not in sizes:
        sizes[name] = 2 if "batch" in name or not sizes else 5 + len(sizes)
    return sizes[name]


def _evaluate(node: ast.expr, sizes: dict[str, int]) -> int:
    match node:
        case ast.Name(id=name):
            return _symbol(name, sizes)
        case ast.Constant(value=int(value)):
            return value
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
            return _ARITHMETIC[type(op)](_evaluate(left, sizes), _evaluate(right, sizes))
        case _:
            raise ValueError(ast.unparse(node))


def _values(
    name: str, dtype: np.dtype[Any], shape: Sequence[int], decoder: DecoderSpec | None, generator: np.random.Generator
) -> np.ndarray[Any, Any]:
    if dtype.kind not in "iub":  # ml_dtypes' floats have kind "V"
        return generator.standard_normal(shape, np.float32).astype(dtype)
    if "mask" in name or dtype.kind == "b":
        return np.ones(shape, dtype)
    if "position" in name and shape:
        return np.broadcast_to(np.arange(shape[-1], dtype=dtype), shape).copy()
    high = decoder.vocabulary if decoder is not None and name == "input_ids" else 2
    return generator.integers(0, high, shape).astype(dtype)
