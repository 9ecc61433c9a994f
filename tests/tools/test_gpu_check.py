"""The check of Triton kernels, as far as it goes without a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from burnish.tools import gpu_blocks, gpu_check, gpu_sweep
from burnish.tools.gpu_tables import gpu_tables
from burnish.tools.gpu_timings import weight_bytes


def test_all_sections_together_take_less_than_ten_minutes() -> None:
    assert sum(gpu_check.GPU_SECTIONS.values()) < 600
    assert set(gpu_check.GPU_SECTIONS) | set(gpu_check.CPU_SECTIONS) == set(gpu_check.SECTIONS)


def test_a_section_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(command: list[str], timeout: float, **_: Any) -> None:
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(subprocess, "run", hang)
    result = gpu_check.run_section("attention", 1.0)
    assert result["bad"] and "ended after" in result["left_out"]


def test_a_section_that_fails_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 3))
    assert gpu_check.run_section("attention", 1.0)["bad"]


def test_blocks_run_in_pytorch() -> None:
    found = list(gpu_blocks.blocks(4, 256, "cpu"))
    assert len(found) == 12 and len({name for name, _, _ in found}) == 12
    for _, module, inputs in found:
        result = module(*inputs)
        assert torch.isfinite(result).all()
        assert gpu_blocks.moved(inputs, result) > result.numel()


def test_generated_kernels_take_the_blocks(tmp_path: Path) -> None:
    """As on a GPU, in the interpreter."""
    code = (
        "import torch\nfrom burnish.tools.gpu_blocks import blocks, compiled_by_burnish\n"
        "for name, module, inputs in blocks(4, 256, 'cpu'):\n"
        "    got, want = compiled_by_burnish(module, inputs)(), module(*inputs)\n"
        "    assert (got.float() - want.float()).abs().max() < 3e-2 * want.abs().max(), name\n"
    )
    environment = os.environ | {"TRITON_INTERPRET": "1", "BURNISH_CACHE": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_tables_of_what_was_measured() -> None:
    figures = json.loads((Path(__file__).parents[2] / "benchmarks/gpu.json").read_text(encoding="utf-8"))
    tables = gpu_tables(figures)
    assert "| sparse24 w4 |" in tables["gpu one row"] and "left out" not in tables["gpu blocks"]
    figures["products"]["rows"] = [
        {"kernel": "w4", "n": 4, "k": 8, "rows": 1, "left_out": "no kernel"},
        {"kernel": "w4", "n": 8, "k": 8, "rows": 1, "microseconds": 2.0, "times_cublas_bf16": 3.0},
    ]
    assert gpu_tables(figures)["gpu one row"].endswith("| w4 | left out | 2.0 µs, 3.00× |")


def test_every_block_size_is_tried_once_and_without_a_gpu_none(capsys: pytest.CaptureFixture[str]) -> None:
    found = list(gpu_sweep.candidates())
    assert len(found) == len(set(found)) and {name for name, _ in found} == set(gpu_sweep.KERNELS)
    assert {blocks.m for _, blocks in gpu_sweep.candidates(row=True)} == {1}
    if not torch.cuda.is_available():
        with pytest.raises(SystemExit):
            gpu_sweep.main([])
        assert "no GPU" in capsys.readouterr().err


def test_bytes_of_weights() -> None:
    assert weight_bytes("bf16", 4096, 4096) == 2 * 4096**2
    # 4 bits and a scale of 16 bits to 128.
    assert weight_bytes("w4", 4096, 4096) == 4096**2 * (4 + 16 / 128) / 8
