"""Where the values of a graph are while its file is written: names, sizes, arrays and constants."""

from __future__ import annotations

import abc
import builtins
import keyword
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import onnx_ir
import sympy

from ....ir.errors import UnsupportedError
from ....ir.graph import Graph, tensor_of
from ....ir.remarks import Remark
from ....ir.symbolic import known, to_expr
from .arrays import Array, Number, Source, Unfit, expanded
from .indexing import Expr, Sizes, text
from .listing import Line
from .operators.registry import dtype_of, shape_of


@dataclass
class Made:
    """Where a value of the graph is.

    Attributes:
        array: how kernels read it; None if they cannot.
        name: the variable that holds it; empty as long as there is none.
        node: what makes it as a view, where there is no variable yet.
        key: of that node, for the runtime.
        inputs: values that it needs.
    """

    array: Array | None = None
    name: str = ""
    node: onnx_ir.Node | None = None
    key: str = ""
    inputs: tuple[onnx_ir.Value | None, ...] = ()


@dataclass
class Scope:
    """Nodes that become kernels together.

    Of its outputs, ``later`` may be left to what reads them, ``shown`` are outputs of the graph.
    """

    nodes: Sequence[onnx_ir.Node]
    keys: Sequence[str]
    outputs: Sequence[onnx_ir.Value]
    title: str
    outer: Mapping[onnx_ir.Value, onnx_ir.Value] = field(default_factory=dict)
    later: tuple[onnx_ir.Value, ...] = ()
    shown: frozenset[onnx_ir.Value] = frozenset()
    names: list[str] = field(default_factory=list)
    left: list[tuple[str, str]] = field(default_factory=list)


class Values(abc.ABC):
    """What is known while a file is written.

    Args:
        graph: with types and shapes of its values.
        title: first line of the file.
    """

    def __init__(self, graph: Graph, title: str) -> None:
        self.graph, self.title = graph, title
        self.lines: list[Line] = []
        self.made: dict[onnx_ir.Value, Made] = {}
        self.kernels: dict[str, str] = {}
        self.sources: list[str] = []
        self.remarks: list[Remark] = []
        self.constants: dict[str, str] = {}
        self.bound: dict[sympy.Symbol, str] = {}
        self.names: set[str] = {"run", "inputs", "constants", "m", "tl", "torch", "triton", "kernel", "empty", "call",
                                "device", *dir(builtins)}  # fmt: skip
        self.memory: dict[Array, str] = {}
        self.sizes = Sizes()
        self.count = 0
        self.scope: Scope | None = None
        self.imports: set[str] = set()

    @abc.abstractmethod
    def _store(self, values: Sequence[onnx_ir.Value], title: Sequence[str]) -> None:
        """Launch kernels that make these values."""

    @abc.abstractmethod
    def _torch(
        self, node: onnx_ir.Node, key: str, inputs: Sequence[onnx_ir.Value | None], reason: str | None = None
    ) -> None:
        """Call PyTorch for a node."""

    # Names and sizes.

    def _fresh(self, hint: str = "") -> str:
        name = re.sub(r"\W+", "_", hint).strip("_")
        if name and name[0].isdigit():
            name = f"n{name}"
        if not name or keyword.iskeyword(name) or len(name) > 40:
            name = f"buf{self.count}"
            self.count += 1
        base, more = name, 1
        while name in self.names:
            name, more = f"{base}_{more}", more + 1
        self.names.add(name)
        return name

    def _buffer(self) -> str:
        return self._fresh()

    def _bind(self, value: onnx_ir.Value, name: str) -> None:
        """Give names to sizes that a tensor shows."""
        if value.shape is None:
            return
        for axis, dim in enumerate(value.shape):
            if isinstance(dim, int) or not known(dim):
                continue
            e = to_expr(dim)
            assert e is not None
            missing = [s for s in e.free_symbols if s not in self.bound]
            if len(missing) != 1:
                continue
            (symbol,) = missing
            if e == symbol:
                solved: Expr = sympy.Symbol("_size")
            else:
                found = sympy.solve(e - sympy.Symbol("_size"), symbol) if e.is_polynomial(symbol) else []
                if len(found) != 1 or not found[0].is_polynomial(sympy.Symbol("_size")):
                    continue
                solved = found[0]
            size = self._fresh(symbol.name)
            shown = text(solved, {**self.bound, sympy.Symbol("_size"): f"{name}.shape[{axis}]"})
            self.lines.append(Line(f"{size} = {shown}", (size,)))
            self.bound[symbol] = size

    def _host(self, e: Expr) -> str:
        """Source of a size in the function ``call``."""
        meaning = self.sizes.meaning
        whole = e.xreplace({s: meaning[s] for s in e.free_symbols if s in meaning})
        missing = [s.name for s in whole.free_symbols if s not in self.bound]
        if missing:
            raise Unfit(f"the size {missing[0]} is not known before it runs")
        return text(whole, self.bound)

    def _shape(self, value: onnx_ir.Value) -> tuple[Expr, ...]:
        shape = shape_of(value, self.sizes)
        for size in shape:
            self._host(size)
        return shape

    # Values.

    def _input(self, n: int, value: onnx_ir.Value) -> None:
        name = self._fresh(value.name or "")
        self.lines.append(Line(f"{name} = inputs[{n}]", (name,)))
        self._bind(value, name)
        self.made[value] = Made(self._source(value, name), name)

    def _source(self, value: onnx_ir.Value, name: str) -> Source | None:
        try:
            array = Source(self._shape(value), dtype_of(value), name)
        except (Unfit, ValueError):
            return None
        self.memory[array] = name
        return array

    def _real(self, value: onnx_ir.Value) -> onnx_ir.Value:
        """What stands behind an input of the function at hand."""
        return value if self.scope is None else self.scope.outer.get(value, value)

    def _of(self, value: onnx_ir.Value) -> Made:
        value = self._real(value)
        found = self.made.get(value)
        if found is not None:
            return found
        tensor = tensor_of(value)
        if tensor is None:
            raise UnsupportedError(
                f"the value {value.name!r} has no maker", where="the graph", fix="verify the graph before"
            )
        made = Made()
        if (tensor.size == 1 and len(tensor.shape) == 0) or (tensor.size == 1 and tensor.dtype.is_floating_point()):
            made.array = self._number(value, tensor)
        self.made[value] = made
        return made

    def _number(self, value: onnx_ir.Value, tensor: onnx_ir.TensorProtocol) -> Array | None:
        try:
            dtype = dtype_of(value if value.dtype is not None else onnx_ir.Value(type=onnx_ir.TensorType(tensor.dtype)))
        except Unfit:
            return None
        number = Number((), dtype, tensor.numpy().reshape(-1)[0].item())
        if len(tensor.shape) == 0:
            return number
        return expanded(number, (sympy.Integer(1),) * len(tensor.shape))

    def _constant_key(self, value: onnx_ir.Value) -> str:
        node = value.producer()
        if node is None:
            return value.name or ""
        assert self.scope is not None
        for inner, key in zip(self.scope.nodes, self.scope.keys, strict=True):
            if inner is node:
                return f"node {key}"
        return f"node {self._top_keys()[node]}"

    def _top_keys(self) -> dict[onnx_ir.Node, str]:
        return {node: str(n) for n, node in enumerate(self.graph.graph)}

    def _variable(self, value: onnx_ir.Value) -> str:
        """The variable that holds a value as a tensor; a view or a constant gets one now."""
        value = self._real(value)
        made = self._of(value)
        if made.name:
            return made.name
        if tensor_of(value) is not None:
            key = self._constant_key(value)
            name = self.constants.get(key)
            if name is None:
                name = self.constants[key] = self._fresh()
                self.lines.append(Line(f"{name} = constants[{key!r}]", (name,)))
            made.name = name
            if made.array is None:
                made.array = self._constant_source(value, name)
            return name
        if made.node is not None:
            self._torch(made.node, made.key, made.inputs)
            return self.made[value].name
        assert made.array is not None
        self._store([value], [])
        return self.made[value].name

    def _constant_source(self, value: onnx_ir.Value, name: str) -> Source | None:
        tensor = tensor_of(value)
        assert tensor is not None
        try:
            dtype = dtype_of(onnx_ir.Value(type=onnx_ir.TensorType(tensor.dtype)))
        except Unfit:
            return None
        shape = tuple(sympy.Integer(int(n)) for n in tensor.shape.numpy())
        array = Source(shape, dtype, name)
        self.memory[array] = name
        return array

    def _array(self, value: onnx_ir.Value) -> Array:
        """How kernels read a value.

        Raises:
            Unfit: they cannot.
        """
        value = self._real(value)
        made = self._of(value)
        if made.array is None:
            if not made.name and tensor_of(value) is not None:
                self._variable(value)
            if made.array is None and made.name:
                made.array = self._source(value, made.name)
        if made.array is None:
            raise Unfit(f"type or shape of {value.name!r} is not known")
        return made.array
