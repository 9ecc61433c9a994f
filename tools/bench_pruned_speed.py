"""What removed structures save on ONNX Runtime: prompts of SmolLM2 at 10, 20 and 30 % of its parameters, MiniLM at 20
and 40 % of its arithmetic (its embeddings, half of its weights, cannot go), and SmolLM2 pruned and rounded to 4 bits.

``--compress`` makes the models and compares MiniLM's embeddings of sentences that nothing was calibrated on; ``--time``
looks whether the files are what they should be, and measures all of a model side by side: a process each, rounds in
turns, all cores. The ideal is a time that falls as the removed share. Writes ``benchmarks/pruned_speed.json`` and the
tables of ``docs/pruning.md``.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from ..compiler.api import export
from ..compiler.benchmark import Scenario, Side, decode, prefill
from ..compiler.benchmark.machine import describe_machine
from ..compiler.benchmark.onnx_side import find_model
from .bench_eight_bits import Encoder, embeddings, measure_sides
from .bench_results import Check, fill, machine_line, write_results
from .fetch import model_path
from .recipe_rows import ROOT

FLOAT = "float32"
_PLAIN = "metric=magnitude,compensate=off,distribution=uniform"
_ENCODER_WAYS = {
    " magnitude": f"prune_structures({{ratio}},{_PLAIN})",
    " FLAP": "prune_structures({ratio},metric=flap,compensate=bias)",
    "": "prune_structures({ratio})",
    " + distillation": "prune_structures({ratio}),distill(steps=200,rate=1e-4)",
}
ENCODERS: dict[str, str] = {FLOAT: "default"} | {
    f"{share} %{name}": recipe.format(ratio=f"ratio={share / 100},of=flops")
    for share in (20, 40)
    for name, recipe in _ENCODER_WAYS.items()
}
"""MiniLM's recipes."""
DECODERS: dict[str, str] = {FLOAT: "default"} | {
    f"{share} %": f"prune_structures(ratio={share / 100},metric=magnitude)" for share in (10, 20, 30)
}
"""SmolLM2's recipes that are timed on prompts: without data, for what counts is the shapes; how good those are that are
made with data is in the tables of :mod:`.bench_sparsity`."""
COMPOSED: dict[str, str] = {
    FLOAT: "default",
    "20 %": DECODERS["20 %"],
    "4 bits": "rotate,quantize",
    "20 %, 4 bits": f"{DECODERS['20 %']},rotate,quantize",
}
"""SmolLM2's recipes that are timed on prompts and on tokens: what each step does alone, and all in one."""
LEAST = 0.8
"""Share of the ideal speed-up that is asked for."""


def efficiency(time_ratio: float, removed: float) -> float:
    """The speed-up as a share of the ideal one, ``1 / (1 - removed)``."""
    return (1 - removed) / time_ratio


def file_facts(path: Path) -> dict[str, Any]:
    """Operators and weights of a file that ``onnx.checker`` has accepted.

    Arithmetic of shapes is left out: layers that had the same target shape may have others now.

    Raises:
        onnx.checker.ValidationError: it has not.
    """
    file = find_model(path)
    onnx.checker.check_model(str(file))
    model = onnx.load(str(file), load_external_data=False)
    weights = sum(int(np.prod(tensor.dims)) for tensor in model.graph.initializer)
    integers = {t.name for t in model.graph.initializer if t.data_type == onnx.TensorProto.INT64}
    sizes = set[str]()
    operators = Counter[str]()
    for node in model.graph.node:
        if node.op_type == "Shape" or (sizes & set(node.input) and set(node.input) <= sizes | integers | {""}):
            sizes |= set(node.output)
        else:
            operators[node.op_type] += 1
    return {"operators": dict(sorted(operators.items())), "weights": weights}


def compress_encoders(work: Path, only: str | None) -> dict[str, Any]:
    """Make MiniLM's models; their cosine with float32.

    Calibration is on what the model is used for, short pieces of ordinary English, of other texts than it is judged by.
    """
    encoder = Encoder()
    cosine = dict[str, float]()
    expected: np.ndarray[Any, Any] | None = None
    for name, passes in ENCODERS.items():
        if only not in (None, name) and name != FLOAT:
            continue
        folder = folder_of(work, "minilm", name)
        calibration = None if name == FLOAT or "magnitude" in name else encoder.encyclopedia(32, 32, 16)
        export(model_path("minilm"), folder, passes=passes, calibration=calibration, overwrite=True, verify="off")
        found = embeddings(folder, encoder)
        expected = found if expected is None else expected
        cosine[name] = float((found * expected).sum(axis=1).mean())
        print(f"MiniLM {name}: cosine {cosine[name]:.4f}", flush=True)
    return {"cosine": cosine}


def compress_decoders(work: Path, only: str | None) -> dict[str, Any]:
    """Make SmolLM2's models; their sizes in bytes and the seconds it took."""
    sizes, seconds = dict[str, int](), dict[str, float]()
    for name, passes in {**DECODERS, **COMPOSED}.items():
        if only not in (None, name):
            continue
        start = time.perf_counter()
        folder = folder_of(work, "smollm2", name)
        report = export(model_path("smollm2"), folder, passes=passes, overwrite=True, verify="off", cache=False)
        sizes[name], seconds[name] = report.weight_bytes, round(time.perf_counter() - start, 1)
        print(f"SmolLM2 {name}: {sizes[name] / 1e6:.1f} MB in {seconds[name]} s", flush=True)
    return {"bytes": sizes, "seconds": seconds}


def folder_of(work: Path, model: str, name: str) -> Path:
    """Where a model is."""
    names = [*ENCODERS] if model == "minilm" else [*DECODERS, *COMPOSED]
    return work / f"{model}-pruned-{names.index(name)}"


def encoders(work: Path, rounds: int) -> dict[str, Any]:
    """MiniLM: time of 8 x 128."""
    generator = np.random.default_rng(0)
    inputs = {
        "input_ids": generator.integers(1000, 30000, (8, 128)),
        "attention_mask": np.ones((8, 128), np.int64),
        "token_type_ids": np.zeros((8, 128), np.int64),
    }
    paths = {name: folder_of(work, "minilm", name) for name in (FLOAT, "20 %", "40 %")}
    sides = [Side(name, str(path)) for name, path in paths.items()]
    result = measure_sides(sides, [Scenario("8 × 128", "run")], rounds, inputs)
    return result.to_json() | {"files": {name: file_facts(path) for name, path in paths.items()}}


def decoders(work: Path, rounds: int) -> dict[str, Any]:
    """SmolLM2: time of prompts, with the logits of all tokens, so that every weight works for every token."""
    paths = {name: folder_of(work, "smollm2", name) for name in DECODERS}
    sides = [Side(name, str(find_model(path))) for name, path in paths.items()]
    result = measure_sides(sides, [prefill(128)], rounds, None)
    return result.to_json() | {"files": {name: file_facts(path) for name, path in paths.items()}}


def composed(work: Path, rounds: int) -> dict[str, Any]:
    """SmolLM2 pruned, rounded, and both: time of prompts and of tokens, as generation runs them."""
    sides = [Side(name, str(folder_of(work, "smollm2", name))) for name in COMPOSED]
    return measure_sides(sides, [prefill(128), decode(128)], rounds, None).to_json()


COMPRESS = {"minilm": compress_encoders, "smollm2": compress_decoders}
PARTS = {"minilm": encoders, "smollm2": decoders, "composed": composed}


def checks(results: Mapping[str, Any]) -> list[Check]:
    """Limits on what was measured."""
    found: list[Check] = []

    def speed(title: str, timing: Mapping[str, Any], share: int) -> None:
        reached = efficiency(timing["ratio"], share / 100)
        found.append(Check(f"{title}: ideal against measured speed-up", 1 / reached, 1 / LEAST, "×"))

    for scenario, sides in results.get("smollm2", {}).get("scenarios", {}).items():
        for share in (10, 20, 30):
            speed(f"SmolLM2 {share} %, {scenario}", sides[f"{share} %"], share)
    cosine = results.get("cosine", {})
    for share in (20, 40):
        name = f"{share} %"
        timed = results.get("minilm", {}).get("scenarios", {}).get("8 × 128", {})
        if name in timed:
            speed(f"MiniLM {name}", timed[name], share)
        for what, way, other, limit in (("FLAP", " FLAP", " magnitude", 0.8), ("default", "", " FLAP", 1),
                                        ("recovery", " + distillation", "", 1)):  # fmt: skip
            if name + way in cosine and name + other in cosine:
                title = f"MiniLM {name}: 1 - cosine, {what} against{other or ' without'}"
                ratio = (1 - cosine[name + way]) / (1 - cosine[name + other])
                found.append(Check(title, ratio, limit, "×"))
    for model in ("smollm2", "minilm"):
        files = results.get(model, {}).get("files", {})
        for name, facts in files.items():
            if name != FLOAT:
                more = Counter(facts["operators"]) - Counter(files[FLOAT]["operators"])
                found.append(Check(f"{model} {name}: operators that float32 has not", sum(more.values()), 0, ""))
    return found


def tables(results: Mapping[str, Any], loss: Mapping[str, float]) -> dict[str, str]:
    """The blocks of the page."""
    lines = ["| | time | against float32 | of the ideal speed-up |", "|---|---:|---:|---:|"]
    for model, name in (("smollm2", "SmolLM2"), ("minilm", "MiniLM")):
        for scenario, sides in results.get(model, {}).get("scenarios", {}).items():
            for side, timing in sides.items():
                share = "" if side == FLOAT else f"{efficiency(timing['ratio'], int(side.split()[0]) / 100):.2f}"
                lines.append(
                    f"| {name}, {scenario}: {side} | {timing['median_ms']:.1f} ms ± {timing['iqr_ms']:.1f} | "
                    f"{timing['ratio']:.2f}× | {share} |"
                )
    blocks = {"speed": "\n".join([*lines, "", machine_line(results)])}
    if "composed" in results:
        blocks["composition"] = composition(results, loss)
    if FLOAT in results.get("cosine", {}):
        rows = ["| MiniLM | mean cosine with float32, 200 sentences |", "|---|---:|"]
        cosine = results["cosine"]
        rows += [f"| {name} | {cosine[name]:.4f} |" for name in ENCODERS if name in cosine]
        blocks["encoder"] = "\n".join(rows)
    return blocks


ACCURACY = {
    FLOAT: FLOAT,
    "20 %": "20 % structures",
    "4 bits": "4 bits g64",
    "20 %, 4 bits": "20 % structures + 4 bits g64",
}
"""Rows of :mod:`.bench_sparsity` that say how good what is timed is with all its calibration inputs."""
_STEPS = ((FLOAT, "20 %"), (FLOAT, "4 bits"), ("20 %", "20 %, 4 bits"), ("4 bits", "20 %, 4 bits"))


def losses(path: Path) -> dict[str, float]:
    """The increase of log-perplexity of each of :data:`ACCURACY` that is measured."""
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else {}
    return {name: math.log(rows[row]["perplexity"] / rows[FLOAT]["perplexity"])
            for name, row in ACCURACY.items() if row in rows}  # fmt: skip


def composition(results: Mapping[str, Any], loss: Mapping[str, float]) -> str:
    """Size, speed and accuracy of each step alone and of all in one, in Markdown."""
    scenarios = results["composed"]["scenarios"]
    head = ["SmolLM2", "MB", *(f"{name}, ms" for name in scenarios), "loss in nats"]
    lines = ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    for name in COMPOSED:
        times = [f"{sides[name]['median_ms']:.1f} ({sides[name]['ratio']:.2f}×)" for sides in scenarios.values()]
        cells = [
            name,
            f"{results['bytes'][name] / 1e6:.0f}",
            *times,
            f"{loss[name]:.3f}" if name in loss else "–",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(results: Mapping[str, Any], loss: Mapping[str, float], path: Path) -> None:
    """The way from float32 over each step alone to both: time and size against loss."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "burnish"})
    scenarios = results["composed"]["scenarios"]
    costs = {"megabytes": {name: results["bytes"][name] / 1e6 for name in COMPOSED}}
    costs |= {
        f"{title}, ms": {name: sides[name]["median_ms"] for name in COMPOSED} for title, sides in scenarios.items()
    }
    figure, panels = pyplot.subplots(1, len(costs), figsize=(3.4 * len(costs), 3.2), sharey=True)
    for axes, (title, cost) in zip(panels, costs.items(), strict=True):
        for start, end in _STEPS:
            axes.annotate("", (cost[end], loss[end]), (cost[start], loss[start]),
                          arrowprops={"arrowstyle": "->", "color": "#9db7d5"})  # fmt: skip
        for name in COMPOSED:
            axes.plot(cost[name], loss[name], "o", color="#1f5a99", ms=6)
            axes.annotate(name, (cost[name], loss[name]), (0, 7), textcoords="offset points", ha="center", fontsize=8)
        axes.set_xlim(0, 1.18 * max(cost.values()))
        axes.set_ylim(-0.02, 1.25 * max(loss.values()))
        axes.set_xlabel(title)
    panels[0].set_ylabel("loss in nats")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def main(arguments: Sequence[str] | None = None) -> int:
    """Compress or measure, write the results and the tables."""
    parser = argparse.ArgumentParser(
        prog="python -m burnish.tools.bench_pruned_speed", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--compress", action="store_true", help="make the models and compare what they compute")
    parser.add_argument("--time", action="store_true", help="measure the models that are there")
    parser.add_argument("--render", action="store_true", help="measure nothing, write the tables from the results")
    parser.add_argument("--only", choices=sorted(PARTS), help="one part of both")
    parser.add_argument("--side", help="make only the model of this name")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--work", type=Path, default=Path("build/bench"), help="where compiled models are")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks", help="where pruned_speed.json goes")
    options = parser.parse_args(arguments)
    options.work.mkdir(parents=True, exist_ok=True)
    path = options.out / "pruned_speed.json"
    found: dict[str, Any] = {}
    everything = not (options.compress or options.time or options.render)
    if options.compress or everything:
        for name, make in COMPRESS.items():
            if options.only in (None, name):
                found |= make(options.work, options.side)
    if options.time or everything:
        for name, part in PARTS.items():
            if options.only in (None, name):
                found[name] = part(options.work, options.rounds)
        found["machine"] = describe_machine()
    # Parts that others have measured meanwhile stay.
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for name in ("bytes", "seconds", "cosine"):
        if name in before and name in found:
            found[name] = before[name] | found[name]
    results: dict[str, Any] = before | found
    results["checks"] = [check.to_json() for check in checks(results)]
    failed = write_results(path, results)
    if options.out == ROOT / "benchmarks":
        loss = losses(options.out / "sparsity.json")
        if "composed" in results and set(loss) == set(ACCURACY):
            draw(results, loss, ROOT / "docs" / "images" / "composition.svg")
        document = ROOT / "docs" / "pruning.md"
        document.write_text(fill(document.read_text(encoding="utf-8"), tables(results, loss)), encoding="utf-8")
    return failed


if __name__ == "__main__":
    sys.exit(main())
