"""Runs a graph node by node."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import onnx_ir
import torch

from ...ir.errors import InputError, UnsupportedError, nearest
from ...ir.graph import Graph, module_path, tensor_of
from .operators import control as _control  # noqa: F401
from .operators import elementwise, movement, normalization, products, quantization, reduction  # noqa: F401  rules
from .registry import RULES, Call, Tensor, tensor_from


class Reference:
    """A graph that runs on PyTorch; gradients flow through every float operator.

    Args:
        graph: unchanged; constants are read when they are used for the first time, and kept.
        device: where it runs.

    Raises:
        UnsupportedError: (when run) an operator has no rule.
    """

    def __init__(self, graph: Graph, *, device: str | torch.device = "cpu") -> None:
        self.graph, self.device = graph, torch.device(device)
        self._constants: dict[onnx_ir.Value, Tensor] = {}
        self._order = list(graph.graph)
        self._values = {v.name: v for node in self._order for v in node.outputs if v.name}
        self._values.update((v.name or "", v) for v in graph.graph.inputs)

    def constant(self, value: onnx_ir.Value) -> Tensor:
        """A constant of the graph."""
        if value not in self._constants:
            tensor = tensor_of(value)
            assert tensor is not None
            self._constants[value] = tensor_from(tensor, self.device)
        return self._constants[value]

    def forget(self) -> None:
        """Give back the memory of constants; they are read again when they are used again."""
        self._constants.clear()

    def run(
        self,
        inputs: Mapping[str, Any],
        outputs: Sequence[str] | None = None,
        *,
        constants: Mapping[str, Tensor] | None = None,
        given: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Compute values of the main graph, and only what they need.

        Args:
            inputs: arrays or tensors by the names of the graph's inputs.
            outputs: names of any values; the graph's outputs if not given.
            constants: initializers by name, instead of those in the graph.
            given: values by name that are not computed; nothing that only they need is.

        Raises:
            InputError: an input is missing, or an output does not exist.
            UnsupportedError: an operator that is needed has no rule; nothing is computed then.
        """
        known = self._given(inputs, given)
        wanted = list(outputs) if outputs is not None else [v.name or "" for v in self.graph.graph.outputs]
        targets = []
        for name in wanted:
            value = self._values.get(name) or self.graph.graph.initializers.get(name)
            if value is None:
                raise InputError(f"the graph has no value {name!r}", fix=nearest(name, list(self._values)))
            targets.append(value)
        needed = self._needed(targets, known)
        overrides = constants or {}
        uses: dict[onnx_ir.Value, int] = {}
        for node in needed:
            for value in _reads(node):
                uses[value] = uses.get(value, 0) + 1
        kept = set(targets)

        def look_up(value: onnx_ir.Value) -> Tensor:
            if value in known:
                return known[value]
            if value.name is not None and value.name in overrides:
                return overrides[value.name]
            if tensor_of(value) is None:
                raise InputError(f"the input {value.name!r} is missing", fix="pass it by its name")
            return self.constant(value)

        for node in needed:
            self._node(node, look_up, known)
            for value in _reads(node):
                uses[value] -= 1
                if not uses[value] and value not in kept:
                    known.pop(value, None)
        return {name: look_up(value) for name, value in zip(wanted, targets, strict=True)}

    def check(self, nodes: Iterable[onnx_ir.Node] | None = None) -> None:
        """Raise for an operator without a rule, among some nodes or anywhere in the graph.

        Raises:
            UnsupportedError: there is one.
        """
        for node in self._order if nodes is None else nodes:
            self._check(node)

    def node(self, node: onnx_ir.Node, given: Mapping[onnx_ir.Value, Tensor]) -> list[Tensor | None]:
        """Compute one node of the graph, or of one of its functions.

        Args:
            node: it.
            given: what it and its subgraphs read; constants of the graph need not be among it.

        Returns:
            Its outputs; None for those that the rule leaves out.

        Raises:
            UnsupportedError: the operator has no rule.
        """
        self._check(node)
        known: dict[onnx_ir.Value, Tensor] = {}

        def look_up(value: onnx_ir.Value) -> Tensor:
            if value in given:
                return given[value]
            return known[value] if value in known else self.constant(value)

        self._node(node, look_up, known)
        return [known.get(value) for value in node.outputs]

    def _given(self, inputs: Mapping[str, Any], given: Mapping[str, Tensor] | None) -> dict[onnx_ir.Value, Tensor]:
        names = {value.name: value for value in self.graph.graph.inputs}
        known: dict[onnx_ir.Value, Tensor] = {}
        for name, array in inputs.items():
            if name not in names:
                raise InputError(f"the graph has no input {name!r}", fix=nearest(name, [n for n in names if n]))
            known[names[name]] = torch.as_tensor(array, device=self.device)
        for name, tensor in (given or {}).items():
            if name not in self._values:
                raise InputError(f"the graph has no value {name!r}", fix=nearest(name, list(self._values)))
            known[self._values[name]] = tensor
        return known

    def _needed(self, targets: Sequence[onnx_ir.Value], known: Mapping[onnx_ir.Value, Tensor]) -> list[onnx_ir.Node]:
        """Nodes that the targets need, in order."""
        wanted: set[onnx_ir.Node] = set()
        stack = list(targets)
        while stack:
            value = stack.pop()
            node = value.producer()
            if value in known or node is None or node in wanted:
                continue
            wanted.add(node)
            stack += _reads(node)
        for node in wanted:
            self._check(node)
        return [node for node in self._order if node in wanted]

    def _check(self, node: onnx_ir.Node) -> None:
        """Raise for an operator without a rule, inside subgraphs and functions, too."""
        if node.op_identifier() in self.graph.functions:
            for inner in self.graph.functions[node.op_identifier()]:
                self._check(inner)
        elif _key(node) not in RULES:
            name = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
            raise UnsupportedError(
                f"the reference backend has no rule for {name}",
                where=module_path(node),
                fix='use backend="onnxruntime"',
            )
        for attr in node.attributes.values():
            if attr.type == onnx_ir.AttributeType.GRAPH:
                for inner in attr.as_graph():
                    self._check(inner)

    def _node(self, node: onnx_ir.Node, look_up: Any, known: dict[onnx_ir.Value, Tensor]) -> None:
        x = [None if value is None else look_up(value) for value in node.inputs]
        function = self.graph.functions.get(node.op_identifier())
        if function is not None:
            results: Sequence[Tensor | None] = self._function(function, node, x)
        else:

            def run(graph: onnx_ir.Graph, inner: Sequence[Tensor]) -> list[Tensor]:
                return self._scope(graph, dict(zip(graph.inputs, inner, strict=True)), look_up)

            opset = self.graph.opset_imports.get(node.domain, 1)
            found = RULES[_key(node)](Call(node, x, opset, self.device, run))
            results = [found] if isinstance(found, Tensor) else found
        for value, result in zip(node.outputs, results, strict=False):
            if result is not None:
                known[value] = result

    def _function(self, function: onnx_ir.Function, node: onnx_ir.Node, x: Sequence[Tensor | None]) -> list[Tensor]:
        """A model's own function: its body, with the attributes of the call in the place of its references."""
        body = function.graph.clone()
        for inner in body:
            for name, attr in list(inner.attributes.items()):
                if attr.is_ref():
                    given = node.attributes.get(attr.ref_attr_name or "") or function.attributes.get(
                        attr.ref_attr_name or ""
                    )
                    if given is None:
                        del inner.attributes[name]
                    else:
                        inner.attributes[name] = onnx_ir.Attr(name, given.type, given.value)
        bound = {value: tensor for value, tensor in zip(body.inputs, x, strict=False) if tensor is not None}
        return self._scope(body, bound, lambda value: self.constant(value))

    def _scope(self, graph: onnx_ir.Graph, known: dict[onnx_ir.Value, Tensor], outer: Any) -> list[Tensor]:
        def look_up(value: onnx_ir.Value) -> Tensor:
            found: Tensor = known[value] if value in known else outer(value)
            return found

        for node in graph:
            self._node(node, look_up, known)
        return [look_up(value) for value in graph.outputs]


def _key(node: onnx_ir.Node) -> tuple[str, str]:
    return ("" if node.domain == "ai.onnx" else node.domain, node.op_type)


def _reads(node: onnx_ir.Node) -> list[onnx_ir.Value]:
    """Values that a node and its subgraphs read."""
    found = [value for value in node.inputs if value is not None]
    for attr in node.attributes.values():
        if attr.type == onnx_ir.AttributeType.GRAPH:
            inner = list(onnx_ir.traversal.RecursiveGraphIterator(attr.as_graph()))
            made = {value for each in inner for value in each.outputs} | set(attr.as_graph().inputs)
            reads = [v for each in inner for v in each.inputs if v is not None] + list(attr.as_graph().outputs)
            found += [value for value in reads if value not in made]
    return found
