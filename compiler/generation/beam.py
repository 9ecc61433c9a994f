"""Beam search. Imports neither torch nor onnx."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .decoding import Decoding
from .sampling import Sampler

Array = np.ndarray[Any, Any]

_NEVER = -1e9


def beam_search(
    decoding: Decoding,
    ids: Array,
    mask: Array,
    *,
    beams: int,
    count: int,
    ends: Sequence[int],
    pad: int,
    length_penalty: float,
    returned: int,
    sampler: Sampler,
) -> tuple[Array, Array]:
    """The likeliest continuations found by keeping so many partial ones at each step.

    A continuation's score is its log probability divided by its length to the power of ``length_penalty``; the search
    ends when no running one can become better than the worst of the finished ones at its present length (the rule of
    ``transformers`` with ``early_stopping=False``).

    Args:
        decoding: empty.
        ids: [batch, prompt].
        mask: [batch, prompt].
        beams: partial continuations of each row.
        count: most tokens to add, 1 or more.
        ends: tokens that end a continuation.
        pad: fills a continuation after its end.
        length_penalty: exponent of the length; above 0 favours long continuations.
        returned: continuations of each row that are returned, best first; at most ``beams``.
        sampler: applies the penalty of repetition.

    Returns:
        Tokens [batch * returned, new] and the lengths that count [batch * returned].
    """
    batch = len(ids)
    logits = np.repeat(decoding.step(ids, mask), beams, axis=0)
    decoding.select(np.repeat(np.arange(batch), beams))
    mask = np.repeat(mask, beams, axis=0)
    running = np.tile(np.where(np.arange(beams) == 0, 0.0, _NEVER), (batch, 1))
    texts = np.zeros((batch, beams, 0), np.int64)
    done = np.full((batch, beams), _NEVER)
    results = np.full((batch, beams, count), pad, np.int64)
    lengths = np.zeros((batch, beams), np.int64)
    open_rows = np.ones(batch, bool)
    candidates = max(2, 1 + len(ends)) * beams
    for step in range(1, count + 1):
        seen = [np.concatenate([ids[row // beams], texts[row // beams, row % beams]]) for row in range(batch * beams)]
        scores = _log_softmax(sampler.penalized(logits, seen)).reshape(batch, beams, -1) + running[..., None]
        vocabulary = scores.shape[-1]
        flat = scores.reshape(batch, -1)
        kept = min(candidates, flat.shape[1])
        top = np.argpartition(-flat, kept - 1, axis=1)[:, :kept]
        top = np.take_along_axis(top, np.argsort(-np.take_along_axis(flat, top, 1), axis=1, kind="stable"), 1)
        values = np.take_along_axis(flat, top, 1)
        parents, words = top // vocabulary, top % vocabulary
        longer = np.concatenate([np.take_along_axis(texts, parents[..., None], 1), words[..., None]], axis=2)
        ended = np.isin(words, ends) | (step == count)
        # Finished ones: of the best so many alone, beside those that had finished before.
        fresh = np.where(ended & (np.arange(kept) < beams) & open_rows[:, None], values / step**length_penalty, _NEVER)
        padded = np.full((batch, kept, count), pad, np.int64)
        padded[..., :step] = longer
        every = np.concatenate([done, fresh], axis=1)
        best = np.argsort(-every, axis=1, kind="stable")[:, :beams]
        done = np.take_along_axis(every, best, 1)
        results = np.take_along_axis(np.concatenate([results, padded], axis=1), best[..., None], 1)
        lengths = np.take_along_axis(np.concatenate([lengths, np.full((batch, kept), step)], axis=1), best, 1)
        # Running ones: the best that have not ended.
        onward = np.argsort(-np.where(ended, _NEVER, values), axis=1, kind="stable")[:, :beams]
        running = np.take_along_axis(np.where(ended, _NEVER, values), onward, 1)
        texts = np.take_along_axis(longer, onward[..., None], 1)
        parents = np.take_along_axis(parents, onward, 1)
        open_rows = running[:, 0] / step**length_penalty > done.min(axis=1)
        if step == count or not open_rows.any():
            break
        rows = (np.arange(batch)[:, None] * beams + parents).ravel()
        decoding.select(rows)
        mask = np.concatenate([mask[rows], np.ones((batch * beams, 1), np.int64)], axis=1)
        logits = decoding.step(texts[:, :, -1].reshape(-1, 1), mask)
    longest = int(lengths[:, :returned].max())
    return results[:, :returned, :longest].reshape(batch * returned, longest), lengths[:, :returned].ravel()


def _log_softmax(logits: Array) -> Array:
    logits = logits.astype(np.float64)
    logits -= logits.max(axis=-1, keepdims=True)
    result: Array = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return result
