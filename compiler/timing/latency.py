"""How long blocks of a fusion plan take where they are to run, for the planner's latency table."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ...ir.graph import Graph
from ...ir.outline import outline
from ..benchmark.machine import cores, cpu_model
from ..inputs import Array

Run = Callable[[Mapping[str, Any]], Any]
"""Runs a model on inputs by name, and returns when it is done."""
_SECONDS = 0.02
_LEAST = 5
_WARM = 2


class BlockLatency:
    """Runs small models on made-up inputs and takes the time.

    Args:
        machine: what they run on, in words: part of the key under which times are kept.
        open_model: makes something that runs of a model; a block of several nodes comes as one function.
    """

    def __init__(self, machine: str, open_model: Callable[[Graph], Run]) -> None:
        self.machine = machine
        self._open = open_model

    def __call__(self, model: Graph) -> float:
        """The median of several runs, in seconds."""
        feeds = {value.name or "": _made_up(value.dtype, value.shape) for value in model.graph.inputs}
        if len(model.graph) > 1:
            outline(model, list(model.graph), "block")
        run = self._open(model)
        for _ in range(_WARM):
            run(feeds)
        taken: list[float] = []
        begin = time.perf_counter()
        while len(taken) < _LEAST or time.perf_counter() - begin < _SECONDS:
            start = time.perf_counter()
            run(feeds)
            taken.append(time.perf_counter() - start)
        return statistics.median(taken)


def _made_up(dtype: Any, shape: Any) -> Array:
    """Numbers between 0 and 1 of a type; integers are 0, which is an index into anything."""
    sizes = [dim if isinstance(dim, int) else 1 for dim in shape or ()]
    random = np.random.default_rng(0).random(sizes)
    kind = dtype.numpy()
    return random.astype(kind) if dtype.is_floating_point() else np.zeros(sizes, kind)


def on_gpu() -> BlockLatency | None:
    """Latencies of generated kernels on the GPU; None where there is none."""
    import torch

    if not torch.cuda.is_available():
        return None
    from ...backends.triton.session import Session

    def open_model(model: Graph) -> Run:
        session = Session(model)
        moved: dict[str, torch.Tensor] = {}

        def run(feeds: Mapping[str, Any]) -> None:
            if not moved:
                moved.update({name: torch.from_numpy(array).to(session.device) for name, array in feeds.items()})
            session.call([moved[spec.name] for spec in session.inputs])
            torch.cuda.synchronize()

        return run

    return BlockLatency(f"{torch.cuda.get_device_name()}, torch {torch.__version__}", open_model)


def on_onnxruntime() -> BlockLatency:
    """Latencies of ONNX Runtime on this machine's processor, which inlines a block and chooses its own kernels."""
    import onnx_ir
    import onnxruntime

    def open_model(model: Graph) -> Run:
        proto = onnx_ir.to_proto(model)
        session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
        return lambda feeds: session.run(None, dict(feeds))

    return BlockLatency(f"{cpu_model()}, {cores()} cores, onnxruntime {onnxruntime.__version__}", open_model)
