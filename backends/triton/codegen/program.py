"""One readable Python file for a graph: its kernels, and a function that allocates, launches, and calls PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir

from ....ir.graph import Graph, is_op, module_path
from ....ir.remarks import Remark
from .arrays import Array, Source, Unfit
from .listing import Line, with_deletions
from .operands import SETTINGS
from .operators import EXPRESSIONS, Operator
from .products import PENDING
from .torch_calls import VIEWS
from .values import Made, Scope
from .whole import Whole

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


def generate(graph: Graph, title: str = "A graph compiled by Burnish") -> Program:
    """Write the file of a graph.

    Args:
        graph: with types and shapes of its values.
        title: first line of the file.

    Raises:
        UnsupportedError: an input or output is no tensor.
    """
    return _Writer(graph, title).program()


class _Writer(Whole):
    def program(self) -> Program:
        graph = self.graph.graph
        for n, value in enumerate(graph.inputs):
            self._input(n, value)
        for n, node in enumerate(graph):
            self._top(node, str(n))
        results = []
        for value in graph.outputs:
            results.append(self._variable(value))
        self.lines.append(Line(f"return [{', '.join(results)}]"))
        body = "\n".join(f"    {line}" for line in with_deletions(self.lines, set(self.bound.values())))
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

    # Nodes.

    def _top(self, node: onnx_ir.Node, key: str) -> None:
        if is_op(node, "Constant"):
            return
        function = self.graph.functions.get(node.op_identifier())
        if function is None or function.domain != "burnish" or function.attributes or node.attributes:
            shown = frozenset(v for v in node.outputs if v.is_graph_output())
            self.scope = Scope([node], [key], node.outputs, module_path(node), shown=shown)
            self._block(self.scope)
            return
        inner = list(function)
        outer = {a: b for a, b in zip(function.inputs, node.inputs, strict=False) if b is not None}
        for formal, actual in outer.items():  # a file does not say them
            formal.type, formal.shape = actual.type, actual.shape
        keys = [f"{key}.{n}" for n in range(len(inner))]
        results = list(zip(function.outputs, node.outputs, strict=True))
        shown = frozenset(a for a, b in results if b.is_graph_output())
        scope = Scope(
            inner, keys, function.outputs, module_path(node), outer, self._halves(node, function), shown
        )  # fmt: skip
        self.scope = scope
        self._block(scope)
        for result, value in results:
            if (result in scope.later and self._postpone(result)) or result in self.codes:
                self.made[value] = Made(self.made[result].array)
                if result in self.codes:
                    self.codes[value] = self.codes.pop(result)
                continue
            name = self._variable(result)
            self.made[value] = Made(self.made[result].array, name)
            self._bind(value, name)
        # The same function may be called again, with other arguments.
        for inner_node in inner:
            for value in inner_node.outputs:
                self.made.pop(value, None)
        self.scope = None

    def _block(self, scope: Scope) -> None:
        rotations = {rotation.place: rotation for rotation in self._rotations(scope)}
        done = {node for rotation in rotations.values() for node in rotation.nodes}
        for place, (node, key) in enumerate(zip(scope.nodes, scope.keys, strict=True)):
            if node not in done:
                self._node(node, key, scope)
            if place in rotations:
                self._rotate(rotations[place])
        keep = [v for v in scope.outputs if v in self.made and not self.made[v].name]
        if len(scope.nodes) == 1 and scope.nodes[0].op_type in VIEWS and not scope.nodes[0].domain:
            return  # a view: made where it is needed
        coded = self._in_codes(scope)
        for value in coded:
            self._leave_codes(value, scope)
        wanted = [v for v in keep if self.made[v].array is not None and not self._is_view(v) and v not in coded]
        wanted = [v for v in wanted if v not in scope.later or not self._postpone(v)]
        if wanted:
            self._store(wanted, [scope.title])
        self._report(scope)

    def _node(self, node: onnx_ir.Node, key: str, scope: Scope) -> None:
        if is_op(node, "Constant") or self._append(node, scope):
            return
        reason = self._attention(node)
        if reason is None:
            reason = self._product(node, key, scope) or self._express(node, key, scope)
        if reason and reason != PENDING:
            self._torch(node, key, node.inputs, reason)

    def _is_view(self, value: onnx_ir.Value) -> bool:
        """Whether PyTorch gives a value without a copy."""
        made = self.made[value]
        while made.node is not None and made.inputs and made.inputs[0] is not None:
            made = self._of(made.inputs[0])
        pending = made is not self.made[value] and made.array in self.products
        return bool(made.name) or made.array is None or pending

    def _express(self, node: onnx_ir.Node, key: str, scope: Scope) -> str | None:
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
                made = Made(array)
                if view:
                    made.node, made.key, made.inputs = node, key, tuple(node.inputs)
                self.made[value] = made
        return None

    def _operand(self, node: onnx_ir.Node, n: int, value: onnx_ir.Value) -> Array | None:
        """An input as an array; inputs that only say how an operator works need none."""
        if n in SETTINGS.get(node.op_type, ()):
            return Source((), "int64", "")
        return self._array(value)
