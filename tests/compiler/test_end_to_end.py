"""PyTorch modules and Hugging Face folders all the way: compiled, saved, and run in a fresh process without torch."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import burnish
import numpy as np
import onnx
import pytest
import torch
import transformers
from torch import nn

BATCH = torch.export.Dim("batch")


class Network(nn.Module):
    """Two layers, keyword inputs, several outputs in a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.norm = nn.Linear(64, 128), nn.Linear(128, 64), nn.LayerNorm(64)

    def forward(self, x: torch.Tensor, scale: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        hidden = torch.nn.functional.gelu(self.first(x))
        y = self.norm(self.second(hidden) + x)
        return {"y": y if scale is None else y * scale, "hidden": hidden}


@pytest.fixture(scope="module")
def module() -> nn.Module:
    torch.manual_seed(0)
    return Network().eval()


@dataclass(frozen=True)
class Llama:
    """A tiny Llama with tied embeddings: the folder, and the model in it."""

    folder: Path
    model: transformers.LlamaForCausalLM


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Llama:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=128,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    folder = tmp_path_factory.mktemp("llama")
    model.save_pretrained(folder)
    return Llama(folder, model)


def error(given: torch.Tensor, expected: torch.Tensor) -> float:
    return float((given - expected).norm() / expected.norm())


@pytest.mark.parametrize(
    ("preset", "least", "most"), [("default", 0, 1e-5), ("w4a16", 0.01, 0.2), ("w8a16", 1e-4, 0.02)]
)
def test_module_at_other_sizes(module: nn.Module, preset: str, least: float, most: float) -> None:
    example = {"x": torch.randn(4, 64), "scale": torch.randn(64)}
    shapes = {"x": {0: BATCH}, "scale": None}
    compiled = burnish.compile(module, example, dynamic_shapes=shapes, passes=preset, verify="numerics")
    for batch in (1, 3, 9):
        x, scale = torch.randn(batch, 64), torch.randn(64)
        with torch.no_grad():
            expected = module(x, scale)
        given = compiled(x, scale=scale)
        assert list(given) == ["y", "hidden"]
        for name in given:
            assert isinstance(given[name], torch.Tensor)
            assert least <= error(given[name], expected[name]) <= most
    assert compiled.report.route == "torch.export"
    assert compiled.report.error is not None and least / 3 <= compiled.report.error <= most


def test_the_module_is_not_changed(module: nn.Module) -> None:
    before = {name: value.clone() for name, value in module.state_dict().items()}
    burnish.compile(module, torch.randn(4, 64), passes="w4a16")
    assert not module.training
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(parameter.requires_grad for parameter in module.parameters())


def test_modules_in_the_cache(module: nn.Module, tmp_path: Path) -> None:
    x = torch.randn(4, 64)
    first = burnish.compile(module, x, cache=tmp_path)
    second = burnish.compile(module, x, cache=tmp_path)
    assert (first.report.cached, second.report.cached) == (False, True)
    assert torch.equal(first(x)["y"], second(x)["y"])
    other = Network().eval()
    assert not burnish.compile(other, x, cache=tmp_path).report.cached


def test_exported_programs_and_their_files(module: nn.Module, tmp_path: Path) -> None:
    x = torch.randn(4, 64)
    program = torch.export.export(module, (x,))
    torch.export.save(program, tmp_path / "m.pt2")
    with torch.no_grad():
        expected = module(x)
    for model in (program, tmp_path / "m.pt2"):
        compiled = burnish.compile(model, cache=False)
        assert error(compiled(x)["y"], expected["y"]) < 1e-5


@pytest.mark.parametrize("target", ["onnxruntime", "onnx"])
@pytest.mark.parametrize("preset", ["default", "w4a16"])
def test_decoder_in_a_fresh_process(llama: Llama, tmp_path: Path, preset: str, target: str) -> None:
    folder = tmp_path / "out"
    report = burnish.export(llama.folder, folder, passes=preset, target=target, cache=False, verify="numerics")
    assert report.route == "huggingface"
    assert (report.nonstandard == {}) or target == "onnxruntime"
    assert ("com.microsoft.MatMulNBits" in report.nonstandard) == (target == "onnxruntime" and preset == "w4a16")
    if target == "onnx":
        onnx.checker.check_model(str(folder / "model.onnx"))
    prompt = torch.randint(0, 128, (1, 9))
    program = f"""
import json, sys, numpy, burnish
model = burnish.load({str(folder)!r})
ids = model.generate(numpy.asarray({prompt.tolist()}), max_new_tokens=8)
heavy = {{"torch", "transformers", "onnx", "onnx_ir", "onnxscript", "sympy"}}
print(json.dumps([ids.tolist(), sorted(heavy & set(sys.modules))]))
"""
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    ids, heavy = json.loads(out)
    assert heavy == []
    assert ids[0][:9] == prompt[0].tolist() and len(ids[0]) <= 17
    if preset == "default":
        expected = llama.model.generate(prompt, max_new_tokens=8, do_sample=False)
        assert ids == expected.tolist()
    compiled = burnish.load(folder)
    assert compiled.decoder is not None and compiled.decoder.layers == 2
    assert (folder / "config.json").exists() and "config.json" in compiled.manifest.companions


def test_decoder_shares_its_embedding(llama: Llama) -> None:
    report = burnish.compile(llama.folder, passes="w4a16(symmetric=true)", cache=False).report
    # Of 15: queries, keys and values are one product, gate and up another.
    assert report.operators["com.microsoft.MatMulNBits"] == 9
    assert report.operators["com.microsoft.GatherBlockQuantized"] == 1
    # The table counts once: 4.5 bits a weight, plus norms, rotary frequencies and shapes in full precision.
    assert report.bits_per_weight < 5.2


def test_folders_in_the_cache(llama: Llama, tmp_path: Path) -> None:
    first = burnish.compile(llama.folder, cache=tmp_path)
    second = burnish.compile(llama.folder, cache=tmp_path)
    assert (first.report.cached, second.report.cached) == (False, True)
    ids = torch.randint(0, 128, (1, 5))
    assert torch.equal(first.generate(ids, max_new_tokens=4), second.generate(ids, max_new_tokens=4))
    second.save(tmp_path / "out")
    assert (tmp_path / "out" / "config.json").exists()


def test_calibration_text(llama: Llama, tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    words = {"<unk>": 0, **{f"word{i}": i for i in range(1, 128)}}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(llama.folder / "tokenizer.json"))
    text = tmp_path / "text.txt"
    text.write_text(" ".join(f"word{i % 127 + 1}" for i in range(300)))
    command = ["compile", llama.folder, "-o", tmp_path / "out", "--calibration", text, "--verify", "numerics"]
    done = subprocess.run([sys.executable, "-m", "burnish", *map(str, command)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "relative error" in done.stdout and "calibration inputs were not read" not in done.stdout
    assert (tmp_path / "out" / "tokenizer.json").exists()
    asking = [*command[:-2], "--passes", "smoothquant", "--overwrite"]
    done = subprocess.run([sys.executable, "-m", "burnish", *map(str, asking)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "smoothquant" in done.stdout and "calibration inputs were not read" not in done.stdout
    without = [*asking[: asking.index("--calibration")], *asking[asking.index("--calibration") + 2 :]]
    done = subprocess.run([sys.executable, "-m", "burnish", *map(str, without)], capture_output=True, text=True)
    assert done.returncode != 0 and "calibration inputs are needed" in done.stderr
    (llama.folder / "tokenizer.json").unlink()


def test_numpy_and_torch_agree(module: nn.Module) -> None:
    x = torch.randn(4, 64)
    compiled = burnish.compile(module, x)
    given = compiled(x.numpy())["y"]
    assert isinstance(given, np.ndarray)
    np.testing.assert_array_equal(given, compiled(x)["y"].numpy())


def test_threads(module: nn.Module, network: Callable) -> None:
    x = torch.randn(4, 64)
    assert burnish.compile(module, x, threads=1)(x)["y"].shape == (4, 64)
