"""Tokens proposed ahead of the model, which checks several in one step. Imports neither torch nor onnx.

A step over several tokens costs little more than a step over one while weights are what is read, so a guess that comes
true is nearly free (Leviathan et al. 2023, "Fast Inference from Transformers via Speculative Decoding").
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from ...ir.errors import InputError, OptionError
from .decoding import Decodes, Decoding

Array = np.ndarray[Any, Any]

_LONGEST_MATCH = 3
_SHORTEST_MATCH = 2


class Proposer(Protocol):
    """Guesses what follows."""

    def propose(self, seen: Array, most: int) -> list[int]:
        """At most ``most`` tokens that may follow ``seen`` [length]; may be none."""

    def learn(self, proposed: int, kept: int) -> None:
        """How many of the last proposal were right."""


class _Adaptive:
    """Proposes more while the guesses come true, fewer when they do not, so that wrong ones cost little."""

    def __init__(self, most: int, name: str) -> None:
        if isinstance(most, bool) or not isinstance(most, int) or most < 1:
            raise OptionError(f"{name}={most!r} is not a number of tokens", fix="use 1 or more, or None")
        self._most, self._size = most, min(most, 4)

    def learn(self, proposed: int, kept: int) -> None:
        """Two more after a proposal that was right throughout, one fewer after another."""
        if proposed:
            self._size = min(self._most, self._size + 2) if kept == proposed else max(1, self._size - 1)


class PromptLookup(_Adaptive):
    """What followed the last two or three tokens when they stood in the text before (Saxena 2023, prompt lookup).

    Args:
        most: longest proposal.

    Raises:
        OptionError: ``most`` is no number of tokens.
    """

    def __init__(self, most: int) -> None:
        super().__init__(most, "prompt_lookup_num_tokens")

    def propose(self, seen: Array, most: int) -> list[int]:
        """What followed the latest earlier place of the last tokens of ``seen`` [length]."""
        count = min(self._size, most)
        for size in range(_LONGEST_MATCH, _SHORTEST_MATCH - 1, -1):
            if count < 1 or len(seen) <= size:
                continue
            windows = np.lib.stride_tricks.sliding_window_view(seen[:-1], size)
            places = np.flatnonzero((windows == seen[-size:]).all(axis=1))
            if places.size:
                start = int(places[-1]) + size
                return [int(token) for token in seen[start : start + count]]
        return []


class Draft(_Adaptive):
    """What a smaller model of the same vocabulary takes for likeliest.

    Args:
        model: the smaller decoder.
        vocabulary: of the model that checks.
        most: longest proposal.

    Raises:
        InputError: the vocabularies differ.
        UnsupportedError: the draft is no decoder.
    """

    def __init__(self, model: Decodes, vocabulary: int, most: int) -> None:
        super().__init__(most, "num_assistant_tokens")
        self._decoding = Decoding(model, 1)
        self._context = model.decoder.context if model.decoder is not None else 0
        if model.decoder is not None and model.decoder.vocabulary != vocabulary:
            raise InputError(
                f"the assistant has a vocabulary of {model.decoder.vocabulary}, the model one of {vocabulary}",
                where="assistant_model",
                fix="use two models with the same tokenizer",
            )

    def propose(self, seen: Array, most: int) -> list[int]:
        """What the draft continues ``seen`` [length] with."""
        count = min(self._size, most)
        if self._context:
            count = min(count, self._context - len(seen))
        tokens: list[int] = []
        if count < 1:
            return tokens
        fed = self._decoding.reuse(seen[None])
        ids = seen[None, fed:]
        while True:
            logits = self._decoding.step(ids, np.ones((1, self._decoding.length + ids.shape[1]), np.int64))
            tokens.append(int(logits[0].argmax()))
            if len(tokens) == count:
                return tokens
            ids = np.array([[tokens[-1]]])
