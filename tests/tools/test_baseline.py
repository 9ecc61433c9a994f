"""The baseline decoder computes what the eager model does, under the names that every side of a benchmark has."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from burnish.compiler.benchmark.onnx_side import OnnxSide
from burnish.compiler.benchmark.worker import made
from burnish.tools.baseline import export_decoder
from burnish.tools.perplexity import eager_logits, file_logits, perplexity


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, pad_token_id=None,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def test_export_agrees_with_eager(model: torch.nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.onnx"
    assert export_decoder(model, path)["export_seconds"] > 0
    baseline = OnnxSide(path, threads=1)
    assert list(baseline.inputs)[:3] == ["input_ids", "attention_mask", "position_ids"]
    assert baseline.past == ["past_key_values.0.key", "past_key_values.0.value"]
    assert baseline.outputs == ["logits", "present.0.key", "present.0.value"]
    assert baseline.vocabulary == 64

    (tmp_path / "one_model.py").write_text("model = None\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(__import__("one_model"), "model", lambda: model)
    eager = made("one_model:model", 1)
    assert eager.is_decoder
    ids = np.random.default_rng(0).integers(0, 64, (1, 12))
    (ours, our_cache), (theirs, their_cache) = baseline.start(ids[:, :9]), eager.start(ids[:, :9])
    for step in range(9, 13):
        # The same float32 arithmetic in another order: a few units in the last place of values near 1.
        np.testing.assert_allclose(baseline.numpy(ours), eager.numpy(theirs), atol=2e-6)
        if step < 12:
            token = ids[:, step : step + 1]
            ours, our_cache = baseline.forward(token, our_cache, step)
            theirs, their_cache = eager.forward(token, their_cache, step)

    windows = np.random.default_rng(1).integers(0, 64, (2, 20))
    assert perplexity(file_logits(path), windows) == pytest.approx(perplexity(eager_logits(model), windows), rel=1e-5)


def test_copied_cache_is_not_extended(model: torch.nn.Module, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "another_model.py").write_text("model = None\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(__import__("another_model"), "model", lambda: model)
    eager = made("another_model:model", None)
    _, cache = eager.start(np.array([[1, 2, 3]]))
    eager.forward(np.array([[4]]), eager.copy_cache(cache), 3)
    assert cache.get_seq_length() == 3
    eager.forward(np.array([[4]]), cache, 3)
    assert cache.get_seq_length() == 4
