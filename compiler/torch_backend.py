"""``torch.compile(model, backend="burnish")``: each captured graph runs on ONNX Runtime, or eagerly with a warning.

Parameters and buffers become constants of the graph. Whether they still are what they were is checked before each call
by their versions and addresses; a write through ``.data`` changes neither, and is found by a sample of the numbers
every so many calls, or at once after :func:`refresh`.
"""

from __future__ import annotations

import shutil
import tempfile
import time
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..backends.onnxruntime.lower import lower
from ..backends.onnxruntime.session import Session
from ..backends.onnxruntime.writer import write
from ..frontends.torch_export.dynamo import Captured, import_captured
from ..ir.errors import BurnishError, OptionError, nearest
from ..passes.base import Context
from ..passes.presets import PRESETS
from ..passes.spec import Passes, check_order, implied, parse
from .measure import node_count
from .pipeline import run_passes

_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
"""Torch's own modes: there is one way to run, so they all mean the same."""
_SAMPLE = 8
"""Numbers of each constant that a fingerprint looks at."""


@dataclass(frozen=True)
class Options:
    """What ``options=`` of ``torch.compile`` may hold.

    Attributes:
        passes: a preset, specification or list of passes.
        max_compilations: how often one captured graph is compiled, the first time included, before it runs eagerly.
        fingerprint_every: calls between two looks at the numbers of the constants; 0 for never.
        threads: of the session; ONNX Runtime's own choice if None.

    Raises:
        OptionError: a value that makes no sense.
    """

    passes: Passes = "default"
    max_compilations: int = 16
    fingerprint_every: int = 100
    threads: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("max_compilations", 1), ("fingerprint_every", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise OptionError(f"{name}={value!r} is not a number from {least}", where="options=")
        check_order(implied(parse(self.passes)))


@dataclass
class GraphReport:
    """What became of one captured graph.

    Attributes:
        nodes: operators that TorchDynamo captured.
        operators: nodes of the graph that runs; 0 if it runs eagerly.
        compilations: how often it was compiled.
        seconds: spent on that.
        calls: how often it ran.
        eager: why it runs eagerly, or None.
        recompiled: why it was compiled again, each time.
    """

    nodes: int
    operators: int = 0
    compilations: int = 0
    seconds: float = 0.0
    calls: int = 0
    eager: str | None = None
    recompiled: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        how = f"eager: {self.eager}" if self.eager else f"{self.operators} nodes on ONNX Runtime"
        again = f", again because {'; '.join(self.recompiled)}" if self.recompiled else ""
        took = f"{self.compilations} compilations in {self.seconds:.2f} s"
        return f"{self.nodes} operators captured, {how}; {took}{again}; {self.calls} calls"


class _Graphs(list[GraphReport]):
    """Reports, a line each when printed."""

    def __str__(self) -> str:
        return "\n".join(f"graph {index}: {one}" for index, one in enumerate(self)) or "nothing was compiled"


_reports = _Graphs()
_epoch = 0


def torch_report() -> list[GraphReport]:
    """What became of the graphs that ``torch.compile`` gave to Burnish in this process; print it for a line a graph."""
    return _reports


def refresh() -> None:
    """Compile every graph of ``torch.compile`` anew before its next call: constants may have been written to."""
    global _epoch
    _epoch += 1


def backend(
    module: torch.fx.GraphModule,
    inputs: Sequence[Any],
    *,
    mode: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Callable[..., Any]:
    """Compile a graph that TorchDynamo captured; the entry point ``burnish`` of ``torch_dynamo_backends``.

    Args:
        module: the graph.
        inputs: its arguments: tensors and sizes.
        mode: a preset, such as ``"w8a16"``, or one of torch's own modes.
        options: see :class:`Options`.

    Raises:
        OptionError: an unknown mode or option.
    """
    return _Compiled(module, inputs, _settings(mode, dict(options or {})))


def _settings(mode: str | None, given: dict[str, Any]) -> Options:
    names = [one.name for one in fields(Options)]
    for name in given:
        if name not in names:
            raise OptionError(f"there is no option {name!r}", where="options=", fix=nearest(str(name), names))
    if mode is not None and mode not in _MODES:
        if mode not in PRESETS:
            raise OptionError(f"there is no mode {mode!r}", where="mode=", fix=nearest(mode, [*PRESETS, *_MODES]))
        given.setdefault("passes", mode)
    return Options(**given)


class _Compiled:
    """A captured graph and what runs it."""

    def __init__(self, module: torch.fx.GraphModule, inputs: Sequence[Any], settings: Options) -> None:
        self._module, self._settings = module, settings
        self.report = GraphReport(sum(node.op.startswith("call") for node in module.graph.nodes))
        _reports.append(self.report)
        self._captured: Captured | None = None
        self._session: Session | None = None
        self._state: tuple[Any, ...] = ()
        self._sample: list[Any] = []
        self._epoch = _epoch
        reason = _obstacle(inputs)
        if reason is not None:
            self._give_up(reason)
        else:
            self._compile(inputs)

    def __call__(self, *args: Any) -> Any:
        self.report.calls += 1
        if self._session is not None and (why := self._stale(args)) is not None:
            self.report.recompiled.append(why)
            self._compile(args)
        if self._session is None or self._captured is None:
            return self._module(*args)
        try:
            outputs = self._run(self._session, self._captured, args)
        except BurnishError as error:
            self._give_up(error.what)
            return self._module(*args)
        captured = self._captured
        for position, output in zip(captured.written, outputs, strict=False):
            args[position].copy_(output)
        return [outputs[index] if index is not None else constant for index, constant in captured.results]

    def _run(self, session: Session, captured: Captured, args: Sequence[Any]) -> list[Any]:
        names = [spec.name for spec in session.inputs]
        feeds = {f"input_{i}": args[i].detach().contiguous() for i in captured.inputs if f"input_{i}" in names}
        outputs = [torch.from_numpy(v) if isinstance(v, np.ndarray) else v for v in session.run(feeds)]
        return [v.item() if index in captured.numbers else v for index, v in enumerate(outputs)]

    def _compile(self, inputs: Sequence[Any]) -> None:
        self._session = None
        if self.report.compilations >= self._settings.max_compilations:
            self._give_up(f"it was compiled {self.report.compilations} times (max_compilations)")
            return
        start = time.perf_counter()
        folder = tempfile.mkdtemp(prefix="burnish-torch-")
        try:
            captured = import_captured(self._module, inputs)
            run_passes(captured.graph, implied(parse(self._settings.passes)), Context(), [])
            lower(captured.graph)
            path = Path(folder) / "model.onnx"
            write(captured.graph, path)
            session = Session(path, threads=self._settings.threads)
        except Exception as error:  # what cannot be compiled runs eagerly, whatever the reason
            reason = error.what if isinstance(error, BurnishError) else f"{type(error).__name__}: {_first(error)}"
            self._give_up(reason)
            shutil.rmtree(folder, ignore_errors=True)
            return
        finally:
            self.report.compilations += 1
            self.report.seconds += time.perf_counter() - start
        # The runtime maps the weights of a large file: it stays as long as the session.
        weakref.finalize(session, shutil.rmtree, folder, True)
        self._captured, self._session, self._epoch = captured, session, _epoch
        self.report.operators = node_count(captured.graph)
        self._state = self._identity(inputs)
        self._sample = self._fingerprint(inputs)

    def _give_up(self, reason: str) -> None:
        self._session = None
        self.report.eager = reason
        warnings.warn(f"burnish: a graph of torch.compile runs eagerly: {reason}", UserWarning, stacklevel=3)

    def _stale(self, args: Sequence[Any]) -> str | None:
        if self._epoch != _epoch:
            return "refresh() was called"
        if self._identity(args) != self._state:
            return "a parameter or buffer was changed"
        every = self._settings.fingerprint_every
        if every and self.report.calls % every == 0 and self._fingerprint(args) != self._sample:
            return "a parameter or buffer was written to through .data"
        return None

    def _identity(self, args: Sequence[Any]) -> tuple[Any, ...]:
        assert self._captured is not None
        return tuple((args[i].data_ptr(), args[i]._version) for i in self._captured.constants)

    def _fingerprint(self, args: Sequence[Any]) -> list[Any]:
        assert self._captured is not None
        found = []
        for i in self._captured.constants:
            tensor = args[i].detach()
            if tensor.numel():
                places = np.linspace(0, tensor.numel() - 1, _SAMPLE).astype(int).tolist()
                flat = tensor.view(-1) if tensor.is_contiguous() else tensor.flatten()
                found.append(flat[places].tolist())
        # NaN is not equal to itself.
        return [[str(number) for number in row] for row in found]


def _obstacle(inputs: Sequence[Any]) -> str | None:
    """Why a graph with these arguments is not compiled, or None."""
    tensors = [value for value in inputs if isinstance(value, torch.Tensor)]
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return (
            "gradients are recorded; call the model under torch.inference_mode() or torch.no_grad(), "
            "or set requires_grad_(False) on its parameters"
        )
    devices = {str(tensor.device) for tensor in tensors} - {"cpu"}
    return f"its tensors are on {', '.join(sorted(devices))}, not on the CPU" if devices else None


def _first(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0][:200]
