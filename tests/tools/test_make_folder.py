"""Folders of random weights, and the sampler of memory."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from burnish.frontends.huggingface.safetensors_file import open_folder
from burnish.ir.errors import OutputError
from burnish.tools.make_folder import SHAPES, Shape, main, make_folder
from burnish.tools.memory import measure
from safetensors import safe_open

SMALL = Shape(layers=2, hidden=32, inner=64, heads=4, kv_heads=2, vocabulary=97, context=64)


def test_a_folder_is_sharded_and_readable(tmp_path: Path) -> None:
    total = make_folder(SMALL, tmp_path / "m", shard=16_000)
    files = sorted((tmp_path / "m").glob("*.safetensors"))
    assert len(files) > 2
    stored = open_folder(tmp_path / "m")
    assert {name: tensor.shape for name, tensor in stored.items()} == SMALL.tensors()
    assert sum(tensor.nbytes for tensor in stored.values()) == total
    with safe_open(files[0], framework="pt") as theirs:
        weight = theirs.get_tensor("model.embed_tokens.weight").float()
    assert 0.015 < float(weight.std()) < 0.025
    with pytest.raises(OutputError, match="not empty"):
        make_folder(SMALL, tmp_path / "m")


def test_the_shapes_have_the_sizes_of_the_models() -> None:
    def weights(name: str) -> int:
        return sum(a * (b[0] if b else 1) for a, *b in SHAPES[name].tensors().values())

    assert weights("smollm2-135m") == 134_515_008
    assert weights("tinyllama-1.1b") == 1_100_048_384
    assert weights("llama-2-7b") == 6_738_415_616


def test_an_unknown_shape_names_the_nearest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tinyllama", str(tmp_path / "m")]) == 1
    assert "did you mean 'tinyllama-1.1b'" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_anonymous_memory_of_a_command_is_sampled() -> None:
    program = "import time; block = bytearray(b'x') * 100_000_000; time.sleep(0.4)"
    usage = measure([sys.executable, "-c", program])
    assert usage.status == 0 and usage.samples > 3
    assert 100_000_000 < usage.peak_anonymous < 150_000_000
