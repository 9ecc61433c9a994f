"""Run by ``test_triton_templates.py``: launches compiled as a launch on a GPU would be, with no GPU and nothing run.

A launch sees sizes of 1, which become constants, sizes that are no multiples of 16, and functions among its arguments;
compilation ahead of time is told what to see. A driver that says it has a GPU is all that is needed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
from burnish.backends.triton import attention, codes, fused, gemm, pattern24, quantized, rope, sparse
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.runtime.jit import JITFunction

BF16 = torch.bfloat16


class Pretended(DriverBase):
    """A GPU with nothing behind it."""

    def __init__(self) -> None:
        self.target = GPUTarget("cuda", 90, 32)

    @classmethod
    def is_active(cls) -> bool:
        return True

    def map_python_to_cpp_type(self, ty: str) -> str:
        return ty

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_benchmarker(self) -> None:
        return None

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int = 0) -> int:
        return 0


def _compile_only(kernel: JITFunction, grid: Any) -> Callable[..., Any]:
    return lambda *arguments, **options: kernel.run(*arguments, grid=grid, warmup=True, **options)


def _zeros(*shape: int, dtype: torch.dtype = BF16) -> torch.Tensor:
    return torch.zeros(*shape, dtype=dtype)


def _products() -> None:
    x, w = _zeros(1, 1024), _zeros(512, 1024)
    gemm.gemm(x, w, _zeros(512), epilogue=fused.residual(_zeros(1, 512), "gelu"))
    gemm.gemm(_zeros(16, 1024), w, epilogue=fused.Epilogue("silu", gated=True))
    gemm.gemm(_zeros(3, 64), _zeros(1, 64))
    wide = fused.Product(_zeros(256, 64), 1, 256, 512, 1, None, fused.PLAIN, BF16)
    gemm._launch_tma(_zeros(256, 64), _zeros(512, 64), wide, gemm.TMA[0], 64)
    quantized.w4a16(x, codes.quantize4(w, 128), epilogue=fused.residual(_zeros(1, 512)))
    quantized.w4a16(_zeros(1, 64), codes.quantize4(_zeros(1, 64), 64))
    quantized.w4a16(_zeros(64, 128), codes.tabulate4(_zeros(8, 128), 128))
    quantized.w8a16(_zeros(1, 64), codes.quantize8(_zeros(1, 64)))
    ints = _zeros(1, 64, dtype=torch.int8)
    quantized.scaled(ints, torch.ones(1), ints, torch.ones(1))
    sparse.sparse24(x, pattern24.pack24(_zeros(1, 1024)))
    sparse.sparse24(x, pattern24.quantize24(_zeros(8, 1024), 64))


def _others() -> None:
    one = _zeros(1, 1, 1, 64)
    attention.attention(one, one, one, causal=True, window=1)
    q, k = _zeros(1, 2, 9, 80), _zeros(1, 1, 9, 80)
    lengths = torch.ones(1)
    attention.attention(q, k, k, causal=True, lengths_q=lengths, lengths_k=lengths, bias=_zeros(1, 1, 9, 9))
    attention.decode(_zeros(1, 1, 1, 128), _zeros(1, 1, 512, 128), _zeros(1, 1, 512, 128), lengths=lengths)
    table = torch.zeros(8, 32)
    cache = rope.new_cache(1, 1, 8, 64, dtype=BF16, device="cpu")
    rope.rope_to_cache(_zeros(1, 1, 192), table, table, torch.zeros(1, 1, dtype=torch.int64), cache, heads=1)
    quantized.quantize_rows(_zeros(1, 64))
    fused.rms_norm(_zeros(1, 64), _zeros(64), 1e-5)


def main() -> None:
    triton.runtime.driver.set_active(Pretended())
    JITFunction.__getitem__ = _compile_only  # type: ignore[method-assign]
    _products()
    _others()
    print("all compiled")


if __name__ == "__main__":
    main()
