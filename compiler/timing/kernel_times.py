"""How long small graphs take in ONNX Runtime on this machine, measured once and kept: what kernels are chosen by."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from pathlib import Path

import onnx_ir
import onnxruntime

from ...backends.onnxruntime.lower import lower
from ...backends.onnxruntime.session import usable_cpus
from ...ir.errors import BurnishError
from ...ir.graph import Graph
from ...passes.base import Pass
from ...passes.fuse.choose_kernels import ChooseKernels
from ...passes.fuse.latency import Latencies
from ..benchmark.machine import cpu_model
from .stopwatch import Stopwatch, fair

FILE = "kernels.json"
_SMALL = 64


class KernelTimes:
    """A clock for small graphs: looks into a table first, then measures as long as the budget lasts.

    On a machine that has nothing else to do, what counts is the time from start to end with all threads. On a busy one
    it is the time that a single thread was on a processor, which other programs change little; how well a kernel
    divides its work is then not seen. Which of the two, is decided once, by a product.

    Args:
        folder: where the table is kept from one process to the next; None keeps it in this object.
        budget: seconds for measuring; what is in the table is known even without any.
        threads: that the graphs are to run on; as many as the process may use if None.
    """

    def __init__(self, folder: Path | None, budget: float, threads: int | None = None) -> None:
        self._ways = [Stopwatch(threads or usable_cpus()), Stopwatch(1)]
        self._table = Latencies(None if folder is None else folder / FILE, machine=cpu_model())
        self._left = budget
        self._way: Stopwatch | None = None
        self.refused = 0
        """Questions that the budget left no time for, or that the runtime could not answer."""

    @property
    def measured(self) -> int:
        """How many graphs were measured, and not found in the table."""
        return self._table.measured

    def __call__(self, models: Sequence[Graph]) -> list[float] | None:
        """Seconds of one run of each; None where the budget is spent or one of them does not run."""
        patterns = [_pattern(model) for model in models]
        for way in self._ways:
            keys = [self._key(way, model, text) for model, text in zip(models, patterns, strict=True)]
            found = [seconds for key in keys if (seconds := self._table.find(key)) is not None]
            if len(found) == len(models):
                return found
        if self._left <= 0:
            self.refused += 1
            return None
        start = time.perf_counter()
        try:
            way = self._way = self._way or fair(self._ways[0].threads)
            taken = [way.seconds(model) for model in models]
        except BurnishError:
            self.refused += 1
            return None
        finally:
            self._left -= time.perf_counter() - start
        for model, text, seconds in zip(models, patterns, taken, strict=True):
            self._table.keep(self._key(way, model, text), seconds)
        return taken

    def unlowered(self, models: Sequence[Graph]) -> list[float] | None:
        """The same for graphs as passes see them: what is timed is what lowering makes of them."""
        try:
            for model in models:
                lower(model)
        except BurnishError:
            self.refused += 1
            return None
        return self(models)

    def save(self) -> None:
        """Keep what was measured for the next process."""
        self._table.save()

    def _key(self, way: Stopwatch, model: Graph, pattern: str) -> str:
        operators = "+".join(node.op_type for node in model.graph)
        digest = hashlib.sha256(pattern.encode()).hexdigest()[:16]
        runtime = f"onnxruntime {onnxruntime.__version__}, {way.threads} threads"
        return f"{self._table.machine}, {runtime} | {operators} | {digest}"


def asked_for(passes: Sequence[Pass], folder: Path | None, threads: int | None = None) -> KernelTimes | None:
    """A clock if one of ``passes`` asks to choose kernels by measurement."""
    seconds = [item.seconds for item in passes if isinstance(item, ChooseKernels)]
    return KernelTimes(folder, max(seconds), threads) if seconds else None


def _pattern(model: Graph) -> str:
    """Operators, attributes, element types, sizes and small constants of a graph, free of names."""
    numbers: dict[onnx_ir.Value, str] = {}

    def name(value: onnx_ir.Value | None) -> str:
        if value is None or not value.name:
            return "_"
        if value not in numbers:
            numbers[value] = f"%{len(numbers)}"
            sizes = "?" if value.shape is None else list(value.shape)
            constant = value.const_value if value.is_initializer() else None
            what = "constant" if constant is not None else ""
            if constant is not None and constant.size <= _SMALL and not constant.dtype.is_floating_point():
                what = str(constant.numpy().tolist())
            return f"{numbers[value]}:{value.dtype}{sizes}{what}"
        return numbers[value]

    lines = [" ".join(map(name, model.graph.inputs))]
    for node in model.graph:
        how = sorted((key, str(attr.value)) for key, attr in node.attributes.items())
        lines.append(f"{node.domain}:{node.op_type}{how}{[*map(name, node.inputs)]}->{[*map(name, node.outputs)]}")
    lines.append(" ".join(map(name, model.graph.outputs)))
    return "\n".join(lines)
