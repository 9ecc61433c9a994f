"""Measured latencies of blocks, kept from one run to the next by what the block is and where it ran."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import onnx_ir

from ...ir.graph import Graph, sizes_of, tensor_of
from ...ir.outline import boundary, copied, embedded
from ..base import Latency
from .sizes import Sizes


class Latencies:
    """A table of latencies that fills itself.

    Args:
        path: JSON file of the table; None keeps it in this object.
        measure: takes the time of what is not in the table; None: the table is all there is.
        machine: whose entries to read where nothing can be measured here; if not given, those of the table's machine,
            where it holds but one.
    """

    def __init__(self, path: Path | None, measure: Latency | None = None, machine: str = "") -> None:
        self._path, self._measure = path, measure
        self.machine = measure.machine if measure is not None else machine
        self.found = self.measured = self.missing = 0
        self._table: dict[str, float] = {}
        self._dirty = False
        if path is not None:
            with contextlib.suppress(OSError, ValueError):
                table = json.loads(path.read_text(encoding="utf-8"))
                self._table = {str(key): float(value) for key, value in table.items()}
        if not self.machine:
            machines = {key.split(" | ")[0] for key in self._table}
            self.machine = machines.pop() if len(machines) == 1 else ""

    def seconds(self, nodes: Sequence[onnx_ir.Node], opsets: dict[str, int], sizes: Sizes) -> float | None:
        """Seconds of ``nodes``, in topological order, as one block; None where nothing is known."""
        key = self.key(nodes, sizes)
        known = self.find(key)
        if known is not None:
            return known
        if self._measure is None:
            self.missing += 1
            return None
        taken = self._measure(as_model(nodes, opsets, sizes))
        self.keep(key, taken)
        return taken

    def find(self, key: str) -> float | None:
        """Seconds that are in the table."""
        known = self._table.get(key)
        self.found += known is not None
        return known

    def keep(self, key: str, seconds: float) -> None:
        """Put what was measured into the table."""
        self.measured += 1
        self._table[key] = seconds
        self._dirty = True

    def key(self, nodes: Sequence[onnx_ir.Node], sizes: Sizes) -> str:
        """The machine, the operators and a digest of pattern and sizes."""
        text = f"{self.machine} | {'+'.join(node.op_type for node in nodes)}"
        return f"{text} | {hashlib.sha256(pattern(nodes, sizes).encode()).hexdigest()[:16]}"

    def save(self) -> None:
        """Write the table, whole or not at all."""
        if self._path is None or not self._dirty:
            return
        part = self._path.with_suffix(".part")
        with contextlib.suppress(OSError):  # a full disk is no reason not to go on
            self._path.parent.mkdir(parents=True, exist_ok=True)
            part.write_text(json.dumps(self._table, indent=1, sort_keys=True), encoding="utf-8")
            part.replace(self._path)
            self._dirty = False


def pattern(nodes: Sequence[onnx_ir.Node], sizes: Sizes) -> str:
    """Operators, attributes, element types and sizes of a block, free of names."""
    numbers: dict[onnx_ir.Value, int] = {}
    lines = []

    def name(value: onnx_ir.Value | None) -> str:
        if value is None:
            return "_"
        if value in numbers:
            return f"%{numbers[value]}"
        tensor = embedded(value)
        if tensor is not None:
            return f"{tensor.dtype.name}{tensor.numpy().tolist()}"
        numbers[value] = len(numbers)
        return f"%{numbers[value]}:{value.dtype}{_plain(value, sizes)}"

    for node in nodes:
        how = sorted((key, str(attr.value)) for key, attr in node.attributes.items())
        taken = [name(value) for value in node.inputs]
        lines.append(f"{node.domain}:{node.op_type}{how}{taken}->{[name(value) for value in node.outputs]}")
    return "\n".join(lines)


def _plain(value: onnx_ir.Value, sizes: Sizes) -> list[int]:
    return [] if value.shape is None else [sizes.dim(dim) for dim in value.shape]


def as_model(nodes: Sequence[onnx_ir.Node], opsets: dict[str, int], sizes: Sizes) -> Graph:
    """A model of its own with copies of ``nodes``; what they read becomes its inputs, with plain sizes."""
    inputs, outputs = boundary(nodes)
    copies: dict[onnx_ir.Value, onnx_ir.Value] = {}
    initializers = []
    free = []
    for value in inputs:
        tensor = embedded(value)
        shape = onnx_ir.Shape(_plain(value, sizes) if tensor is None else list(sizes_of(tensor)))
        copy = onnx_ir.Value(name=value.name, type=value.type, shape=shape, const_value=None)
        if tensor is not None:
            copy.const_value = onnx_ir.Tensor(tensor.numpy(), name=value.name, dtype=tensor.dtype)
            copy.type = onnx_ir.TensorType(tensor.dtype)
            initializers.append(copy)
        else:
            if tensor_of(value) is not None and copy.type is None:
                copy.type = onnx_ir.TensorType(tensor_of(value).dtype)  # type: ignore[union-attr]
            free.append(copy)
        copies[value] = copy
    steps = []
    for node in nodes:
        step = copied(node, copies)
        for new in step.outputs:
            new.shape = None if new.shape is None else onnx_ir.Shape(_plain(new, sizes))
        steps.append(step)
    graph = onnx_ir.Graph(
        free,
        [copies[value] for value in outputs],
        nodes=steps,
        initializers=initializers,
        opset_imports=dict(opsets),
        name="block",
    )
    return onnx_ir.Model(graph, ir_version=10)
