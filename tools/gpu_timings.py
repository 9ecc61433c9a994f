"""Timings of the Triton kernels on a GPU, beside eager PyTorch, Inductor, and the vendor's kernels."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..backends.triton import attention, codes, gemm, pattern24, quantized, sparse
from .gpu_correctness import pruned

SHAPES = ((4096, 4096), (22016, 4096), (4096, 11008))
"""Output and input channels of Llama-7B's products; gate and up are one."""
ROWS = (1, 4, 16)
GROUP = 128
_ROTATED = 384 << 20
"""Bytes of copies of the operands that a measurement goes through: several times what a second-level cache holds."""
_ROUNDS = 15
_WARM = 3


def median_seconds(calls: Sequence[Callable[[], Any]], *, rounds: int = _ROUNDS) -> tuple[float, float]:
    """Median time and spread (half the range of the middle 80 %) of one of several alike calls, as a CUDA graph.

    Each call has data of its own, so that none finds it in a cache.
    """
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in calls:
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    times = []
    for i in range(_WARM + rounds):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        if i >= _WARM:
            times.append(start.elapsed_time(end) / 1e3 / len(calls))
    times.sort()
    cut = len(times) // 10
    return times[len(times) // 2], (times[-1 - cut] - times[cut]) / 2


def copy_bandwidth() -> float:
    """Bytes a second, read and written, of a copy of 256 MiB."""
    source = [torch.empty(256 << 20, dtype=torch.uint8, device="cuda") for _ in range(2)]
    target = torch.empty_like(source[0])
    seconds, _ = median_seconds([partial(target.copy_, s) for s in source])
    return 2 * (256 << 20) / seconds


def read_bandwidth() -> float:
    """Bytes a second that a sum reads: the bound of products of few rows."""
    source = [torch.zeros(128 << 20, dtype=torch.float32, device="cuda") for _ in range(2)]
    seconds, _ = median_seconds([partial(torch.sum, s) for s in source])
    return 4 * (128 << 20) / seconds


def weight_bytes(kernel: str, n: int, k: int) -> float:
    """Bytes of the weights that a kernel reads, bfloat16 scales included."""
    return {
        "bf16": 2 * n * k, "sparse24": n * k * (1 + 1 / 8), "sparse24 w4": n * k * (1 / 4 + 1 / 8 + 2 / 64),
        "w4": n * k * (1 / 2 + 2 / GROUP), "nf4": n * k * (1 / 2 + 2 / GROUP), "w8": n * k + 2 * n,
        "e4m3": n * k + 2 * n,
    }[kernel.split(",")[0]]  # fmt: skip


def few_rows(deadline: float, shapes: Sequence[tuple[int, int]] = SHAPES) -> list[dict[str, Any]]:
    """Products of 1 to 16 rows: ours beside cuBLAS, cuSPARSELt and PyTorch's int4, at Llama-7B's shapes."""
    reading = read_bandwidth()
    found: list[dict[str, Any]] = []
    for rows in ROWS:
        for n, k in shapes:
            if time.monotonic() > deadline:
                return found
            x = torch.randn(rows, k, device="cuda", dtype=torch.bfloat16)
            copies = max(2, math.ceil(_ROTATED / (2 * n * k)))
            dense = [torch.randn(n, k, device="cuda", dtype=torch.bfloat16) for _ in range(copies)]
            base, spread = median_seconds([partial(F.linear, x, w) for w in dense])
            found.append(_row("bf16, cuBLAS", n, k, rows, base, spread, base, reading))
            for name, calls in _few_row_sides(x, dense).items():
                try:
                    seconds, spread = median_seconds(calls())
                except Exception as error:
                    found.append({"kernel": name, "n": n, "k": k, "rows": rows, "left_out": str(error).strip()[:200]})
                    continue
                found.append(_row(name, n, k, rows, seconds, spread, base, reading))
    return found


def _row(
    name: str, n: int, k: int, rows: int, seconds: float, spread: float, base: float, reading: float
) -> dict[str, Any]:  # fmt: skip
    row: dict[str, Any] = {"kernel": name, "n": n, "k": k, "rows": rows, "microseconds": seconds * 1e6,
                           "spread": spread * 1e6, "times_cublas_bf16": base / seconds}  # fmt: skip
    if name.split(",")[0] in ("bf16", "sparse24", "sparse24 w4", "w4", "nf4", "w8", "e4m3"):
        moved = weight_bytes(name, n, k) + 2 * rows * (n + k)
        row |= {"gigabytes_per_second": moved / seconds / 1e9, "of_read_bandwidth": moved / seconds / reading}
    return row


def _few_row_sides(x: Tensor, dense: Sequence[Tensor]) -> dict[str, Callable[[], list[Callable[[], Any]]]]:
    def packed(pack: Callable[[Tensor], Any], run: Callable[..., Any], some: Sequence[Tensor] = dense) -> Any:
        # Copies enough to leave the cache, also when they are small.
        weights = [pack(w) for w in some]
        return [partial(run, x, w) for w in weights]

    def by_blocks(shares: quantized.Shares) -> Callable[[], list[Callable[[], Any]]]:
        return lambda: packed(partial(codes.quantize4, group=GROUP), partial(quantized.w4a16, shares=shares), more)

    n, k = dense[0].shape
    weights24 = [pruned(n, k, torch.bfloat16, "cuda") for _ in dense[:2]] * (len(dense) // 2)
    more = list(dense) * 4
    return {
        "bf16": lambda: packed(lambda w: w, gemm.gemm),
        "w4": lambda: packed(partial(codes.quantize4, group=GROUP), quantized.w4a16, more),
        **{f"w4, blocks {i}": by_blocks(s) for i, s in enumerate(quantized.FOUR_FEW)},
        "nf4": lambda: packed(partial(codes.tabulate4, group=GROUP), quantized.w4a16, more),
        "w8": lambda: packed(codes.quantize8, quantized.w8a16, list(dense) * 2),
        "e4m3": lambda: packed(codes.float8, quantized.w8a16, list(dense) * 2),
        "sparse24": lambda: packed(pattern24.pack24, sparse.sparse24, weights24 * 2),
        "sparse24 w4": lambda: packed(pattern24.quantize24, sparse.sparse24, weights24 * 4),
        "cuSPARSELt 2:4": lambda: packed(torch.sparse.to_sparse_semi_structured, F.linear, weights24),
        "PyTorch's int4": lambda: packed(tiled4, _tiled4_product, more),
    }


def tiled4(w: Tensor) -> tuple[Tensor, Tensor]:
    """Weights [n, k] in 4 bits as PyTorch's own product on the tensor cores takes them, with scales and zeros.

    It is the kernel behind ``torchao``'s ``Int4WeightOnlyConfig`` in its tile-packed layout.
    """
    n, k = w.shape
    groups = w.float().view(n, k // GROUP, GROUP)
    low, high = groups.amin(-1), groups.amax(-1)
    scale = ((high - low) / 15).clamp(min=1e-6)
    places = ((groups - low[..., None]) / scale[..., None]).round().clamp(0, 15).to(torch.uint8).view(n, k)
    packed = torch.ops.aten._convert_weight_to_int4pack(places[:, ::2] << 4 | places[:, 1::2], 8)
    zero = low + 8 * scale
    return packed, torch.stack([scale, zero], -1).transpose(0, 1).contiguous().to(w.dtype)


def _tiled4_product(x: Tensor, weights: tuple[Tensor, Tensor]) -> Tensor:
    return product_tiled4(x, *weights)


def product_tiled4(x: Tensor, packed: Tensor, scales: Tensor) -> Tensor:
    """``x`` [rows, k] by the transpose of weights of :func:`tiled4`: [rows, n]."""
    result: Tensor = torch.ops.aten._weight_int4pack_mm(x, packed, GROUP, scales)
    return result


def many_rows(deadline: float) -> list[dict[str, Any]]:
    """Products of 512 and 4,096 rows: ours beside cuBLAS in bfloat16, int8 and float8, at two of Llama-7B's shapes."""
    found: list[dict[str, Any]] = []
    for rows in (512, 4096):
        for n, k in SHAPES[1:]:
            x, w = (torch.randn(size, k, device="cuda", dtype=torch.bfloat16) for size in (rows, n))
            flops = 2.0 * rows * n * k
            base = 0.0
            for name, call in _many_row_sides(x, w).items():
                if time.monotonic() > deadline:
                    return found
                row: dict[str, Any] = {"kernel": name, "rows": rows, "n": n, "k": k}
                try:
                    seconds, spread = median_seconds([call], rounds=7)
                except Exception as error:
                    found.append(row | {"left_out": str(error).strip()[:200]})
                    continue
                base = base or seconds
                row |= {"microseconds": seconds * 1e6, "spread": spread * 1e6}
                found.append(row | {"teraflops": flops / seconds / 1e12, "times_cublas_bf16": base / seconds})
    return found


def _many_row_sides(x: Tensor, w: Tensor) -> dict[str, Callable[[], Any]]:
    n, k = w.shape
    sides: dict[str, Callable[[], Any]] = {"bf16, cuBLAS": partial(F.linear, x, w), "bf16": partial(gemm.gemm, x, w)}
    sides["w4"] = partial(quantized.w4a16, x, codes.quantize4(w, GROUP))
    sides["w8"] = partial(quantized.w8a16, x, codes.quantize8(w))
    sides["sparse24"] = partial(sparse.sparse24, x, pattern24.pack24(pruned(n, k, torch.bfloat16, "cuda")))
    for kind, name in (("integer", "int8 by int8"), ("float", "fp8 by fp8")):
        (a, a_scales), (b, b_scales) = quantized.quantize_rows(x, kind), quantized.quantize_rows(w, kind)
        sides[name] = partial(quantized.scaled, a, a_scales, b, b_scales, dtype=torch.bfloat16)
        if kind == "integer":
            sides["int8 by int8, cuBLAS"] = partial(torch._int_mm, a, b.T)
        else:
            one = torch.ones((), device="cuda")
            sides["fp8 by fp8, cuBLAS"] = partial(
                torch._scaled_mm, a, b.T, scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=True
            )
    return sides


def attention_forward(deadline: float) -> list[dict[str, Any]]:
    """Attention of 4,096 to 16,384 tokens beside PyTorch's fastest: bfloat16, 32 heads of 128, causal and not."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    found: list[dict[str, Any]] = []
    for length in (4096, 8192, 16384):
        for causal in (True, False):
            if time.monotonic() > deadline:
                return found
            q, k, v = (torch.randn(1, 32, length, 128, device="cuda", dtype=torch.bfloat16) for _ in range(3))
            flops = 4 * 32 * length**2 * 128 / (2 if causal else 1)
            seconds = {"ours": median_seconds([partial(attention.attention, q, k, v, causal=causal)], rounds=7)[0]}
            for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION):
                try:
                    with sdpa_kernel(backend):
                        call = partial(F.scaled_dot_product_attention, q, k, v, is_causal=causal)
                        seconds[backend.name.lower()] = median_seconds([call], rounds=7)[0]
                except Exception as error:
                    print(f"left out: {backend.name} at {length}: {str(error).strip()[:200]}")
            best = min((s for name, s in seconds.items() if name != "ours"), default=float("nan"))
            found.append({"length": length, "causal": causal, **{f"{n}_ms": s * 1e3 for n, s in seconds.items()},
                          "teraflops": flops / seconds["ours"] / 1e12,
                          "times_best_sdpa": best / seconds["ours"]})  # fmt: skip
    return found


def decoding_attention(deadline: float) -> list[dict[str, Any]]:
    """One query against 4,096 and 16,384 keys: 32 heads, 32 or 8 heads of keys, beside PyTorch's choice."""
    found: list[dict[str, Any]] = []
    reading = read_bandwidth()
    for keys in (4096, 16384):
        for shared in (32, 8):
            if time.monotonic() > deadline:
                return found
            copies = max(2, math.ceil(_ROTATED / (4 * shared * keys * 128)))
            q = torch.randn(1, 32, 1, 128, device="cuda", dtype=torch.bfloat16)
            caches = [tuple(torch.randn(1, shared, keys, 128, device="cuda", dtype=torch.bfloat16) for _ in range(2))
                      for _ in range(copies)]  # fmt: skip
            ours, spread = median_seconds([partial(attention.decode, q, k, v) for k, v in caches])
            sdpa, _ = median_seconds([partial(F.scaled_dot_product_attention, q, k, v, enable_gqa=shared < 32)
                                      for k, v in caches])  # fmt: skip
            moved = 4 * shared * keys * 128
            found.append({"keys": keys, "shared": shared, "microseconds": ours * 1e6, "spread": spread * 1e6,
                          "of_read_bandwidth": moved / ours / reading, "times_sdpa": sdpa / ours})  # fmt: skip
    return found
