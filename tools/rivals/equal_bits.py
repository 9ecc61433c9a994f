"""Accuracy and size at equal bits: MiniLM and SmolLM2 in 4 bits, groups of 32, through every tool that installs.

``python -m burnish.tools.rivals.equal_bits`` in the environment of ``make rivals``; each way in a process of its own,
which gives a row, or the reason why there is none. Speed is not measured here. ``onnx-quantize`` and
``onnx-neural-compressor`` are not part of that environment: the latter asks for a NumPy older than 2, and runs with
newer ones all the same if both are installed with ``pip install --no-deps`` (and prettytable and py-cpuinfo).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...compiler.benchmark.machine import describe_machine
from ...compiler.benchmark.onnx_side import find_model
from ..baseline import minilm_path
from ..bench_eight_bits import Encoder, embeddings
from ..bench_results import fill, write_results
from ..fetch import model_path
from ..perplexity import Logits, file_logits, perplexity
from ..text import CORPORA, load_tokenizer, sentences, windows
from . import four_bits
from .bench import reason

ROOT = Path(__file__).resolve().parents[2]
MODELS = {"MiniLM": four_bits.encoders, "SmolLM2": four_bits.decoders}
_SUFFIXES = {".onnx", ".data", ".bin", ".xml", ".weights"}


def measure(model: str, way: str, count: int) -> dict[str, Any]:
    """A row: the model made, opened and judged."""
    with tempfile.TemporaryDirectory(prefix="equal-bits-") as scratch:
        started = time.perf_counter()
        path = MODELS[model]()[way](Path(scratch))
        row: dict[str, Any] = {"seconds": round(time.perf_counter() - started, 1)}
        files = [file for file in (path if path.is_dir() else path.parent).rglob("*") if file.suffix in _SUFFIXES]
        row["megabytes"] = round(sum(file.stat().st_size for file in files) / 1e6, 1)
        row |= _judge_encoder(path) if model == "MiniLM" else _judge_decoder(path, count)
        return row


def _judge_encoder(path: Path) -> dict[str, Any]:
    """Cosine with float32 of the embeddings of 200 sentences of news."""
    encoder = Encoder()
    expected = embeddings(minilm_path(), encoder)
    if path.suffix != ".xml":
        made = embeddings(path, encoder)
    else:
        from .sides import OpenVino

        side, rows = OpenVino(path, decoder=False, precision="f32"), []
        for text in sentences():
            hidden = np.asarray(side.prepare(encoder.sentence(text))()[0])[0].mean(axis=0)
            rows.append(hidden / np.linalg.norm(hidden))
        made = np.stack(rows)
    cosines = (made * expected).sum(axis=1)
    return {"cosine": round(float(cosines.mean()), 5), "least cosine": round(float(cosines.min()), 5)}


def _judge_decoder(path: Path, count: int) -> dict[str, Any]:
    """Perplexity on held-out text and on news."""
    encode = load_tokenizer(model_path("smollm2"))
    if path.suffix == ".xml":
        from .sides import OpenVino

        side = OpenVino(path, decoder=True, precision="f32")

        def run(ids: Any) -> Any:
            return side.numpy(side.start(ids)[0])

        forward: Logits = run
    else:
        forward = file_logits(find_model(path))
    return {name: round(perplexity(forward, windows(encode, text(), count)), 3) for name, text in CORPORA.items()}


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown: a row a way."""
    names = list(dict.fromkeys(name for row in rows.values() for name in row if name not in ("failed", "seconds")))
    lines = ["| way | " + " | ".join(names) + " |", "| --- |" + " ---: |" * len(names)]
    for way, row in rows.items():
        cells = [row["failed"], *[""] * (len(names) - 1)] if "failed" in row else [str(row.get(n, "–")) for n in names]
        lines.append(f"| {way} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Measure the rows that are missing and write ``equal_bits.json`` and the tables of the page."""
    parser = argparse.ArgumentParser(prog="python -m burnish.tools.rivals.equal_bits", description=__doc__)
    parser.add_argument("--model", choices=list(MODELS), help="one of them")
    parser.add_argument("--only", default="", metavar="TEXT", help="ways whose name holds this text")
    parser.add_argument("--again", action="store_true", help="measure rows that are there already, too")
    parser.add_argument("--windows", type=int, default=4, help="of 512 tokens, for perplexity")
    parser.add_argument("--limit", type=float, default=1800, metavar="SECONDS", help="most that a row may take")
    parser.add_argument("--render", action="store_true", help="measure nothing, write the tables from the results")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks", help="where equal_bits.json goes")
    parser.add_argument("--row", nargs=2, metavar=("MODEL", "WAY"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.row:
        try:
            print(json.dumps(measure(options.row[0], options.row[1], options.windows)))
        except Exception as error:  # whatever another tool raises is its row
            print(json.dumps({"failed": reason(error)}))
        return 0
    path = options.out / "equal_bits.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["models"] if path.exists() else {}
    for model, ways in MODELS.items():
        rows = found.setdefault(model, {})
        for way in ways() if not options.render and options.model in (None, model) else []:
            if options.only not in way or (way in rows and not options.again):
                continue
            rows[way] = _row(model, way, options.windows, options.limit)
            print(f"{model}, {way}: {rows[way]}", flush=True)
            found[model] = {name: rows[name] for name in ways() if name in rows}
            results = {"bits": 4, "group": four_bits.GROUP, "models": found, "checks": []}
            write_results(path, results | {"machine": describe_machine()})
    if options.out == ROOT / "benchmarks":
        page = ROOT / "docs" / "quantization.md"
        tables = {f"equal bits {model}": table(rows) for model, rows in found.items() if rows}
        page.write_text(fill(page.read_text(encoding="utf-8"), tables), encoding="utf-8")
    return 0


def _row(model: str, way: str, count: int, limit: float) -> dict[str, Any]:
    command = [sys.executable, "-m", "burnish.tools.rivals.equal_bits", "--row", model, way, "--windows", str(count)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=limit)
    except subprocess.TimeoutExpired:
        return {"failed": f"no result after {limit:.0f} s"}
    try:
        # Some tools leave a line of progress open before it.
        row: dict[str, Any] = json.loads(done.stdout[done.stdout.rindex("{") :])
    except ValueError:
        return {"failed": f"ended with status {done.returncode} and no message"}
    return row


if __name__ == "__main__":
    sys.exit(main())
