"""Nodes that a template computes as a whole, nothing before or after them: attention, and caches that grow."""

from __future__ import annotations

import abc

import onnx_ir

from ....ir.graph import is_op, tensor_of
from ....ir.remarks import Remark
from . import attention, rope
from .listing import Line
from .products import Products
from .templates import Codes
from .values import Made, Scope


class Whole(Products):
    """Writes calls of such templates."""

    def _attention(self, node: onnx_ir.Node) -> str | None:
        """Call the template for an attention: "" if that is done, why not, or None of another node."""
        found = attention.find(node)
        if not isinstance(found, attention.Found):
            return found
        arguments = [self._variable(value) for value in (found.q, found.k, found.v)]
        if found.mask is not None:
            arguments.append(f"bias={self._variable(found.mask)}")
        name = self._buffer()
        self._import("attention", "attend")
        self.lines.append(Line(f"{name} = attend({', '.join([*arguments, *found.options])})", (name,)))
        self._named(node.outputs[0], name, "attend")
        return ""

    def _rotations(self, scope: Scope) -> list[rope.Rotation]:
        """Rotations of a block that go to a cache; why others do not is said in the report."""
        found, missed = rope.find(scope)
        for reason in missed:
            self.remarks.append(Remark("missed", scope.title, f"rotate_and_append: {reason}"))
        return found

    def _rotate(self, found: rope.Rotation) -> None:
        operands = [self._variable(v) for v in (found.qkv, found.cos, found.sin, found.past_k, found.past_v)]
        names = [self._buffer() for _ in range(3)]
        options = f"heads={found.heads}" + (", pairs=True" if found.pairs else "")
        self._import("caches", "rotate_and_append")
        call = f"rotate_and_append({', '.join(operands)}, {options})"
        self.lines.append(Line(f"{', '.join(names)} = {call}", tuple(names)))
        for value, name in zip((found.queries, found.present_k, found.present_v), names, strict=True):
            self._named(value, name, "rotate_and_append")

    def _append(self, node: onnx_ir.Node, scope: Scope) -> bool:
        """Join new tokens to a cache in place; whether that is done."""
        joined = rope.appended(node)
        if joined is None or not scope.outer.get(joined[0], joined[0]).is_graph_input():
            return False
        if not node.outputs[0].is_graph_output():
            return False
        past, new = (self._variable(value) for value in joined)
        name = self._buffer()
        self._import("caches", "append")
        self.lines.append(Line(f"{name} = append({past}, {new})", (name,)))
        self._named(node.outputs[0], name, "append")
        return True

    def _in_codes(self, scope: Scope) -> list[onnx_ir.Value]:
        """Results of a block that are codes times scales, which a product may want as codes."""
        found = []
        for value in scope.outputs:
            maker = value.producer()
            if maker is None or maker not in scope.nodes or not is_op(maker, "DequantizeLinear"):
                continue
            made = self.made.get(value)
            if value not in scope.shown and made is not None and made.array is not None and not made.name:
                found.append(value)
        return found

    def _leave_codes(self, value: onnx_ir.Value, scope: Scope) -> None:
        """Compute the codes of a value instead of the value, which is computed where it is read, if at all."""
        node = value.producer()
        assert node is not None
        inputs = [v for v in node.inputs if v is not None]
        if any(tensor_of(self._real(v)) is None for v in inputs):
            names = tuple(None if v is None else self._variable(v) for v in node.inputs)
            self.codes[value] = Codes(node, names)
            self._express(node, scope.keys[list(scope.nodes).index(node)], scope)

    @abc.abstractmethod
    def _express(self, node: onnx_ir.Node, key: str, scope: Scope) -> str | None:
        """Say how kernels compute a node; the reason if they cannot."""

    def _named(self, value: onnx_ir.Value, name: str, function: str) -> None:
        """A value that a call has made, as a tensor in a variable."""
        self._bind(value, name)
        self.made[value] = Made(self._source(value, name), name)
        if self.scope is not None and self.scope.names[-1:] != [function]:
            self.scope.names.append(function)
