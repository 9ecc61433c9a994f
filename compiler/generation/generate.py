"""Continuing sequences of tokens with a compiled decoder. Imports neither torch nor onnx.

What a model remembers of a sequence is in :mod:`.decoding`; of the logits only the last position is read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...ir.errors import InputError, OptionError, UnsupportedError, nearest
from ...ir.signature import DecoderSpec
from .beam import beam_search
from .decoding import Decodes, Decoding
from .prompt import Prompt, check_prompt, read_prompt
from .sampling import Sampler
from .speculate import Draft, PromptLookup, Proposer

__all__ = ["Continuation", "GenerationOptions", "Sampler", "generate", "tokens"]
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class GenerationOptions:
    """How to continue; the names are those of ``transformers`` where it has them.

    Attributes:
        max_new_tokens: most tokens to add.
        temperature: 0 takes the likeliest token; above 0 samples, flatter as it grows.
        top_k: sample among this many likeliest tokens.
        top_p: sample among the likeliest tokens that together have this probability.
        repetition_penalty: above 1 makes tokens that were there before less likely (CTRL).
        seed: of the sampler; the same seed gives the same tokens.
        end_tokens: ids that end a row; those of the model's generation configuration if not given.
        pad_token: what fills a row after its end; the first end token if not given.
        stop_strings: a row ends when its new text holds one of these; needs the model's tokenizer.
        num_return_sequences: continuations of each row; the prompt is read once for all of them.
        num_beams: partial continuations kept by beam search; 1 does without.
        length_penalty: beam search divides log probabilities by length to this power.
        prompt_lookup_num_tokens: most tokens to guess from repetitions in the text, checked in one step; one row only.
        assistant_model: a smaller decoder that guesses; one row only.
        num_assistant_tokens: most tokens that it guesses at a time.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float = 1.0
    seed: int | None = None
    end_tokens: int | Iterable[int] | None = None
    pad_token: int | None = None
    stop_strings: str | Sequence[str] | None = None
    num_return_sequences: int = 1
    num_beams: int = 1
    length_penalty: float = 1.0
    prompt_lookup_num_tokens: int | None = None
    assistant_model: Any = None
    num_assistant_tokens: int = 8

    def __post_init__(self) -> None:
        _number("max_new_tokens", self.max_new_tokens, 0)
        _number("num_return_sequences", self.num_return_sequences, 1)
        _number("num_beams", self.num_beams, 1)
        if self.num_beams > 1 and self.temperature:
            raise OptionError("beam search takes the likeliest tokens", fix="set temperature to 0, or num_beams to 1")
        if self.num_beams > 1 and self.stop_strings:
            raise OptionError("beam search knows no stop_strings", fix="leave one of the two out")
        if self.num_return_sequences > max(self.num_beams, 1) and not self.temperature:
            raise OptionError(
                f"num_return_sequences={self.num_return_sequences} would all be the same",
                fix="set temperature above 0, or num_beams to as many",
            )
        guessing = self.prompt_lookup_num_tokens is not None or self.assistant_model is not None
        if self.prompt_lookup_num_tokens is not None and self.assistant_model is not None:
            raise OptionError("two ways to guess ahead", fix="pass prompt_lookup_num_tokens or assistant_model")
        if guessing and (self.num_beams > 1 or self.num_return_sequences > 1):
            raise OptionError("guessing ahead works for one continuation", fix="leave num_beams and the like out")

    @classmethod
    def of(cls, options: dict[str, Any]) -> GenerationOptions:
        """From names and values.

        Raises:
            OptionError: a name does not exist, or a value makes no sense.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        for name in options:
            if name not in names:
                raise OptionError(f"generate() has no option {name!r}", fix=nearest(name, names))
        return cls(**options)


def _number(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise OptionError(f"{name}={value!r} is not a number of {least} or more", fix=f"pass {least} or more")


def generate(
    model: Decodes,
    input_ids: Any,
    attention_mask: Any = None,
    *,
    stream: Callable[[Array], object] | None = None,
    cache: Decoding | None = None,
    **options: Any,
) -> Any:
    """Continue ``input_ids`` until every row has an end token or ``max_new_tokens`` were added.

    Args:
        model: a compiled decoder.
        input_ids: tokens, [batch, prompt] or [prompt]: a NumPy array, a torch tensor, or lists. Rows of lists may
            differ in length; rows of an array are padded on the left and need ``attention_mask``.
        attention_mask: [batch, prompt], 1 for tokens and 0 for padding; all tokens if not given.
        stream: called with the new tokens [batch] after every step.
        cache: what the model remembers of an earlier call, from :meth:`CompiledModel.decoding`; of the prompt only what
            does not stand in it is read.
        options: the fields of :class:`GenerationOptions`.

    Returns:
        Prompt and new tokens in the form of ``input_ids``: arrays and tensors [batch, prompt + new], rows that ended
        early filled with ``pad_token``; lists without padding, each up to its own end. With several
        ``num_return_sequences`` those of one row stand behind each other.

    Raises:
        InputError: the tokens or the mask do not fit the model.
        OptionError: an option has a value that makes no sense.
        UnsupportedError: the model is no decoder.
    """
    prompt = read_prompt(input_ids, attention_mask)
    run = Continuation(model, prompt, GenerationOptions.of(options), cache)
    if run.options.num_beams > 1:
        if stream is not None:
            raise OptionError("beam search knows its tokens only at the end", fix="leave stream or num_beams out")
        return prompt.repeated(run.options.num_return_sequences).answer(*run.search())
    new = []
    for step in run:
        new.append(step)
        if stream is not None:
            stream(step)
    rows = prompt.repeated(run.options.num_return_sequences)
    added = np.stack(new, axis=1) if new else np.zeros((len(rows.ids), 0), dtype=np.int64)
    return rows.answer(added, run.lengths)


def tokens(
    model: Decodes, input_ids: Any, attention_mask: Any = None, *, cache: Decoding | None = None, **options: Any
) -> Iterator[Array]:
    """New tokens [batch], one step after the other, as they are made; arguments as for :func:`generate`.

    Raises:
        InputError: the tokens or the mask do not fit the model.
        OptionError: an option has a value that makes no sense.
        UnsupportedError: the model is no decoder.
    """
    run = Continuation(model, read_prompt(input_ids, attention_mask), GenerationOptions.of(options), cache)
    if run.options.num_beams > 1:
        raise OptionError("beam search knows its tokens only at the end", fix="use generate()")
    return iter(run)


class Continuation:
    """One prompt being continued; iterated once, it gives the new tokens [rows] of each step.

    Args:
        model: a compiled decoder.
        prompt: what to continue.
        options: how.
        cache: of an earlier call.

    Attributes:
        options: how.
        lengths: new tokens of each row that count, [rows]; up to its end.
        steps: how often the model ran so far.

    Raises:
        InputError: the tokens do not fit the model.
        OptionError: an option does not fit them.
        UnsupportedError: the model is no decoder.
    """

    def __init__(
        self, model: Decodes, prompt: Prompt, options: GenerationOptions, cache: Decoding | None = None
    ) -> None:
        spec = _decoder(model)
        self.options = options
        self._model, self._prompt, self._cache = model, prompt, cache
        self._ends = _ends(spec, options.end_tokens)
        self._pad = options.pad_token if options.pad_token is not None else self._ends[0] if self._ends else 0
        self._choose = Sampler(
            options.temperature, options.top_k, options.top_p, options.seed, options.repetition_penalty
        )
        check_prompt(prompt, spec, options.max_new_tokens)
        self._stops = _stops(model, options.stop_strings)
        self._proposer = self._guesser(spec)
        self.lengths = np.zeros(len(prompt.ids) * options.num_return_sequences, np.int64)
        self.steps = 0
        if cache is not None and (cache.batch != len(prompt.ids) or not prompt.mask.all()):
            raise InputError(
                f"the cache is for {cache.batch} rows without padding",
                where="cache",
                fix=f"make one with decoding(batch={len(prompt.ids)}), or pass none",
            )
        if cache is not None and (options.num_return_sequences > 1 or options.num_beams > 1):
            raise OptionError("a cache goes with one continuation of each row", fix="leave the cache out")

    def _guesser(self, spec: DecoderSpec) -> Proposer | None:
        options = self.options
        if options.prompt_lookup_num_tokens is None and options.assistant_model is None:
            return None
        if len(self._prompt.ids) > 1:
            raise OptionError("guessing ahead works for one row", fix="pass one prompt at a time")
        if options.prompt_lookup_num_tokens is not None:
            return PromptLookup(options.prompt_lookup_num_tokens)
        return Draft(options.assistant_model, spec.vocabulary, options.num_assistant_tokens)

    def __iter__(self) -> Iterator[Array]:
        options, ids, mask = self.options, self._prompt.ids, self._prompt.mask
        if options.max_new_tokens == 0:
            return
        decoding, logits = self._read_prompt()
        if options.num_return_sequences > 1:
            rows = np.repeat(np.arange(len(ids)), options.num_return_sequences)
            decoding.select(rows)
            ids, mask, logits = ids[rows], mask[rows], logits[rows]
        # What the penalty looks at, and what a proposer continues; filled as tokens come.
        seen = np.concatenate([ids, np.zeros((len(ids), options.max_new_tokens), np.int64)], axis=1)
        first = np.where(mask.any(axis=1), mask.argmax(axis=1), 0)
        self._running = np.ones(len(ids), bool)
        self._length = length = ids.shape[1]
        end = length + options.max_new_tokens
        chosen = self._choose(logits, [row[start:length] for row, start in zip(seen, first, strict=True)])
        while True:
            yield self._keep(chosen, seen)
            if self._length == end or not self._running.any():
                return
            fed = seen[:, self._length - 1 : self._length]
            if self._proposer is not None:
                taken = self._guess(self._proposer, decoding, seen[0], end)
                for token in taken[:-1]:
                    yield self._keep(np.array([token]), seen)
                    if not self._running.any():
                        return
                chosen = np.array(taken[-1:])
                continue
            mask = np.concatenate([mask, np.ones_like(fed)], axis=1)
            logits = decoding.step(fed, mask)
            self.steps += 1
            chosen = self._choose(logits, [row[s : self._length] for row, s in zip(seen, first, strict=True)])

    def _read_prompt(self) -> tuple[Decoding, Array]:
        ids, mask = self._prompt.ids, self._prompt.mask
        fed, decoding = 0, self._cache
        if decoding is None:
            capacity = ids.shape[1] + self.options.max_new_tokens
            decoding = Decoding(self._model, len(ids), capacity, padded=not mask.all())
        else:
            fed = decoding.reuse(ids)
        self.steps += 1
        return decoding, decoding.step(ids[:, fed:], mask)

    def _keep(self, chosen: Array, seen: Array) -> Array:
        chosen = np.where(self._running, chosen, self._pad)
        seen[:, self._length] = chosen
        self._length += 1
        self.lengths += self._running
        self._running &= ~np.isin(chosen, self._ends)
        if (stop := self._stops) is not None:
            for row in np.flatnonzero(self._running):
                self._running[row] = not stop(seen[row, self._prompt.ids.shape[1] : self._length])
        return chosen

    def _guess(self, proposer: Proposer, decoding: Decoding, seen: Array, end: int) -> list[int]:
        """Tokens that follow, one at least, of which the model has read all but the last."""
        text = seen[: self._length]
        guesses = proposer.propose(text, end - self._length - 1)
        ids = np.array([[seen[self._length - 1], *guesses]])
        before = decoding.length
        logits = decoding.step(ids, np.ones((1, before + ids.shape[1]), np.int64), every=bool(guesses))
        self.steps += 1
        taken = self._choose.verify(logits[0] if guesses else logits, guesses, text)
        proposer.learn(len(guesses), len(taken) - 1)
        decoding.rewind(before + len(taken))
        return taken

    def search(self) -> tuple[Array, Array]:
        """The result of beam search: tokens [rows, new] and their lengths."""
        options, ids, mask = self.options, self._prompt.ids, self._prompt.mask
        if options.max_new_tokens == 0:
            return np.zeros((len(self.lengths), 0), np.int64), self.lengths
        capacity = ids.shape[1] + options.max_new_tokens
        decoding = Decoding(self._model, len(ids), capacity, padded=not mask.all())
        added, self.lengths = beam_search(
            decoding,
            ids,
            mask,
            beams=options.num_beams,
            count=options.max_new_tokens,
            ends=self._ends,
            pad=self._pad,
            length_penalty=options.length_penalty,
            returned=options.num_return_sequences,
            sampler=self._choose,
        )
        return added, self.lengths


def _stops(model: Decodes, strings: str | Sequence[str] | None) -> Callable[[Array], bool] | None:
    """Whether new tokens [length] hold one of the strings."""
    if not strings:
        return None
    wanted = (strings,) if isinstance(strings, str) else tuple(strings)
    if not all(isinstance(text, str) and text for text in wanted):
        raise OptionError(
            f"stop_strings={strings!r} holds something else than text", fix="pass strings of a letter or more"
        )
    tokenizer = model.tokenizer
    # A token is a byte or more; some tokenizers drop a space in front of the first, hence the one before.
    longest = max(len(text.encode()) for text in wanted) + 1

    def stop(new: Array) -> bool:
        text = tokenizer.decode([int(token) for token in new[-longest:]])
        return any(end in text for end in wanted)

    return stop


def _decoder(model: Decodes) -> DecoderSpec:
    if model.decoder is None:
        raise UnsupportedError("the model is no decoder with a KV cache", fix="compile a causal language model")
    return model.decoder


def _ends(spec: DecoderSpec, given: int | Iterable[int] | None) -> tuple[int, ...]:
    if given is None:
        return spec.end_tokens
    return (given,) if isinstance(given, int) else tuple(given)
