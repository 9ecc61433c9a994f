"""Prompts in the forms that callers have them, and answers in the same form. Imports neither torch nor onnx."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ...ir.errors import InputError
from ...ir.signature import DecoderSpec

Array = np.ndarray[Any, Any]


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

    def repeated(self, times: int) -> Prompt:
        """Each row so many times, one behind the other."""
        if times == 1:
            return self
        return Prompt(np.repeat(self.ids, times, axis=0), np.repeat(self.mask, times, axis=0), self.given, False)

    def answer(self, added: Array, lengths: Array) -> Any:
        """Prompt and new tokens in the form in which the caller passed the prompt.

        Args:
            added: [batch, new].
            lengths: how many of them count in each row, [batch].
        """
        if isinstance(self.given, (list, tuple)):
            kept = [tokens[:length] for tokens, length in zip(added, lengths, strict=True)]
            rows = [
                [int(token) for token in (*ids[mask == 1], *new)]
                for ids, mask, new in zip(self.ids, self.mask, kept, strict=True)
            ]
            return rows[0] if self.single else rows
        result = np.concatenate([self.ids, added], axis=1)
        result = result[0] if self.single else result
        if isinstance(self.given, np.ndarray):
            return result.astype(self.given.dtype)
        return self.given.new_tensor(result)


def read_prompt(input_ids: Any, attention_mask: Any = None) -> Prompt:
    """Tokens as the caller has them.

    Args:
        input_ids: [batch, prompt] or [prompt]: an array, a tensor, or lists of one or of several lengths.
        attention_mask: [batch, prompt], 1 for tokens and 0 for padding; all tokens if not given.

    Raises:
        InputError: they are no tokens, or the mask does not fit.
    """
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


def check_prompt(prompt: Prompt, spec: DecoderSpec, count: int) -> None:
    """Refuse tokens that the model cannot continue by ``count`` others.

    Raises:
        InputError: padding on the right, tokens beyond the vocabulary, or more than the context holds.
    """
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
