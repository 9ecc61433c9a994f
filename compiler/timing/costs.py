"""What products cost on this machine, by scheme: measured once with the kernels that lowering picks, and kept."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir
import onnxruntime

from ...backends.onnxruntime.lower import lower
from ...backends.onnxruntime.session import usable_cpus
from ...ir.graph import WORKING_OPSET
from ...ir.rewrite import Editor
from ...passes.base import Context, Panels, Zeros
from ...passes.quantize import Quantize, Scheme
from ...passes.sparsify.compact import multiply
from ...passes.sparsify.pattern import parse, select
from ...passes.statistics import HISTOGRAM_BINS, Observer
from ..benchmark.machine import cores, cpu_model
from ..inputs import Array
from .stopwatch import Stopwatch, fair

FILE = "costs.json"
_COLD = 64 << 20
"""Bytes of weights that a measurement goes through, so that they come from memory as those of a whole model do."""
_COPIES = 8


class Costs:
    """Seconds of products, measured when they are asked for the first time.

    On a machine that is busy with other things, all are those of a single thread on a processor: what the threads of
    other programs leave is no cost of a product, and changes from one to the next.

    Args:
        folder: where the table is kept from one process to the next; None keeps it in this object.
    """

    def __init__(self, folder: Path | None) -> None:
        self._path = None if folder is None else folder / FILE
        self._stopwatch: Stopwatch | None = None
        self._machine = f"{cpu_model()}, {cores()} cores, onnxruntime {onnxruntime.__version__}"
        self._table: dict[str, float] = {}
        if self._path is not None:
            with contextlib.suppress(OSError, ValueError):
                found = json.loads(self._path.read_text(encoding="utf-8"))
                self._table = {str(key): float(value) for key, value in found.items()}

    def __call__(self, m: int, k: int, n: int, scheme: Scheme | Zeros | Panels | None) -> float:
        """Seconds of [m, k] times [k, n], the input's quantization included."""
        watch = self._stopwatch = self._stopwatch or fair(usable_cpus())
        on = f"{watch.threads} threads" if watch.threads > 1 else "1 thread"
        key = f"{self._machine}, {on}: {m} x {k} x {n}, {scheme or 'float32'}"
        if key not in self._table:
            self._table[key] = self._measure(watch, m, k, n, scheme)
            self._save()
        return self._table[key]

    def _save(self) -> None:
        if self._path is None:
            return
        part = self._path.with_suffix(".part")
        with contextlib.suppress(OSError):  # a full disk is no reason not to go on
            self._path.parent.mkdir(parents=True, exist_ok=True)
            part.write_text(json.dumps(self._table, indent=1), encoding="utf-8")
            part.replace(self._path)

    @staticmethod
    def _measure(watch: Stopwatch, m: int, k: int, n: int, scheme: Scheme | Zeros | Panels | None) -> float:
        copies = max(1, min(_COPIES, _COLD // (4 * k * n)))
        feeds = {"x": np.random.default_rng(0).standard_normal((m, k)).astype(np.float32)}
        return watch.seconds(_products(k, n, copies, scheme), feeds) / copies


def _products(k: int, n: int, copies: int, scheme: Scheme | Zeros | Panels | None) -> onnx_ir.Model:
    """A graph of products of one input by several weights, lowered; the sum of each is an output."""
    graph = onnx_ir.Model(
        onnx_ir.Graph([], [], nodes=[], opset_imports={"": WORKING_OPSET}, name="cost"), ir_version=10
    )
    shape = onnx_ir.Shape(["tokens", k])
    x = onnx_ir.Value(name="x", type=onnx_ir.TensorType(onnx_ir.DataType.FLOAT), shape=shape)
    graph.graph.inputs.append(x)
    edit = Editor(graph, "cost").at(None)
    weights = np.random.default_rng(1).standard_normal((n, k)).astype(np.float32)
    if isinstance(scheme, Zeros):
        weights *= select(np.abs(weights), parse(scheme.pattern), scheme.share)
        scheme = None
    for index in range(copies):
        # Different weights of one set of numbers, and for each an input of its own, so that none is quantized for two.
        factor = edit.initializer(np.asarray(1 + index / 8, np.float32), "factor")
        own = edit.op("Mul", [x, factor]) if copies > 1 else x
        if isinstance(scheme, Panels):
            y = _divided(edit, own, scheme, np.roll(weights, index, axis=0))
        else:
            weight = edit.initializer(np.roll(weights, index, axis=0), f"w{index}")
            turned = edit.op("Transpose", [weight], {"perm": [1, 0]})
            y = edit.op("MatMul", [own, turned], dtype=onnx_ir.DataType.FLOAT, shape=["tokens", n], hint=f"p{index}")
        graph.graph.outputs.append(y)
    if isinstance(scheme, Scheme):
        pass_ = Quantize(scheme="w8a16", method="rtn", overrides=[("*", scheme)])
        pass_.run(graph, Context(observe=_normal))
    lower(graph)
    return graph


def _divided(edit: Editor, x: onnx_ir.Value, panels: Panels, weights: Array) -> onnx_ir.Value:
    """A product by [n, k] weights in panels, each of channels drawn at random."""
    generator = np.random.default_rng(0)
    parts = np.split(weights, panels.count)
    channels = [np.sort(generator.permutation(weights.shape[1])[: panels.kept]) for _ in parts]
    turned = [np.ascontiguousarray(part[:, kept].T) for part, kept in zip(parts, channels, strict=True)]
    return multiply(edit, x, channels, [edit.initializer(part, "panel") for part in turned])


def _normal(values: Sequence[onnx_ir.Value], observer: Observer) -> dict[str, Array]:
    """Histograms of numbers between -4 and 4, for a static range."""
    counts = np.zeros(2 + 2 * HISTOGRAM_BINS, np.float32)
    counts[:2], counts[2] = (-4, 4), 1
    return {value.name or "": counts for value in values}
