"""The real model at 4 bits: every product and the embedding, one shared table, size and memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from burnish.backends.onnxruntime.check import asked, check_running
from burnish.backends.onnxruntime.lower import lower
from burnish.backends.onnxruntime.writer import write
from burnish.frontends.gguf import import_gguf
from burnish.passes.base import Context
from burnish.passes.spec import implied, parse

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def four_bits(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    graph = import_gguf(smollm2).graph
    remarks = [remark for step in implied(parse("w4a16")) for remark in step.run(graph, Context()).remarks]
    total = next(remark.values for remark in remarks if "products_found" in remark.values)
    assert total["products"] == total["products_found"] == 211 and total["embeddings"] == 1
    assert total["bits_per_weight"] < 4.6
    lower(graph)
    expected = asked(graph)
    # Those of one input are joined: four in each of 30 layers, and the head.
    assert expected["MatMulNBits"] == 121 and expected["GatherBlockQuantized"] == 1
    path = tmp_path_factory.mktemp("smollm2") / "model.onnx"
    size = write(graph, path)
    check_running(path, expected)
    return path, size


def test_size(four_bits: tuple[Path, int]) -> None:
    path, size = four_bits
    assert size == sum(file.stat().st_size for file in path.parent.iterdir())
    assert size <= 80e6


def test_memory_of_running_it(four_bits: tuple[Path, int]) -> None:
    """A fresh process that loads it, reads a prompt of 128 tokens and decodes: 300 MB at most, without torch.

    VmHWM, because ru_maxrss starts at the parent's.
    """
    code = f"""
import sys, numpy as np
from burnish.backends.onnxruntime.session import Session
session = Session({str(four_bits[0])!r}, threads=2)
feeds = {{"input_ids": np.ones((1, 128), np.int64), "attention_mask": np.ones((1, 128), np.int64)}}
feeds["position_ids"] = np.arange(128)[None]
feeds |= {{s.name: np.zeros((1, 3, 0, 64), np.float32) for s in session.inputs if s.name.startswith("past")}}
out = session.run_values(feeds)
feeds = {{"input_ids": np.ones((1, 1), np.int64), "attention_mask": np.ones((1, 129), np.int64)}}
feeds["position_ids"] = np.full((1, 1), 128)
past = [s.name for s in session.inputs if s.name.startswith("past")]
feeds |= dict(zip(past, out[1:], strict=True))
assert session.run(feeds)[0].shape[:2] == (1, 1)
assert "torch" not in sys.modules
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(out) <= 300 << 10
