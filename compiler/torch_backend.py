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
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..backends.onnxruntime.lower import lower
from ..backends.onnxruntime.session import Session
from ..backends.onnxruntime.writer import write
from ..frontends.torch_export.dynamo import Captured, Traced, import_traced, trace_captured
from ..frontends.torch_export.sharing import Plan, divide
from ..ir.errors import BurnishError, OptionError, UnsupportedError, nearest
from ..passes.base import Context, Pass, Stage
from ..passes.fuse.choose_kernels import ChooseKernels
from ..passes.presets import PRESETS
from ..passes.spec import Passes, check_order, implied, parse
from .cache import open_cache
from .measure import node_count
from .pipeline import run_passes
from .timing.kernel_times import KernelTimes, asked_for
from .torch_constants import Constants
from .torch_report import GraphReport, reports

_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
"""Torch's own modes: they say whether CUDA graphs are recorded, and mean the same on the CPU."""
_BACKENDS = ("auto", "onnxruntime", "triton")
_THOROUGH = 20.0
"""Seconds of measuring in ``mode="max-autotune"``."""


@dataclass(frozen=True)
class Options:
    """What ``options=`` of ``torch.compile`` may hold.

    Attributes:
        passes: a preset, specification or list of passes.
        max_compilations: how often one captured graph is compiled, the first time included, before it runs eagerly.
        fingerprint_every: calls between two looks at the numbers of the constants; 0 for never.
        threads: of the session; as many as the process may use if None.
        fallback: whether a graph that cannot be compiled runs eagerly; an error if not.
        backend: ``onnxruntime`` or ``triton``; by default the former on the CPU and the latter on CUDA.
        cuda_graph: whether launches are recorded and replayed, on CUDA; ``mode="reduce-overhead"`` sets it.
        measure: seconds that a compilation may spend on choosing kernels of ONNX Runtime by measurement; 0 for none.
            What is measured is kept in the cache folder. ``mode="max-autotune"`` sets it to 20.

    Raises:
        OptionError: a value that makes no sense.
    """

    passes: Passes = "default"
    max_compilations: int = 16
    fingerprint_every: int = 100
    threads: int | None = None
    fallback: bool = True
    backend: str = "auto"
    cuda_graph: bool = False
    measure: float = 2.0

    def __post_init__(self) -> None:
        for name, least in (("max_compilations", 1), ("fingerprint_every", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise OptionError(f"{name}={value!r} is not a number from {least}", where="options=")
        if self.threads is not None and (not isinstance(self.threads, int) or self.threads < 1):
            raise OptionError(f"threads={self.threads!r} is not a number of threads", where="options=")
        if not isinstance(self.measure, int | float) or not self.measure >= 0:
            raise OptionError(f"measure={self.measure!r} is not a number of seconds", where="options=")
        for name in ("fallback", "cuda_graph"):
            if not isinstance(getattr(self, name), bool):
                raise OptionError(f"{name}={getattr(self, name)!r} is neither True nor False", where="options=")
        if self.backend not in _BACKENDS:
            raise OptionError(
                f"there is no backend {self.backend!r}", where="options=", fix=nearest(str(self.backend), _BACKENDS)
            )
        check_order(implied(parse(self.passes)))


def torch_report() -> list[GraphReport]:
    """What became of the graphs that ``torch.compile`` gave to Burnish in this process; print it for a line a graph."""
    return reports


_epoch = 0


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
    if mode in ("reduce-overhead", "max-autotune"):
        given.setdefault("cuda_graph", True)
    if mode in ("max-autotune", "max-autotune-no-cudagraphs"):
        given.setdefault("measure", _THOROUGH)
    return Options(**given)


class _Compiled:
    """A captured graph and what runs it."""

    def __init__(self, module: torch.fx.GraphModule, inputs: Sequence[Any], settings: Options) -> None:
        self._module, self._settings = module, settings
        count = sum(node.op.startswith("call") for node in module.graph.nodes)
        self.report = GraphReport(count, name=_origin(module))
        reports.append(self.report)
        self._plan: Plan | None = None
        self._traced: Traced | None = None
        self._captured: Captured | None = None
        self._session: Any = None
        self._constants = Constants(settings.fingerprint_every)
        self._epoch = _epoch
        self._warned = False
        reason = _obstacle(inputs, settings.backend)
        if reason is not None:
            self._give_up(reason)
        else:
            self._compile(inputs)

    def __call__(self, *args: Any) -> Any:
        self.report.calls += 1
        if self._captured is not None and (why := self._stale(args)) is not None:
            self.report.recompiled.append(why)
            self._compile(args)
        if self._captured is None or self._plan is None:
            return self._module(*args)
        captured = self._captured
        if captured.written and (why := _overlap(args, captured.written)) is not None:
            return self._this_time(why, args)
        try:
            outputs = self._run(captured, args)
        except Exception as error:  # nothing was written yet: torch can still do it
            self._give_up(error.what if isinstance(error, BurnishError) else f"{type(error).__name__}: {_first(error)}")
            return self._module(*args)
        for position, output in zip(captured.written, outputs, strict=False):
            args[position].copy_(output)
        results = [outputs[index] if index is not None else constant for index, constant in captured.results]
        return self._plan.rebuild(args, results) if self._plan.rebuild is not None else results

    def _run(self, captured: Captured, args: Sequence[Any]) -> list[Any]:
        if self._session is None:  # only views and constants
            return []
        feeds = {name: args[i] for i, name in self._feeds}
        outputs = _owned(self._session.run(feeds), feeds.values())
        if not captured.numbers:
            return outputs
        return [v.item() if index in captured.numbers else v for index, v in enumerate(outputs)]

    def _compile(self, inputs: Sequence[Any]) -> None:
        self._session = self._captured = None
        if self.report.compilations >= self._settings.max_compilations:
            self._give_up(f"it was compiled {self.report.compilations} times (max_compilations)")
            return
        start = time.perf_counter()
        try:
            if self._traced is None:
                self._plan = divide(self._module)
                self._traced = trace_captured(self._plan.module, inputs)
            captured = import_traced(self._traced, inputs, self._constants.varying)
            if captured.written and (why := _overlap(inputs, captured.written)) is not None:
                raise UnsupportedError(why)
            session = None
            if captured.graph.graph.outputs:
                session = self._session_of(captured, inputs)
        except Exception as error:  # what cannot be compiled runs eagerly, whatever the reason
            self._give_up(error.what if isinstance(error, BurnishError) else f"{type(error).__name__}: {_first(error)}")
            return
        finally:
            self.report.compilations += 1
            self.report.seconds += time.perf_counter() - start
        self._captured, self._session, self._epoch = captured, session, _epoch
        self.report.apart = self._traced.apart
        self.report.backend = self._target(inputs)
        self.report.operators = node_count(captured.graph) if session is not None else 0
        names = set() if session is None else {spec.name for spec in session.inputs}
        self._feeds = [(i, f"input_{i}") for i in captured.inputs if f"input_{i}" in names]
        self._constants.remember(captured.constants, inputs)

    def _session_of(self, captured: Captured, inputs: Sequence[Any]) -> Any:
        target, passes = self._target(inputs), implied(parse(self._settings.passes))
        if target == "triton":
            from .kernels import on_kernels

            passes = on_kernels(passes)
        seconds = self._settings.measure if target == "onnxruntime" and passes else 0.0
        if seconds and not any(item.stage is Stage.FUSE for item in passes):  # else it is said already what is joined
            passes = [*passes, ChooseKernels(seconds)]
        times = self._times(passes, seconds)
        clock = None if times is None else times.unlowered
        records = run_passes(captured.graph, passes, Context(target=target, clock=clock), [])
        self.report.remarks = [remark for record in records for remark in record.outcome.remarks]
        if target == "triton":
            from ..backends.triton.session import Session as TritonSession

            (device,) = {value.device for value in inputs if isinstance(value, torch.Tensor)}
            return TritonSession(captured.graph, device=device, cuda_graph=self._settings.cuda_graph)
        self.report.remarks += lower(captured.graph, clock=times)
        if times is not None:
            times.save()
        folder = tempfile.mkdtemp(prefix="burnish-torch-")
        try:
            path = Path(folder) / "model.onnx"
            write(captured.graph, path)
            session = Session(path, threads=self._settings.threads)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        # The runtime maps the weights of a large file: it stays as long as the session.
        weakref.finalize(session, shutil.rmtree, folder, True)
        return session

    def _times(self, passes: Sequence[Pass], seconds: float) -> KernelTimes | None:
        store = open_cache(None, from_disk=True)
        folder, threads = None if store is None else store.folder, self._settings.threads
        return asked_for(passes, folder, threads) or (KernelTimes(folder, seconds, threads) if seconds else None)

    def _target(self, inputs: Sequence[Any]) -> str:
        if self._settings.backend != "auto":
            return self._settings.backend
        return (
            "triton" if any(isinstance(v, torch.Tensor) and v.device.type == "cuda" for v in inputs) else "onnxruntime"
        )

    def _give_up(self, reason: str) -> None:
        self._session = self._captured = None
        self.report.eager = reason
        if not self._settings.fallback:
            raise UnsupportedError(
                f"a graph of torch.compile cannot be compiled: {reason}",
                where=self.report.name or "torch.compile",
                fix='change the model, or leave out options={"fallback": False} to have it run eagerly',
            )
        warnings.warn(f"burnish: a graph of torch.compile runs eagerly: {reason}", UserWarning, stacklevel=3)

    def _this_time(self, why: str, args: Sequence[Any]) -> Any:
        """Run eagerly what these arguments do not allow to run otherwise."""
        self.report.eager_calls += 1
        self.report.why = why
        if not self._warned:
            self._warned = True
            warnings.warn(f"burnish: a call of a compiled graph runs eagerly: {why}", UserWarning, stacklevel=3)
        return self._module(*args)

    def _stale(self, args: Sequence[Any]) -> str | None:
        if self._epoch != _epoch:
            return "refresh() was called"
        return self._constants.changed(args, self.report.calls)


def _owned(outputs: Sequence[Any], feeds: Iterable[torch.Tensor]) -> list[Any]:
    """Outputs as tensors that share no memory with the inputs or with each other."""
    taken = {feed.untyped_storage().data_ptr() for feed in feeds}
    owned = []
    for output in outputs:
        tensor = torch.from_numpy(output) if isinstance(output, np.ndarray) else output
        place = tensor.untyped_storage().data_ptr()
        if place in taken and tensor.numel():
            tensor = tensor.clone()
            place = tensor.untyped_storage().data_ptr()
        taken.add(place)
        owned.append(tensor)
    return owned


def _obstacle(inputs: Sequence[Any], backend: str) -> str | None:
    """Why a graph with these arguments is not compiled, or None."""
    tensors = [value for value in inputs if isinstance(value, torch.Tensor)]
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return (
            "gradients are recorded; call the model under torch.inference_mode() or torch.no_grad(), "
            "or set requires_grad_(False) on its parameters"
        )
    devices = {str(tensor.device) for tensor in tensors}
    kinds = {tensor.device.type for tensor in tensors}
    if len(devices) > 1:
        return f"its tensors are on several devices: {', '.join(sorted(devices))}"
    if kinds - {"cpu", "cuda"} or (backend == "onnxruntime" and "cuda" in kinds):
        return f"its tensors are on {', '.join(sorted(devices))}, not on the CPU"
    for tensor in tensors:
        if type(tensor) not in (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer):
            return f"it takes a {type(tensor).__name__}, a tensor of a kind of its own"
        if tensor.layout != torch.strided or tensor.is_quantized:
            return (
                f"it takes a tensor of layout {tensor.layout}"
                if not tensor.is_quantized
                else "it takes a quantized tensor"
            )
        if tensor.is_complex():
            return "it takes complex numbers, which have no kernels in ONNX Runtime"
    return None


def _overlap(args: Sequence[Any], written: Sequence[int]) -> str | None:
    """Why arguments cannot be written to after the run: another one shares their memory."""
    targets = {args[i].untyped_storage().data_ptr() for i in written if args[i].numel()}
    places = [value.untyped_storage().data_ptr() for value in args if isinstance(value, torch.Tensor) and value.numel()]
    if sum(place in targets for place in places) > len(targets) or len(targets) < sum(
        bool(args[i].numel()) for i in set(written)
    ):
        return "it writes into an argument that shares memory with another one"
    return None


def _origin(module: torch.fx.GraphModule) -> str:
    """Name of the module or function that a graph was captured from, as far as its nodes tell."""
    for node in module.graph.nodes:
        stack = node.meta.get("nn_module_stack")
        if stack:
            kind = next(iter(stack.values()))[1]
            return str(getattr(kind, "__name__", kind)).rsplit(".", 1)[-1]
    return ""


def _first(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0][:200]
