"""Measures every figure of README and docs/benchmarks.md and writes them into both: ``make bench``.

``--render`` only writes what ``benchmarks/*.json`` holds into the documents. Other tools are measured by
``make rivals``, in an environment of their own.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from . import (
    bench_attention,
    bench_decoder,
    bench_eight_bits,
    bench_files,
    bench_frontend,
    bench_generation,
    bench_scale,
)
from .bench_results import (
    attention_table,
    checks_table,
    decoder_table,
    eight_bits_table,
    files_table,
    fill,
    frontend_table,
    generation_table,
    machine_line,
    scale_table,
)
from .gpu_tables import gpu_tables
from .rivals.bench import table as rival_table

ROOT = Path(__file__).resolve().parents[1]


def render(results: Path, documents: Path) -> None:
    """Write the tables of ``results`` (a folder) into README.md and docs/benchmarks.md under ``documents``."""
    names = ("decoder", "files", "frontend", "scale")
    decoder, files, frontend, scale = (
        json.loads((results / f"{name}.json").read_text(encoding="utf-8")) for name in names
    )
    rivals = json.loads((results / "rivals.json").read_text(encoding="utf-8"))
    generation, attention, eight = (
        json.loads((results / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("generation", "attention", "eight_bits")
    )
    blocks = {"decoder": decoder_table(decoder), "machine": machine_line(decoder)}
    more = blocks | {
        "files": files_table(files),
        "frontend": frontend_table(frontend),
        "scale": scale_table(scale),
        "eight bits": eight_bits_table(eight),
        "eight bits machine": machine_line(eight),
        "rivals machine": machine_line(rivals),
        "checks": checks_table(decoder, files, frontend, scale, generation, attention, eight),
    }
    more |= gpu_tables(json.loads((results / "gpu.json").read_text(encoding="utf-8")))
    for kind in ("decoders", "encoders"):
        more |= {f"rival {kind}": rival_table(rivals[kind])}
    pages = {
        "README.md": blocks,
        "docs/benchmarks.md": more,
        "docs/decoding.md": {"generation": generation_table(generation), "machine": machine_line(generation)},
        "docs/attention.md": {"sparse": attention_table(attention), "machine": machine_line(attention)},
    }
    for path, parts in ((documents / name, parts) for name, parts in pages.items()):
        path.write_text(fill(path.read_text(encoding="utf-8"), parts), encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    """Measure, write the results and the documents; the status is the number of failed checks."""
    parser = argparse.ArgumentParser(prog="python -m burnish.tools.bench", description=__doc__.splitlines()[0])
    parser.add_argument("--render", action="store_true", help="measure nothing, write the documents from the results")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--large", action="store_true", help="also compile the shape of Llama-2-7B (13.5 GB)")
    options = parser.parse_args(arguments)
    failed = 0
    if not options.render:
        places = ["--out", str(ROOT / "benchmarks"), "--work", str(ROOT / "build/bench")]
        failed += bench_decoder.main(["--rounds", str(options.rounds), *places])
        failed += bench_generation.main(places)
        failed += bench_attention.main(places)
        failed += bench_eight_bits.main(places)
        failed += bench_files.main(["--rounds", str(options.rounds), *places])
        failed += bench_frontend.main(["--out", str(ROOT / "benchmarks")])
        failed += bench_scale.main([*places, *(["--large"] if options.large else [])])
    render(ROOT / "benchmarks", ROOT)
    return failed


if __name__ == "__main__":
    sys.exit(main())
