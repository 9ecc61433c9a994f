"""Continuing sequences of tokens with a compiled decoder. Imports neither torch nor onnx.

What a model remembers of a sequence is in :mod:`.decoding`; of the logits only the last position is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..ir.errors import InputError, OptionError, UnsupportedError
from ..ir.signature import DecoderSpec
from .decoding import Decodes, Decoding

Array = np.ndarray[Any, Any]


def generate(
    model: Decodes,
    input_ids: Any,
    attention_mask: Any = None,
    *,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    end_tokens: int | Iterable[int] | None = None,
    pad_token: int | None = None,
    stream: Callable[[Array], object] | None = None,
) -> Any:
    """Continue ``input_ids`` until every row has an end token or ``max_new_tokens`` were added.

    Args:
        model: a compiled decoder.
        input_ids: tokens, [batch, prompt] or [prompt]: a NumPy array, a torch tensor, or lists. Rows of lists may
            differ in length; rows of an array are padded on the left and need ``attention_mask``.
        attention_mask: [batch, prompt], 1 for tokens and 0 for padding; all tokens if not given.
        max_new_tokens: most tokens to add.
        temperature: 0 takes the likeliest token; above 0 samples, flatter as it grows.
        top_k: sample among this many likeliest tokens.
        top_p: sample among the likeliest tokens that together have this probability.
        seed: of the sampler; the same seed gives the same tokens.
        end_tokens: ids that end a row; those of the model's generation configuration if not given.
        pad_token: what fills a row after its end; the first end token if not given.
        stream: called with the new tokens [batch] after every step.

    Returns:
        Prompt and new tokens in the form of ``input_ids``: arrays and tensors [batch, prompt + new], rows that ended
        early filled with ``pad_token``; lists without padding, each up to its own end token.

    Raises:
        InputError: the tokens or the mask do not fit the model.
        OptionError: an option has a value that makes no sense.
        UnsupportedError: the model is no decoder.
    """
    prompt = _prompt(input_ids, attention_mask)
    ends = _ends(model, end_tokens)
    steps = tokens(
        model,
        prompt.ids,
        prompt.mask,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        end_tokens=ends,
        pad_token=pad_token,
    )
    new = []
    for step in steps:
        new.append(step)
        if stream is not None:
            stream(step)
    added = np.stack(new, axis=1) if new else np.zeros((prompt.ids.shape[0], 0), dtype=np.int64)
    return prompt.answer(added, ends)


def tokens(
    model: Decodes,
    input_ids: Any,
    attention_mask: Any = None,
    *,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    end_tokens: int | Iterable[int] | None = None,
    pad_token: int | None = None,
) -> Iterator[Array]:
    """New tokens [batch], one step after the other, as they are made; options as for :func:`generate`.

    Raises:
        InputError: the tokens or the mask do not fit the model.
        OptionError: an option has a value that makes no sense.
        UnsupportedError: the model is no decoder.
    """
    spec = _decoder(model)
    prompt = _prompt(input_ids, attention_mask)
    choose = Sampler(temperature, top_k, top_p, seed)
    ends = _ends(model, end_tokens)
    if isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, int) or max_new_tokens < 0:
        raise OptionError(f"max_new_tokens={max_new_tokens!r} is not a number of tokens", fix="pass 0 or more")
    _check(prompt, spec, max_new_tokens)
    return _steps(
        model, prompt, choose, ends, ends[0] if pad_token is None and ends else pad_token or 0, max_new_tokens
    )


def _steps(
    model: Decodes, prompt: Prompt, choose: Sampler, ends: Sequence[int], pad: int, count: int
) -> Iterator[Array]:
    batch, length = prompt.ids.shape
    decoding = Decoding(model, batch, length + count, padded=not prompt.mask.all())
    running = np.ones(prompt.ids.shape[0], dtype=bool)
    ids, mask = prompt.ids, prompt.mask
    for step in range(count):
        logits = decoding.step(ids, mask)
        chosen = np.where(running, choose(logits), pad)
        yield chosen
        running &= ~np.isin(chosen, ends)
        if not running.any() or step == count - 1:
            return
        ids = chosen[:, None]
        mask = np.concatenate([mask, np.ones_like(ids)], axis=1)


class Sampler:
    """Chooses the next tokens from logits.

    Args:
        temperature: 0 takes the likeliest.
        top_k: number of candidates.
        top_p: probability that the candidates have together (Holtzman et al. 2020, nucleus sampling).
        seed: of the random numbers.

    Raises:
        OptionError: an option is out of range.
    """

    def __init__(self, temperature: float, top_k: int | None, top_p: float | None, seed: int | None) -> None:
        if not temperature >= 0:
            raise OptionError(f"temperature={temperature} is negative", fix="use 0 for the likeliest token, or above")
        if top_k is not None and top_k < 1:
            raise OptionError(f"top_k={top_k} leaves no token", fix="use 1 or more, or None for all")
        if top_p is not None and not 0 < top_p <= 1:
            raise OptionError(f"top_p={top_p} is no probability", fix="use a value above 0 and up to 1")
        if temperature == 0 and (top_k is not None or top_p is not None):
            raise OptionError("top_k and top_p have no effect at temperature 0", fix="set temperature above 0")
        self._temperature, self._top_k, self._top_p = temperature, top_k, top_p
        self._random = np.random.default_rng(seed)

    def __call__(self, logits: Array) -> Array:
        """One token for each row of ``logits`` [batch, vocabulary]."""
        if self._temperature == 0:
            return np.asarray(logits.argmax(axis=-1), dtype=np.int64)
        return np.array([self._sample(row) for row in logits.astype(np.float64)], dtype=np.int64)

    def _sample(self, logits: Array) -> int:
        order = np.argsort(-logits, kind="stable")[: self._top_k]
        scaled = logits[order] / self._temperature
        weights = np.exp(scaled - scaled[0])
        weights /= weights.sum()
        if self._top_p is not None:
            before = weights.cumsum() - weights
            weights = weights[before < self._top_p]  # the token that reaches top_p still counts
            weights /= weights.sum()
        place = int(np.searchsorted(weights.cumsum(), self._random.random(), side="right"))
        return int(order[min(place, len(weights) - 1)])


@dataclass(frozen=True)
class Prompt:
    """Tokens in the form that the graph takes, and the way back to the caller's form.

    Attributes:
        ids: [batch, prompt] int64, padded on the left.
        mask: [batch, prompt] int64.
        given: what the caller passed.
        single: whether that was one row.
    """

    ids: Array
    mask: Array
    given: Any
    single: bool

    def answer(self, added: Array, ends: Sequence[int]) -> Any:
        """Prompt and ``added`` tokens [batch, new] as the caller passed the prompt."""
        if isinstance(self.given, (list, tuple)):
            rows = [self._row(index, added[index], ends) for index in range(len(added))]
            return rows[0] if self.single else rows
        result = np.concatenate([self.ids, added], axis=1)
        result = result[0] if self.single else result
        if isinstance(self.given, np.ndarray):
            return result.astype(self.given.dtype)
        return self.given.new_tensor(result)

    def _row(self, index: int, added: Array, ends: Sequence[int]) -> list[int]:
        stops = np.flatnonzero(np.isin(added, ends))
        kept = added[: stops[0] + 1] if stops.size else added
        return [int(token) for token in (*self.ids[index][self.mask[index] == 1], *kept)]


def _prompt(input_ids: Any, attention_mask: Any) -> Prompt:
    if isinstance(input_ids, Prompt):
        return input_ids
    ragged = isinstance(input_ids, (list, tuple)) and bool(input_ids) and all(_is_row(row) for row in input_ids)
    if ragged and attention_mask is None:
        rows = [np.asarray(row) for row in input_ids]
        longest = max(len(row) for row in rows)
        ids = np.stack([np.pad(row, (longest - len(row), 0)) for row in rows])
        mask = np.stack([np.pad(np.ones(len(row), dtype=np.int64), (longest - len(row), 0)) for row in rows])
    else:
        ids = _array(input_ids, "input_ids")
        mask = (
            np.ones(ids.shape, dtype=np.int64) if attention_mask is None else _array(attention_mask, "attention_mask")
        )
    single = ids.ndim == 1
    ids, mask = np.atleast_2d(ids), np.atleast_2d(mask)
    if ids.ndim != 2 or ids.size == 0:
        raise InputError(f"input_ids has shape {ids.shape}", fix="pass at least one token, [batch, prompt] or [prompt]")
    if ids.dtype.kind not in "iu":
        raise InputError(f"input_ids has element type {ids.dtype}", fix="pass integers, as the tokenizer returns them")
    if mask.shape != ids.shape:
        raise InputError(f"attention_mask has shape {mask.shape}, input_ids {ids.shape}", fix="make them the same")
    if not np.isin(mask, (0, 1)).all():
        raise InputError("attention_mask holds other values than 0 and 1", fix="pass 1 for tokens, 0 for padding")
    return Prompt(ids.astype(np.int64), mask.astype(np.int64), input_ids, single)


def _is_row(row: Any) -> bool:
    return isinstance(row, (list, tuple)) or (hasattr(row, "__len__") and getattr(row, "ndim", 0) == 1)


def _array(value: Any, name: str) -> Array:
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    try:
        return np.asarray(value)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{name} is a {type(value).__name__} that is no array of numbers",
            fix="pass a NumPy array, a tensor or lists",
        ) from error


def _check(prompt: Prompt, spec: DecoderSpec, count: int) -> None:
    if (prompt.mask[:, -1] == 0).any():
        raise InputError(
            "the prompt is padded on the right; the next token would follow the padding",
            where=f"row {int(np.flatnonzero(prompt.mask[:, -1] == 0)[0])} of attention_mask",
            fix="pad on the left (tokenizer.padding_side = 'left'), or pass lists of different lengths",
        )
    wrong = (prompt.mask == 1) & ((prompt.ids < 0) | (prompt.ids >= spec.vocabulary))
    if wrong.any():
        raise InputError(
            f"token {int(prompt.ids[wrong][0])} is not in the vocabulary of {spec.vocabulary}",
            fix="use the tokenizer of this model",
        )
    total = prompt.ids.shape[1] + count
    if spec.context and total > spec.context:
        raise InputError(
            f"{prompt.ids.shape[1]} tokens and {count} new ones are more than the model's context of {spec.context}",
            fix="shorten the prompt or lower max_new_tokens",
        )


def _decoder(model: Decodes) -> DecoderSpec:
    if model.decoder is None:
        raise UnsupportedError("the model is no decoder with a KV cache", fix="compile a causal language model")
    return model.decoder


def _ends(model: Decodes, given: int | Iterable[int] | None) -> tuple[int, ...]:
    if given is None:
        return _decoder(model).end_tokens
    return (given,) if isinstance(given, int) else tuple(given)
