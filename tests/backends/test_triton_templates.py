"""Kernels in templates: the interpreter against PyTorch, compilation ahead of time, errors."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from burnish.backends.triton import attention, fused, gemm, quantized, rope
from burnish.backends.triton.codes import quantize4, quantize8
from burnish.ir.errors import InputError, OptionError

HERE = Path(__file__).resolve().parent


def _run(arguments: list[str], *, interpret: bool) -> subprocess.CompletedProcess[str]:
    # Whether kernels are interpreted is decided when they are defined: each way needs a process of its own.
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    if interpret:
        environment["TRITON_INTERPRET"] = "1"
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment, check=False)


def _right(*endings: str) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    done = _run([str(HERE / "interpreted_templates.py"), *endings], interpret=True)
    assert done.returncode == 0 and "all right" in done.stdout, done.stderr[-2000:]


def test_kernels_equal_pytorch() -> None:
    """In bfloat16, whose types differ the most along the way."""
    _right("bfloat16")


@pytest.mark.slow
def test_kernels_equal_pytorch_in_every_type() -> None:
    _right()


def test_kernels_compile_ahead_of_time_without_spills() -> None:
    """Some here; ``tools/aot_check.py`` compiles them all."""
    pytest.importorskip("triton", reason="Triton is not installed")
    done = _run(["-m", "burnish.tools.aot_check", "--only", "row nf4 bf16", "--gpu", "90"], interpret=False)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert done.stdout.count("sm_90") == 2


@pytest.mark.slow
def test_launches_compile_as_on_a_gpu() -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    done = _run([str(HERE / "launched_templates.py")], interpret=False)
    assert done.returncode == 0 and "all compiled" in done.stdout, done.stderr[-2000:]


def test_products_that_do_not_fit_are_refused() -> None:
    x, w = torch.zeros(2, 64), torch.zeros(8, 64)
    for call in (
        lambda: gemm.gemm(x, w[:, :60]), lambda: gemm.gemm(x, w.half()), lambda: gemm.gemm(x, w, torch.zeros(7)),
        lambda: gemm.gemm(x.int(), w.int()), lambda: gemm.gemm(x, w[:7], epilogue=fused.Epilogue(gated=True)),
        lambda: gemm.gemm(torch.zeros(2, 3, 64), torch.zeros(3, 8, 64)),
        lambda: quantized.w4a16(x.half(), quantize4(w)), lambda: quantized.w8a16(x[:, :60], quantize8(w)),
        lambda: quantized.w8a16(x, quantize8(w[:7]), epilogue=fused.Epilogue("silu", gated=True)),
        lambda: quantized.scaled(x, torch.ones(2), w, torch.ones(8)),
        lambda: quantized.scaled(x.char(), torch.ones(3), w.char(), torch.ones(8)),
        lambda: fused.four((torch.zeros(1),) * 5, x), lambda: fused.four((x.T,), x),
    ):  # fmt: skip
        with pytest.raises(InputError):
            call()


def test_an_unknown_activation_is_named() -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    with pytest.raises(OptionError, match="swish"):
        fused.activation_of(fused.Epilogue("swish"))


def test_attention_that_does_not_fit_is_refused() -> None:
    q, k = torch.zeros(1, 4, 5, 16), torch.zeros(1, 2, 7, 16)
    wide = torch.zeros(1, 4, 5, 300)
    mask = attention.BlockMask(torch.ones(1, 2), 16, 16)
    for call in (
        lambda: attention.attention(q[0], k, k), lambda: attention.attention(q[:, :3], k, k),
        lambda: attention.attention(q, k.half(), k), lambda: attention.attention(wide, wide, wide),
        lambda: attention.attention(q, k, k, window=3), lambda: attention.attention(q, k, k, block_mask=mask),
        lambda: attention.attention(q, k, k, lengths_k=torch.ones(1)),
        lambda: attention.attention(q, k, k, bias=torch.zeros(3, 7)), lambda: attention.decode(q, k.char(), k.char()),
        lambda: attention.decode(q, k, k, lengths=torch.ones(2)),
    ):  # fmt: skip
        with pytest.raises(InputError):
            call()


def test_rotary_positions_that_do_not_fit_are_refused() -> None:
    cache = rope.new_cache(1, 1, 8, 16, dtype=torch.float32, device="cpu")
    table, at = torch.zeros(8, 8), torch.zeros(1, 2, dtype=torch.int64)
    for qkv, cos, positions in (
        (torch.zeros(1, 2, 50), table, at), (torch.zeros(1, 2, 64), torch.zeros(8, 9), at),
        (torch.zeros(1, 2, 64), table, at[0]), (torch.zeros(1, 2, 64).half(), table, at),
    ):  # fmt: skip
        with pytest.raises(InputError):
            rope.rope_to_cache(qkv, cos, cos, positions, cache, heads=2)


def test_block_sizes_follow_the_shape() -> None:
    assert gemm.tiles_for(1, 4096, 4096, torch.bfloat16).splits > 1
    assert gemm.tiles_for(1, 32000, 4096, torch.bfloat16).splits == 1
    assert gemm.tiles_for(4096, 11008, 4096, torch.bfloat16).m == 128
    assert gemm.tiles_for(4096, 11008, 4096, torch.bfloat16, tma=True).tma
    assert attention.blocks_for(80, torch.float16) == attention.MANY[128]
