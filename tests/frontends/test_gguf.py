"""GGUF files: tiny ones written here from random models, and the real one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import onnx_ir
import pytest
import torch
from burnish.backends.onnxruntime.lower import lower
from burnish.backends.onnxruntime.session import Session
from burnish.backends.onnxruntime.writer import write
from burnish.frontends.gguf import import_gguf, split_halves
from burnish.frontends.gguf_file import open_gguf
from burnish.ir.errors import ModelError, UnsupportedError
from transformers import AutoModelForCausalLM, GemmaConfig, LlamaConfig, Qwen2Config

CONFIGS = {"llama": LlamaConfig, "qwen2": Qwen2Config, "gemma": GemmaConfig}


def pair_neighbours(values: np.ndarray, heads: int) -> np.ndarray:
    """What llama.cpp's converter does to query and key projections."""
    size = values.shape[0] // heads
    return values.reshape(heads, 2, size // 2, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)


def tiny(architecture: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    sizes = dict(
        vocab_size=96, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, head_dim=8, tie_word_embeddings=True,
    )  # fmt: skip
    config = CONFIGS[architecture](**(sizes | changes))
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def save(model: Any, path: Path, architecture: str, kind: Any = None, **fields: Any) -> None:
    """Write a model as llama.cpp's converter would, without a tokenizer."""
    config = model.config
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_key_length(8)
    writer.add_eos_token_id(7)
    for name, value in fields.items():
        writer.add_string(name.replace("__", "."), value)
    arch = next(key for key, text in gguf.MODEL_ARCH_NAMES.items() if text == architecture)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        values = tensor.numpy()
        if architecture == "llama" and "q_proj" in name:
            values = pair_neighbours(values, config.num_attention_heads)
        if architecture == "llama" and "k_proj" in name:
            values = pair_neighbours(values, config.num_key_value_heads)
        if architecture == "gemma" and name.endswith("norm.weight"):
            values = values + 1
        module, _, suffix = name.rpartition(".")
        target = f"{names.get_name(module)}.{suffix}"
        if kind is not None and values.ndim == 2:
            writer.add_tensor(target, gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(target, np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def logits(path: Path, ids: torch.Tensor, folder: Path) -> torch.Tensor:
    imported = import_gguf(path)
    lower(imported.graph)
    write(imported.graph, folder / "model.onnx")
    run = Session(folder / "model.onnx")
    batch, length = ids.shape
    feeds = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "position_ids": torch.arange(length).repeat(batch, 1),
    }
    past = {s.name: torch.zeros(batch, s.shape[1], 0, s.shape[3]) for s in run.inputs if s.name.startswith("past")}
    result: torch.Tensor = run.run(feeds | past)[0]
    return result


@pytest.mark.parametrize("architecture", CONFIGS)
def test_a_file_gives_the_logits_of_the_model_it_came_from(architecture: str, tmp_path: Path) -> None:
    model = tiny(architecture)
    save(model, tmp_path / "m.gguf", architecture)
    ids = torch.randint(0, 96, (2, 9))
    with torch.no_grad():
        wanted = model(ids).logits
    got = logits(tmp_path / "m.gguf", ids, tmp_path)
    assert float((got - wanted).abs().max() / wanted.abs().max()) < 1e-4


def test_metadata_become_the_decoder_and_the_companions(tmp_path: Path) -> None:
    save(tiny("llama", tie_word_embeddings=False), tmp_path / "m.gguf", "llama")
    imported = import_gguf(tmp_path / "m.gguf")
    assert imported.decoder is not None and imported.route == "gguf"
    assert (imported.decoder.layers, imported.decoder.vocabulary, imported.decoder.context) == (2, 96, 64)
    assert imported.decoder.end_tokens == (7,)
    assert set(imported.companions) == {"config.json", "generation_config.json"}
    assert ["no tokenizer" in remark.reason for remark in imported.remarks] == [True]
    shapes = [tuple(value.const_value.shape) for value in imported.graph.graph.initializers.values()]
    assert shapes.count((96, 32)) == 2  # untied


def test_quantized_tensors_are_dequantized_when_read(tmp_path: Path) -> None:
    model = tiny("llama")
    save(model, tmp_path / "m.gguf", "llama", gguf.GGMLQuantizationType.Q8_0)
    tensors = import_gguf(tmp_path / "m.gguf").graph.graph.initializers
    name = "model.layers.1.self_attn.q_proj.weight"
    wanted = model.state_dict()[name].numpy()
    got = tensors[name].const_value
    assert isinstance(got, onnx_ir.LazyTensor)
    step = np.abs(wanted).max() / 127
    assert 0 < np.abs(got.numpy() - wanted).max() <= 0.51 * step  # half a step, and rounding of the float16 scale


def test_rows_of_heads_are_put_back() -> None:
    values = np.arange(16 * 3).reshape(16, 3)
    np.testing.assert_array_equal(split_halves(pair_neighbours(values, 2), 2), values)
    assert split_halves(np.arange(8), 2).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_our_reader_agrees_with_the_gguf_package(smollm2: Path) -> None:
    ours, theirs = open_gguf(smollm2), gguf.GGUFReader(str(smollm2))
    assert list(ours.tensors) == [tensor.name for tensor in theirs.tensors]
    for tensor in (theirs.tensors[1], theirs.tensors[5], theirs.tensors[-1]):
        mine = ours.tensors[tensor.name]
        np.testing.assert_array_equal(mine.data.reshape(-1), tensor.data.reshape(-1).view(np.uint8))
        assert mine.kind == tensor.tensor_type and mine.shape == tuple(reversed(tensor.shape.tolist()))
    assert ours.metadata["llama.block_count"] == 30


def test_what_is_no_gguf_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file"):
        import_gguf(tmp_path / "m.gguf")
    (tmp_path / "m.gguf").write_bytes(b"PK\x03\x04 and so on")
    with pytest.raises(ModelError, match="does not begin with GGUF"):
        import_gguf(tmp_path / "m.gguf")


@pytest.mark.parametrize("left", [10, 200, 0.5])
def test_a_truncated_file(left: float, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    save(tiny("llama"), path, "llama")
    data = path.read_bytes()
    path.write_bytes(data[: int(left if left > 1 else left * len(data))])
    with pytest.raises(ModelError, match="not a whole GGUF file"):
        import_gguf(path)


def test_architectures_and_scalings_that_are_not_read(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(str(tmp_path / "t5.gguf"), "t5")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UnsupportedError, match="'t5'"):
        import_gguf(tmp_path / "t5.gguf")
    save(tiny("llama"), tmp_path / "m.gguf", "llama", llama__rope__scaling__type="yarn")
    with pytest.raises(UnsupportedError, match="yarn"):
        import_gguf(tmp_path / "m.gguf")
