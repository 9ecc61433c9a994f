"""Takes the time of small graphs in ONNX Runtime, fairly on a machine that has other things to do, too."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir

from ...backends.onnxruntime.session import OrtValue, Session
from ...backends.onnxruntime.writer import to_bytes
from ...ir.graph import WORKING_OPSET, Graph
from ...ir.rewrite import Editor
from ..inputs import Array

_SECONDS = 0.03
_LEAST = 4
_SHARED = 0.75
"""Part of a thread's time on a processor that several threads must save each by sharing its work."""


@dataclass(frozen=True)
class Stopwatch:
    """Takes the time of graphs: of a single thread the time on a processor, of several the time that passes.

    Attributes:
        threads: that a graph runs on.
    """

    threads: int

    def seconds(self, model: Graph, feeds: Mapping[str, Array] | None = None) -> float:
        """Seconds of one run: the least, because what other processes add is no cost of the kernels.

        Args:
            model: that ONNX Runtime takes as it is.
            feeds: its inputs by name; made up if None, which takes inputs of known sizes.
        """
        session = Session(to_bytes(model), threads=self.threads)
        if feeds is None:
            feeds = {spec.name: _made_up(value) for spec, value in zip(session.inputs, model.graph.inputs, strict=True)}
        binding = session.binding()  # as little as possible of what a call costs in Python
        for name, array in feeds.items():
            binding.bind_ortvalue_input(name, OrtValue.ortvalue_from_numpy(array))
        for spec in session.outputs:
            binding.bind_output(spec.name)
        session.run_bound(binding, feeds)
        now = time.thread_time if self.threads == 1 else time.perf_counter
        taken: list[float] = []
        begin = time.perf_counter()
        while len(taken) < _LEAST or time.perf_counter() - begin < _SECONDS:
            start = now()
            session.run_bound(binding, feeds)
            taken.append(now() - start)
        return min(taken)


def fair(threads: int) -> Stopwatch:
    """One of so many threads where the machine is there for this process alone, else of a single one."""
    return Stopwatch(threads if is_quiet(threads) else 1)


def is_quiet(threads: int) -> bool:
    """Whether so many threads share a product among them: whether they are there for this process alone."""
    if threads == 1:
        return False
    graph = onnx_ir.Graph([], [], nodes=[], opset_imports={"": WORKING_OPSET}, name="product")
    model = onnx_ir.Model(graph, ir_version=10)
    edit = Editor(model, "quiet").at(None)
    x = onnx_ir.Value(name="x", type=onnx_ir.TensorType(onnx_ir.DataType.FLOAT), shape=onnx_ir.Shape([256, 512]))
    graph.inputs.append(x)
    weight = edit.initializer(np.random.default_rng(0).standard_normal((512, 512)).astype(np.float32), "w")
    graph.outputs.append(edit.op("MatMul", [x, weight]))
    return Stopwatch(1).seconds(model) > _SHARED * threads * Stopwatch(threads).seconds(model)


def _made_up(value: onnx_ir.Value) -> Array:
    assert value.shape is not None and value.dtype is not None
    sizes = value.shape.numpy()  # raises where one is not known
    if value.dtype == onnx_ir.DataType.BOOL:
        return np.ones(sizes, bool)
    if not value.dtype.is_floating_point():
        return np.zeros(sizes, value.dtype.numpy())
    return np.random.default_rng(0).standard_normal(sizes).astype(value.dtype.numpy())
