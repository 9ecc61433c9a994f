"""SmolLM2 and MiniLM through the tools that a user would otherwise take, beside Burnish: speed, memory, size, accuracy.

``make rivals`` installs them in an environment of their own and runs this. A tool that does not install, or whose model
does not load, is a row that says so.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ...compiler.api import export
from ...compiler.benchmark import Scenario, Side, benchmark, decode, prefill
from ...compiler.benchmark.machine import describe_machine
from ...compiler.benchmark.onnx_side import OnnxSide
from ...compiler.benchmark.worker import made
from ...compiler.progress import terminal_progress
from .. import bench_generation
from ..baseline import baseline_path, minilm_path
from ..bench_results import write_results
from ..fetch import model_path
from ..text import held_out_text, load_tokenizer, windows
from . import models

_SIDES = "burnish.tools.rivals.sides"
FLOAT = "ONNX Runtime float32"


@dataclass(frozen=True)
class Rival:
    """A side and how its model is made.

    Attributes:
        name: in the table.
        make: makes the model, or raises.
        source: of the side; the path that ``make`` returns if empty.
        every: the side that gives the logits of every position, where ``source`` does not.
        ours: whether it is Burnish.
        streams: shares of a batch that run side by side.
    """

    name: str
    make: Callable[[], Path]
    source: str = ""
    every: str = ""
    ours: bool = False
    streams: int | None = None


def _ours(work: Path, name: str) -> Path:
    return bench_generation.folder(work, name)


def decoders(work: Path) -> list[Rival]:
    """Language models, the first being what ratios refer to."""
    rivals = [
        Rival(FLOAT, baseline_path),
        Rival("ONNX Runtime quantize_dynamic", models.runtime_dynamic),
        Rival("ONNX Runtime MatMulNBits int4", models.runtime_4_bits),
        Rival("onnxruntime-genai int4", partial(models.genai, "int4"), f"{_SIDES}:genai:int4"),
    ]
    for kind in ("float", "int8", "int4"):
        rivals.append(Rival(f"OpenVINO {kind}", partial(models.openvino, kind), f"{_SIDES}:openvino:{kind}"))
    for kind in ("q4_0", "q4_k_m", "q8_0"):
        rivals.append(
            Rival(
                f"llama.cpp {kind.upper()}",
                partial(models.llama, kind),
                f"{_SIDES}:llama:{kind}",
                f"{_SIDES}:llama_every:{kind}",
            )
        )
    for name in ("w8a16", "w4a16", "w4a16, prompts w8a8"):
        rivals.append(Rival(f"Burnish {name}", partial(_ours, work, name), ours=True))
    return rivals


def _made(rivals: list[Rival]) -> tuple[list[tuple[Rival, Side]], dict[str, str]]:
    """Sides whose model could be made and loaded, and the reasons of those that could not."""
    ready, failed = [], {}
    for rival in rivals:
        try:
            path = rival.make()
            side = Side(rival.name, rival.source or str(path), eager=bool(rival.source), streams=rival.streams)
            benchmark(side, scenarios=[], rounds=5)  # loads it alone, so that one that does not is told by name
        except Exception as error:  # whatever another tool raises is its row
            failed[rival.name] = reason(error)
            print(f"{rival.name}: {failed[rival.name]}", flush=True)
            continue
        ready.append((rival, side))
    return ready, failed


def reason(error: Exception) -> str:
    """The first line of an error, without the folders of this machine."""
    return re.sub(r"/(?:[^/\s\"']+/)+", "", f"{type(error).__name__}: {str(error).splitlines()[0]}")[:200]


def _perplexity(rival: Rival, side: Side, count: int) -> float | str:
    source = rival.every or side.source
    eager = "eager" if source.startswith(_SIDES) else "file"
    command = [sys.executable, "-m", "burnish.tools.rivals.accuracy", source, eager, str(count)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return f"failed: {(done.stderr.strip().splitlines() or ['no message'])[-1][:200]}"
    return float(json.loads(done.stdout.splitlines()[-1])["perplexity"])


def measure_decoders(work: Path, rounds: int, count: int, only: str) -> dict[str, Any]:
    """Table of the language models."""
    rivals = [rival for rival in decoders(work) if only in rival.name or rival.name == FLOAT]
    ready, failed = _made(rivals)
    with terminal_progress() as progress:
        result = benchmark(
            *(side for _, side in ready),
            scenarios=[prefill(128), prefill(512), decode(128)],
            rounds=rounds,
            progress=progress,
        )
    print(result, flush=True)
    perplexities = {}
    for rival, side in ready:
        perplexities[rival.name] = _perplexity(rival, side, count)
        print(f"perplexity of {rival.name}: {perplexities[rival.name]}", flush=True)
    return {"model": "SmolLM2-135M-Instruct", **result.to_json(), "perplexity": perplexities, "failed": failed}


def encoders(work: Path) -> list[Rival]:
    """MiniLM, the first being what ratios refer to."""
    rivals = [Rival(FLOAT, minilm_path)]
    rivals += [
        Rival(f"ONNX Runtime {kind} int8", partial(models.minilm_runtime, kind)) for kind in ("dynamic", "static")
    ]
    rivals += [
        Rival(f"OpenVINO {kind}", partial(models.minilm_openvino, kind), f"{_SIDES}:minilm_openvino:{kind}")
        for kind in ("float", "int8")
    ]
    calibration = models.sentences(32)
    recipes: dict[str, dict[str, Any]] = {
        "w8a8": {"passes": "w8a8"},
        "smoothquant, w8a8": {"passes": "smoothquant,quantize(scheme=w8a8)", "calibration": calibration},
        "w8a8 static": {"passes": "w8a8_static", "calibration": calibration},
        "smoothquant, auto, error 0.05": {
            "passes": "smoothquant(alpha=0.8,insert=true),quantize(scheme=auto,budget=0.05,generated=0)",
            "calibration": calibration,
        },
    }
    rivals += [
        Rival(f"Burnish {name}", partial(_our_encoder, work, name, **options), ours=True)
        for name, options in recipes.items()
    ]
    static = partial(_our_encoder, work, "w8a8 static", **recipes["w8a8 static"])
    rivals.append(Rival("Burnish w8a8 static, 2 streams", static, ours=True, streams=2))
    return rivals


def _our_encoder(work: Path, name: str, **options: Any) -> Path:
    path = work / f"minilm-{re.sub(r'[, ]+', '-', name)}.onnx"
    if not path.is_file():
        work.mkdir(parents=True, exist_ok=True)
        export(minilm_path(), path, cache=False, **options)
    return path


def measure_encoders(work: Path, rounds: int, only: str) -> dict[str, Any]:
    """Table of MiniLM at 1 × 128 and 8 × 128, with the mean cosine of pooled sentences to float32's."""
    rivals = [rival for rival in encoders(work) if only in rival.name or rival.name == FLOAT]
    ready, failed = _made(rivals)
    rows = held_out_sentences(200)
    scenarios: dict[str, Any] = {}
    report: dict[str, Any] = {}
    for batch in (1, 8):
        feeds = {name: np.repeat(array, batch, axis=0) for name, array in rows[0].items()}
        with terminal_progress() as progress:
            result = benchmark(
                *(side for _, side in ready),
                scenarios=[Scenario(f"{batch} × 128", "run")],
                inputs=feeds,
                rounds=rounds,
                progress=progress,
            )
        print(result, flush=True)
        report = result.to_json()
        scenarios |= report["scenarios"]
    expected = _hidden(Side(FLOAT, str(minilm_path())), rows)
    cosines = {rival.name: cosine(_hidden(side, rows), expected) for rival, side in ready}
    return {"model": "MiniLM", **report, "scenarios": scenarios, "cosine": cosines, "failed": failed}


def held_out_sentences(count: int, length: int = 128) -> list[dict[str, Any]]:
    """``count`` stretches of text that nothing is calibrated on, as inputs of MiniLM."""
    ids = windows(load_tokenizer(model_path("minilm")), held_out_text(), count, length)
    mask, types = np.ones((1, length), np.int64), np.zeros((1, length), np.int64)
    return [{"input_ids": row[None], "attention_mask": mask, "token_type_ids": types} for row in ids]


def _hidden(side: Side, rows: list[dict[str, Any]]) -> np.ndarray[Any, Any]:
    """First output of a model on every row, [rows, tokens, width]."""
    model: Any = made(side.source, None) if side.eager else OnnxSide(side.source)
    return np.concatenate([model.numpy(model.prepare(row)()[0]) for row in rows])


def cosine(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float:
    """Mean cosine of the mean-pooled rows of two hidden states [batch, tokens, width]."""
    a, b = a.mean(axis=1), b.mean(axis=1)
    similarity = (a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))
    return float(similarity.mean())


def table(results: dict[str, Any]) -> str:
    """Markdown: a row a tool."""
    scenarios = list(results["scenarios"])
    measure = "perplexity" if "perplexity" in results else "cosine"
    lines = [
        "| tool | size | peak memory | " + " | ".join(f"{s}" for s in scenarios) + f" | {measure} |",
        "| --- | ---: | ---: |" + " ---: |" * (len(scenarios) + 1),
    ]
    for name in results["sides"]:
        cells = [f"{results['model_bytes'][name] / 1e6:.0f} MB", f"{results['peak_memory_bytes'][name] / 1e6:.0f} MB"]
        for scenario in scenarios:
            figure = results["scenarios"][scenario][name]
            cells.append(f"{figure['median_ms']:.1f} ms ± {figure['iqr_ms']:.1f}")
        value = results[measure].get(name, "–")
        cells.append(value if isinstance(value, str) else f"{value:.5g}")
        lines.append("| " + " | ".join([name, *cells]) + " |")
    for name, reason in results["failed"].items():
        lines.append("| " + " | ".join([name, reason, *[""] * (len(scenarios) + 2)]) + " |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Measure and write ``rivals.json``."""
    parser = argparse.ArgumentParser(prog="python -m burnish.tools.rivals.bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--windows", type=int, default=8, help="of 512 tokens, for perplexity")
    parser.add_argument("--only", default="", help="tools whose name holds this text")
    parser.add_argument("--work", type=Path, default=Path("build/bench"), help="where compiled models go")
    parser.add_argument("--out", type=Path, default=Path("benchmarks"), help="where rivals.json goes")
    options = parser.parse_args(arguments)
    decoding = measure_decoders(options.work, options.rounds, options.windows, options.only)
    encoding = measure_encoders(options.work, options.rounds, options.only)
    print(table(decoding), table(encoding), sep="\n\n")
    results = {"decoders": decoding, "encoders": encoding, "checks": [], "machine": describe_machine()}
    return write_results(options.out / "rivals.json", results)


if __name__ == "__main__":
    sys.exit(main())
