"""An estimate of each Triton kernel from its machine code: what a multiprocessor holds of it, and what bounds it.

No kernel is run. A step of a kernel's longest loop moves so many bytes and needs so many products, which its variant
says (``backends/triton/variants.py``), and issues so many instructions, which the disassembled cubin says. Each of the
three has a rate on a GPU; the slowest bounds the kernel. Latencies, waves of programs that do not fill the GPU, and
caches are left out: a measurement can only be worse, but for operands that a cache holds.

``python -m burnish.tools.roofline`` needs no GPU.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..backends.triton.aot import Compiled, Variant
from ..backends.triton.attention_variants import variants
from .bench_results import fill

SHOWN = (
    "gemm bf16 16x64x128/1", "gemm bf16 128x128x64/1", "gemm tma bf16 128x256x64", "gemv bf16 4x1024/1",
    "w4 few bf16 g64 1", "w4 few bf16 g128 0", "w4 few bf16 g128 1", "w4 few zeros bf16 g128 1",
    "w4 few nf4 bf16 g128 1", "w4 few table bf16 g128 1", "w4 row bf16 g128 0", "w4 row zeros bf16 g128 0",
    "w4 row nf4 bf16 g128 0", "w4 many bf16 g128 128x128", "w8 few bf16 1", "w8 few grouped zeros bf16 1",
    "w8 few e4m3 bf16 1", "w8 row bf16", "w8 row e4m3 bf16", "w8 many bf16 1", "w8a8 integer 128x128x128/1",
    "w8a8 float 128x128x128/1", "sparse24 bf16", "sparse24_w4 g128 bf16", "sparse24 row bf16",
    "sparse24_w4 g128 row bf16", "attention hopper bf16 d64", "attention hopper bf16 d128", "decoding bf16 d128",
    "decoding int8 bf16 d128",
)  # fmt: skip
"""Variants of the table."""


@dataclass(frozen=True)
class Gpu:
    """Rates of a GPU, from its data sheet.

    Attributes:
        name: of it.
        bandwidth: bytes a second of its memory.
        multiprocessors, clock: how many, and at how many steps a second.
        tensor: products and sums a second of the tensor cores, in 16 bits without sparsity; in 8 bits twice as many.
        registers, shared, threads, programs: what a multiprocessor has.
    """

    name: str
    bandwidth: float
    multiprocessors: int
    clock: float
    tensor: float
    registers: int = 65536
    shared: int = 228 << 10
    threads: int = 2048
    programs: int = 32

    @property
    def issued(self) -> float:
        """Instructions of a thread a second: four schedulers issue one for 32 threads each."""
        return self.multiprocessors * self.clock * 4 * 32


H200 = Gpu("H200", 4.8e12, 132, 1.755e9, 989e12)
H100 = Gpu("H100 SXM", 3.35e12, 132, 1.755e9, 989e12)


def resident(one: Compiled, gpu: Gpu) -> int:
    """Programs that a multiprocessor holds at a time."""
    threads = 32 * one.warps
    registers = -(-one.registers // 8) * 8 * threads
    shared = one.shared + 1024
    return min(gpu.registers // registers, gpu.shared // shared, gpu.threads // threads, gpu.programs)


def estimate(variant: Variant, one: Compiled, gpu: Gpu = H200) -> dict[str, Any]:
    """What bounds a kernel, and the part of the memory's bandwidth, or of the tensor cores' rate, that it can reach."""
    held = resident(one, gpu)
    row: dict[str, Any] = {
        "kernel": variant.name, "gpu": gpu.name, "estimate": True, "registers": one.registers, "shared": one.shared,
        "programs": held, "occupancy": held * 32 * one.warps / gpu.threads,
    }  # fmt: skip
    if variant.work is None or one.loop is None:
        return row
    flops = variant.work["flops"]
    tensor = gpu.tensor * (2 if variant.name.startswith(("w8a8 integer", "w8a8 float")) else 1)
    issued = one.loop.instructions * 32 * one.warps
    seconds = {"instructions": issued / gpu.issued}
    # Operands of large tiles come from a cache: their bytes bound nothing.
    best = "memory" if "bytes" in variant.work else "tensor cores"
    if best == "memory":
        seconds["memory"] = variant.work["bytes"] / gpu.bandwidth
        row["instructions_per_byte"] = issued / variant.work["bytes"]
    if one.loop.matrix:
        seconds["tensor cores"] = flops / tensor
    worst = max(seconds, key=lambda name: seconds[name])
    return row | {
        **variant.work, "bound": worst, "of": best, "of_best": seconds.get(best, seconds[worst]) / seconds[worst],
    }  # fmt: skip


def estimates(deadline: float, gpus: Sequence[Gpu] = (H200, H100)) -> list[dict[str, Any]]:
    """Estimates of the variants in :data:`SHOWN`, as many as the time allows."""
    from ..backends.triton.aot import compile_variant

    rows = []
    for variant in variants():
        if variant.name not in SHOWN or time.monotonic() > deadline:
            continue
        one = compile_variant(variant, 90)
        rows += [estimate(variant, one, gpu) for gpu in gpus]
    order = {name: i for i, name in enumerate(SHOWN)}
    return sorted(rows, key=lambda row: order[row["kernel"]])


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The estimates in Markdown, both GPUs in a line."""
    lines = [
        "| kernel (sm_90) | registers | shared, KiB | warps held, of 64 | instructions a byte | H200: bound "
        "| at most | H100: bound | at most |",
        "|---|---:|---:|---:|---:|---|---:|---|---:|",
    ]
    for first, second in zip(rows[::2], rows[1::2], strict=True):
        sides = [f"{row['bound']} | {row['of_best']:.0%} of {'bandwidth' if row['of'] == 'memory' else row['of']}"
                 if "bound" in row else " | " for row in (first, second)]  # fmt: skip
        per_byte = f"{first['instructions_per_byte']:.1f}" if "instructions_per_byte" in first else ""
        lines.append(f"| {first['kernel']} | {first['registers']} | {first['shared'] / 1024:.0f} | "
                     f"{first['occupancy'] * 64:.0f} | {per_byte} | {sides[0]} | {sides[1]} |")  # fmt: skip
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile, estimate, print; with ``--fill``, put the table between the marks of a document."""
    parser = argparse.ArgumentParser(
        prog="python -m burnish.tools.roofline", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--fill", type=Path, metavar="FILE", help="a document with the marks roofline")
    parser.add_argument("--seconds", type=float, default=600, help="compile no more after them")
    options = parser.parse_args(arguments)
    text = table(estimates(time.monotonic() + options.seconds))
    print(text)
    if options.fill:
        document = options.fill.read_text(encoding="utf-8")
        options.fill.write_text(fill(document, {"roofline": text}), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
