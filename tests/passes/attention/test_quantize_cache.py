"""Caches in 8 and 4 bits: what the graph and ``generate`` compute, sizes, scales, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import burnish
import numpy as np
import pytest
import torch
from burnish.compiler.generation.decoding import Decoding
from burnish.ir.errors import OptionError
from burnish.passes import QuantizeCache
from burnish.passes.attention.cache_codes import cache_scales
from transformers import LlamaConfig, LlamaForCausalLM

LAYERS, KV, SIZE, VOCABULARY = 2, 2, 64, 97


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("llama")
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=256, intermediate_size=512, num_hidden_layers=LAYERS, num_attention_heads=4,
        num_key_value_heads=KV, max_position_embeddings=256, bos_token_id=1, eos_token_id=2, initializer_range=0.1,
    )  # fmt: skip
    LlamaForCausalLM(config).eval().save_pretrained(path)
    return path


def calibration() -> list[dict[str, np.ndarray]]:
    return [{"input_ids": np.random.default_rng(seed).integers(3, VOCABULARY, (1, 64))} for seed in range(4)]


@pytest.fixture(scope="module")
def models(folder: Path) -> dict[str, Any]:
    passes = {"8": "(granularity=channel)", "4": "(bits=4)", "tensor": "(granularity=tensor)"}
    specs = {"float": "default"} | {name: f"default,quantize_cache{options}" for name, options in passes.items()}
    return {name: burnish.compile(folder, passes=spec, cache=False) for name, spec in specs.items()}


def ids(count: int = 40, rows: int = 1) -> np.ndarray:
    return np.random.default_rng(3).integers(3, VOCABULARY, (rows, count))


def logits(model: Any, tokens: np.ndarray, *, general: bool, chunks: int = 1) -> np.ndarray:
    """Of every position, in so many chunks."""
    decoding = Decoding(model, len(tokens), padded=general)
    assert decoding.in_place != general
    parts = []
    for part in np.array_split(tokens, chunks, axis=1):
        mask = np.ones((len(tokens), decoding.length + part.shape[1]), np.int64)
        parts.append(np.array(decoding.step(part, mask, every=True)))
    return np.concatenate(parts, axis=1)


def error(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


# Rounding to 8 bits errs by 0.4 % of the largest value at most, to 4 bits by 7 %, and the attention of this random
# model is sharp: the logits feel five times as much. Float32 alone errs by 1e-6.
@pytest.mark.parametrize(("name", "limit"), [("8", 0.03), ("tensor", 0.045), ("4", 0.45)])
@pytest.mark.parametrize("general", [True, False])
def test_logits_stay_close(models: dict[str, Any], name: str, limit: float, general: bool) -> None:
    wanted = logits(models["float"], ids(), general=True)
    got = logits(models[name], ids(), general=general, chunks=40)
    assert 1e-5 < error(got, wanted) < limit
    assert error(got, wanted) < error(logits(models["4"], ids(), general=general, chunks=40), wanted) or name == "4"


def test_both_graphs_keep_the_same_codes(models: dict[str, Any]) -> None:
    for name in ("8", "4"):
        kept = []
        for padded in (True, False):
            decoding = Decoding(models[name], 1, padded=padded)
            decoding.step(ids(), np.ones((1, 40), np.int64))
            memory: Any = decoding._memory
            cache = memory._arrays if not padded else {n: v.numpy() for n, v in memory._cache.items()}
            kept.append(np.stack([array[:, :, :40] for array in cache.values()]))
        general, generation = kept
        assert general.dtype == (np.int8 if name == "8" else np.uint8) and general.std() > 5
        if name == "4":
            halves = [np.stack([codes & 15, codes >> 4]).astype(int) for codes in (general, generation)]
            difference = np.abs(halves[0] - halves[1])
        else:
            difference = np.abs(general.astype(int) - generation.astype(int))
        # What the second layer reads differs: the general graph attends to new tokens before they are rounded.
        layers = difference if name == "8" else difference.max(axis=0)
        assert (layers[: len(layers) // 2] == 0).all() and (layers > 2).mean() < 0.05


def test_bytes_are_those_of_the_formula(models: dict[str, Any]) -> None:
    tokens = LAYERS * 2 * KV * SIZE * 64  # a buffer of 64 positions
    for name, size in (("float", 4.0), ("8", 1.0), ("4", 0.5)):
        assert Decoding(models[name], 1, capacity=64).bytes == tokens * size
        assert models[name].decoder.cache_dtype == {"float": "FLOAT", "8": "INT8", "4": "UINT8"}[name]


def test_it_generates_saves_and_loads(models: dict[str, Any], tmp_path: Path) -> None:
    model = models["8"]
    wanted = model.generate(ids(9, 2), max_new_tokens=20, end_tokens=())
    loaded = burnish.load(model.save(tmp_path / "saved"))
    assert np.array_equal(loaded.generate(ids(9, 2), max_new_tokens=20, end_tokens=()), wanted)
    ragged = loaded.generate([ids(5)[0].tolist(), ids(9)[0].tolist()], max_new_tokens=5)  # on the general graph
    assert [len(row) for row in ragged] == [10, 14]


def test_rows_rewinding_and_growth(models: dict[str, Any]) -> None:
    decoding = Decoding(models["8"], 2, capacity=64)
    first = np.array(decoding.step(ids(70, 2), np.ones((2, 70), np.int64), every=True))
    decoding.rewind(60)
    again = np.array(decoding.step(ids(70, 2)[:, 60:61], np.ones((2, 61), np.int64)))
    np.testing.assert_allclose(again, first[:, 60], atol=2e-5, rtol=1e-4)


def test_it_says_where_its_scales_come_from(folder: Path, models: dict[str, Any]) -> None:
    def said(model: Any) -> str:
        return " ".join(r.reason for record in model.report.passes for r in record.remarks)

    assert "a scale a channel, from random tokens: no calibration inputs were given" in said(models["8"])
    assert f"{LAYERS * 2 * KV * SIZE} bytes a token" in said(models["8"])
    model = burnish.compile(folder, passes="default,quantize_cache", calibration=calibration(), cache=False)
    assert "a scale a channel, from the calibration inputs" in said(model)
    model = burnish.compile(folder, passes="default,quantize_cache", cache=False)
    assert "a scale a tensor, from random tokens" in said(model)


def test_numbers_are_verified(folder: Path) -> None:
    report = burnish.compile(folder, passes="default,quantize_cache", verify="numerics", cache=False).report
    assert report.error is not None and 1e-7 < report.error < 0.05


def test_with_quantized_weights(folder: Path) -> None:
    model = burnish.compile(folder, passes="w8a16,quantize_cache", cache=False)
    plain = burnish.compile(folder, passes="w8a16", cache=False)
    assert error(logits(model, ids(), general=False), logits(plain, ids(), general=False)) < 0.06
    assert any("GroupQueryAttention" in remark.reason for remark in model.report.backend)


def test_without_a_cache() -> None:
    report = burnish.compile(torch.nn.Linear(4, 4).eval(), torch.ones(1, 4), passes="quantize_cache").report
    assert any("there is no attention" in r.reason for record in report.passes for r in record.remarks)


def test_scales() -> None:
    largest = np.array([[1.0, 2.0], [0.0, 4.0]], np.float32)
    scales = cache_scales(largest, 8, "channel")
    assert scales.shape == (1, 2, 1, 2) and scales[0, 0, 0, 1] == np.float32(2 / 127) and (scales > 0).all()
    assert (cache_scales(largest, 8, "tensor") == np.float32(4 / 127)).all()


@pytest.mark.parametrize(
    "options", [{"bits": 3}, {"granularity": "row"}, {"bits": 4, "granularity": "tensor"}, {"margin": 0.0}]
)
def test_options_that_make_no_sense(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        QuantizeCache(**options)
