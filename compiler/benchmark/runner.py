"""Measures models side by side: a process and a live session each, rounds alternated, medians, spread and ratio.

Sessions in one process would spin against each other, and a machine's speed drifts: so each side has a process of its
own, only one works at a time, and a ratio is the median of the ratios of rounds that ran next to each other.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

import numpy as np

from ...ir import errors
from ...ir.errors import BurnishError, InputError, OptionError
from ..progress import Progress, silent
from .machine import cores
from .onnx_side import find_model, make_inputs, model_bytes
from .result import Result, Scenario, Side, Timing, decode, largest_difference, prefill

Array = np.ndarray[Any, Any]

_PAUSE = 0.05  # seconds between turns, so that the other side's thread pool has gone to sleep
_TURN = 0.4  # seconds a turn lasts at least


@runtime_checkable
class Compiled(Protocol):
    """What is asked of a :class:`~burnish.CompiledModel`: where its file is, and what it is called."""

    @property
    def path(self) -> Path:
        """Its ONNX file."""

    @property
    def report(self) -> Any:
        """What was done to it."""

    @property
    def streams(self) -> int | None:
        """Shares of a batch that run side by side."""


class _Process:
    """A worker and the pipes to it."""

    def __init__(self, side: Side, threads: int) -> None:
        self.side = side
        environment = dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path)), OMP_NUM_THREADS=str(threads))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "burnish.compiler.benchmark.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )

    def ask(self, do: str, **message: Any) -> dict[str, Any]:
        """Send a command and wait for the answer; the worker's error is raised here."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **message}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            status = self._process.wait()
            raise errors.ModelError(
                f"the process of side {self.side.name!r} ended with status {status} during {do!r}",
                where=self.side.source,
                fix="it may have run out of memory; try the side on its own",
            )
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            kind = getattr(errors, answer["error"], BurnishError)
            raise kind(answer["what"], where=answer["where"] or self.side.source, fix=answer["fix"])
        return answer

    def __enter__(self) -> _Process:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # the process may be gone already
            self._process.stdin.close()
        self._process.stdout.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def benchmark(
    *models: Any,
    scenarios: Sequence[Scenario] | None = None,
    inputs: Mapping[str, Array] | None = None,
    dims: Mapping[str, int] | None = None,
    rounds: int = 7,
    threads: int | None = None,
    progress: Progress = silent,
) -> Result:
    """Run models in turns and say how long each took, and how they compare with the first.

    Args:
        models: a :class:`Side`, the path of an ONNX file or saved folder, or a compiled model; each.
        scenarios: what to measure; by default ``prefill(128)`` and ``decode(128)`` of decoders, and a call otherwise.
        inputs: arrays by input name, for calls; made up from the first model's signature where left out.
        dims: sizes of the symbolic dimensions of inputs that are made up.
        rounds: turns of each side, at least 5.
        threads: threads of each side; default: all cores.
        progress: called with (done, total, what).

    Raises:
        OptionError: fewer than 5 rounds, a dimension without a size, or models that take different inputs.
        ModelError: a model is not there or does not run.
    """
    if not models:
        raise OptionError("there is nothing to benchmark", fix="give one model or more")
    if rounds < 5:
        raise OptionError(f"{rounds} rounds say little", fix="take 5 or more")
    threads = threads or cores()
    sides = _as_sides(models)
    for side in sides:
        if not side.eager:
            find_model(side.source)  # a missing file is told before anything is started
    result = Result(sides, threads)
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="burnish-benchmark-")))
        processes = [stack.enter_context(_Process(side, threads)) for side in sides]
        _measure(result, processes, scenarios, inputs, dims or {}, rounds, progress, scratch)
    return result


def _as_sides(models: Sequence[Any]) -> list[Side]:
    sides: list[Side] = []
    for model in models:
        if isinstance(model, Side):
            side = model
        elif isinstance(model, str | os.PathLike):
            side = Side(Path(model).name or str(model), str(Path(model).absolute()))
        elif isinstance(model, Compiled):
            side = Side(model.report.model or model.path.stem, str(model.path.absolute()), streams=model.streams)
        else:
            raise OptionError(
                f"a {type(model).__name__} cannot be benchmarked",
                fix="give a path, a compiled model, or Side(name, 'module:function', eager=True)",
            )
        taken = {other.name for other in sides}
        name, number = side.name, 2
        while name in taken:
            name, number = f"{side.name} ({number})", number + 1
        sides.append(replace(side, name=name))
    return sides


def _measure(
    result: Result,
    processes: Sequence[_Process],
    scenarios: Sequence[Scenario] | None,
    inputs: Mapping[str, Array] | None,
    dims: Mapping[str, int],
    rounds: int,
    progress: Progress,
    scratch: Path,
) -> None:
    loaded = [process.ask("load", **_source(process.side), threads=result.threads) for process in processes]
    if scenarios is None:
        scenarios = [prefill(), decode()] if all(answer["decoder"] for answer in loaded) else [Scenario("call", "run")]
    total, done = len(scenarios) * (rounds + 1), 0
    for scenario in scenarios:
        progress(done, total, f"{scenario.name}: warming up")
        for process, answer in zip(processes, loaded, strict=True):
            if scenario.kind != "run" and not answer["decoder"]:
                raise OptionError(
                    f"side {process.side.name!r} is no decoder with a cache, so it has no {scenario.kind}",
                    where=process.side.source,
                )
        prepare: dict[str, Any] = asdict(scenario)
        if scenario.kind == "run":
            if inputs is None:
                inputs = make_inputs(loaded[0]["signature"], dims)
            files: list[str | None] = [
                _save_inputs(inputs, answer["signature"], scratch / f"{i}.npz") for i, answer in enumerate(loaded)
            ]
        else:
            files = [None] * len(loaded)
            prepare["vocabulary"] = _vocabulary(loaded)
        estimates = [p.ask("prepare", **prepare, inputs=f)["seconds"] for p, f in zip(processes, files, strict=True)]
        repeat = max(1, min(500, math.ceil(_TURN / max(*estimates, 1e-6))))
        times: dict[str, list[float]] = {side.name: [] for side in result.sides}
        for turn in range(rounds):
            done += 1
            progress(done, total, f"{scenario.name}: round {turn + 1} of {rounds}")
            for process in processes if turn % 2 == 0 else processes[::-1]:
                time.sleep(_PAUSE)
                times[process.side.name].append(process.ask("round", repeat=repeat)["seconds"])
        result.timings[scenario.name] = {name: Timing(tuple(seconds)) for name, seconds in times.items()}
        if scenario.kind == "run" and len(processes) > 1:
            _compare(result, processes, scratch)
        done += 1
    progress(total, total, "done")
    for process in processes:
        used = process.ask("memory")
        result.memory[process.side.name] = used["bytes"]
        size = used["model_bytes"] if process.side.eager else model_bytes(process.side.source)
        result.size[process.side.name] = size


def _source(side: Side) -> dict[str, Any]:
    return {"source": side.source, "eager": side.eager, "streams": side.streams}


def _vocabulary(loaded: Sequence[Mapping[str, Any]]) -> int:
    sizes = [answer["vocabulary"] for answer in loaded if answer.get("vocabulary")]
    return int(min(sizes)) if sizes else 100


def _save_inputs(inputs: Mapping[str, Array], signature: Sequence[Mapping[str, Any]], path: Path) -> str:
    """Write the inputs under the names that this side gives them (by name, or in order where names differ)."""
    names = [spec["name"] for spec in signature] or list(inputs)
    if set(names) <= set(inputs):
        arrays = {name: inputs[name] for name in names}
    elif len(names) == len(inputs):
        arrays = dict(zip(names, inputs.values(), strict=True))
    else:
        raise InputError(
            f"the model takes {', '.join(names)}, but the inputs are {', '.join(inputs)}",
            fix="compare models that take the same inputs, or give inputs= with all of them",
        )
    np.savez(path, allow_pickle=False, **{name: np.asarray(array) for name, array in arrays.items()})
    return str(path)


def _compare(result: Result, processes: Sequence[_Process], scratch: Path) -> None:
    outputs: list[dict[str, Array]] = []
    for process in processes:
        path = scratch / "outputs.npz"
        process.ask("outputs", path=str(path))
        with np.load(path, allow_pickle=False) as arrays:
            outputs.append({name: arrays[name] for name in arrays.files})
    for process, other in zip(processes[1:], outputs[1:], strict=True):
        result.difference[process.side.name] = largest_difference(outputs[0], other)
