"""Triton kernels on a GPU: right, then timed beside what PyTorch and the vendor have; in one call under ten minutes.

Each section runs in a process of its own that is ended when its time is over, so that nothing hangs. Without a GPU:
right under the interpreter, and an estimate of each kernel from its machine code (``tools/roofline.py``).
``python -m burnish.tools.gpu_check --out figures.json``.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

GPU_SECTIONS = {
    "correctness": 120, "products": 80, "products of many rows": 60, "attention": 40, "decoding attention": 25,
    "decoder": 90, "blocks": 100,
}  # fmt: skip
"""Sections on a GPU and the seconds that each may take: together under ten minutes."""
CPU_SECTIONS = {"correctness": 300, "decoder, one small layer": 60, "roofline": 240}
_MARGIN = 0.8
"""Part of its time after which a section starts nothing new."""
_START = 10.0
"""Seconds in which a process starts."""


def check_share(share: int, shares: int, seconds: float) -> tuple[dict[str, float], dict[str, str], int]:
    """Every ``shares``-th case: errors, failures by name, and how many were left out for lack of time."""
    from .gpu_correctness import cases

    deadline = time.monotonic() + seconds
    torch.manual_seed(0)
    gpu = torch.cuda.is_available()
    errors: dict[str, float] = {}
    failed: dict[str, str] = {}
    left = 0
    for number, case in enumerate(cases("cuda" if gpu else "cpu", large=gpu)):
        if number % shares != share:
            continue
        if time.monotonic() > deadline:
            left += 1
            continue
        try:
            errors[case.name] = case.error()
        except Exception as error:
            failed[case.name] = f"{type(error).__name__}: {str(error).strip()[-300:]}"
    return errors, failed, left


def correctness(deadline: float) -> dict[str, Any]:
    """Every case of every kernel: its error as a part of what is allowed; processes share the compiling."""
    seconds = deadline - time.monotonic() - _START
    shares = min(14, max(1, (os.cpu_count() or 1) - 2)) if torch.cuda.is_available() else 1
    errors: dict[str, float] = {}
    failed: dict[str, str] = {}
    left = 0
    with ProcessPoolExecutor(shares, mp_context=multiprocessing.get_context("spawn")) as pool:
        for part in [pool.submit(check_share, i, shares, seconds) for i in range(shares)]:
            some, others, missed = part.result()
            errors |= some
            failed |= others
            left += missed
    wrong = [name for name, error in errors.items() if not error <= 1]
    for name in wrong:
        print(f"WRONG  {name}: {errors[name]:.3g} of what is allowed")
    for name, said in failed.items():
        print(f"FAILED {name}: {said}")
    worst = max(errors.values(), default=0.0)
    print(f"{len(errors) - len(wrong)} right (worst {worst:.2g} of what is allowed), {len(wrong)} wrong, "
          f"{len(failed)} failed, {left} left out for lack of time")  # fmt: skip
    return {"errors": errors, "failed": failed, "left_out": left, "bad": len(wrong) + len(failed)}


def _rows(rows: list[dict[str, Any]]) -> dict[str, Any]:
    for row in rows:
        print("  ".join(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
                        for key, value in row.items()))  # fmt: skip
    return {"rows": rows, "bad": sum(row.get("right") is False for row in rows)}


def _products(deadline: float) -> dict[str, Any]:
    from .gpu_timings import few_rows

    return _rows(few_rows(deadline))


def _many_rows(deadline: float) -> dict[str, Any]:
    from .gpu_timings import many_rows

    return _rows(many_rows(deadline))


def _attention(deadline: float) -> dict[str, Any]:
    from .gpu_timings import attention_forward

    return _rows(attention_forward(deadline))


def _decoding(deadline: float) -> dict[str, Any]:
    from .gpu_timings import decoding_attention

    return _rows(decoding_attention(deadline))


def _blocks(deadline: float) -> dict[str, Any]:
    try:
        from ..backends.triton import codegen  # noqa: F401
        from .gpu_blocks import against_inductor
    except ImportError as error:
        print(f"left out: generated kernels cannot be imported: {error}")
        return {"left_out": str(error), "bad": 0}
    return _rows(against_inductor(deadline))


def _decoder(deadline: float) -> dict[str, Any]:
    from .gpu_decoder import tokens_a_second

    return _rows(tokens_a_second(deadline))


def _small_decoder(deadline: float) -> dict[str, Any]:
    from .gpu_decoder import Shape, right

    torch.manual_seed(0)
    error = right("cpu", Shape(layers=1, hidden=64, inner=96, heads=4, vocabulary=64, capacity=32, past=17))
    # Several roundings to bfloat16 of activations in turn.
    return _rows([{"layer": "4 bits beside PyTorch", "error": error, "right": error < 4e-2}])


def _roofline(deadline: float) -> dict[str, Any]:
    from .roofline import estimates, table

    rows = estimates(deadline)
    print(table(rows))
    return {"rows": rows, "bad": 0}


SECTIONS: dict[str, Callable[[float], dict[str, Any]]] = {
    "correctness": correctness, "products": _products, "products of many rows": _many_rows, "attention": _attention,
    "decoding attention": _decoding, "blocks": _blocks, "decoder": _decoder,
    "decoder, one small layer": _small_decoder, "roofline": _roofline,
}  # fmt: skip


def run_section(name: str, seconds: float) -> dict[str, Any]:
    """A section in a process of its own, ended when its time is over."""
    environment = dict(os.environ)
    if not torch.cuda.is_available() and name != "roofline":
        environment["TRITON_INTERPRET"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "section.json"
        command = [sys.executable, "-W", "ignore", "-m", __spec__.name, "--section", name, "--seconds",
                   str(seconds * _MARGIN), "--out", str(out)]  # fmt: skip
        print(f"== {name} (up to {seconds:.0f} s)", flush=True)
        start = time.monotonic()
        try:
            done = subprocess.run(command, env=environment, timeout=seconds, check=False)
        except subprocess.TimeoutExpired:
            print(f"ended after {seconds:.0f} s", flush=True)
            return {"left_out": f"ended after {seconds:.0f} s", "bad": 1}
        if done.returncode or not out.is_file():
            return {"left_out": f"the process ended with {done.returncode}", "bad": 1}
        result: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return result | {"seconds": time.monotonic() - start}


def _write(path: Path, result: dict[str, Any]) -> None:
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    unfinished.replace(path)


def main(arguments: Sequence[str] | None = None) -> int:
    """Check and time; ends with 1 if a kernel is wrong or a section came to nothing."""
    parser = argparse.ArgumentParser(
        prog="python -m burnish.tools.gpu_check", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--only", action="append", metavar="SECTION", help="a section; may be given several times")
    parser.add_argument("--section", choices=SECTIONS, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help="where the figures go, as JSON")
    options = parser.parse_args(arguments)
    if options.section:
        result = SECTIONS[options.section](time.monotonic() + (options.seconds or 60.0))
        if options.out:
            _write(options.out, result)
        return 0
    gpu = torch.cuda.is_available()
    sections = GPU_SECTIONS if gpu else CPU_SECTIONS
    unknown = set(options.only or ()) - set(sections)
    if unknown:
        parser.error(f"no section {', '.join(sorted(unknown))} here: {', '.join(sections)}")
    import triton

    device = torch.cuda.get_device_name() if gpu else "none: interpreter, and estimates"
    about = {"device": device, "torch": torch.__version__, "triton": triton.__version__}
    found: dict[str, Any] = {}
    for name, seconds in sections.items():
        if not options.only or name in options.only:
            found[name] = run_section(name, seconds)
            if options.out:  # after each: whoever lends the GPU may end the call
                _write(options.out, about | found)
    return int(any(result["bad"] for result in found.values()))


if __name__ == "__main__":
    sys.exit(main())
