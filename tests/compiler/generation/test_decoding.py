"""The cache in place: the same tokens as the general graph, rewinding, rows, growth, and a graph for prompts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import burnish
import numpy as np
import onnxruntime
import pytest
import torch
from burnish.compiler.artifact import GENERATION_FILE, PREFILL_FILE
from burnish.compiler.generation.decoding import CHUNK, Decoding
from burnish.ir.errors import InputError, OptionError, UnsupportedError
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

CONTEXT = 512


def save(folder: Path, window: int | None = None) -> Path:
    torch.manual_seed(1)
    sizes: dict[str, Any] = {
        "vocab_size": 97, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": CONTEXT, "bos_token_id": 1,
        "eos_token_id": 2, "pad_token_id": 0, "initializer_range": 0.1,
    }  # fmt: skip
    model = (
        LlamaForCausalLM(LlamaConfig(**sizes))
        if window is None
        else MistralForCausalLM(MistralConfig(**sizes, sliding_window=window))
    )
    model.eval().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def model(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    saved = tmp_path_factory.mktemp("saved") / "model"
    burnish.export(folder, saved, cache=False)
    return burnish.load(saved)


def ids(count: int, rows: int = 1) -> np.ndarray:
    return np.random.default_rng(3).integers(3, 97, (rows, count))


def ones(count: int, rows: int = 1) -> np.ndarray:
    return np.ones((rows, count), np.int64)


def all_logits(model: Any, tokens: np.ndarray) -> np.ndarray:
    """Of the general graph, in one pass."""
    decoding = Decoding(model, len(tokens), padded=True)
    assert not decoding.in_place
    return np.array(decoding.step(tokens, ones(tokens.shape[1], len(tokens)), every=True))


# The same float32 sums in another order: a few units in the last place of logits below 10.
CLOSE = {"rtol": 1e-4, "atol": 2e-5}


def test_the_folder_holds_both_graphs_on_one_file_of_weights(model: Any) -> None:
    files = {item.name: item.stat().st_size for item in model.path.parent.iterdir()}
    assert GENERATION_FILE in files and GENERATION_FILE in model.manifest.companions
    assert files[GENERATION_FILE] < 0.1 * files["model.onnx.data"]
    said = [remark.reason for remark in model.report.backend]
    assert any("GroupQueryAttention, the cache written in place" in reason for reason in said)


@pytest.mark.parametrize("chunks", [[40], [17, 1, 22], [1] * 40])
def test_chunks_give_what_one_pass_gives(model: Any, chunks: list[int]) -> None:
    tokens, start = ids(40), 0
    wanted = all_logits(model, tokens)
    decoding = Decoding(model, 1, capacity=40)
    assert decoding.in_place
    for count in chunks:
        got = decoding.step(tokens[:, start : start + count], ones(start + count), every=True)
        np.testing.assert_allclose(got, wanted[:, start : start + count], **CLOSE)
        start += count
    assert decoding.length == 40


def test_a_long_prompt_is_read_in_pieces(tmp_path: Path) -> None:
    burnish.export(save(tmp_path / "llama"), tmp_path / "out", cache=False)
    model = burnish.load(tmp_path / "out")
    tokens = ids(500)
    assert tokens.shape[1] > CHUNK
    wanted = all_logits(model, tokens)
    decoding = Decoding(model, 1)
    np.testing.assert_allclose(decoding.step(tokens, ones(500), every=True), wanted, **CLOSE)
    decoding.rewind(20)
    np.testing.assert_allclose(decoding.step(tokens[:, 20:], ones(500)), wanted[:, -1], **CLOSE)
    assert decoding.length == 500 and np.array_equal(decoding.tokens, tokens)


def test_sessions_leave_the_environment_alone(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ORT_GQA_DISABLE_FLASH_ATTENTION", raising=False)
    before = dict(os.environ)
    burnish.load(model.path.parent).open()
    assert dict(os.environ) == before


def test_only_the_last_position_is_computed_unless_asked(model: Any) -> None:
    tokens = ids(9)
    wanted = all_logits(model, tokens)
    assert Decoding(model, 1).step(tokens, ones(9)).shape == (1, 97)
    np.testing.assert_allclose(Decoding(model, 1).step(tokens, ones(9)), wanted[:, -1], **CLOSE)


def test_the_buffer_grows(model: Any) -> None:
    tokens = ids(200)
    wanted = all_logits(model, tokens)
    decoding = Decoding(model, 1, capacity=1)
    small = decoding.bytes
    for start in range(0, 200, 20):
        got = decoding.step(tokens[:, start : start + 20], ones(start + 20))
    np.testing.assert_allclose(got, wanted[:, -1], **CLOSE)
    # Keys and values of 2 layers, 2 heads of 64 float32 for each token of the buffer.
    assert small == 64 * 2 * 2 * 2 * 64 * 4 and decoding.bytes == 4 * small


@pytest.mark.parametrize("padded", [False, True])
def test_rewind_forgets(model: Any, padded: bool) -> None:
    tokens = ids(12)
    wanted = all_logits(model, tokens)
    decoding = Decoding(model, 1, padded=padded)
    decoding.step(tokens[:, :8], ones(8))
    decoding.step(ids(4) + 1, ones(12))
    decoding.rewind(8)
    np.testing.assert_allclose(decoding.step(tokens[:, 8:], ones(12)), wanted[:, -1], **CLOSE)
    decoding.reset()
    assert decoding.length == 0
    np.testing.assert_allclose(decoding.step(tokens, ones(12)), wanted[:, -1], **CLOSE)
    with pytest.raises(OptionError, match="13 tokens cannot be kept of 12"):
        decoding.rewind(13)


@pytest.mark.parametrize("padded", [False, True])
def test_rows_are_chosen_and_go_on_apart(model: Any, padded: bool) -> None:
    first, more = ids(6, rows=2), ids(3, rows=3) + 1
    decoding = Decoding(model, 2, padded=padded)
    decoding.step(first, ones(6, 2))
    decoding.select([1, 1, 0])
    got = decoding.step(more, ones(9, 3), every=True)  # several tokens of several rows behind a cache
    wanted = all_logits(model, np.concatenate([first[[1, 1, 0]], more], axis=1))
    np.testing.assert_allclose(got, wanted[:, 6:], **CLOSE)


def test_padding_is_refused_in_place_and_masks_must_fit(model: Any) -> None:
    mask = ones(4)
    mask[0, 0] = 0
    with pytest.raises(InputError, match="has padding"):
        Decoding(model, 1).step(ids(4), mask)
    with pytest.raises(InputError, match=r"shape \(1, 5\) after 0 tokens and 4 new ones"):
        Decoding(model, 1).step(ids(4), ones(5))


def test_padded_batches_equal_rows_alone(model: Any) -> None:
    rows = [[5, 6, 7, 8, 9], [11, 12], [21, 22, 23]]
    together = model.generate(rows, max_new_tokens=8, end_tokens=())
    for row, got in zip(rows, together, strict=True):
        assert got == model.generate(row, max_new_tokens=8, end_tokens=())


def test_a_window_is_found_in_the_mask(tmp_path: Path) -> None:
    burnish.export(save(tmp_path / "mistral", window=8), tmp_path / "out", cache=False)
    model = burnish.load(tmp_path / "out")
    assert any("over a window of 8 tokens" in remark.reason for remark in model.report.backend)
    tokens = ids(30)
    np.testing.assert_allclose(
        Decoding(model, 1).step(tokens, ones(30), every=True), all_logits(model, tokens), **CLOSE
    )


def test_a_window_keeps_the_cache_small(tmp_path: Path) -> None:
    burnish.export(save(tmp_path / "mistral", window=24), tmp_path / "out", cache=False)
    model = burnish.load(tmp_path / "out")
    tokens = ids(300)
    wanted = all_logits(model, tokens)
    decoding, start = Decoding(model, 1, capacity=300), 0
    size = decoding.bytes
    for chunk in (40, *[1] * 60, 50, *[1] * 50, 90, 10):
        got = decoding.step(tokens[:, start : start + chunk], ones(start + chunk), every=True)
        np.testing.assert_allclose(got, wanted[:, start : start + chunk], **CLOSE)
        start += chunk
    assert start == 300 and decoding.bytes <= 2 * size < 300 * size / 64
    with pytest.raises(OptionError, match="forgotten"):
        decoding.rewind(100)
    decoding.rewind(295)
    np.testing.assert_allclose(decoding.step(tokens[:, 295:], ones(300)), wanted[:, -1], **CLOSE)
    assert decoding.reuse(tokens[:, :200]) == 0  # too far back: from the beginning
    np.testing.assert_allclose(decoding.step(tokens[:, :200], ones(200)), wanted[:, 199], **CLOSE)


def test_heads_that_the_kernel_does_not_turn(tmp_path: Path) -> None:
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, eos_token_id=None,
    )  # fmt: skip
    LlamaForCausalLM(config).eval().save_pretrained(tmp_path)
    model = burnish.compile(tmp_path, cache=False)
    assert any("heads of multiples of 16, not of 8" in remark.reason for remark in model.report.backend)
    assert len(model.generate([5, 6, 7], max_new_tokens=5)) == 8


def test_a_single_file_generates_with_the_general_graph(folder: Path, tmp_path: Path, model: Any) -> None:
    burnish.export(folder, tmp_path / "m.onnx", cache=False)
    single = burnish.load(tmp_path / "m.onnx")
    assert single.generation is None and not Decoding(single, 1).in_place
    assert single.generate([5, 6, 7], max_new_tokens=8) == model.generate([5, 6, 7], max_new_tokens=8)


def test_a_graph_for_prompts_on_the_same_cache(folder: Path, tmp_path: Path, model: Any) -> None:
    report = burnish.export(folder, tmp_path / "out", passes="w8a16", prefill="default", cache=False)
    assert any("prompts run canonicalize,recover" in remark.reason for remark in report.backend)
    both = burnish.load(tmp_path / "out")
    assert PREFILL_FILE in both.manifest.companions and both.prefill is not None
    tokens = ids(30)
    decoding = Decoding(both, 1)
    # The prompt is computed in float32, as by the model without quantization ...
    np.testing.assert_allclose(decoding.step(tokens[:, :29], ones(29)), all_logits(model, tokens)[:, -2], **CLOSE)
    # ... and a token behind it with 8-bit weights: close, not equal.
    error = np.abs(decoding.step(tokens[:, 29:], ones(30)) - all_logits(model, tokens)[:, -1]).max()
    assert 1e-4 < error < 0.05 * np.abs(all_logits(model, tokens)).max()


def test_prefill_that_cannot_be(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="does not fit into one file"):
        burnish.export(folder, tmp_path / "m.onnx", prefill="w8a8")
    module = torch.nn.Linear(4, 4).eval()
    with pytest.raises(UnsupportedError, match="graph of their own"):
        burnish.export(module, tmp_path / "out", torch.ones(1, 4), prefill="default", cache=False)
    assert not list(tmp_path.iterdir())


def test_the_graph_runs_as_other_tools_drive_it(model: Any) -> None:
    """``input_ids``, ``attention_mask`` and a shared buffer are all that it asks for."""
    session = onnxruntime.InferenceSession(str(model.path.with_name(GENERATION_FILE)))
    names = [item.name for item in session.get_inputs()]
    assert names[:2] == ["input_ids", "attention_mask"] and all(n.startswith("past_key_values.") for n in names[2:])
