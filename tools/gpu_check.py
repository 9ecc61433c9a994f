"""Triton kernels on a GPU: right, then timed beside what PyTorch and the vendor have; in one call under ten minutes.

Without a GPU: right under the interpreter (set ``TRITON_INTERPRET=1``), and for each kernel an estimate of its time
from the bytes that it moves. ``python -m burnish.tools.gpu_check --out figures.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..backends.triton import packing, products

SHAPES = ((4096, 4096), (11008, 4096), (4096, 11008))
"""Output and input channels of Llama-7B's products."""
ROWS = (1, 4, 16)
GROUP = 64
H200_BYTES = 4.8e12
"""Bytes a second of an H200's memory, by its data sheet."""
TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
_ROTATED = 256 << 20
"""Bytes of copies of the weights that a measurement goes through, more than the second-level cache holds."""
_ROUNDS = 30


def pruned(n: int, k: int, dtype: torch.dtype, device: str) -> Tensor:
    """Random weights [n, k] with the pattern 2:4."""
    quads = torch.randn(n, k // 4, 4, device=device)
    keep = torch.zeros_like(quads).scatter(-1, quads.abs().topk(2, -1).indices, 1)
    return (quads * keep).reshape(n, k).to(dtype)


def correctness(device: str, shapes: Sequence[tuple[int, int]]) -> dict[str, float]:
    """Largest error of each kernel, relative to the largest output and to what its type allows."""
    worst: dict[str, float] = {}
    for dtype, limit in TOLERANCE.items():
        for n, k in shapes:
            for rows in (1, 7, 16, 40):
                x = torch.randn(rows, k, device=device).to(dtype)
                weights = pruned(n, k, dtype, device)
                coded, dense = packing.quantize24(weights, GROUP), packing.quantize4(weights, GROUP)
                for name, got, reference in (
                    ("sparse24", products.sparse24(x, packing.pack24(weights)), weights),
                    ("sparse24_w4", products.sparse24_w4(x, coded), packing.dequantize24(coded)),
                    ("w4", products.w4(x, dense), packing.dequantize4(dense)),
                ):
                    want = x.double() @ reference.double().T
                    error = float((got.double() - want).abs().max() / want.abs().max()) / limit
                    key = f"{name} {str(dtype).removeprefix('torch.')}"
                    worst[key] = max(worst.get(key, 0.0), error)
    return worst


def bytes_of(name: str, rows: int, n: int, k: int) -> float:
    """Bytes that a kernel must move for bfloat16 activations."""
    weights = {
        "dense bf16": 2 * n * k,
        "sparse24": n * k + n * k / 8,
        "sparse24_w4": n * k / 4 + n * k / 8 + 2 * n * k / GROUP,
        "w4": n * k / 2 + 2 * n * k / GROUP,
    }[name]
    return weights + 2 * rows * (n + k)


def median_seconds(calls: Sequence[Callable[[], Any]]) -> float:
    """Median time of one of several alike calls, each on data of its own so that none finds it in a cache."""
    for call in calls:
        call()
    torch.cuda.synchronize()
    times = []
    for _ in range(_ROUNDS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        for call in calls:
            call()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / 1e3 / len(calls))
    return float(sorted(times)[len(times) // 2])


def timings() -> list[dict[str, Any]]:
    """Each kernel beside dense bfloat16 and the vendor's own 2:4, at each shape and number of rows."""
    found = []
    for n, k in SHAPES:
        for rows in ROWS:
            x = torch.randn(rows, k, device="cuda", dtype=torch.bfloat16)
            copies = max(2, _ROTATED // (2 * n * k))
            sparse = [pruned(n, k, torch.bfloat16, "cuda") for _ in range(copies)]
            packed = [packing.pack24(w) for w in sparse]
            coded = [packing.quantize24(w, GROUP) for w in sparse]
            dense4 = [packing.quantize4(w, GROUP) for w in sparse]
            sides: dict[str, list[Callable[[], Any]]] = {
                "dense bf16": [partial(torch.nn.functional.linear, x, w) for w in sparse],
                "sparse24": [partial(products.sparse24, x, w) for w in packed],
                "sparse24_w4": [partial(products.sparse24_w4, x, w) for w in coded],
                "w4": [partial(products.w4, x, w) for w in dense4],
            }
            vendor = _vendor(x, sparse)
            if vendor is not None:
                sides["vendor 2:4"] = vendor
            seconds = {name: median_seconds(calls) for name, calls in sides.items()}
            for name, taken in seconds.items():
                row = {"kernel": name, "n": n, "k": k, "rows": rows, "microseconds": taken * 1e6,
                       "against_dense": seconds["dense bf16"] / taken}  # fmt: skip
                if name != "vendor 2:4":
                    row["gigabytes_per_second"] = bytes_of(name, rows, n, k) / taken / 1e9
                found.append(row)
    return found


def _vendor(x: Tensor, sparse: Sequence[Tensor]) -> list[Callable[[], Any]] | None:
    """PyTorch's semi-structured sparse weights, where this GPU and shape have a kernel."""
    try:
        weights = [torch.sparse.to_sparse_semi_structured(w) for w in sparse]
        calls: list[Callable[[], Any]] = [partial(torch.nn.functional.linear, x, w) for w in weights]
        calls[0]()
    except (RuntimeError, NotImplementedError, ValueError):
        return None
    return calls


def estimates() -> list[dict[str, Any]]:
    """Times that the memory of an H200 bounds from below."""
    return [
        {"kernel": name, "n": n, "k": k, "rows": rows, "estimate": True,
         "microseconds": bytes_of(name, rows, n, k) / H200_BYTES * 1e6,
         "against_dense": bytes_of("dense bf16", rows, n, k) / bytes_of(name, rows, n, k)}
        for n, k in SHAPES for rows in ROWS for name in ("dense bf16", "sparse24", "sparse24_w4", "w4")
    ]  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Check and time; ends with 1 if a kernel is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m burnish.tools.gpu_check", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--out", type=Path, help="where the figures go, as JSON")
    options = parser.parse_args(arguments)
    gpu = torch.cuda.is_available()
    if not gpu and os.environ.get("TRITON_INTERPRET") != "1":
        print("there is no GPU here: set TRITON_INTERPRET=1 to check the kernels under the interpreter")
        return 1
    torch.manual_seed(0)
    worst = correctness("cuda" if gpu else "cpu", SHAPES[:1] if gpu else [(72, 128)])
    for name, error in worst.items():
        print(f"{'right' if error <= 1 else 'WRONG'}  {name}: {error:.2g} of what is allowed")
    rows = timings() if gpu else estimates()
    for row in rows:
        kind = "estimated" if row.get("estimate") else "measured"
        print(f"{row['kernel']:12} {row['n']:6} x {row['k']:6}, {row['rows']:2} rows: {row['microseconds']:8.1f} µs "
              f"{kind}, {row['against_dense']:.2f} x dense bf16")  # fmt: skip
    if options.out:
        device = torch.cuda.get_device_name() if gpu else "none: interpreter, and estimates for an H200"
        result = {"device": device, "correctness": worst, "rows": rows}
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return int(any(error > 1 for error in worst.values()))


if __name__ == "__main__":
    sys.exit(main())
