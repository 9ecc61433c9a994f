"""Hugging Face folders against eager transformers: random tiny models written by ``save_pretrained``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir
import pytest
import torch
import transformers
from burnish.backends.onnxruntime.lower import lower
from burnish.backends.onnxruntime.session import Session
from burnish.backends.onnxruntime.writer import write
from burnish.frontends.huggingface import import_folder
from burnish.frontends.imported import Imported
from burnish.ir.errors import ModelError, OptionError, UnsupportedError
from transformers import DynamicCache

TOLERANCE = 1e-4  # relative to the largest output; float32 differs by about 1e-6
SIZES = dict(
    vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
    max_position_embeddings=64, bos_token_id=1, eos_token_id=2, pad_token_id=0,
)  # fmt: skip
GPT = dict(vocab_size=97, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2)
DECODERS: dict[str, dict[str, Any]] = {
    "Llama": dict(**SIZES, num_key_value_heads=2),
    "Mistral": dict(**SIZES, num_key_value_heads=2, sliding_window=6),
    "Mixtral": dict(**SIZES, num_key_value_heads=2, num_local_experts=4),
    "Qwen2": dict(**SIZES, num_key_value_heads=2),
    "Qwen3": dict(**SIZES, num_key_value_heads=2, head_dim=16),
    "Gemma": dict(**SIZES, num_key_value_heads=1, head_dim=16),
    "Gemma2": dict(**SIZES, num_key_value_heads=2, head_dim=16, sliding_window=6),
    "Phi": SIZES,
    "GPT2": GPT,
    "GPTJ": dict(**GPT, rotary_dim=4),
    "OPT": dict(
        vocab_size=97, hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=4, word_embed_proj_dim=32,
        max_position_embeddings=64,
    ),
    "Bloom": dict(vocab_size=97, hidden_size=32, n_layer=2, n_head=4),
}  # fmt: skip


def tiny(family: str = "Llama", **changes: Any) -> Any:
    """A random causal language model of two layers."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**(DECODERS[family] | changes))
    return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def session(imported: Imported, folder: Path) -> Session:
    """The graph in ONNX Runtime."""
    lower(imported.graph)
    write(imported.graph, folder / "model.onnx", overwrite=True)
    return Session(folder / "model.onnx")


def error(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((got - wanted).abs().max() / wanted.abs().max())


def worst_error(model: Any, run: Session, batch: int, steps: tuple[int, ...], padding: list[int]) -> float:
    """Prefill, chunks and decoding of a batch padded on the left, step by step beside the eager model."""
    total = sum(steps)
    ids = torch.randint(3, 97, (batch, total))
    mask = torch.ones(batch, total, dtype=torch.int64)
    for row, count in enumerate(padding):
        mask[row, :count] = 0
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    takes_positions = "Bloom" not in type(model).__name__
    cache = DynamicCache()
    past = {
        spec.name: torch.zeros(batch, spec.shape[1], 0, spec.shape[3])
        for spec in run.inputs
        if spec.name.startswith("past") and spec.shape
    }
    worst, at = 0.0, 0
    for count in steps:
        part = slice(at, at + count)
        feeds = {"input_ids": ids[:, part], "attention_mask": mask[:, : at + count], "position_ids": positions[:, part]}
        known = feeds if takes_positions else {k: v for k, v in feeds.items() if k != "position_ids"}
        with torch.no_grad():
            wanted = model(**known, past_key_values=cache, use_cache=True).logits
        outputs = dict(zip([spec.name for spec in run.outputs], run.run(feeds | past), strict=True))
        seen = mask[:, part].bool()
        worst = max(worst, error(outputs["logits"][seen], wanted[seen]))
        past = {name: outputs["present." + name.split(".", 1)[1]] for name in past}
        at += count
    return worst


@pytest.mark.parametrize("family", DECODERS)
def test_a_decoder_is_right_for_prefill_chunks_and_decoding(family: str, tmp_path: Path) -> None:
    model = tiny(family)
    model.save_pretrained(tmp_path)
    imported = import_folder(tmp_path)
    run = session(imported, tmp_path)
    assert worst_error(model, run, 3, (6, 3, 1, 1), [0, 2, 5]) < TOLERANCE
    assert worst_error(model, run, 1, (1, 1, 7, 2), []) < TOLERANCE


def test_the_decoder_has_the_names_and_dimensions_that_runtimes_expect(tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path)
    imported = import_folder(tmp_path)
    inputs = {spec.name: spec.shape for spec in imported.signature.inputs}
    outputs = {spec.name: spec.shape for spec in imported.signature.outputs}
    assert inputs["input_ids"] == inputs["position_ids"] == ("batch", "sequence")
    assert inputs["attention_mask"] == ("batch", "past + sequence")
    assert inputs["past_key_values.1.value"] == ("batch", 2, "past", 8)
    assert list(inputs)[3:5] == ["past_key_values.0.key", "past_key_values.0.value"]
    assert next(iter(outputs)) == "logits" and outputs["present.1.key"] == ("batch", 2, "past + sequence", 8)
    assert imported.decoder is not None and imported.route == "huggingface"
    assert (imported.decoder.layers, imported.decoder.kv_heads, imported.decoder.head_dim) == (2, 2, 8)
    assert imported.decoder.end_tokens == (2,) and imported.decoder.context == 64
    paths = {node.metadata_props.get("burnish.module", "") for node in imported.graph.graph}
    assert "model.layers.1.mlp.down_proj" in paths and not any(path.startswith("model.model") for path in paths)


def test_attention_keeps_the_few_key_value_heads(tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path)
    graph = import_folder(tmp_path).graph
    attention = [node for node in graph.graph if node.op_type == "Attention"]
    assert len(attention) == 2
    assert all(node.inputs[1].shape[1] == 2 and node.inputs[0].shape[1] == 4 for node in attention)
    assert not [node for node in graph.graph if node.outputs[0].shape is not None and len(node.outputs[0].shape) > 4]


def initializers(imported: Imported) -> dict[str, onnx_ir.TensorProtocol]:
    return {name: value.const_value for name, value in imported.graph.graph.initializers.items()}


def test_tied_weights_are_one_initializer_and_untied_ones_two(tmp_path: Path) -> None:
    counts = {}
    for tied in (True, False):
        folder = tmp_path / str(tied)
        tiny(tie_word_embeddings=tied).save_pretrained(folder)
        shapes = [tuple(tensor.shape) for tensor in initializers(import_folder(folder)).values()]
        counts[tied] = shapes.count((97, 32))
    assert counts == {True: 1, False: 2}


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16])
def test_half_precision_folders_run_in_float32(stored: torch.dtype, tmp_path: Path) -> None:
    model = tiny().to(stored)
    model.save_pretrained(tmp_path)
    run = session(import_folder(tmp_path), tmp_path)
    assert worst_error(model.float(), run, 2, (5, 1), [0, 3]) < TOLERANCE


def test_the_dtype_option_keeps_weights_small(tmp_path: Path) -> None:
    tiny().to(torch.bfloat16).save_pretrained(tmp_path)
    imported = import_folder(tmp_path, dtype="float16")
    assert imported.decoder is not None and imported.decoder.cache_dtype == "FLOAT16"
    weights = [tensor for tensor in initializers(imported).values() if len(tensor.shape) == 2]
    assert {tensor.dtype for tensor in weights} == {onnx_ir.DataType.FLOAT16}
    with pytest.raises(OptionError, match="float8"):
        import_folder(tmp_path, dtype="float8")


def test_shards_are_read_where_they_are(tmp_path: Path) -> None:
    model = tiny()
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    run = session(import_folder(tmp_path), tmp_path)
    assert worst_error(model, run, 2, (4, 1), []) < TOLERANCE


def test_weights_stay_unread(tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path)
    imported = import_folder(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")  # a mapping of this file can no longer be read
    weights = [tensor for tensor in initializers(imported).values() if len(tensor.shape) == 2]
    assert len(weights) == 16 and all(isinstance(tensor, onnx_ir.LazyTensor) for tensor in weights)
    assert imported.source_size == sum(tensor.nbytes for tensor in weights) + 5 * 32 * 4


def test_companions_are_the_files_beside_the_weights(tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "notes.txt").write_text("not for the runtime")
    assert set(import_folder(tmp_path).companions) == {"config.json", "generation_config.json", "tokenizer.json"}


def test_end_tokens_come_from_the_generation_config(tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 7]}))
    decoder = import_folder(tmp_path).decoder
    assert decoder is not None and decoder.end_tokens == (5, 7)


ENCODERS: dict[str, Callable[[], Any]] = {
    "BertModel": lambda: transformers.BertConfig(**SIZES),
    "RobertaForMaskedLM": lambda: transformers.RobertaConfig(**SIZES),
    "DistilBertForSequenceClassification": lambda: transformers.DistilBertConfig(
        vocab_size=97, dim=32, n_layers=2, n_heads=4, hidden_dim=64
    ),
    "ViTForImageClassification": lambda: transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, image_size=32, patch_size=8
    ),
    "T5ForConditionalGeneration": lambda: transformers.T5Config(
        vocab_size=97, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4
    ),
    "BartForConditionalGeneration": lambda: transformers.BartConfig(
        vocab_size=97, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=64,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ENCODERS)
def test_other_models_take_their_natural_inputs(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = getattr(transformers, name)(ENCODERS[name]()).eval()
    model.save_pretrained(tmp_path)
    imported = import_folder(tmp_path)
    assert imported.decoder is None
    run = session(imported, tmp_path)
    for batch, sequence in ((1, 1), (3, 9), (2, 20)):
        sizes = {"batch": batch, "sequence": sequence, "decoder_sequence": sequence + 1}
        feeds = {}
        for spec in imported.signature.inputs:
            assert spec.shape is not None
            shape = [sizes[size] if isinstance(size, str) else size for size in spec.shape]
            feeds[spec.name] = torch.randint(3, 97, shape) if spec.dtype == "INT64" else torch.randn(shape)
        if "attention_mask" in feeds:
            feeds["attention_mask"] = torch.ones_like(feeds["attention_mask"])
            feeds["attention_mask"][-1, sequence // 2 + 1 :] = 0
        if "token_type_ids" in feeds:
            feeds["token_type_ids"] = feeds["token_type_ids"] % 2
        with torch.no_grad():
            wanted = model(**feeds)
        for spec, got in zip(run.outputs, run.run(feeds), strict=True):
            assert error(got, wanted[spec.name]) < TOLERANCE, spec.name


def test_a_real_encoder(minilm: Path, tmp_path: Path) -> None:
    model = transformers.AutoModel.from_pretrained(minilm).eval()
    run = session(import_folder(minilm), tmp_path)
    ids = torch.randint(1000, 20000, (2, 17))
    feeds = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
    with torch.no_grad():
        wanted = model(**feeds).last_hidden_state
    assert error(run.run(feeds)[0], wanted) < TOLERANCE


# What goes wrong.


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny().save_pretrained(tmp_path)
    return tmp_path


def change(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({name: value for name, value in config.items() if value is not ...}))


def test_no_folder_and_no_config(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such folder"):
        import_folder(tmp_path / "nowhere")
    with pytest.raises(ModelError, match=r"no config\.json") as caught:
        import_folder(tmp_path)
    assert caught.value.fix


def test_a_config_that_is_no_json(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelError, match="not a JSON object"):
        import_folder(folder)


def test_an_unknown_model_type_names_the_nearest(folder: Path) -> None:
    change(folder, model_type="lama")
    with pytest.raises(UnsupportedError, match="did you mean 'llama'"):
        import_folder(folder)


def test_code_of_the_folder_is_not_run(folder: Path) -> None:
    change(folder, model_type="own", auto_map={"AutoModel": "modeling.Own"})
    with pytest.raises(UnsupportedError, match="auto_map"):
        import_folder(folder)


def test_an_unknown_class(folder: Path) -> None:
    change(folder, architectures=["LlamaForDreaming"])
    with pytest.raises(UnsupportedError, match="LlamaForDreaming"):
        import_folder(folder)


def test_a_folder_without_architectures_needs_a_task(folder: Path) -> None:
    change(folder, architectures=...)
    with pytest.raises(ModelError, match="task="):
        import_folder(folder)
    with pytest.raises(OptionError, match="did you mean 'causal-lm'"):
        import_folder(folder, task="causal")
    assert import_folder(folder, task="causal-lm").decoder is not None


def test_quantized_folders_are_refused(folder: Path) -> None:
    change(folder, quantization_config={"quant_method": "gptq"})
    with pytest.raises(UnsupportedError, match="gptq"):
        import_folder(folder)


def test_pickled_weights_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="save_pretrained"):
        import_folder(folder)


def test_no_weights_at_all(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="no weights"):
        import_folder(folder)


def test_a_truncated_file(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelError, match="past the end"):
        import_folder(folder)
    path.write_bytes(b"not safetensors at all")
    with pytest.raises(ModelError, match="not a whole safetensors file"):
        import_folder(folder)


def test_a_missing_shard_and_a_missing_tensor(tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path, max_shard_size="20KB")
    index = tmp_path / "model.safetensors.index.json"
    places = json.loads(index.read_text())
    places["weight_map"]["model.norm.weight"] = places["weight_map"]["model.layers.0.mlp.up_proj.weight"]
    index.write_text(json.dumps(places))
    with pytest.raises(ModelError, match=r"does not hold 'model\.norm\.weight'"):
        import_folder(tmp_path)
    sorted(tmp_path.glob("*.safetensors"))[0].unlink()
    with pytest.raises(ModelError, match=r"1 of .* shards are missing"):
        import_folder(tmp_path)


def test_weights_of_another_size_and_too_few_weights(folder: Path) -> None:
    change(folder, intermediate_size=48)
    with pytest.raises(ModelError, match=r"shape \(64, 32\).*says \(48, 32\)|shape \(32, 64\).*says \(32, 48\)"):
        import_folder(folder)
    change(folder, intermediate_size=64, num_hidden_layers=3)
    with pytest.raises(ModelError, match="lacks 9 of the model's tensors"):
        import_folder(folder)


def test_tensors_that_no_one_needs_are_told(folder: Path) -> None:
    change(folder, num_hidden_layers=1)
    remarks = import_folder(folder).remarks
    assert [remark.values["count"] for remark in remarks] == [9]


def test_lazy_reading_equals_the_stored_values(tmp_path: Path) -> None:
    model = tiny().to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    tensors = initializers(import_folder(tmp_path))
    wanted = model.state_dict()["model.layers.1.mlp.up_proj.weight"].float().numpy()
    np.testing.assert_array_equal(tensors["model.layers.1.mlp.up_proj.weight"].numpy(), wanted)
