"""A decoder and what it remembers of the tokens fed so far. Imports neither torch nor onnx.

Two forms of the same model may be there. The general graph takes any mask and gives a new cache at each step. The
generation graph writes into one buffer in place, which is faster, for rows without padding; a second one may be there
for long prompts, on the same buffer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ...backends.onnxruntime.binding import LOGITS_FROM, WINDOW, CacheBinding
from ...backends.onnxruntime.session import OrtValue, Session, to_numpy
from ...ir.errors import InputError, OptionError, UnsupportedError
from ...ir.signature import DecoderSpec, TensorSpec

if TYPE_CHECKING:
    from .tokenizer import Tokenizer

Array = np.ndarray[Any, Any]

LONG = 16
"""Steps of so many tokens run on the graph for prompts, where there is one."""
CHUNK = 256
"""A longer prompt of one row is read in pieces: what stays in the cache of the processor is quicker (4,096 tokens of
SmolLM2 in 3.6 s instead of 5.3), and the memory of attention does not grow with the square of the length."""
_BLOCK = 64
_DTYPES = {"FLOAT": np.float32, "FLOAT16": np.float16, "INT8": np.int8, "UINT8": np.uint8}


class Decodes(Protocol):
    """A compiled causal language model."""

    @property
    def session(self) -> Session:
        """Runs the general graph."""

    @property
    def generation(self) -> Session | None:
        """Runs the graph that writes its cache in place, if there is one."""

    @property
    def prefill(self) -> Session | None:
        """Runs the graph for prompts on the same cache, if there is one."""

    @property
    def decoder(self) -> DecoderSpec | None:
        """What the graphs take and give."""

    @property
    def tokenizer(self) -> Tokenizer:
        """Turns text into tokens and back."""


class Decoding:
    """A decoder and its cache between two steps.

    Args:
        model: a compiled decoder.
        batch: rows.
        capacity: tokens that memory is set aside for; more is taken when it is full.
        padded: whether rows are padded on the left, which needs the general graph.

    Attributes:
        batch: rows.
        tokens: what was fed so far, [batch, length], padding included.

    Raises:
        UnsupportedError: the model is no decoder.
    """

    def __init__(self, model: Decodes, batch: int, capacity: int | None = None, *, padded: bool = False) -> None:
        if model.decoder is None:
            raise UnsupportedError("the model is no decoder with a KV cache", fix="compile a causal language model")
        self.batch = batch
        self.tokens: Array = np.zeros((batch, 0), np.int64)
        generation = None if padded else model.generation
        self._memory: _Buffer | _Copies
        if generation is not None:
            self._memory = _Buffer(model, generation, batch, capacity or _BLOCK)
        else:
            self._memory = _Copies(model.session, batch)

    @property
    def length(self) -> int:
        """Tokens fed so far to each row, padding included."""
        return self._memory.length

    @property
    def in_place(self) -> bool:
        """Whether the cache is one buffer that the runtime writes into."""
        return isinstance(self._memory, _Buffer)

    def step(self, ids: Array, mask: Array, every: bool = False) -> Array:
        """Feed tokens and keep what the model remembers of them.

        Args:
            ids: [batch, sequence] int64.
            mask: [batch, all tokens so far and these] int64, 1 for tokens and 0 for padding.
            every: the logits of every token of ``ids``, not only of the last.

        Returns:
            Logits [batch, vocabulary], or [batch, sequence, vocabulary]; valid until the next step.

        Raises:
            InputError: the mask does not fit, or has padding that the cache was not made for.
        """
        if mask.shape != (ids.shape[0], self.length + ids.shape[1]):
            raise InputError(
                f"attention_mask has shape {mask.shape} after {self.length} tokens and {ids.shape[1]} new ones",
                fix="pass one column for each token so far",
            )
        logits = self._memory.step(ids, mask, every)
        self.tokens = np.concatenate([self.tokens, ids], axis=1)
        return logits if every else logits[:, -1]

    def rewind(self, length: int) -> None:
        """Forget every token after the first ``length``.

        Raises:
            OptionError: there were not so many, or a window has moved on.
        """
        if not 0 <= length <= self.length:
            raise OptionError(f"{length} tokens cannot be kept of {self.length}", fix="rewind to fewer")
        if 0 < length < self._memory.least:
            raise OptionError(
                f"what {length} tokens would look back at is forgotten: the model has a window",
                fix=f"rewind to 0, or to {self._memory.least} or more",
            )
        self._memory.rewind(length)
        self.tokens = self.tokens[:, :length]

    def reuse(self, ids: Array) -> int:
        """Forget all but what these tokens [batch, sequence] begin with, and how many columns that is.

        The last column is never among them: its logits are wanted.
        """
        width = min(self.length, ids.shape[1] - 1)
        same = (self.tokens[:, :width] == ids[:, :width]).all(axis=0)
        kept = width if same.all() else int(same.argmin())
        kept = kept if kept >= self._memory.least else 0
        self.rewind(kept)
        return kept

    def select(self, rows: Any) -> None:
        """Go on with these rows, in this order; a row may be taken more than once."""
        rows = np.asarray(rows, dtype=np.int64)
        self._memory.select(rows)
        self.tokens, self.batch = self.tokens[rows], len(rows)

    def reset(self) -> None:
        """Forget everything."""
        self.rewind(0)

    @property
    def bytes(self) -> int:
        """Bytes that the cache takes."""
        return self._memory.bytes


class _Buffer:
    """One buffer for each layer's keys and values, written in place."""

    def __init__(self, model: Decodes, session: Session, batch: int, capacity: int) -> None:
        self.length = 0
        self._model, self._session, self._batch = model, session, batch
        self._past = [spec for spec in session.inputs if spec.name.startswith("past_key_values.")]
        self._takes = {spec.name for spec in session.inputs}
        self._bindings: dict[bool, CacheBinding] = {}
        self._window = int(session.metadata.get(WINDOW, -1))
        if self._window > 0:  # what lies before it is forgotten, every so many tokens
            capacity = min(capacity, 2 * self._window)
        self._forgotten = 0
        self._arrays = {spec.name: _buffer(spec, batch, _blocks(capacity)) for spec in self._past}

    @property
    def _capacity(self) -> int:
        return int(next(iter(self._arrays.values())).shape[2])

    @property
    def bytes(self) -> int:
        return sum(array.nbytes for array in self._arrays.values())

    def step(self, ids: Array, mask: Array, every: bool) -> Array:
        if not mask.all():
            raise InputError("attention_mask has padding", fix="make the decoding with padded=True")
        count = ids.shape[1]
        pieces = self._pieces(count)
        if pieces == 1 or self._window <= 0:  # a window makes room piece by piece, and forgets between them
            self._room(count)
        if pieces > 1:
            parts = []
            for part in np.array_split(ids, pieces, axis=1):
                logits = self.step(part, mask[:, : self.length + part.shape[1]], every)
                parts.append(np.array(logits) if every else logits)
            return np.concatenate(parts, axis=1) if every else parts[-1]
        feeds: dict[str, Array] = {"input_ids": ids, "attention_mask": mask[:, self._forgotten :]}
        if "position_ids" in self._takes:
            feeds["position_ids"] = np.tile(np.arange(self.length, self.length + count), (self._batch, 1))
        feeds[LOGITS_FROM] = np.array([0 if every else -1], np.int64)
        logits = self._binding(count).run(feeds)
        self.length += count
        return logits

    def _pieces(self, count: int) -> int:
        """In how many steps so many tokens are read."""
        if self._batch == 1:
            return -(-count // CHUNK)
        return count if self.length else 1  # the kernel refuses several tokens of several rows behind a cache

    def _binding(self, count: int) -> CacheBinding:
        long = count >= LONG and self._model.prefill is not None
        if long not in self._bindings:
            session = self._model.prefill if long else self._session
            assert session is not None
            self._bindings[long] = CacheBinding(session, self._arrays)
        return self._bindings[long]

    def _room(self, count: int) -> None:
        held = self.length - self._forgotten
        if held + count <= self._capacity:
            return
        if 0 < self._window <= held:
            kept = self._window - 1  # what the next token looks back at
            for array in self._arrays.values():
                array[:, :, :kept] = array[:, :, held - kept : held]
            self._forgotten += held - kept
            held = kept
        if held + count > self._capacity:
            capacity = _blocks(max(held + count, 2 * self._capacity))
            self._replace(lambda array: _grown(array, capacity, held))

    def _replace(self, make: Any) -> None:
        self._bindings.clear()
        for name in list(self._arrays):  # one at a time: the old and the new of one layer are in memory
            self._arrays[name] = make(self._arrays[name])

    @property
    def least(self) -> int:
        return self._forgotten + self._window - 1 if self._forgotten else 0

    def rewind(self, length: int) -> None:
        if length == 0:
            self._forgotten = 0
        self.length = length

    def select(self, rows: Array) -> None:
        if len(rows) == self._batch and (rows == np.arange(self._batch)).all():
            return
        self._batch = len(rows)
        self._replace(lambda array: np.ascontiguousarray(array[rows]))


def _blocks(count: int) -> int:
    return -(-count // _BLOCK) * _BLOCK


def _buffer(spec: TensorSpec, batch: int, capacity: int) -> Array:
    assert spec.shape is not None
    shape = (batch, int(spec.shape[1]), capacity, int(spec.shape[3]))
    return np.zeros(shape, _DTYPES[spec.dtype])


def _grown(array: Array, capacity: int, length: int) -> Array:
    larger = np.zeros((*array.shape[:2], capacity, array.shape[3]), array.dtype)
    larger[:, :, :length] = array[:, :, :length]
    return larger


class _Copies:
    """A cache that each step gives anew, for the general graph."""

    def __init__(self, session: Session, batch: int) -> None:
        self.length = 0
        self._session, self._batch = session, batch
        self._takes = {spec.name for spec in session.inputs}
        outputs = [spec.name for spec in session.outputs]
        self._logits = outputs.index("logits")
        self._past = [spec for spec in session.inputs if spec.name.startswith("past_key_values.")]
        self._present = [(spec.name, outputs.index("present." + spec.name.split(".", 1)[1])) for spec in self._past]
        self._cache = self._empty()

    @property
    def least(self) -> int:
        return 0

    def _empty(self) -> dict[str, OrtValue]:
        return {s.name: OrtValue.ortvalue_from_numpy(_buffer(s, self._batch, 0)) for s in self._past}

    @property
    def bytes(self) -> int:
        return sum(to_numpy(value).nbytes for value in self._cache.values())

    def step(self, ids: Array, mask: Array, every: bool) -> Array:
        positions = np.maximum(mask.cumsum(axis=1) - 1, 0)[:, -ids.shape[1] :]
        feeds = {"input_ids": ids, "attention_mask": mask, "position_ids": np.ascontiguousarray(positions)}
        values = self._session.run_values({k: v for k, v in feeds.items() if k in self._takes} | self._cache)
        self._cache = {name: values[index] for name, index in self._present}
        self.length += ids.shape[1]
        logits: Array = to_numpy(values[self._logits])
        return logits

    def rewind(self, length: int) -> None:
        if length == 0:
            self._cache = self._empty()
        elif length < self.length:
            self._change(lambda array: array[:, :, :length])
        self.length = length

    def select(self, rows: Array) -> None:
        self._batch = len(rows)
        self._change(lambda array: array[rows])

    def _change(self, make: Any) -> None:
        for name, value in self._cache.items():
            self._cache[name] = OrtValue.ortvalue_from_numpy(np.ascontiguousarray(make(to_numpy(value))))
