"""Every Triton kernel compiled for sm_80 and sm_90, with registers, shared memory, spills and the length of its loop.

``python -m burnish.tools.aot_check`` needs no GPU; it ends with 1 if a kernel does not compile or spills.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path

from ..backends.triton.aot import Compiled, Variant, compile_variant
from ..backends.triton.attention_variants import variants

CAPABILITIES = (80, 90)
MOST_SPILLED = 0
MOST_SHARED = {80: 163 << 10, 90: 227 << 10}
"""Bytes of shared memory that a program may have."""


def table(found: Sequence[Compiled]) -> str:
    """The figures, in Markdown."""
    lines = ["| kernel | GPU | registers | shared, KiB | spilled, bytes | loop, instructions |",
             "|---|---|---:|---:|---:|---:|"]  # fmt: skip
    for one in found:
        loop = one.loop.instructions if one.loop else ""
        lines.append(f"| {one.variant} | sm_{one.capability} | {one.registers} | {one.shared / 1024:.1f} | "
                     f"{one.spilled} | {loop} |")  # fmt: skip
    return "\n".join(lines)


def problems(one: Compiled) -> list[str]:
    """Why a variant will not do."""
    found = []
    if one.spilled > MOST_SPILLED:
        found.append(f"spills {one.spilled} bytes")
    if one.shared > MOST_SHARED[one.capability]:
        found.append(
            f"takes {one.shared} bytes of shared memory, sm_{one.capability} has {MOST_SHARED[one.capability]}"
        )
    return found


def _chosen(only: str, capabilities: Sequence[int]) -> Iterator[tuple[Variant, int]]:
    words = only.split()
    for variant in variants():
        if all(word in variant.name.split() for word in words):
            yield from ((variant, capability) for capability in capabilities if capability >= variant.least)


def _compile_share(
    only: str, capabilities: Sequence[int], share: int, shares: int, seconds: float
) -> list[Compiled | tuple[str, int, str]]:
    """Every ``shares``-th variant, until the time is over; a failure is a name, a GPU and what was said.

    What is done is said on the standard error output, as it comes.
    """
    # Constants that are functions are known to Triton's cache by name alone: what they were may not be what they are.
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TRITON_CACHE_DIR"] = folder
        end = time.monotonic() + seconds
        found: list[Compiled | tuple[str, int, str]] = []
        for number, (variant, capability) in enumerate(_chosen(only, capabilities)):
            if number % shares != share:
                continue
            if time.monotonic() > end:
                found.append((variant.name, capability, "not compiled: the time is over"))
                continue
            try:
                found.append(compile_variant(variant, capability))
                print(f"{variant.name} sm_{capability}", file=sys.stderr, flush=True)
            except Exception as error:
                found.append((variant.name, capability, f"{type(error).__name__}: {str(error).strip()[-300:]}"))
    return found


def compile_all(
    only: str = "", *, capabilities: Sequence[int] = CAPABILITIES, processes: int = 2, seconds: float = 600
) -> tuple[list[Compiled], list[str]]:
    """Compile the variants whose names hold all words of ``only``: figures, and what is wrong."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        parts = [pool.submit(_compile_share, only, capabilities, i, processes, seconds) for i in range(processes)]
        found = [one for part in parts for one in part.result()]
    done = sorted((one for one in found if isinstance(one, Compiled)), key=lambda one: (one.variant, one.capability))
    wrong = [f"{name} sm_{capability}: {said}" for name, capability, said in
             (one for one in found if not isinstance(one, Compiled))]  # fmt: skip
    wrong += [f"{one.variant} sm_{one.capability}: {problem}" for one in done for problem in problems(one)]
    return done, wrong


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile all and print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m burnish.tools.aot_check", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--only", default="", metavar="WORDS", help="the variants whose name has all the words")
    parser.add_argument("--gpu", type=int, choices=CAPABILITIES, action="append", help="80 or 90; both without it")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=600, help="compile no more after them")
    parser.add_argument("--out", type=Path, help="where the figures go, as JSON")
    options = parser.parse_args(arguments)
    start = time.monotonic()
    found, wrong = compile_all(options.only, capabilities=options.gpu or CAPABILITIES, processes=options.processes,
                               seconds=options.seconds)  # fmt: skip
    print(table(found))
    print(f"\n{len(found)} compiled in {time.monotonic() - start:.0f} s, {len(wrong)} wrong")
    for line in wrong:
        print(f"WRONG  {line}")
    if options.out:
        text = json.dumps({"compiled": [asdict(one) for one in found], "wrong": wrong}, indent=1) + "\n"
        options.out.write_text(text, encoding="utf-8")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
