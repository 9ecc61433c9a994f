"""A few nodes of a graph as a graph of their own with plain sizes, so that ways to compute them can be timed."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir

from .graph import Graph, sizes_of, tensor_of
from .outline import boundary, copied
from .symbolic import evaluate, symbols_of

Clock = Callable[[Sequence[Graph]], "Sequence[float] | None"]
"""Seconds of one run of each of some small graphs with plain sizes, measured in the same way on the machine at hand, so
that they can be compared; None where one of them is not measured."""
Variant = Callable[[Graph], object]
"""Rewrites a small graph in place, so that it computes the same in another way."""

_READ = 1024
"""Constants of at most this many elements keep their values: shapes, axes, scales."""
_LARGEST = 256 << 20
"""Bytes of constants up to which an excerpt is made."""
_TOKENS = 128
_BATCH = 1
_PIXELS = 256
_CACHE = "past_key_values"


def usual_sizes(graph: Graph) -> list[dict[str, int]]:
    """Sizes to time nodes at: batches of one, images of 256 x 256, else 128; a decoder also by the token."""
    names: dict[str, int] = {}
    batches: set[str] = set()
    caches: set[str] = set()
    for value in graph.graph.inputs:
        shape = value.shape or ()
        for axis, dim in enumerate(shape):
            for name in symbols_of(dim):
                cached = (value.name or "").startswith(_CACHE)
                names[name] = _PIXELS if len(shape) == 4 and axis > 1 and not cached else _TOKENS
                if axis == 0 and len(shape) > 1:
                    batches.add(name)
                if cached:
                    caches.add(name)
    names |= dict.fromkeys(batches, _BATCH)
    if not caches or not names.keys() - batches - caches:
        return [names]
    return [names, {name: size if name in caches else 1 for name, size in names.items()}]


def excerpt(graph: Graph, nodes: Sequence[onnx_ir.Node], sizes: Mapping[str, int]) -> Graph | None:
    """Copies of ``nodes`` as a graph of their own.

    Constants stay constants; large ones get made-up numbers, so that weights that are computed when they are written
    are not read.

    Args:
        graph: that they belong to.
        nodes: in topological order, without subgraphs.
        sizes: of named dimensions.

    Returns:
        The graph; None if a size or type is not known, or the constants are too large.
    """
    inputs, outputs = boundary(nodes)
    copies: dict[onnx_ir.Value, onnx_ir.Value] = {}
    free, constants = [], []
    total = 0
    for value in inputs:
        tensor = tensor_of(value)
        shape = sizes_of(tensor) if tensor is not None else _plain(value, sizes)
        dtype = tensor.dtype if tensor is not None else value.dtype
        if shape is None or dtype is None or dtype == onnx_ir.DataType.STRING:
            return None
        copy = onnx_ir.Value(name=value.name, type=onnx_ir.TensorType(dtype), shape=onnx_ir.Shape(shape))
        if tensor is not None:
            total += tensor.nbytes
            if total > _LARGEST:
                return None
            copy.const_value = _content(tensor, shape)
            constants.append(copy)
        else:
            free.append(copy)
        copies[value] = copy
    steps = []
    for node in nodes:
        if any(a.type in (onnx_ir.AttributeType.GRAPH, onnx_ir.AttributeType.GRAPHS) for a in node.attributes.values()):
            return None
        step = copied(node, copies)
        for new in step.outputs:
            shape = _plain(new, sizes)
            new.shape = None if shape is None else onnx_ir.Shape(shape)
        steps.append(step)
    small = onnx_ir.Graph(
        free,
        [copies[value] for value in outputs],
        nodes=steps,
        initializers=constants,
        opset_imports=dict(graph.opset_imports),
        name="excerpt",
    )
    return onnx_ir.Model(small, ir_version=graph.ir_version)


def timed(
    graph: Graph, nodes: Sequence[onnx_ir.Node], variants: Mapping[str, Variant], clock: Clock
) -> dict[str, float] | None:
    """Seconds of ``nodes`` computed in each of several ways.

    At several sizes, what each takes of the first one's time counts: the small size as much as the large one.

    Args:
        graph: that they belong to.
        nodes: in topological order.
        variants: by name; each is applied to an excerpt of its own.
        clock: takes the time.

    Returns:
        Seconds for each variant (the first one's mean, times the mean of the ratios to it); None if one of them was not
        measured.
    """
    rows: list[Sequence[float]] = []
    for sizes in usual_sizes(graph):
        small = [excerpt(graph, nodes, sizes) for _ in variants]
        models = [one for one in small if one is not None]
        if len(models) < len(small):
            return None
        for model, apply in zip(models, variants.values(), strict=True):
            apply(model)
        taken = clock(models)
        if taken is None:
            return None
        rows.append(taken)
    first = statistics.fmean(row[0] for row in rows)
    return {name: first * statistics.fmean(row[at] / row[0] for row in rows) for at, name in enumerate(variants)}


def _plain(value: onnx_ir.Value, sizes: Mapping[str, int]) -> list[int] | None:
    if value.shape is None:
        return None
    dims = [evaluate(dim, sizes) for dim in value.shape]
    return None if None in dims else [dim for dim in dims if dim is not None]


def _content(tensor: onnx_ir.TensorProtocol, shape: Sequence[int]) -> onnx_ir.TensorProtocol:
    if tensor.size <= _READ:
        return onnx_ir.Tensor(tensor.numpy(), dtype=tensor.dtype)
    kind: Any = tensor.dtype.numpy()
    if tensor.dtype.is_floating_point():
        return onnx_ir.Tensor(np.random.default_rng(0).standard_normal(shape).astype(kind), dtype=tensor.dtype)
    return onnx_ir.Tensor(np.zeros(shape, kind), dtype=tensor.dtype)
