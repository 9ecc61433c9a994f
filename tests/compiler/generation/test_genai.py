"""``onnxruntime-genai`` runs the folder that a decoder is saved in, and says the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import burnish
import numpy as np
import pytest
import torch
from burnish.compiler.generation.genai import genai_config
from burnish.ir.signature import DecoderSpec
from transformers import LlamaConfig, LlamaForCausalLM

SPEC = DecoderSpec(layers=2, kv_heads=2, head_dim=16, vocabulary=97, context=256, end_tokens=(2, 5))


def test_the_configuration_names_what_the_graph_takes() -> None:
    config = genai_config(SPEC, 4, ["input_ids", "attention_mask", "past_key_values.0.key"], {"bos_token_id": 1})
    model = config["model"]
    assert model["eos_token_id"] == [2, 5] and model["bos_token_id"] == 1 and model["pad_token_id"] == 2
    assert list(model["decoder"]["inputs"])[:2] == ["input_ids", "attention_mask"]
    assert "position_ids" not in model["decoder"]["inputs"] and config["search"]["max_length"] == 256


def test_a_saved_decoder_has_it(tmp_path: Path) -> None:
    saved = tiny(tmp_path)
    config = json.loads((saved / "genai_config.json").read_text())
    decoder = config["model"]["decoder"]
    assert (saved / decoder["filename"]).exists() and decoder["num_attention_heads"] == 4
    assert config["model"]["eos_token_id"] == 2 and config["model"]["bos_token_id"] == 1


def tiny(folder: Path) -> Path:
    torch.manual_seed(1)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=97, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=256, bos_token_id=1, eos_token_id=2, initializer_range=0.3,
        )
    ).eval()  # fmt: skip
    model.save_pretrained(folder / "source")
    burnish.export(folder / "source", folder / "saved", cache=False)
    return folder / "saved"


def genai_tokens(folder: Path, prompt: list[int], count: int) -> list[int]:
    og = pytest.importorskip("onnxruntime_genai")
    model = og.Model(str(folder))
    options = og.GeneratorParams(model)
    options.set_search_options(max_length=len(prompt) + count, do_sample=False)
    generator = og.Generator(model, options)
    generator.append_tokens(np.array([prompt], np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    return [int(token) for token in generator.get_sequence(0)]


def test_genai_says_the_same(tmp_path: Path) -> None:
    saved = tiny(tmp_path)
    prompt = [5, 6, 7, 8, 9, 10]
    wanted = burnish.load(saved).generate(prompt, max_new_tokens=40)
    assert genai_tokens(saved, prompt, 40) == wanted and len(wanted) > 10


@pytest.mark.slow
@pytest.mark.parametrize("passes", ["default", "w4a16"])
def test_genai_says_the_same_of_smollm2(tmp_path: Path, passes: Any) -> None:
    from burnish.tools.fetch import model_path

    saved = tmp_path / "saved"
    burnish.export(model_path("smollm2"), saved, passes=passes)
    model = burnish.load(saved, threads=2)
    prompt = model.tokenizer.chat([{"role": "user", "content": "What is the capital of France?"}])
    wanted = model.generate(prompt, max_new_tokens=60)
    got = genai_tokens(saved, prompt, 60)
    # It keeps the end token for itself.
    spoken = wanted[:-1] if wanted[-1] in model.decoder.end_tokens else wanted
    assert got[: len(spoken)] == spoken and len(got) <= len(wanted) and len(spoken) > len(prompt) + 4
    assert "Paris" in model.tokenizer.decode(wanted)
