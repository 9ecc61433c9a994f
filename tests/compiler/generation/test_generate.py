"""Greedy tokens against transformers, sampling, the forms of prompts, and wrong arguments."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from burnish.backends.onnxruntime.lower import lower
from burnish.backends.onnxruntime.session import Session
from burnish.backends.onnxruntime.writer import write
from burnish.compiler.generation.generate import Sampler, generate, tokens
from burnish.frontends.gguf import import_gguf
from burnish.frontends.huggingface import import_folder
from burnish.ir.errors import InputError, OptionError, UnsupportedError
from burnish.ir.signature import DecoderSpec
from transformers import LlamaConfig, LlamaForCausalLM


@dataclass
class Decoder:
    session: Session
    decoder: DecoderSpec | None
    eager: Any = None
    generation: Session | None = None
    prefill: Session | None = None
    tokenizer: Any = None


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, bos_token_id=1, eos_token_id=2, pad_token_id=0,
        initializer_range=0.5,
    )  # fmt: skip
    eager = LlamaForCausalLM(config).eval()
    folder = tmp_path_factory.mktemp("llama")
    eager.save_pretrained(folder)
    imported = import_folder(folder)
    lower(imported.graph)
    write(imported.graph, folder / "model.onnx")
    return Decoder(Session(folder / "model.onnx"), imported.decoder, eager)


def padded(batch: int = 3, length: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(2)
    ids, mask = torch.randint(3, 97, (batch, length)), torch.ones(batch, length, dtype=torch.int64)
    for row in range(batch):
        ids[row, :row], mask[row, :row] = 0, 0
    return ids, mask


def test_greedy_equals_transformers_for_a_batch_padded_on_the_left(model: Decoder) -> None:
    ids, mask = padded()
    wanted = model.eager.generate(ids, attention_mask=mask, max_new_tokens=20, do_sample=False)
    got = generate(model, ids, mask, max_new_tokens=20, pad_token=0)
    assert got.dtype == torch.int64 and torch.equal(got, wanted)
    assert len({int(token) for token in got[:, 7:].flatten()}) > 5  # or the comparison would say little


def test_rows_end_at_their_end_token(model: Decoder) -> None:
    ids, mask = padded()
    free = generate(model, ids, mask, max_new_tokens=12, end_tokens=())
    end = int(free[0, 10])
    wanted = model.eager.generate(
        ids, attention_mask=mask, max_new_tokens=12, do_sample=False, eos_token_id=end, pad_token_id=0
    )
    got = generate(model, ids, mask, max_new_tokens=12, end_tokens=end, pad_token=0)
    assert torch.equal(got, wanted) and (got[0, 11:] == 0).all()


def test_generation_stops_when_every_row_has_ended(model: Decoder) -> None:
    prompt = np.array([[5, 6, 7]])
    free = generate(model, prompt, max_new_tokens=6, end_tokens=())
    steps = []
    got = generate(model, prompt, max_new_tokens=50, end_tokens=[int(free[0, 4])], stream=steps.append)
    assert len(steps) == got.shape[1] - 3 <= 2


def test_each_form_of_prompt_comes_back_in_its_form(model: Decoder) -> None:
    rows = [[5, 6, 7], [8, 9, 10, 11, 12]]
    lists = generate(model, rows, max_new_tokens=4, end_tokens=())
    alone = [generate(model, row, max_new_tokens=4, end_tokens=()) for row in rows]
    assert lists == alone and [len(row) for row in lists] == [7, 9] and lists[0][:3] == rows[0]
    array = generate(model, np.array([rows[0]], dtype=np.int32), max_new_tokens=4, end_tokens=())
    assert array.dtype == np.int32 and array.tolist() == [lists[0]]
    single = generate(model, torch.tensor(rows[0]), max_new_tokens=4, end_tokens=())
    assert isinstance(single, torch.Tensor) and single.tolist() == lists[0]
    assert generate(model, rows[0], max_new_tokens=0) == rows[0]


def test_tokens_come_one_by_one(model: Decoder) -> None:
    stream = tokens(model, [[5, 6, 7]], max_new_tokens=3, end_tokens=())
    first = next(stream)
    assert first.shape == (1,) and len(list(stream)) == 2


def test_sampling_repeats_with_its_seed_and_varies_without(model: Decoder) -> None:
    def draw(seed: int) -> list[int]:
        return generate(model, [5, 6, 7], max_new_tokens=16, temperature=1.5, seed=seed, end_tokens=())

    assert draw(1) == draw(1) and len({tuple(draw(seed)) for seed in range(6)}) > 1


def test_the_sampler_follows_the_probabilities() -> None:
    logits = np.log(np.array([[0.5, 0.3, 0.15, 0.05]], dtype=np.float32))

    def shares(**options: Any) -> dict[int, float]:
        sampler = Sampler(options.pop("temperature", 1.0), options.get("top_k"), options.get("top_p"), 0)
        counts = Counter(int(sampler(logits)[0]) for _ in range(4000))
        return {token: count / 4000 for token, count in counts.items()}

    full = shares()
    for token, share in enumerate((0.5, 0.3, 0.15, 0.05)):
        assert abs(full[token] - share) < 0.03  # four deviations of 4,000 draws
    assert set(shares(top_k=2)) == {0, 1} and abs(shares(top_k=2)[0] - 0.625) < 0.03
    assert set(shares(top_p=0.6)) == {0, 1} and set(shares(top_p=0.5)) == {0}
    assert shares(temperature=0.25)[0] > 0.85
    assert Sampler(0.0, None, None, None)(logits).tolist() == [0]


@pytest.mark.parametrize(
    "options",
    [
        dict(temperature=-1.0),
        dict(temperature=float("nan")),
        dict(temperature=1.0, top_k=0),
        dict(temperature=1.0, top_p=1.5),
        dict(top_k=5),
        dict(max_new_tokens=-1),
    ],
)
def test_options_out_of_range(model: Decoder, options: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        generate(model, [5, 6], **options)


def test_prompts_that_do_not_fit(model: Decoder) -> None:
    with pytest.raises(InputError, match="padded on the right"):
        generate(model, np.array([[5, 6, 0]]), np.array([[1, 1, 0]]))
    with pytest.raises(InputError, match="not in the vocabulary"):
        generate(model, [5, 97])
    with pytest.raises(InputError, match="context of 64"):
        generate(model, [5, 6], max_new_tokens=63)
    with pytest.raises(InputError, match="at least one token"):
        generate(model, np.zeros((1, 0), dtype=np.int64))
    with pytest.raises(InputError, match="element type float"):
        generate(model, np.array([[0.5]]))
    with pytest.raises(InputError, match="attention_mask has shape"):
        generate(model, np.array([[5, 6]]), np.array([[1]]))
    with pytest.raises(UnsupportedError, match="no decoder"):
        generate(replace(model, decoder=None), [5])


def test_the_real_model_says_what_transformers_says(smollm2: Path, tmp_path: Path) -> None:
    imported = import_gguf(smollm2)
    lower(imported.graph)
    write(imported.graph, tmp_path / "model.onnx")
    decoder = Decoder(Session(tmp_path / "model.onnx"), imported.decoder)
    from transformers import AutoModelForCausalLM

    eager = AutoModelForCausalLM.from_pretrained(smollm2.parent, gguf_file=smollm2.name, dtype=torch.float32).eval()
    ids, mask = torch.tensor([[0, 0, 1, 504, 4384, 314], [1, 30, 40, 50, 60, 70]]), torch.ones(2, 6, dtype=torch.int64)
    mask[0, :2] = 0
    wanted = eager.generate(ids, attention_mask=mask, max_new_tokens=16, do_sample=False)
    assert torch.equal(generate(decoder, ids, mask, max_new_tokens=16), wanted)
    with torch.no_grad():
        logits = eager(ids, attention_mask=mask).logits[1]
    past = {s.name: np.zeros((1, 3, 0, 64), np.float32) for s in decoder.session.inputs if s.name.startswith("past")}
    feeds = {"input_ids": ids[1:], "attention_mask": mask[1:], "position_ids": torch.arange(6)[None]} | past
    got = decoder.session.run(feeds)[0][0]
    assert float((got - logits).abs().max() / logits.abs().max()) < 1e-4
