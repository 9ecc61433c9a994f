"""How a decoder generates: time behind a long past, guesses ahead, and agreement with PyTorch's greedy tokens.

Writes ``generation.json``. SmolLM2 is compiled by each recipe first; times alternate between recipes or settings in
rounds, each recipe in a process of its own.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..compiler.api import export
from ..compiler.benchmark import Side, benchmark, decode
from ..compiler.generation.decoding import Decoding
from ..compiler.generation.generate import Continuation, GenerationOptions
from ..compiler.generation.prompt import read_prompt
from ..compiler.load import load
from ..compiler.model import CompiledModel
from ..compiler.progress import terminal_progress
from .baseline import eager_smollm2
from .bench_results import Check, write_results
from .fetch import model_path
from .text import calibration_text, held_out_text, load_tokenizer, windows

RECIPES: dict[str, dict[str, Any]] = {
    "default": {"passes": "default"},
    "default, cache in 8 bits": {"passes": "default,quantize_cache"},
    "w8a16": {"passes": "w8a16"},
    "w4a16": {"passes": "w4a16"},
    "w4a16, cache in 8 bits": {"passes": "w4a16,quantize_cache"},
    "w4a16, prompts w8a8": {"passes": "w4a16", "prefill": "w8a8"},
}
_SEQUENCES = 64
PROMPTS, NEW = 20, 200
GUESSES = 6


def folder(work: Path, name: str) -> Path:
    """SmolLM2 by one recipe, calibrated if that has 4 bits; kept in ``work`` between runs."""
    target = work / f"smollm2-generation-{name.replace(', ', '-').replace(' ', '-')}"
    if not target.is_dir():
        work.mkdir(parents=True, exist_ok=True)
        options, rows = RECIPES[name], None
        if "w4a16" in options["passes"]:
            tokens = windows(load_tokenizer(model_path("smollm2")), calibration_text(), _SEQUENCES)
            rows = [{"input_ids": row[None]} for row in tokens]
        export(model_path("smollm2"), target, calibration=rows, cache=False, **options)
    return target


def flatness(found: dict[str, Path], rounds: int) -> dict[str, Any]:
    """Milliseconds a token behind 128 and 2,048 others, and bytes of cache a token."""
    sides = [Side(name, str(path)) for name, path in found.items() if "prompts" not in name]
    with terminal_progress() as progress:
        result = benchmark(*sides, scenarios=[decode(128), decode(2048)], rounds=rounds, progress=progress)
    print(result, flush=True)
    report = result.to_json()
    sizes = {}
    for side in sides:
        decoding = Decoding(load(side.source), 1, 1024)
        sizes[side.name] = decoding.bytes / 1024
    return {**report, "cache_bytes_per_token": sizes}


def prompts(count: int = PROMPTS) -> list[list[int]]:
    """Stretches of 48 tokens of text that nothing was calibrated on."""
    ids = windows(load_tokenizer(model_path("smollm2")), held_out_text(), count, 48)
    return [row.tolist() for row in ids]


def repeating(count: int = PROMPTS) -> list[list[int]]:
    """A text, and its beginning once more: to go on is to repeat."""
    encode = load_tokenizer(model_path("smollm2"))
    ids = windows(encode, held_out_text(), count, 120)
    return [[*row.tolist(), *encode("\n\n"), *row.tolist()[:24]] for row in ids]


def speculation(model: CompiledModel, rounds: int) -> dict[str, Any]:
    """Tokens a second with and without prompt lookup, on prompts that repeat and on others; medians of rounds."""
    figures: dict[str, Any] = {}
    for kind, texts in (("repeating", repeating()), ("others", prompts())):
        rates: dict[str, list[float]] = {"plain": [], "prompt lookup": []}
        steps: dict[str, int] = {}
        same = True
        for _ in range(rounds):
            said: dict[str, list[list[int]]] = {}
            for name, guesses in (("plain", None), ("prompt lookup", GUESSES)):
                made, seconds, steps[name], said[name] = 0, 0.0, 0, []
                for text in texts:
                    options = GenerationOptions(max_new_tokens=64, end_tokens=(), prompt_lookup_num_tokens=guesses)
                    run = Continuation(model, read_prompt([text]), options)
                    started = time.perf_counter()
                    said[name].append([int(step[0]) for step in run])
                    seconds += time.perf_counter() - started
                    made += len(said[name][-1])
                    steps[name] += run.steps
                rates[name].append(made / seconds)
            same &= said["plain"] == said["prompt lookup"]
        figures[kind] = {
            "tokens_per_second": {name: float(np.median(values)) for name, values in rates.items()},
            "model_runs": steps,
            "same_tokens": same,
        }
        print(kind, figures[kind], flush=True)
    return figures


def first_difference(a: Sequence[int], b: Sequence[int]) -> int | None:
    """The first place where two sequences differ; None if one begins like the other."""
    return next((place for place, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), None)


def agreement(found: dict[str, Path]) -> dict[str, list[int | None]]:
    """For each recipe and prompt the first new token that differs from eager PyTorch's; None where none does."""
    import torch

    texts = prompts()
    eager: Any = eager_smollm2()
    wanted = []
    for text in texts:
        ids = torch.tensor([text])
        with torch.inference_mode():
            result = eager.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False, eos_token_id=None,
                pad_token_id=0,
            )  # fmt: skip
        wanted.append(result[0, len(text) :].tolist())
    places = {}
    for name, path in found.items():
        model = load(path)
        got = [model.generate(text, max_new_tokens=NEW, end_tokens=())[len(text) :] for text in texts]
        places[name] = [first_difference(one, other) for one, other in zip(got, wanted, strict=True)]
        print(name, places[name], flush=True)
    return places


def measure(work: Path, rounds: int) -> dict[str, Any]:
    """Everything; what is returned goes into ``generation.json``."""
    found = {name: folder(work, name) for name in RECIPES}
    flat = flatness(found, rounds)
    guessed = speculation(load(found["w4a16, prompts w8a8"]), rounds)
    agreed = agreement(found)
    times = {name: [flat["scenarios"][s][name]["median_ms"] for s in flat["scenarios"]] for name in flat["sides"]}
    checks = [
        Check(f"{name}: 2,048 tokens of past against 128", late - early, 5.0 if "8 bits" in name else 6.0, " ms")
        for name, (early, late) in times.items()
    ]
    lossless = sum(place is not None for place in agreed["default"])
    checks.append(Check("default: prompts of 20 that differ from eager within 200 tokens", lossless, 0, ""))
    return {
        "model": "SmolLM2-135M-Instruct",
        **flat,
        "speculation": guessed,
        "agreement": agreed,
        "checks": [check.to_json() for check in checks],
    }


def main(arguments: list[str] | None = None) -> int:
    """Measure and write ``generation.json``."""
    parser = argparse.ArgumentParser(prog="python -m burnish.tools.bench_generation", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--work", type=Path, default=Path("build/bench"), help="where compiled models go")
    parser.add_argument("--out", type=Path, default=Path("benchmarks"), help="where generation.json goes")
    options = parser.parse_args(arguments)
    return write_results(options.out / "generation.json", measure(options.work, options.rounds))


if __name__ == "__main__":
    sys.exit(main())
