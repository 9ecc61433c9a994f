"""Graphs from text, a clock that prefers operators, and running a graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir
import pytest
from burnish.backends.onnxruntime.session import Session
from burnish.backends.onnxruntime.writer import to_bytes
from burnish.ir.excerpt import Clock
from burnish.ir.graph import Graph
from burnish.ir.infer import infer_graph

Array = np.ndarray[Any, Any]


def parse(text: str) -> Graph:
    """The graph of a text; inputs whose names begin with ``w`` become weights with random numbers."""
    proto = onnx.parser.parse_graph(text)
    model = onnx.helper.make_model(
        proto,
        opset_imports=[onnx.helper.make_opsetid("", 23), onnx.helper.make_opsetid("com.microsoft", 1)],
        ir_version=10,
    )
    random = np.random.default_rng(0)
    for value in [v for v in proto.input if v.name.startswith("w")]:
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        tensor = onnx.numpy_helper.from_array((random.standard_normal(shape) / 3).astype(np.float32), value.name)
        model.graph.initializer.append(tensor)
        model.graph.input.remove(next(v for v in model.graph.input if v.name == value.name))
    graph = onnx_ir.from_proto(model)
    infer_graph(graph)
    return graph


def run(graph: Graph, optimize: bool = True, **sizes: int) -> list[Array]:
    """Outputs on random inputs, the same at each call."""
    random = np.random.default_rng(1)
    feeds = {}
    for value in graph.graph.inputs:
        assert value.shape is not None and value.name is not None
        shape = [dim if isinstance(dim, int) else sizes[str(dim.value)] for dim in value.shape]
        feeds[value.name] = random.standard_normal(shape).astype(np.float32)
    return Session(to_bytes(graph), threads=1, optimize=optimize).run(feeds)


def prefer(*operators: str) -> Clock:
    """A clock by which graphs with one of these operators take half the time of others."""

    def clock(models: Sequence[Graph]) -> list[float]:
        return [1.0 if any(node.op_type in operators for node in model.graph) else 2.0 for model in models]

    return clock


@pytest.fixture(name="parse", scope="session")
def _parse() -> Callable[[str], Graph]:
    return parse


@pytest.fixture(name="run", scope="session")
def _run() -> Callable[..., list[Array]]:
    return run


@pytest.fixture(name="prefer", scope="session")
def _prefer() -> Callable[..., Clock]:
    return prefer


@pytest.fixture(name="ops", scope="session")
def _ops() -> Callable[[Graph], Counter[str]]:
    return lambda graph: Counter(node.op_type for node in graph.graph)
