"""Inputs: the user's examples and calibration data as graph inputs, and made-up ones where there are none."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..ir.errors import BurnishError, CalibrationError, InputError, ModelError
from ..ir.signature import DecoderSpec, NamedSignature, Signature, TensorSpec, numpy_dtype

Feeds = Mapping[str, Any]
"""Graph inputs by name."""
Array = np.ndarray[Any, Any]

PAST = "past_key_values."
"""How the names of a decoder's caches begin."""

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
    """The user's inputs, bound to the graph and checked when they are read; can be read several times.

    A text model may get its ``input_ids`` alone, see :func:`fill_tokens`; plain token ids, too.

    Args:
        items: tuples, mappings or tensors.
        signature: of the model.
        decoder: set for a causal language model.

    Raises:
        CalibrationError: ``items`` is no iterable, or (when read) is empty, ends early, or holds an empty or NaN input.
        InputError: (when read) an item does not fit the model.
    """

    def __init__(self, items: Iterable[Any], signature: Signature, decoder: DecoderSpec | None = None) -> None:
        if isinstance(items, str | bytes | Mapping) or not isinstance(items, Iterable):
            raise CalibrationError(
                f"calibration is a {type(items).__name__}, not a list of inputs",
                where="calibration=",
                fix="pass an iterable; each item is a tuple of arguments, a mapping by name, or one tensor",
            )
        # An iterator could be read only once, by the first pass that asks.
        self._items: Iterable[Any] = list(_guarded(iter(items))) if isinstance(items, Iterator) else items
        self.signature, self._decoder = signature, decoder
        self._before: Iterator[Any] | None = None
        self._count: int | None = None
        self.read = False

    def __iter__(self) -> Iterator[Feeds]:
        self.read, count = True, 0
        iterator = iter(self._items)
        if iterator is self._before and isinstance(iterator, Generator):
            raise CalibrationError(
                f"the calibration inputs ended: the {type(self._items).__name__} can be read only once",
                where="calibration=",
                fix="pass a list, or an iterable that starts anew each time",
            )
        self._before = iterator
        for item in _guarded(iterator):
            try:
                feeds = self._bind(item)
                self._check(feeds)
            except InputError as error:
                where = f"calibration input {count}" + (f", {error.where}" if error.where else "")
                raise type(error)(error.what, where=where, fix=error.fix) from error
            yield feeds
            count += 1
        if count == 0:
            raise CalibrationError("calibration holds no inputs", where="calibration=", fix="pass at least one")
        if self._count is not None and count < self._count:
            raise CalibrationError(
                f"the calibration inputs ended early: {count} now, {self._count} when they were read before",
                where="calibration=",
                fix="pass a list, or an iterable that gives the same inputs each time",
            )
        self._count = count

    def _bind(self, item: Any) -> Feeds:
        names = [spec.name for spec in self.signature.inputs]
        if not isinstance(self.signature, NamedSignature) or "input_ids" not in names:
            return self.signature.flatten(*arguments(item))
        if isinstance(item, list) and item and isinstance(item[0], int | float | list):
            item = {"input_ids": item}
        args, kwargs = arguments(item)
        if len(args) > len(names) or any(name in kwargs for name in names[: len(args)]):
            return self.signature.flatten(args, kwargs)  # which says what is wrong
        return self.signature.flatten(
            (), fill_tokens(self.signature.inputs, {**dict(zip(names, args, strict=False)), **kwargs})
        )

    def _check(self, feeds: Feeds) -> None:
        for name, value in feeds.items():
            if name.startswith(PAST) or isinstance(value, list | tuple):
                continue
            array = as_numpy(value)
            if array.size == 0:
                raise CalibrationError(
                    f"input {name!r} of shape {array.shape} is empty", fix="leave it out, or pass more data"
                )
            if array.dtype.kind not in "iubOSU" and np.isnan(array).any():
                raise CalibrationError(f"input {name!r} holds NaN", fix="leave it out, or repair the data")
        if self._decoder is not None and "input_ids" in feeds:
            self._check_tokens(as_numpy(feeds["input_ids"]), self._decoder.vocabulary, _past_length(feeds))

    def _check_tokens(self, ids: Array, vocabulary: int, past: int) -> None:
        if ids.shape[-1] + past < 2:
            raise CalibrationError("a sequence of one token is too short", fix="pass two tokens or more")
        if ids.min() < 0 or ids.max() >= vocabulary:
            raise CalibrationError(
                f"token {ids.min() if ids.min() < 0 else ids.max()} is not in the vocabulary of {vocabulary}",
                where="input 'input_ids'",
                fix="use the tokenizer of this model",
            )


def _guarded(iterator: Iterator[Any]) -> Iterator[Any]:
    """The items; an error that the user's iterator raises says how far it came."""
    count = 0
    while True:
        try:
            item = next(iterator)
        except StopIteration:
            return
        except BurnishError:
            raise
        except Exception as error:
            raise CalibrationError(
                f"the calibration inputs ended early: {type(error).__name__}: {error}",
                where=f"calibration input {count}",
                fix="repair the iterable that was passed",
            ) from error
        yield item
        count += 1


def fill_tokens(specs: Sequence[TensorSpec], given: Mapping[str, Any]) -> dict[str, Any]:
    """``given`` with what follows from the token ids: mask of ones, counted positions, token types 0, empty caches.

    Args:
        specs: what the model takes.
        given: inputs by name; one sequence of token ids may have one dimension.
    """
    feeds = dict(given)
    if "input_ids" not in feeds:
        return feeds
    ids = as_numpy(feeds["input_ids"])
    dtypes = {spec.name: spec.dtype for spec in specs}
    if isinstance(feeds["input_ids"], list | tuple) and ids.dtype.kind == "i":
        ids = ids.astype(numpy_dtype(dtypes["input_ids"]))
    feeds["input_ids"] = ids = ids[None] if ids.ndim == 1 else ids
    if ids.ndim != 2:
        return feeds
    batch, length = ids.shape
    past = _past_length(feeds)
    for spec in specs:
        name = spec.name
        if name in feeds:
            continue
        if name == "attention_mask":
            feeds[name] = np.ones((batch, past + length), numpy_dtype(spec.dtype))
        elif name == "position_ids":
            mask = as_numpy(feeds.get("attention_mask", np.ones((batch, past + length))))
            positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)  # padding on the left does not count
            feeds[name] = positions[:, -length:].astype(numpy_dtype(spec.dtype))
        elif name == "token_type_ids":
            feeds[name] = np.zeros(ids.shape, numpy_dtype(spec.dtype))
        elif name.startswith(PAST) and past == 0 and spec.shape is not None and len(spec.shape) == 4:
            _, heads, _, size = spec.shape
            feeds[name] = np.zeros((batch, int(heads), 0, int(size)), numpy_dtype(spec.dtype))
    return feeds


def _past_length(feeds: Feeds) -> int:
    return max((int(value.shape[2]) for name, value in feeds.items() if name.startswith(PAST)), default=0)


def as_numpy(value: Any) -> Array:
    """A NumPy array, a torch tensor on the CPU or numbers in lists as an array, without a copy where possible."""
    if not hasattr(value, "detach"):
        return np.asarray(value)
    tensor = value.detach().contiguous()
    if str(tensor.dtype) == "torch.bfloat16":
        import ml_dtypes
        import torch

        return np.asarray(tensor.view(torch.uint16).numpy().view(ml_dtypes.bfloat16))
    return np.asarray(tensor.numpy())


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
