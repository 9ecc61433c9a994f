"""Measures every figure of README and docs/benchmarks.md and writes them into both: ``make bench``.

``--render`` only writes what ``benchmarks/*.json`` holds into the documents.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from . import bench_decoder, bench_files
from .bench_results import checks_table, decoder_table, files_table, fill, machine_line

ROOT = Path(__file__).resolve().parents[1]


def render(results: Path, documents: Path) -> None:
    """Write the tables of ``results`` (a folder) into README.md and docs/benchmarks.md under ``documents``."""
    decoder = json.loads((results / "decoder.json").read_text(encoding="utf-8"))
    files = json.loads((results / "files.json").read_text(encoding="utf-8"))
    blocks = {"decoder": decoder_table(decoder), "machine": machine_line(decoder)}
    more = blocks | {"files": files_table(files), "checks": checks_table(decoder, files)}
    for path, parts in ((documents / "README.md", blocks), (documents / "docs" / "benchmarks.md", more)):
        path.write_text(fill(path.read_text(encoding="utf-8"), parts), encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    """Measure, write the results and the documents; the status is the number of failed checks."""
    parser = argparse.ArgumentParser(prog="python -m burnish.tools.bench", description=__doc__.splitlines()[0])
    parser.add_argument("--render", action="store_true", help="measure nothing, write the documents from the results")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args(arguments)
    failed = 0
    if not options.render:
        common = [
            "--rounds",
            str(options.rounds),
            "--out",
            str(ROOT / "benchmarks"),
            "--work",
            str(ROOT / "build/bench"),
        ]
        failed += bench_decoder.main(common)
        failed += bench_files.main(common)
    render(ROOT / "benchmarks", ROOT)
    return failed


if __name__ == "__main__":
    sys.exit(main())
