"""From logits to tokens. Imports neither torch nor onnx."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...ir.errors import OptionError

Array = np.ndarray[Any, Any]


class Sampler:
    """Chooses the next tokens from logits.

    Args:
        temperature: 0 takes the likeliest.
        top_k: number of candidates.
        top_p: probability that the candidates have together (Holtzman et al. 2020, nucleus sampling).
        seed: of the random numbers.
        repetition_penalty: what the logits of tokens that were there before are divided by if positive, multiplied by
            if negative (Keskar et al. 2019, CTRL); 1 changes nothing.

    Raises:
        OptionError: an option is out of range.
    """

    def __init__(
        self,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        repetition_penalty: float = 1.0,
    ) -> None:
        if not temperature >= 0:
            raise OptionError(f"temperature={temperature} is negative", fix="use 0 for the likeliest token, or above")
        if top_k is not None and top_k < 1:
            raise OptionError(f"top_k={top_k} leaves no token", fix="use 1 or more, or None for all")
        if top_p is not None and not 0 < top_p <= 1:
            raise OptionError(f"top_p={top_p} is no probability", fix="use a value above 0 and up to 1")
        if temperature == 0 and (top_k is not None or top_p is not None):
            raise OptionError("top_k and top_p have no effect at temperature 0", fix="set temperature above 0")
        if not repetition_penalty > 0:
            raise OptionError(
                f"repetition_penalty={repetition_penalty} is not positive", fix="use 1 for none, above 1 to avoid words"
            )
        self._temperature, self._top_k, self._top_p = temperature, top_k, top_p
        self._penalty = repetition_penalty
        self._random = np.random.default_rng(seed)

    def __call__(self, logits: Array, seen: Sequence[Array] | None = None) -> Array:
        """One token for each row.

        Args:
            logits: [batch, vocabulary].
            seen: the tokens of each row so far, for the penalty of repetition.
        """
        logits = self.penalized(logits, seen)
        if self._temperature == 0:
            return np.asarray(logits.argmax(axis=-1), dtype=np.int64)
        return np.array([self._draw(*self._candidates(row)) for row in logits], dtype=np.int64)

    def verify(self, logits: Array, proposed: Sequence[int], seen: Array) -> list[int]:
        """Which of the proposed tokens to keep, and the one behind them.

        A token is kept with the probability that the model gives it, and else replaced by a draw from the others, so
        that the result is distributed as if nothing had been proposed (Leviathan et al. 2023, algorithm 1, for
        proposals that are certain).

        Args:
            logits: [proposed + 1, vocabulary], before each proposed token and behind the last.
            proposed: tokens that may follow.
            seen: tokens so far.
        """
        taken: list[int] = []
        for place, row in enumerate(logits):
            row = self.penalized(row[None], [np.append(seen, taken).astype(np.int64)])[0]
            guess = proposed[place] if place < len(proposed) else None
            taken.append(self._checked(row, guess))
            if taken[-1] != guess:
                break
        return taken

    def penalized(self, logits: Array, seen: Sequence[Array] | None) -> Array:
        """Logits [batch, vocabulary] after the penalty of repetition."""
        if self._penalty == 1 or seen is None:
            return logits
        logits = np.array(logits)
        for row, ids in zip(logits, seen, strict=True):
            before = row[ids]
            row[ids] = np.where(before > 0, before / self._penalty, before * self._penalty)
        return logits

    def _checked(self, logits: Array, guess: int | None) -> int:
        if self._temperature == 0:
            return int(logits.argmax())
        tokens, weights = self._candidates(logits)
        places = np.flatnonzero(tokens == guess) if guess is not None else np.empty(0, np.int64)
        if places.size:
            place = int(places[0])
            if self._random.random() < weights[place]:
                return int(tokens[place])
            weights = np.delete(weights, place)
            tokens = np.delete(tokens, place)
        return self._draw(tokens, weights)

    def _candidates(self, logits: Array) -> tuple[Array, Array]:
        """Tokens that may be drawn, and their probabilities."""
        scaled = logits.astype(np.float64) / self._temperature
        tokens = np.arange(len(scaled))
        if self._top_k is not None and self._top_k < len(scaled):
            tokens = np.argpartition(-scaled, self._top_k - 1)[: self._top_k]
            scaled = scaled[tokens]
        weights = np.exp(scaled - scaled.max())
        weights /= weights.sum()
        if self._top_p is not None:
            # Tokens rarer than this hold less than 1 - top_p together, so none of them counts, and few are sorted.
            likely = np.flatnonzero(weights >= (1 - self._top_p) / len(weights))
            order = likely[np.argsort(-weights[likely], kind="stable")]
            before = weights[order].cumsum() - weights[order]
            order = order[before < self._top_p]  # the token that reaches top_p still counts
            tokens, weights = tokens[order], weights[order]
        return tokens, weights / weights.sum()

    def _draw(self, tokens: Array, weights: Array) -> int:
        sums = weights.cumsum()
        place = int(np.searchsorted(sums, self._random.random() * sums[-1], side="right"))
        return int(tokens[min(place, len(tokens) - 1)])
