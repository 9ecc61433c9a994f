"""Block sizes of the products of one row, timed on a GPU at Llama-7B's shapes: what the tables of blocks rest on.

Kernels are compiled by several processes first, then timed by one.
``python -m burnish.tools.gpu_sweep --out sweep.json``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..backends.triton import codes, pattern24, quantized, sparse
from ..backends.triton.quantized import Shares
from .gpu_correctness import pruned
from .gpu_timings import GROUP, SHAPES, median_seconds, read_bandwidth, weight_bytes

FEW = tuple(
    Shares(16, n, parts, warps, stages)
    for n in (16, 32, 64) for parts, warps in ((2, 4), (4, 4), (8, 4), (8, 8)) for stages in (2, 3, 4, 5)
)  # fmt: skip
"""Blocks of the kernels on the tensor cores."""
ROW = tuple(
    Shares(1, 4, parts, warps, stages)
    for parts, warps in ((8, 1), (16, 2), (16, 4), (32, 2), (32, 4), (32, 8), (64, 4), (64, 8)) for stages in (1, 2)
)  # fmt: skip
"""Blocks of the kernels for one row."""
_ROTATED = 384 << 20


def _dense(n: int, k: int) -> Tensor:
    return torch.randn(n, k, device="cuda", dtype=torch.bfloat16)


def _pruned(n: int, k: int) -> Tensor:
    return pruned(n, k, torch.bfloat16, "cuda")


KERNELS: dict[str, tuple[Callable[[int, int], Tensor], Callable[[Tensor], Any], Callable[..., Tensor]]] = {
    "w4": (_dense, partial(codes.quantize4, group=GROUP), quantized.w4a16),
    "w8": (_dense, codes.quantize8, quantized.w8a16),
    "sparse24": (_pruned, pattern24.pack24, sparse.sparse24),
    "sparse24 w4": (_pruned, pattern24.quantize24, sparse.sparse24),
}
"""How weights are made and packed, and the product, of each kernel whose blocks are shared out among warps."""


def candidates(only: Sequence[str] = (), *, row: bool = False) -> Iterator[tuple[str, Shares]]:
    """All kernels with all block sizes."""
    for name in only or KERNELS:
        yield from ((name, blocks) for blocks in (*ROW, *(() if row else FEW)))


def compile_share(share: int, shares: int, only: Sequence[str], seconds: float, row: bool) -> dict[str, str]:
    """Compile every ``shares``-th candidate for the numbers of columns of the shapes: what failed, by name."""
    end = time.monotonic() + seconds
    failed: dict[str, str] = {}
    for number, (name, blocks) in enumerate(candidates(only, row=row)):
        if number % shares != share or time.monotonic() > end:
            continue
        make, pack, run = KERNELS[name]
        try:
            for k in sorted({k for _, k in SHAPES}):
                run(torch.ones(1, k, device="cuda", dtype=torch.bfloat16), pack(make(256, k)), shares=blocks)
            torch.cuda.synchronize()
        except Exception as error:
            failed[f"{name} {blocks}"] = f"{type(error).__name__}: {str(error).strip()[-200:]}"
    return failed


def sweep(only: Sequence[str], seconds: float, *, row: bool) -> dict[str, Any]:
    """Times of every candidate at every shape, the fastest first."""
    end = time.monotonic() + seconds
    shares = max(1, (os.cpu_count() or 1) - 2)
    failed: dict[str, str] = {}
    with ProcessPoolExecutor(shares, mp_context=multiprocessing.get_context("spawn")) as pool:
        for part in [pool.submit(compile_share, i, shares, only, seconds / 2, row) for i in range(shares)]:
            failed |= part.result()
    reading = read_bandwidth()
    rows: list[dict[str, Any]] = []
    for n, k in SHAPES:
        x = torch.randn(1, k, device="cuda", dtype=torch.bfloat16)
        for name in only or KERNELS:
            make, pack, run = KERNELS[name]
            size = weight_bytes(name, n, k)
            packed = [pack(w) for w in [make(n, k) for _ in range(2)] * max(1, math.ceil(_ROTATED / 2 / size))]
            for _, blocks in candidates([name], row=row):
                if f"{name} {blocks}" in failed or time.monotonic() > end:
                    continue
                took, spread = median_seconds([partial(run, x, p, shares=blocks) for p in packed], rounds=7)
                rows.append({
                    "kernel": name, "n": n, "k": k, "blocks": str(blocks), "microseconds": took * 1e6,
                    "spread": spread * 1e6, "of_read_bandwidth": size / took / reading,
                })  # fmt: skip
    rows.sort(key=lambda row: (row["kernel"], row["n"], row["k"], row["microseconds"]))
    return {"device": torch.cuda.get_device_name(), "rows": rows, "failed": failed}


def main(arguments: Sequence[str] | None = None) -> int:
    """Time the block sizes and print the best of each kernel and shape."""
    parser = argparse.ArgumentParser(
        prog="python -m burnish.tools.gpu_sweep", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--only", action="append", choices=list(KERNELS), help="a kernel; may be given several times")
    parser.add_argument("--seconds", type=float, default=150.0, help="time nothing new after them")
    parser.add_argument("--out", type=Path, help="where the figures go, as JSON")
    parser.add_argument("--row", action="store_true", help="only the kernels for one row")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        parser.error("there is no GPU to time on")
    found = sweep(options.only or [], options.seconds, row=options.row)
    for _, group in itertools.groupby(found["rows"], key=lambda row: (row["kernel"], row["n"], row["k"])):
        best = list(group)
        for row in best[:4]:
            print(f"{row['kernel']:12} {row['n']}x{row['k']}  {row['microseconds']:7.2f} us ± {row['spread']:.2f}  "
                  f"{row['of_read_bandwidth']:.2f} of reading  {row['blocks']}")  # fmt: skip
    for name, said in found["failed"].items():
        print(f"FAILED {name}: {said}")
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
