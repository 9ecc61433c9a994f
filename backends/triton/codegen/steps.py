"""Steps of a generated function: launches of kernels, and calls of PyTorch."""

from __future__ import annotations

import abc
import contextlib
import re
from collections.abc import Mapping, Sequence

import onnx_ir

from ....ir.graph import tensor_of
from ....ir.remarks import Remark
from .arrays import Array, Source, Unfit, unreshaped
from .indexing import Expr
from .kernel import PERSISTENT, PERSISTENT_OUTER, Kernel
from .listing import Line
from .operands import SETTINGS, captured
from .operators.registry import shape_of
from .schedule import Step, schedule
from .torch_calls import CALLS
from .values import Made, Scope, Values

_TORCH = {
    "float32": "torch.float32", "float64": "torch.float64", "float16": "torch.float16", "bfloat16": "torch.bfloat16",
    "int1": "torch.bool", "int8": "torch.int8", "int16": "torch.int16", "int32": "torch.int32", "int64": "torch.int64",
    "uint8": "torch.uint8", "uint16": "torch.uint16", "uint32": "torch.uint32", "uint64": "torch.uint64",
    "float8e4nv": "torch.float8_e4m3fn", "float8e5": "torch.float8_e5m2",
}  # fmt: skip
_DULL = ("reshape", "transpose", "unsqueeze", "squeeze", "cast", "identity", "expand", "flatten", "slice")


class Steps(Values):
    """Writes the steps that make values."""

    @abc.abstractmethod
    def _finish_products(self, wanted: Mapping[Array, str], shapes: Mapping[Array, tuple[Expr, ...]]) -> bool:
        """Compute the products that arrays are made of; True if these are made with it."""

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
        if not self._finish_products(wanted, shapes):
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
        self.lines.append(Line("\n    ".join(lines), tuple(outputs)))

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
            settings = SETTINGS.get(node.op_type, ())
            arguments = ["None" if v is None else self._setting(v) if n in settings else self._variable(v)
                         for n, v in enumerate(inputs)]  # fmt: skip
            arguments += [self._variable(v) for v in captured(node)]
            targets = ", ".join(results) + ("," if len(results) == 1 else "")
            line = f"{targets} = run.node({', '.join([repr(key), *arguments])})  # {node.op_type}"
        else:
            line = f"{results[0]} = {code}"
        self.lines.append(Line(line, tuple(r for r in results if r != "_")))
        for value, name in zip(node.outputs, results, strict=True):
            if name == "_":
                continue
            self._bind(value, name)
            made = self.made.get(value)
            # How kernels read a view stays: they then need no copy of it.
            self.made[value] = Made(made.array if made is not None else self._source(value, name), name)
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
            self.lines.append(Line(f"{name} = constants[{key!r}]", (name,)))
        return self.constants[key]

    def _report(self, scope: Scope) -> None:
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


class _Argument:
    """An input of a node, which gets a variable when its name is asked for."""

    def __init__(self, writer: Values, value: onnx_ir.Value | None) -> None:
        self._writer, self.value = writer, value

    def __str__(self) -> str:
        return "None" if self.value is None else self._writer._variable(self.value)
