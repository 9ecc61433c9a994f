"""In-place operators as pure ones: who shares memory with whom, and what a write changes.

A write to a value replaces it, then every value it is a view of (by writing the part back), and whoever is another view
of those is taken again from its base when it is next read.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from ...ir.remarks import Remark
from .builder import Builder
from .registry import functional_name, is_mutable, overload_name
from .views import INVERSES


class Values(Protocol):
    """What nodes stand for while a graph is built."""

    builder: Builder

    def value(self, arg: Any) -> Any:
        """The graph's value (or number) of an FX argument, mutations so far included."""

    def assign(self, node: torch.fx.Node, value: Any) -> None:
        """Let an FX node stand for another value from here on."""

    def translate(self, node: torch.fx.Node) -> Any:
        """Apply the rule of a node to its arguments."""


@dataclass
class _View:
    """A value that shares memory with ``base``; ``seen`` is the version of the base it was taken from."""

    base: torch.fx.Node
    seen: int


class Aliases:
    """Keeps track of views and writes in one graph; does nothing in a graph without writes."""

    def __init__(self, values: Values, graph: torch.fx.Graph) -> None:
        self._of = values
        self.active = any(_mutates(node) for node in graph.nodes)
        self._views: dict[torch.fx.Node, _View] = {}
        self._versions: dict[torch.fx.Node, int] = {}

    def getitem(self, node: torch.fx.Node) -> None:
        """A part of a result of several values shares memory with what those share it with."""
        source = node.args[0]
        if self.active and isinstance(source, torch.fx.Node) and _is_view(source):
            self._see(node, source.args[0])

    def after(self, node: torch.fx.Node) -> None:
        """Take note of what ``node`` did to memory."""
        if not self.active:
            return
        if _mutates(node):
            target = node.args[0]
            assert isinstance(target, torch.fx.Node)
            value = self._of.value(node)
            self._write(target, value)
            # The result of an in-place operator is its first argument.
            self._views[node] = _View(target, self._versions.get(target, 0))
        elif _is_view(node) and isinstance(node.meta.get("val"), torch.Tensor) and _shares(node, node.args[0]):
            self._see(node, node.args[0])

    def refresh(self, node: torch.fx.Node) -> None:
        """Take a view again from its base if that was written to since."""
        if not self.active:
            return
        view = self._views.get(node)
        if view is None:
            return
        self.refresh(view.base)
        version = self._versions.get(view.base, 0)
        if view.seen == version:
            return
        view.seen = version
        self._versions[node] = self._versions.get(node, 0) + 1
        if _mutates(node):
            self._of.assign(node, self._of.value(view.base))
            return
        builder = self._of.builder
        state = builder.state()
        source = node.args[0] if node.target is operator.getitem else None
        if isinstance(source, torch.fx.Node):
            self._of.assign(node, self._of.translate(source)[node.args[1]])
        else:
            self._of.assign(node, self._of.translate(node))
        builder.begin(*state)

    def lost(self) -> list[Remark]:
        """Remarks on writes to inputs and buffers, which a graph does not keep."""
        return [
            Remark("skipped", node.name, "the model writes to this input or buffer; the compiled one does not")
            for node in self._versions
            if node.op == "placeholder"
        ]

    def _see(self, node: torch.fx.Node, base: Any) -> None:
        if isinstance(base, torch.fx.Node):
            self._views[node] = _View(base, self._versions.get(base, 0))

    def _write(self, node: torch.fx.Node, value: Any) -> None:
        self._of.assign(node, value)
        self._versions[node] = self._versions.get(node, 0) + 1
        view = self._views.get(node)
        if view is None:
            return
        if _mutates(node):
            self._write(view.base, value)
        else:
            inverse = self._inverse(node)
            builder = self._of.builder
            base_meta = view.base.meta["val"]
            whole = inverse(builder, self._of.value(view.base), value, base_meta, *_arguments(node))
            self._write(view.base, whole)
        view.seen = self._versions[view.base]

    def _inverse(self, node: torch.fx.Node) -> Callable[..., Any]:
        inverse = INVERSES.get(overload_name(node.target))
        if inverse is None:
            raise self._of.builder.unsupported(
                f"a write through the view made by {overload_name(node.target)} cannot be expressed"
            )
        return inverse


def _mutates(node: torch.fx.Node) -> bool:
    if node.op != "call_function" or not is_mutable(node.target):
        return False
    return functional_name(overload_name(node.target)) != "aten.detach.default"


def _is_view(node: torch.fx.Node) -> bool:
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or not node.args:
        return False
    return any(result.alias_info is not None for result in target._schema.returns)


def _shares(node: torch.fx.Node, base: Any) -> bool:
    a, b = node.meta.get("val"), base.meta.get("val") if isinstance(base, torch.fx.Node) else None
    if not isinstance(a, torch.Tensor) or not isinstance(b, torch.Tensor):
        return False
    return bool(a.untyped_storage()._cdata == b.untyped_storage()._cdata)


def _arguments(node: torch.fx.Node) -> tuple[Any, ...]:
    return tuple(node.args[1:]) + tuple(node.kwargs.values())
