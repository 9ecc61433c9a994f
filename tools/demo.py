"""``make demo``: SmolLM2-135M-Instruct in PyTorch, compiled without loss and to 4 bits: figures and answers."""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from ..ir.errors import BurnishError

QUESTION = "What is gravity? Answer in two sentences."
RECIPES = {"default": "float32, no loss", "w4a16": "4-bit weights"}
EAGER = "PyTorch"


def _quiet() -> None:
    """Keep the libraries' own bars and warnings out of the demo's output."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    logging.disable(logging.WARNING)


def compile_both(source: Path, work: Path, console: Any) -> dict[str, Path]:
    """Both recipes' saved folders, compiled now."""
    from ..compiler.api import export

    folders: dict[str, Path] = {}
    work.mkdir(parents=True, exist_ok=True)
    for passes, meaning in RECIPES.items():
        folder = folders[passes] = work / passes
        shutil.rmtree(folder, ignore_errors=True)
        started = time.perf_counter()
        with console.status(f"compiling with passes={passes!r} ({meaning}) …"):
            export(source, folder, passes=passes, cache=False)
        console.print(f"  compiled with passes={passes!r} in {time.perf_counter() - started:.0f} s → {folder}")
    return folders


def measure(folders: dict[str, Path], console: Any) -> Any:
    """Speed, memory and size of eager PyTorch and both compiled models, a process each."""
    from ..compiler.benchmark import Side, benchmark, decode, prefill

    sides = [Side(EAGER, "burnish.tools.baseline:eager_smollm2", eager=True)]
    sides += [Side(name, str(folder)) for name, folder in folders.items()]
    with console.status("measuring …") as status:
        return benchmark(
            *sides,
            scenarios=[prefill(128), decode(128)],
            rounds=5,
            progress=lambda done, total, what: status.update(f"measuring {done}/{total}: {what}"),
        )


def perplexities(source: Path, folders: dict[str, Path], count: int, console: Any) -> dict[str, float]:
    """Perplexity of all three on text that no one calibrated with."""
    from .baseline import eager_smollm2
    from .perplexity import eager_logits, file_logits, perplexity
    from .text import held_out_text, load_tokenizer, windows

    ids = windows(load_tokenizer(source), held_out_text(), count)
    figures: dict[str, float] = {}
    for name in (EAGER, *folders):
        with console.status(f"perplexity of {name} …"):
            forward = eager_logits(eager_smollm2()) if name == EAGER else file_logits(folders[name])
            figures[name] = perplexity(forward, ids)
    return figures


def answers(source: Path, folders: dict[str, Path], tokens: int, console: Any) -> dict[str, str]:
    """What each compiled model answers, greedily."""
    import numpy as np
    from transformers import AutoTokenizer

    from ..compiler.load import load

    tokenizer = AutoTokenizer.from_pretrained(str(source.parent), gguf_file=source.name)
    chat = [{"role": "user", "content": QUESTION}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"]
    ids = np.asarray([prompt], dtype=np.int64)
    texts: dict[str, str] = {}
    for name, folder in folders.items():
        with console.status(f"{name} is answering …"):
            result = load(folder).generate(ids, max_new_tokens=tokens)
        texts[name] = tokenizer.decode(np.asarray(result)[0, ids.shape[1] :], skip_special_tokens=True).strip()
    return texts


def show(result: Any, perplexity: dict[str, float], console: Any) -> None:
    """The before/after table."""
    from rich.table import Table

    names = [side.name for side in result.sides]
    table = Table(title="SmolLM2-135M-Instruct, before and after", title_style="bold", header_style="bold")
    table.add_column("")
    for name in names:
        head = "eager, float32" if name == EAGER else RECIPES[name]
        table.add_column(f"{name if name == EAGER else 'Burnish ' + name}\n{head}", justify="right")
    memory, size = result.memory, result.size
    table.add_row("size on disk", "–", *(f"{size[name] / 1e6:.1f} MB" for name in names[1:]))
    table.add_row("peak memory", *(f"{memory[name] / 1e6:.0f} MB" for name in names))
    for scenario, timings in result.timings.items():
        label = "prefill of 128 tokens" if scenario.startswith("prefill") else "decoding, per token (128 past)"
        cells = [f"{timings[names[0]].median * 1e3:.1f} ms"]
        for name in names[1:]:
            cells.append(f"{timings[name].median * 1e3:.1f} ms ({1 / result.ratio(scenario, name):.1f}× faster)")
        table.add_row(label, *cells)
    table.add_row("perplexity, held-out text", *(f"{perplexity[name]:.2f}" for name in names))
    console.print()
    console.print(table)
    machine = result.machine
    console.print(
        f"{machine['cpu']}, {machine['cores']} cores, {result.threads} threads; ONNX Runtime "
        f"{machine['versions'].get('onnxruntime')}, PyTorch {machine['versions'].get('torch')}; medians of "
        f"{len(next(iter(result.timings.values()))[names[0]].rounds)} rounds, a process a column",
        style="dim",
    )


def run(work: Path, windows: int, tokens: int) -> None:
    """The whole demo."""
    from rich.console import Console
    from rich.markup import escape
    from rich.panel import Panel

    from .fetch import model_path

    console = Console(width=None if sys.stdout.isatty() else 110)
    started = time.perf_counter()
    with console.status("fetching SmolLM2-135M-Instruct …"):
        source = model_path("smollm2")
    console.print(f"[bold]Burnish demo[/bold]: {source.name}")
    folders = compile_both(source, work, console)
    result = measure(folders, console)
    perplexity = perplexities(source, folders, windows, console)
    show(result, perplexity, console)
    texts = answers(source, folders, tokens, console)
    console.print(f"\n[bold]{QUESTION}[/bold]")
    for name, text in texts.items():
        console.print(Panel(escape(text), title=f"Burnish {name}, {RECIPES[name]}", title_align="left"))
    console.print(f"The models are in {work}; the demo took {time.perf_counter() - started:.0f} s.")


def main(arguments: list[str] | None = None) -> int:
    """Run the demo; errors come without a traceback."""
    parser = argparse.ArgumentParser(prog="python -m burnish.tools.demo", description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/demo"), help="where the compiled models go")
    parser.add_argument("--windows", type=int, default=8, help="windows of 512 tokens for the perplexity")
    parser.add_argument("--tokens", type=int, default=64, help="longest answer")
    options = parser.parse_args(arguments)
    _quiet()
    try:
        run(options.work, options.windows, options.tokens)
    except BurnishError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
