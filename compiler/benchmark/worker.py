"""The process of one side of a benchmark: one live session, told what to do by lines of JSON on its standard input.

Started by :mod:`.runner` as ``python -m burnish.compiler.benchmark.worker``.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ...ir.errors import BurnishError, OptionError
from .decoding_side import DecodingSide
from .machine import peak_memory
from .onnx_side import OnnxSide, StreamsSide

if TYPE_CHECKING:
    from .torch_side import TorchSide


class Worker:
    """Does the parent's commands; each is a method that takes the message and returns the answer."""

    side: OnnxSide | DecodingSide | TorchSide
    measure: Callable[[], list[float]]  # one unit of work -> seconds of each call

    def load(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Open the model: ``source`` is a path or, with ``eager``, a factory."""
        started = time.perf_counter()
        if message["eager"]:
            self.side = made(message["source"], message["threads"])
        else:
            self.side = opened(message["source"], message["threads"], message["streams"])
        return {
            "signature": self.side.signature(),
            "decoder": self.side.is_decoder,
            "vocabulary": self.side.vocabulary,
            "seconds": time.perf_counter() - started,
        }

    def prepare(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Get ready for a scenario, and run it twice: the second is the estimate of how long it takes."""
        kind = message["kind"]
        if kind == "run":
            with np.load(message["inputs"], allow_pickle=False) as arrays:
                feeds = {name: arrays[name] for name in arrays.files}
            self.run = self.side.prepare(feeds)
            self.measure = lambda: [_seconds(self.run)]
        else:
            ids = np.random.default_rng(0).integers(0, message["vocabulary"], (1, message["past"] + message["tokens"]))
            first, rest = ids[:, : message["past"]], ids[:, message["past"] :]
            self.measure = self._prefill(rest) if kind == "prefill" else self._decode(first, rest)
        self.measure()
        return {"seconds": sum(self.measure())}

    def _prefill(self, ids: Any) -> Callable[[], list[float]]:
        return lambda: [_seconds(lambda: self.side.start(ids))]

    def _decode(self, first: Any, rest: Any) -> Callable[[], list[float]]:
        """Token by token behind a cache of ``first``; each step's cache goes into the next."""
        _, cached = self.side.start(first)

        def measure() -> list[float]:
            cache, times = self.side.copy_cache(cached), []
            for step in range(rest.shape[1]):
                started = time.perf_counter()
                _, cache = self.side.forward(rest[:, step : step + 1], cache, first.shape[1] + step)
                times.append(time.perf_counter() - started)
            return times

        return measure

    def round(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Median seconds of a call in ``repeat`` units of work, after one that is not counted."""
        self.measure()
        times = [seconds for _ in range(message["repeat"]) for seconds in self.measure()]
        return {"seconds": float(np.median(times)), "calls": len(times)}

    def outputs(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Write what the prepared run returns into an ``.npz`` file."""
        arrays = {str(index): self.side.numpy(value) for index, value in enumerate(self.run())}
        np.savez(message["path"], allow_pickle=False, **arrays)
        return {"outputs": len(arrays)}

    def memory(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Highest resident memory so far."""
        size = getattr(self.side, "model_bytes", 0)  # of a file only the side itself knows of
        return {"bytes": peak_memory(), "torch": "torch" in sys.modules, "model_bytes": size}


def opened(source: str, threads: int | None, streams: int | None = None) -> OnnxSide | DecodingSide:
    """The side of an ONNX file or saved folder; a decoder with a generation graph runs that."""
    if streams is not None:
        return StreamsSide(source, streams, threads)
    return DecodingSide.of(source, threads) or OnnxSide(source, threads)


def made(source: str, threads: int | None) -> Any:
    """What a factory makes: a side that drives itself, or a PyTorch module.

    Args:
        source: ``module:function``, or ``module:function:argument``. The function returns a module, or an object that
            offers what :class:`.onnx_side.OnnxSide` does.
        threads: threads of one operator.

    Raises:
        OptionError: there is no such function.
    """
    module, _, rest = source.partition(":")
    name, given, argument = rest.partition(":")
    try:
        make = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise OptionError(f"there is no function {source!r}: {error}", fix="write module:function") from error
    thing = make(argument) if given else make()
    if hasattr(thing, "signature") and hasattr(thing, "is_decoder"):
        return thing
    from .torch_side import TorchSide

    return TorchSide(thing, threads)


def _seconds(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def main() -> None:
    """Answer commands until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints must not get between the answers
    worker = Worker()
    for line in sys.stdin:
        message = json.loads(line)
        try:
            answer = getattr(worker, message.pop("do"))(message)
        except BurnishError as error:
            answer = {"error": type(error).__name__, "what": error.what, "where": error.where, "fix": error.fix}
        except Exception as error:  # the parent names the side and shows the message
            answer = {"error": "ModelError", "what": f"{type(error).__name__}: {error}", "where": None, "fix": None}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
