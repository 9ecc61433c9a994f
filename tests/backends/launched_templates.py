"""Run by ``test_triton_templates.py``: launches compiled as a launch on a GPU would be, with no GPU and nothing run.

A launch sees sizes of 1, which become constants, sizes that are no multiples of 16, and functions among its arguments;
compilation ahead of time is told what to see. A driver that says it has a GPU is all that is needed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
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


@triton.jit
def _both(gate, up, row, column, inside, n, e0, e1, e2, e3):  # type: ignore[no-untyped-def]
    """What a generated file has for a gate."""
    return gate / (1.0 + tl.exp(-gate)) * up


def _gates() -> None:
    """A function of both halves, in the product, in the sum of its parts, and in a launch of its own."""
    paired = fused.Epilogue(function=_both, gated=True, paired=True)
    w = _zeros(512, 1024)
    gemm.gemm(_zeros(1, 1024), w, epilogue=paired)
    gemm.gemm(_zeros(16, 1024), w.T.contiguous(), transposed=False, epilogue=paired)
    quantized.w4a16(_zeros(1, 1024), codes.quantize4(w, 128), epilogue=paired)
    ints, rows = _zeros(3, 1024, dtype=torch.int8), torch.zeros(3, 1, dtype=torch.int8)
    packed = codes.Rows8(w.to(torch.int8), torch.ones(512), torch.zeros(512, dtype=torch.int32))
    quantized.w8a8(ints, torch.ones(3, 1), rows, packed, dtype=BF16, epilogue=paired)
    fused.gate(_zeros(3, 512), paired)


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
    sparse.sparse24(_zeros(33, 256), pattern24.pack24(_zeros(8, 256)))


def _others() -> None:
    one = _zeros(1, 1, 1, 64)
    attention.attention(one, one, one, causal=True, window=1)
    q, k = _zeros(1, 2, 9, 80), _zeros(1, 1, 9, 80)
    lengths = torch.ones(1)
    attention.attention(q, k, k, causal=True, lengths_q=lengths, lengths_k=lengths, bias=_zeros(1, 1, 9, 9))
    attention.decode(_zeros(1, 1, 1, 128), _zeros(1, 1, 512, 128), _zeros(1, 1, 512, 128), lengths=lengths)
    seen = torch.ones(1, 1, 1, 9, dtype=torch.bool)
    attention.attend(q, k, k, bias=seen)
    attention.attend(_zeros(1, 4, 1, 64), _zeros(1, 2, 300, 64), _zeros(1, 2, 300, 64), bias=torch.ones(1, 300) > 0)
    table = torch.zeros(8, 32)
    cache = rope.new_cache(1, 1, 8, 64, dtype=BF16, device="cpu")
    rope.rope_to_cache(_zeros(1, 1, 192), table, table, torch.zeros(1, 1, dtype=torch.int64), cache, heads=1)
    rope.rope_to_cache(_zeros(1, 2, 192), table[:2], table[:2], None, cache, heads=1, first_slot=1)
    quantized.quantize_rows(_zeros(1, 64))
    fused.rms_norm(_zeros(1, 64), _zeros(64), 1e-5)


def main() -> None:
    triton.runtime.driver.set_active(Pretended())
    JITFunction.__getitem__ = _compile_only  # type: ignore[method-assign]
    _products()
    _gates()
    _others()
    print("all compiled")


if __name__ == "__main__":
    main()
