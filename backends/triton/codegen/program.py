"""One readable Python file for a graph: its kernels, and a function that allocates, launches, and calls PyTorch."""

from __future__ import annotations

import builtins
import contextlib
import keyword
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import onnx_ir
import sympy

from ....ir.errors import UnsupportedError
from ....ir.graph import Graph, is_op, module_path, tensor_of
from ....ir.remarks import Remark
from ....ir.symbolic import known, to_expr
from . import templates
from .arrays import Array, Number, Source, Unfit, expanded, unreshaped
from .epilogue import epilogue
from .indexing import Expr, Sizes, text
from .kernel import PERSISTENT, PERSISTENT_OUTER, Kernel
from .operators import EXPRESSIONS, Operator
from .operators.registry import dtype_of, shape_of
from .schedule import Step, cone, schedule
from .torch_calls import CALLS, VIEWS

_TORCH = {
    "float32": "torch.float32", "float64": "torch.float64", "float16": "torch.float16", "bfloat16": "torch.bfloat16",
    "int1": "torch.bool", "int8": "torch.int8", "int16": "torch.int16", "int32": "torch.int32", "int64": "torch.int64",
    "uint8": "torch.uint8", "uint16": "torch.uint16", "uint32": "torch.uint32", "uint64": "torch.uint64",
    "float8e4nv": "torch.float8_e4m3fn", "float8e5": "torch.float8_e5m2",
}  # fmt: skip
_HEADER = '''"""{title}"""

import torch
import triton
import triton.language as tl

from burnish.backends.triton.codegen import mathematics as m  # noqa: F401
from burnish.backends.triton.launch import kernel
{imports}
empty = torch.empty
'''


@dataclass(frozen=True)
class Program:
    """A graph as source.

    Attributes:
        source: of the file.
        kernels: names of its kernels.
        remarks: what became a kernel, and what was left to PyTorch, and why.
        constants: names of constants that the file reads.
    """

    source: str
    kernels: tuple[str, ...]
    remarks: tuple[Remark, ...]
    constants: tuple[str, ...]


@dataclass
class _Line:
    """One statement, or an allocation and the launch that fills it."""

    text: str
    writes: tuple[str, ...] = ()

    def names(self) -> set[str]:
        return set(_NAME.findall(_STRING.sub("", self.text)))


_NAME = re.compile(r"(?<![.\w])[A-Za-z_]\w*")
_STRING = re.compile(r"'[^']*'|#.*")


@dataclass
class _Made:
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


@dataclass(frozen=True)
class _Product:
    """A product that is not computed yet: what follows it may be computed with it."""

    node: onnx_ir.Node
    key: str
    found: templates.Found


@dataclass
class _Scope:
    """Nodes that become kernels together."""

    nodes: Sequence[onnx_ir.Node]
    keys: Sequence[str]
    outputs: Sequence[onnx_ir.Value]
    title: str
    outer: Mapping[onnx_ir.Value, onnx_ir.Value] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)
    left: list[tuple[str, str]] = field(default_factory=list)


def generate(graph: Graph, title: str = "A graph compiled by Burnish") -> Program:
    """Write the file of a graph.

    Args:
        graph: with types and shapes of its values.
        title: first line of the file.

    Raises:
        UnsupportedError: an input or output is no tensor.
    """
    return _Writer(graph, title).program()


class _Writer:
    def __init__(self, graph: Graph, title: str) -> None:
        self.graph, self.title = graph, title
        self.lines: list[_Line] = []
        self.made: dict[onnx_ir.Value, _Made] = {}
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
        self.scope: _Scope | None = None
        self.imports: set[str] = set()
        self.products: dict[Array, _Product] = {}
        self.wanted_shapes: dict[Array, tuple[Expr, ...]] = {}

    def program(self) -> Program:
        graph = self.graph.graph
        for n, value in enumerate(graph.inputs):
            self._input(n, value)
        for n, node in enumerate(graph):
            self._top(node, str(n))
        results = []
        for value in graph.outputs:
            results.append(self._variable(value))
        self.lines.append(_Line(f"return [{', '.join(results)}]"))
        body = "\n".join(f"    {line}" for line in self._with_deletions())
        kernels = "".join(f"\n\n{source}" for source in self.sources)
        source = (
            _HEADER.format(title=self.title, imports="".join(f"{line}\n" for line in sorted(self.imports)))
            + kernels
            + '\n\ndef call(inputs, constants, run):\n    """Outputs of the graph, from its inputs and constants."""\n'
            + "    device = run.device\n"
            + body
            + "\n"
        )
        return Program(source, tuple(self.kernels.values()), tuple(self.remarks), tuple(self.constants))

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
            self.lines.append(_Line(f"{size} = {shown}", (size,)))
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
        self.lines.append(_Line(f"{name} = inputs[{n}]", (name,)))
        self._bind(value, name)
        self.made[value] = _Made(self._source(value, name), name)

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

    def _of(self, value: onnx_ir.Value) -> _Made:
        value = self._real(value)
        found = self.made.get(value)
        if found is not None:
            return found
        tensor = tensor_of(value)
        if tensor is None:
            raise UnsupportedError(
                f"the value {value.name!r} has no maker", where="the graph", fix="verify the graph before"
            )
        made = _Made()
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
                self.lines.append(_Line(f"{name} = constants[{key!r}]", (name,)))
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

    # Nodes.

    def _top(self, node: onnx_ir.Node, key: str) -> None:
        if is_op(node, "Constant"):
            return
        function = self.graph.functions.get(node.op_identifier())
        if function is None or function.domain != "burnish" or function.attributes or node.attributes:
            self.scope = _Scope([node], [key], node.outputs, module_path(node))
            self._block(self.scope)
            return
        inner = list(function)
        outer = {a: b for a, b in zip(function.inputs, node.inputs, strict=False) if b is not None}
        scope = _Scope(inner, [f"{key}.{n}" for n in range(len(inner))], function.outputs, module_path(node), outer)
        self.scope = scope
        self._block(scope)
        for result, value in zip(function.outputs, node.outputs, strict=True):
            name = self._variable(result)
            self.made[value] = _Made(self.made[result].array, name)
            self._bind(value, name)
        # The same function may be called again, with other arguments.
        for inner_node in inner:
            for value in inner_node.outputs:
                self.made.pop(value, None)
        self.scope = None

    def _block(self, scope: _Scope) -> None:
        pending: list[onnx_ir.Value] = []
        for node, key in zip(scope.nodes, scope.keys, strict=True):
            if is_op(node, "Constant"):
                continue
            reason = self._product(node, key, scope) or self._express(node, key, scope)
            if reason is None or reason == _PENDING:
                pending += [v for v in node.outputs if v.name and (v.uses() or v in scope.outputs)]
                continue
            self._torch(node, key, node.inputs, reason)
        keep = [v for v in scope.outputs if v in self.made and not self.made[v].name]
        if len(scope.nodes) == 1 and scope.nodes[0].op_type in VIEWS and not scope.nodes[0].domain:
            return  # a view: made where it is needed
        wanted = [v for v in keep if self.made[v].array is not None and not self._is_view(v)]
        if wanted:
            self._store(wanted, [scope.title])
        self._report(scope)

    def _is_view(self, value: onnx_ir.Value) -> bool:
        """Whether PyTorch gives a value without a copy."""
        made = self.made[value]
        while made.node is not None and made.inputs and made.inputs[0] is not None:
            made = self._of(made.inputs[0])
        pending = made is not self.made[value] and made.array in self.products
        return bool(made.name) or made.array is None or pending

    def _express(self, node: onnx_ir.Node, key: str, scope: _Scope) -> str | None:
        """Say how kernels compute a node; the reason if they cannot."""
        rule = EXPRESSIONS.get(("" if node.domain == "ai.onnx" else node.domain, node.op_type))
        if rule is None:
            return "no generated kernel for this operator"
        try:
            x = [None if v is None else self._operand(node, n, v) for n, v in enumerate(node.inputs)]
            opset = self.graph.opset_imports.get(node.domain, 1)
            found = rule(Operator(node, x, opset, self.sizes, scope.outer))
            arrays: Sequence[Array | None] = [found] if isinstance(found, Array) else found
            for value, array in zip(node.outputs, arrays, strict=False):
                if array is None:
                    if value.name and value.uses():
                        raise Unfit(f"its output {value.name!r} is used")
                    continue
                for size in array.shape:
                    self._host(size)
        except Unfit as reason:
            return str(reason)
        view = node.op_type in VIEWS and not node.domain
        for value, array in zip(node.outputs, arrays, strict=False):
            if array is not None:
                made = _Made(array)
                if view:
                    made.node, made.key, made.inputs = node, key, tuple(node.inputs)
                self.made[value] = made
        return None

    def _product(self, node: onnx_ir.Node, key: str, scope: _Scope) -> str | None:
        """Leave a product to a template, together with what follows it."""
        found = templates.find(node, scope.outer)
        if found is None or len(node.outputs) != 1:
            return None
        try:
            array = Source(self._shape(node.outputs[0]), dtype_of(node.outputs[0]), "")
        except (Unfit, ValueError):
            return None
        self.products[array] = _Product(node, key, found)
        self.made[node.outputs[0]] = _Made(array)
        return _PENDING

    def _finish_products(self, wanted: Mapping[Array, str]) -> bool:
        """Compute the products that arrays are made of; True if these are made with it."""
        needed = [a for a in cone(list(wanted), self.memory) if a in self.products and a not in self.memory]
        for array in needed:
            assert isinstance(array, Source)
            product = self.products[array]
            reason = "alone, a vendor's kernel is as good"
            if len(needed) == 1 and len(wanted) == 1:
                ((result, name),) = wanted.items()
                if result is not array or product.found.packed:
                    said = self._with_epilogue(array, product, result, name)
                    if said is None:
                        return True
                    reason = said
            self._alone(array, product, reason, wanted.get(array))
        return all(a in self.memory for a in wanted)

    def _with_epilogue(self, array: Source, product: _Product, result: Array, name: str) -> str | None:
        """One call for a product and what follows it; the reason if that is not possible."""
        if result.dtype != array.dtype:
            return f"what follows is {result.dtype}"
        function = ""
        tensors: tuple[str, ...] = ()
        if result is not array:
            made = epilogue(array, result, self.memory)
            if isinstance(made, str):
                return made
            key = made.source("epilogue", "")
            function = self.kernels.get(key) or self._fresh(f"{self._kernel_name()}_epilogue")
            if key not in self.kernels:
                self.kernels[key] = function
                self.sources.append(made.source(function, self._summary()))
            tensors = made.inputs
        self._call_template(array, product, name, function, tensors, self._memory_shape(result, array))
        return None

    def _memory_shape(self, result: Array, array: Source) -> str:
        wanted = self.wanted_shapes.get(result, result.shape)
        if wanted == array.shape:
            return ""
        return f".reshape({', '.join(self._host(size) for size in wanted)})"

    def _call_template(
        self, array: Source, product: _Product, name: str, function: str, tensors: Sequence[str], tail: str
    ) -> None:
        found = product.found
        arguments = [self._variable(found.x)]
        if found.packed:
            key = f"packed {product.key}"
            arguments.append(self._fresh())
            self.constants[key] = arguments[-1]
            self.lines.append(_Line(f"{arguments[-1]} = constants[{key!r}]", (arguments[-1],)))
        else:
            assert found.weight is not None
            arguments.append(self._variable(found.weight))
        if found.options:
            arguments.append(found.options)
        if function:
            listed = f", tensors=({', '.join(tensors)},)" if tensors else ""
            arguments.append(f"epilogue=Epilogue(function={function}{listed})")
            self.imports.add("from burnish.backends.triton.fused import Epilogue")
        self.imports.add(f"from burnish.backends.triton.{found.module} import {found.function}")
        self.names.update(("Epilogue", found.function))
        self.lines.append(_Line(f"{name} = {found.function}({', '.join(arguments)}){tail}", (name,)))
        if self.scope is not None:
            self.scope.names.append(f"{found.function} with {function}" if function else found.function)

    def _alone(self, array: Source, product: _Product, reason: str, name: str | None) -> None:
        """A product without anything after it: by its template where that has packed weights, else by PyTorch."""
        if product.found.packed:
            self._call_template(array, product, name or self._buffer(), "", (), "")
            self.memory[array] = self.lines[-1].writes[0]
            return
        node = product.node
        result = name or self._buffer()
        opset = self.graph.opset_imports.get(node.domain, 1)
        code = self._plain(node, node.inputs, opset)
        self.lines.append(_Line(f"{result} = {code}", (result,)))
        self.memory[array] = result
        if self.scope is not None:
            self.scope.left.append((node.op_type, reason))

    def _operand(self, node: onnx_ir.Node, n: int, value: onnx_ir.Value) -> Array | None:
        """An input as an array; inputs that only say how an operator works need none."""
        if n in _SETTINGS.get(node.op_type, ()):
            return Source((), "int64", "")
        return self._array(value)

    def _store(self, values: Sequence[onnx_ir.Value], title: Sequence[str]) -> None:
        """Launch kernels that make these values."""
        wanted: dict[Array, str] = {}
        shapes: dict[Array, tuple[Expr, ...]] = {}
        for value in values:
            made = self.made[value]
            assert made.array is not None
            # Sizes do not matter in memory: what is made is the array before its last reshape.
            array = unreshaped(made.array)
            if array in self.memory or (array in wanted and shapes[array] != made.array.shape):
                array = made.array
            if array in self.memory:
                made.name = self.memory[array]
            elif array in wanted:
                made.name = wanted[array]
            else:
                made.name = self._buffer()
                wanted[array], shapes[array] = made.name, made.array.shape
        if not wanted:
            return
        self.wanted_shapes = shapes
        if not self._finish_products(wanted):
            left = {array: name for array, name in wanted.items() if array not in self.memory}
            self._run_kernels(left, shapes)
        self.memory.update({array: name for array, name in wanted.items() if shapes[array] == array.shape})
        for value in values:
            made = self.made[value]
            assert made.array is not None
            # What comes next reads the tensor, not how it was made.
            made.array = self._again(made.array, made.name)

    def _run_kernels(self, wanted: Mapping[Array, str], shapes: Mapping[Array, tuple[Expr, ...]]) -> None:
        found = schedule(wanted, self.memory, self._buffer)
        names = {**self.memory, **wanted, **found.temporaries}
        if self.scope is not None:
            self.scope.left += [("kernels", reason) for reason in found.reasons]
        for step in found.steps:
            self._launch(step, names, shapes)
        self.memory.update(found.temporaries)

    def _again(self, array: Array, name: str) -> Array:
        source = Source(array.shape, array.dtype, name)
        self.memory[source] = name
        return source

    def _launch(self, step: Step, names: Mapping[Array, str], shapes: Mapping[Array, tuple[Expr, ...]]) -> None:
        outputs = [names[a] for a in step.outputs]
        lines = []
        for array in step.outputs:
            made_shape = shapes.get(array, array.shape)
            shape = ", ".join(self._host(size) for size in made_shape)
            shape = f"({shape},)" if len(made_shape) == 1 else f"({shape})"
            lines.append(f"{names[array]} = empty({shape}, dtype={_TORCH[array.dtype]}, device=device)")
        first = step.kernels[0]
        called = [self._kernel(k) for k in step.kernels]
        sizes = [self._host(s) for s in first.sizes]
        rows = f"rows={self._host(first.rows)}"
        columns = "" if first.columns is None else f", columns={self._host(first.columns)}"
        arguments = ", ".join([*first.inputs, *outputs, *sizes])
        function = called[0]
        if len(called) == 2:
            assert first.columns is not None
            limit = PERSISTENT_OUTER if first.outer else PERSISTENT
            function = f"({called[0]} if {self._host(first.columns)} <= {limit} else {called[1]})"
        lines.append(f"{function}({arguments}, {rows}{columns})")
        self.lines.append(_Line("\n    ".join(lines), tuple(outputs)))

    def _kernel(self, kernel: Kernel) -> str:
        """The name of a kernel; one with the same source is used again."""
        key = kernel.source("kernel", "")
        if key in self.kernels:
            name = self.kernels[key]
        else:
            name = self._fresh(self._kernel_name() + ("_loop" if kernel.form == "loop" else ""))
            self.kernels[key] = name
            self.sources.append(kernel.source(name, self._summary()))
        if self.scope is not None:
            self.scope.names.append(name)
        return name

    def _operators(self) -> list[str]:
        if self.scope is None:
            return []
        return [n.op_type for n in self.scope.nodes if n.op_type != "Constant"]

    def _kernel_name(self) -> str:
        kinds = [re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", k).lower() for k in self._operators()]
        kinds = [k for k in dict.fromkeys(kinds) if k not in _DULL] or kinds
        short = kinds if len(kinds) <= 3 else [*kinds[:2], kinds[-1]]
        return "_".join(short)[:36].strip("_") or "kernel"

    def _summary(self) -> str:
        assert self.scope is not None
        operators = ", ".join(self._operators())
        operators = operators if len(operators) <= 80 else operators[:77] + "..."
        return f"{self.scope.title}: {operators}.".replace("\\", "/").replace('"', "'")

    def _torch(
        self, node: onnx_ir.Node, key: str, inputs: Sequence[onnx_ir.Value | None], reason: str | None = None
    ) -> None:
        """Call PyTorch for a node."""
        opset = self.graph.opset_imports.get(node.domain, 1)
        results = [self._buffer() if v.name else "_" for v in node.outputs]
        code = self._plain(node, inputs, opset) if len(results) == 1 else None
        if code is None:
            settings = _SETTINGS.get(node.op_type, ())
            arguments = ["None" if v is None else self._setting(v) if n in settings else self._variable(v)
                         for n, v in enumerate(inputs)]  # fmt: skip
            arguments += [self._variable(v) for v in captured(node)]
            targets = ", ".join(results) + ("," if len(results) == 1 else "")
            line = f"{targets} = run.node({', '.join([repr(key), *arguments])})  # {node.op_type}"
        else:
            line = f"{results[0]} = {code}"
        self.lines.append(_Line(line, tuple(r for r in results if r != "_")))
        for value, name in zip(node.outputs, results, strict=True):
            if name == "_":
                continue
            self._bind(value, name)
            made = self.made.get(value)
            # How kernels read a view stays: they then need no copy of it.
            self.made[value] = _Made(made.array if made is not None else self._source(value, name), name)
        if reason is not None and self.scope is not None:
            self.scope.left.append((node.op_type, reason))

    def _plain(self, node: onnx_ir.Node, inputs: Sequence[onnx_ir.Value | None], opset: int) -> str | None:
        """A node as a plain call of PyTorch; None if there is none."""
        call = CALLS.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        if call is None:
            return None
        shape = None
        with contextlib.suppress(Unfit, ValueError):  # the call may do without
            shape = [self._host(size) for size in shape_of(node.outputs[0], self.sizes)]
        arguments = [_Argument(self, v) for v in inputs]
        return call(node, arguments, shape, opset)

    def _setting(self, value: onnx_ir.Value) -> str:
        """A constant that says how an operator works: on the CPU, where it is looked at."""
        value = self._real(value)
        if tensor_of(value) is None:
            return self._variable(value)
        key = f"host {self._constant_key(value)}"
        if key not in self.constants:
            name = self.constants[key] = self._fresh()
            self.lines.append(_Line(f"{name} = constants[{key!r}]", (name,)))
        return self.constants[key]

    def _report(self, scope: _Scope) -> None:
        operators = ", ".join(n.op_type for n in scope.nodes if n.op_type != "Constant")
        if scope.names:
            kernels = list(dict.fromkeys(scope.names))
            why = [reason for what, reason in scope.left if what == "kernels"]
            many = len(scope.names) > 1
            said = f"{operators}: {len(scope.names)} generated kernels" if many else f"{operators}: a generated kernel"
            self.remarks.append(Remark("applied", scope.title, said, {"kernels": kernels, "because": why}))
        for what, reason in scope.left:
            if what != "kernels":
                self.remarks.append(Remark("skipped", scope.title, f"{what} is left to PyTorch: {reason}"))

    def _with_deletions(self) -> Iterable[str]:
        """Lines that something needs, and after each what is not needed any more."""
        written = {name for line in self.lines for name in line.writes}
        live: set[str] = set()
        kept: list[_Line] = []
        for line in reversed(self.lines):
            if line.writes and not live & set(line.writes):
                continue
            live |= line.names() & written
            kept.append(line)
        kept.reverse()
        last: dict[str, int] = {}
        for n, line in enumerate(kept):
            for name in line.names() & written:
                last[name] = n
        sizes = set(self.bound.values())
        for n, line in enumerate(kept[:-1]):
            yield line.text
            dead = sorted(name for name in line.names() & written - sizes if last[name] == n)
            if dead:
                yield f"del {', '.join(dead)}"
        yield kept[-1].text


class _Argument:
    """An input of a node, which gets a variable when its name is asked for."""

    def __init__(self, writer: _Writer, value: onnx_ir.Value | None) -> None:
        self._writer, self.value = writer, value

    def __str__(self) -> str:
        return "None" if self.value is None else self._writer._variable(self.value)


_PENDING = "computed with what follows"
_DULL = ("reshape", "transpose", "unsqueeze", "squeeze", "cast", "identity", "expand", "flatten", "slice")
_SETTINGS: dict[str, tuple[int, ...]] = {
    "Reshape": (1,), "Squeeze": (1,), "Unsqueeze": (1,), "Expand": (1,), "Tile": (1,), "Slice": (1, 2, 3, 4),
    "Split": (1,), "Pad": (1, 3), "ReduceSum": (1,), "ReduceMean": (1,), "ReduceMax": (1,), "ReduceMin": (1,),
    "ReduceProd": (1,), "ReduceL1": (1,), "ReduceL2": (1,), "ReduceSumSquare": (1,), "ReduceLogSum": (1,),
    "ReduceLogSumExp": (1,), "Trilu": (1,), "Resize": (1, 2, 3), "Upsample": (1,), "CenterCropPad": (1,),
    "ConstantOfShape": (0,), "Range": (0, 1, 2), "OneHot": (1,), "CastLike": (1,), "Dropout": (1, 2),
}  # fmt: skip
"""Inputs that say how an operator works: shapes, axes, numbers that must be known."""


def captured(node: onnx_ir.Node) -> list[onnx_ir.Value]:
    """Values of the outer graph that subgraphs of a node read, each once."""
    found: dict[onnx_ir.Value, None] = {}
    for attr in node.attributes.values():
        if attr.type != onnx_ir.AttributeType.GRAPH:
            continue
        inner = list(onnx_ir.traversal.RecursiveGraphIterator(attr.as_graph()))
        made = {v for each in inner for v in each.outputs} | set(attr.as_graph().inputs)
        for each in inner:
            for a in each.attributes.values():
                if a.type == onnx_ir.AttributeType.GRAPH:
                    made |= set(a.as_graph().inputs)
        reads = [v for each in inner for v in each.inputs if v is not None] + list(attr.as_graph().outputs)
        for value in reads:
            if value not in made and not value.is_initializer():
                found[value] = None
    return list(found)
