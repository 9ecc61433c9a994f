"""``chat``: a conversation with a compiled model in the terminal."""

from __future__ import annotations

import contextlib
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from ...ir.errors import InputError, UnsupportedError
from .app import app, told

if TYPE_CHECKING:
    from ..model import CompiledModel

_HELP = "/reset begins anew, /exit or the end of input leaves; Ctrl-C interrupts an answer"


@app.command()
@told
def chat(
    model: Annotated[Path, typer.Argument(help="A compiled folder; or a Hugging Face folder or GGUF file.")],
    passes: Annotated[str, typer.Option("--passes", help="How to compile a model that is not compiled yet.")] = "w4a16",
    system: Annotated[str | None, typer.Option("--system", help="What to tell the model first.")] = None,
    tokens: Annotated[int, typer.Option("--tokens", help="Longest answer.")] = 512,
    temperature: Annotated[float, typer.Option("--temperature", help="0 takes the likeliest token.")] = 0.0,
    top_p: Annotated[float | None, typer.Option("--top-p", help="See generate().")] = None,
    repetition_penalty: Annotated[float, typer.Option("--repetition-penalty", help="See generate().")] = 1.1,
    seed: Annotated[int | None, typer.Option("--seed", help="Of the sampler.")] = None,
    threads: Annotated[int | None, typer.Option("--threads", help="Of ONNX Runtime.")] = None,
) -> None:
    """Talk to a model."""
    options: dict[str, Any] = {
        "max_new_tokens": tokens,
        "temperature": temperature,
        "top_p": top_p,
        "repetition_penalty": repetition_penalty,
        "seed": seed,
    }
    from ..generation.generate import GenerationOptions, Sampler

    checked = GenerationOptions.of(options)  # before minutes are spent on compiling
    Sampler(checked.temperature, checked.top_k, checked.top_p, seed, checked.repetition_penalty)
    Conversation(_opened(model, passes, threads), system, options).run()


def _opened(path: Path, passes: str, threads: int | None) -> CompiledModel:
    from ..artifact import MANIFEST_FILE
    from ..load import load

    if path.is_dir() and (path / MANIFEST_FILE).exists():
        return load(path, threads=threads)
    if path.suffix == ".onnx" or not path.exists():
        return load(path, threads=threads)  # says what is wrong with it
    from ..api import compile as compile_model

    print(f"compiling {path.name} with {passes} …", file=sys.stderr)
    return compile_model(str(path), passes=passes, threads=threads)


class Conversation:
    """Questions and answers until the input ends.

    Args:
        model: a compiled decoder with its tokenizer.
        system: first message.
        options: of ``generate``.

    Raises:
        UnsupportedError: the model is no decoder.
        ArtifactError: it has no tokenizer or chat template.
    """

    def __init__(self, model: CompiledModel, system: str | None, options: dict[str, Any]) -> None:
        if model.decoder is None:
            raise UnsupportedError(
                "the model is no decoder with a KV cache", where=str(model.path), fix="compile a causal language model"
            )
        self._model, self._options = model, options
        self._context = model.decoder.context
        self._tokenizer = model.tokenizer
        self._first = [{"role": "system", "content": system}] if system else []
        self._messages = list(self._first)
        self._cache = model.decoding()
        self._tokenizer.chat([*self._first, {"role": "user", "content": "?"}])  # a missing template is told at once

    def run(self) -> None:
        """Ask and answer."""
        with contextlib.suppress(ImportError):  # for editing and history
            import readline  # noqa: F401  # importing it is what it takes
        terminal = sys.stdin.isatty()
        if terminal:
            print(_HELP, file=sys.stderr)
        while True:
            try:
                line = input("> " if terminal else "").strip()
            except EOFError:
                if terminal:
                    print()
                return
            except KeyboardInterrupt:
                print(f"\n{_HELP}", file=sys.stderr)
                continue
            if line in ("/exit", "/quit"):
                return
            if line == "/reset":
                self._messages = list(self._first)
            elif line.startswith("/"):
                print(f"there is no command {line.split()[0]}; {_HELP}", file=sys.stderr)
            elif line:
                self._answer(line)

    def _answer(self, question: str) -> None:
        from ..generation.generate import tokens

        messages = [*self._messages, {"role": "user", "content": question}]
        prompt = self._tokenizer.chat(messages)
        room = self._context - len(prompt) if self._context else self._options["max_new_tokens"]
        if room < 1:
            print(f"the conversation fills the context of {self._context} tokens; /reset begins anew", file=sys.stderr)
            return
        options = {**self._options, "max_new_tokens": min(room, self._options["max_new_tokens"])}
        spoken: list[int] = []
        write = self._tokenizer.stream()
        first = begun = time.perf_counter()
        try:
            for step in tokens(self._model, np.array([prompt]), cache=self._cache, **options):
                if not spoken:
                    first = time.perf_counter()
                spoken.append(int(step[0]))
                print(write(spoken[-1]), end="", flush=True)
        except KeyboardInterrupt:
            pass  # what was said stays in the conversation
        except InputError:
            print()
            raise
        print()
        self._messages = [*messages, {"role": "assistant", "content": self._tokenizer.decode(spoken)}]
        seconds = time.perf_counter() - first
        rate = f"{(len(spoken) - 1) / seconds:.1f} tokens/s" if len(spoken) > 1 and seconds else "–"
        print(f"[{len(spoken)} tokens, {rate}, first after {(first - begun) * 1e3:.0f} ms]", file=sys.stderr)
