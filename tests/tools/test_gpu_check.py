"""The check of Triton kernels, as far as it goes without a GPU."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest
import torch
from burnish.tools import gpu_blocks, gpu_check
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


def test_bytes_of_weights() -> None:
    assert weight_bytes("bf16", 4096, 4096) == 2 * 4096**2
    # 4 bits and a scale of 16 bits to 128.
    assert weight_bytes("w4", 4096, 4096) == 4096**2 * (4 + 16 / 128) / 8
