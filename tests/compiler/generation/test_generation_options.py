"""Parallel samples, beams against transformers, guesses ahead, caches that are used again, stop strings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import burnish
import numpy as np
import pytest
import torch
from burnish.compiler.generation.generate import Continuation, GenerationOptions, generate, tokens
from burnish.compiler.generation.prompt import read_prompt
from burnish.compiler.generation.speculate import PromptLookup
from burnish.ir.errors import ArtifactError, InputError, OptionError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

SIZES: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    "initializer_range": 0.3,
}  # fmt: skip


class Model:
    """A compiled random Llama, and the eager one."""

    def __init__(self, folder: Path, seed: int, vocabulary: int = 97, forgetful: bool = False) -> None:
        torch.manual_seed(seed)
        self.eager = LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, **SIZES)).eval()
        for name, parameter in self.eager.named_parameters():
            if forgetful and ("o_proj" in name or "down_proj" in name):
                torch.nn.init.zeros_(parameter)
        self.eager.save_pretrained(folder)
        letters(folder, vocabulary)
        self.compiled = burnish.compile(folder, cache=False)


def letters(folder: Path, vocabulary: int) -> None:
    """A tokenizer of one character a token."""
    words = {chr(33 + index): index for index in range(vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="!"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.save(str(folder / "tokenizer.json"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(tmp_path_factory.mktemp("llama"), 1)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(tmp_path_factory.mktemp("draft"), 2)


def prompt(rows: int = 1, length: int = 9) -> np.ndarray:
    return np.random.default_rng(5).integers(3, 97, (rows, length))


def run(model: Model, ids: Any, **options: Any) -> tuple[list[int], Continuation]:
    it = Continuation(model.compiled, read_prompt(ids), GenerationOptions.of({"end_tokens": (), **options}))
    return [int(step[0]) for step in it], it


@pytest.mark.parametrize("beams", [2, 5])
@pytest.mark.parametrize("penalty", [1.0, 0.0, 2.0])
@pytest.mark.parametrize("rows", [1, 3])
def test_beams_are_those_of_transformers(model: Model, beams: int, penalty: float, rows: int) -> None:
    ids = torch.tensor(prompt(rows))
    free = generate(model.compiled, ids, max_new_tokens=12, num_beams=beams, end_tokens=())
    end = int(free[0, 13])  # one that comes up, so that some continuations end early
    options: dict[str, Any] = {"num_beams": beams, "length_penalty": penalty, "max_new_tokens": 12}
    wanted = model.eager.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, eos_token_id=end, pad_token_id=3,
        num_return_sequences=2, early_stopping=False, **options,
    )  # fmt: skip
    got = generate(model.compiled, ids, end_tokens=end, pad_token=3, num_return_sequences=2, **options)
    assert torch.equal(got, wanted)


def test_beams_of_rows_of_several_lengths(model: Model) -> None:
    rows = [prompt()[0, :4].tolist(), prompt()[0].tolist()]
    together = generate(model.compiled, rows, max_new_tokens=8, num_beams=3)
    assert together == [generate(model.compiled, row, max_new_tokens=8, num_beams=3) for row in rows]


def test_parallel_samples_read_the_prompt_once(model: Model) -> None:
    ids = prompt(2)
    options: dict[str, Any] = {"max_new_tokens": 6, "temperature": 1.0, "seed": 3, "end_tokens": ()}
    got = generate(model.compiled, ids, num_return_sequences=3, **options)
    assert got.shape == (6, 15) and (got[:3, :9] == ids[0]).all() and (got[3:, :9] == ids[1]).all()
    assert len({tuple(row) for row in got.tolist()}) == 6
    lists = generate(model.compiled, ids[0].tolist(), num_return_sequences=2, **options)
    assert len(lists) == 2 and all(len(row) == 15 for row in lists)
    apart = generate(model.compiled, np.repeat(ids, 3, axis=0), **options)
    assert np.array_equal(apart, got)


def test_the_penalty_of_repetition_is_that_of_transformers(model: Model) -> None:
    ids = torch.tensor(prompt(2))
    wanted = model.eager.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=30, repetition_penalty=1.5,
        eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    got = generate(model.compiled, ids, max_new_tokens=30, repetition_penalty=1.5, end_tokens=())
    assert torch.equal(got, wanted)
    plain = generate(model.compiled, ids, max_new_tokens=30, end_tokens=())
    assert not torch.equal(got, plain)


def test_looked_up_tokens_change_nothing_and_save_steps(model: Model, tmp_path: Path) -> None:
    plain, slow = run(model, prompt(), max_new_tokens=120)
    guessed, quick = run(model, prompt(), max_new_tokens=120, prompt_lookup_num_tokens=8)
    assert guessed == plain and slow.steps == 120 >= quick.steps and quick.lengths.tolist() == [120]
    # What it says depends on the last token alone, so it must fall into a loop, which is what looking up is good at.
    looping = Model(tmp_path, 1, forgetful=True)
    plain, slow = run(looping, prompt(), max_new_tokens=120)
    guessed, quick = run(looping, prompt(), max_new_tokens=120, prompt_lookup_num_tokens=8)
    assert guessed == plain and quick.steps < 40


def test_a_draft_changes_nothing_and_its_twin_saves_steps(model: Model, small: Model) -> None:
    plain, _ = run(model, prompt(), max_new_tokens=60)
    stranger, slow = run(model, prompt(), max_new_tokens=60, assistant_model=small.compiled)
    twin, quick = run(model, prompt(), max_new_tokens=60, assistant_model=model.compiled)
    assert stranger == twin == plain and quick.steps < 15 < slow.steps


def test_guesses_end_where_the_text_ends(model: Model) -> None:
    plain, _ = run(model, prompt(), max_new_tokens=60)
    end = plain[41]
    wanted = generate(model.compiled, prompt(), max_new_tokens=60, end_tokens=end)
    got = generate(model.compiled, prompt(), max_new_tokens=60, end_tokens=end, assistant_model=model.compiled)
    assert np.array_equal(got, wanted) and wanted.shape[1] < 69


def test_sampling_with_guesses_repeats_with_its_seed(model: Model) -> None:
    options: dict[str, Any] = {"max_new_tokens": 40, "temperature": 0.3, "prompt_lookup_num_tokens": 6, "seed": 4}
    assert run(model, prompt(), **options)[0] == run(model, prompt(), **options)[0]


def test_looking_up_takes_the_latest_place_of_the_longest_match() -> None:
    seen = np.array([1, 2, 3, 9, 2, 3, 8, 1, 2, 3])
    assert PromptLookup(2).propose(seen, 10) == [9, 2]
    assert PromptLookup(4).propose(seen, 1) == [9]
    assert PromptLookup(4).propose(np.array([7, 2, 3, 5, 2, 3, 6, 4, 2, 3]), 10) == [6, 4, 2, 3]
    assert PromptLookup(4).propose(np.array([1, 2, 3]), 10) == [] == PromptLookup(4).propose(np.array([1]), 4)
    adaptive = PromptLookup(8)
    for kept, size in ((4, 6), (6, 8), (8, 8), (2, 7)):
        adaptive.learn(adaptive._size, kept)
        assert adaptive._size == size


def test_a_cache_is_used_again(model: Model) -> None:
    cache = model.compiled.decoding()
    ids = prompt()
    first = model.compiled.generate(ids, max_new_tokens=10, cache=cache, end_tokens=())
    assert cache.length == 18 and np.array_equal(cache.tokens, first[:, :-1])
    assert np.array_equal(first, model.compiled.generate(ids, max_new_tokens=10, end_tokens=()))
    # The text goes on, turns off in the middle, and is another one.
    for later in (np.concatenate([first, ids[:, ::-1]], axis=1), np.concatenate([first[:, :5], ids], axis=1), ids + 1):
        fed: list[int] = []
        step = cache.step
        cache.step = lambda ids, *rest, step=step, fed=fed: fed.append(ids.shape[1]) or step(ids, *rest)  # type: ignore[method-assign,func-returns-value]
        common = int(np.argmin(np.append((later[:, : cache.length] == cache.tokens[:, : later.shape[1]])[0], False)))
        again = model.compiled.generate(later, max_new_tokens=7, cache=cache, end_tokens=())
        assert np.array_equal(again, model.compiled.generate(later, max_new_tokens=7, end_tokens=()))
        assert fed[0] == later.shape[1] - min(common, later.shape[1] - 1)
        del cache.step


def test_the_same_prompt_again_feeds_one_token(model: Model) -> None:
    cache = model.compiled.decoding()
    first = model.compiled.generate(prompt(), max_new_tokens=3, cache=cache)
    assert np.array_equal(first, model.compiled.generate(prompt(), max_new_tokens=3, cache=cache))


def test_stop_strings(model: Model) -> None:
    plain = generate(model.compiled, prompt()[0].tolist(), max_new_tokens=30, end_tokens=())
    text = model.compiled.tokenizer.decode(plain[9:])
    assert len(text) == 30
    stop = text[10:12]
    place = text.index(stop)
    got = generate(
        model.compiled, prompt()[0].tolist(), max_new_tokens=30, end_tokens=(), stop_strings=["#never#", stop]
    )
    assert got == plain[: 9 + place + 2]
    rows = generate(
        model.compiled, [prompt()[0].tolist(), [5, 6, 7]], max_new_tokens=30, end_tokens=(), stop_strings=stop
    )
    assert rows[0] == got and len(rows[1]) > 3


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"temprature": 1.0}, "temperature"),
    ({"num_beams": 0}, "num_beams"),
    ({"num_beams": 2, "temperature": 1.0}, "beam search"),
    ({"num_beams": 2, "stop_strings": "a"}, "stop_strings"),
    ({"num_return_sequences": 2}, "the same"),
    ({"num_beams": 2, "num_return_sequences": 3}, "the same"),
    ({"prompt_lookup_num_tokens": 0}, "prompt_lookup_num_tokens"),
    ({"prompt_lookup_num_tokens": 4, "num_beams": 2}, "guessing ahead"),
    ({"prompt_lookup_num_tokens": 4, "assistant_model": object()}, "two ways"),
    ({"stop_strings": [""]}, "stop_strings"),
    ({"stop_strings": [3]}, "stop_strings"),
]


@pytest.mark.parametrize(("options", "said"), WRONG)
def test_options_that_make_no_sense(model: Model, options: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError) as caught:
        model.compiled.generate(prompt(), **options)
    assert said in f"{caught.value.what} {caught.value.fix}"


def test_what_does_not_go_together(model: Model, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="one row"):
        model.compiled.generate(prompt(2), prompt_lookup_num_tokens=4)
    with pytest.raises(InputError, match="cache is for 1 rows"):
        model.compiled.generate(prompt(2), cache=model.compiled.decoding())
    with pytest.raises(OptionError, match="one continuation"):
        model.compiled.generate(prompt(), cache=model.compiled.decoding(), num_beams=2)
    with pytest.raises(OptionError, match="only at the end"):
        tokens(model.compiled, prompt(), num_beams=2)
    with pytest.raises(OptionError, match="only at the end"):
        model.compiled.generate(prompt(), num_beams=2, stream=print)
    other = Model(tmp_path, 3, vocabulary=50)
    with pytest.raises(InputError, match="vocabulary of 50"):
        model.compiled.generate(prompt(), assistant_model=other.compiled)


def test_stop_strings_without_a_tokenizer(model: Model, tmp_path: Path) -> None:
    saved = model.compiled.save(tmp_path / "model")
    (saved / "tokenizer.json").unlink()
    with pytest.raises(ArtifactError, match=r"no tokenizer\.json"):
        burnish.load(saved).generate(prompt(), stop_strings="a")
