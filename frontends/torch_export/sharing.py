"""Results that share memory with an input or with each other: what a graph of values has to leave to torch.

``x[0]`` of an input is a view: whoever writes into it writes into ``x``. A compiled graph returns tensors of their own,
so views are taken out of it and made again on the caller's tensors after each call, which costs no copies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from ...ir.errors import UnsupportedError

_VIEWS = frozenset(
    "view reshape transpose permute select narrow split split_with_sizes tensor_split chunk unbind squeeze unsqueeze "
    "flatten unflatten expand detach diagonal unfold as_strided movedim moveaxis swapaxes swapdims t view_as expand_as "
    "reshape_as contiguous to type float double alias real view_as_real view_as_complex broadcast_to hsplit vsplit "
    "dsplit ravel adjoint atleast_1d atleast_2d atleast_3d T H mT mH getitem __getitem__ broadcast_tensors "
    "type_as cpu data numpy_T squeeze_copy requires_grad_ identity dropout".split()
)
"""Functions, methods and attributes that may return a view or what they are given, and write nothing."""
_RESHAPED_IN_PLACE = frozenset(
    "t_ transpose_ squeeze_ unsqueeze_ swapaxes_ swapdims_ resize_ resize_as_ set_ as_strided_ swap_tensors".split()
)
"""Methods that change the shape or memory of what they are called on."""


@dataclass(frozen=True)
class Plan:
    """A captured graph, divided.

    Attributes:
        module: computes results that own their memory.
        rebuild: the results of the captured graph, from its arguments after all writes and the results of ``module``;
            None if these are the same.
    """

    module: GraphModule
    rebuild: Callable[[Sequence[Any], Sequence[Any]], list[Any]] | None = None


def divide(module: GraphModule) -> Plan:
    """Take results that share memory out of a graph that TorchDynamo captured.

    Raises:
        UnsupportedError: how a result shares memory cannot be said by views, or the graph changes an input's shape.
    """
    nodes = list(module.graph.nodes)
    for node in nodes:
        if node.op.startswith("call") and _name(node) in _RESHAPED_IN_PLACE:
            raise UnsupportedError(f"{_name(node)} changes the shape or memory of a tensor in place", where=node.name)
    (last,) = [node for node in nodes if node.op == "output"]
    outputs = list(last.args[0])
    inputs = [node for node in nodes if node.op == "placeholder"]
    given = {key for node in nodes if node.op in ("placeholder", "get_attr") if (key := _memory(node)) is not None}
    groups: dict[int, list[Node]] = {}
    for output in outputs:
        if isinstance(output, Node) and (key := _memory(output)) is not None:
            groups.setdefault(key, []).append(output)
    shared = {key for key, members in groups.items() if key in given or len(set(members)) > 1}
    if not shared:
        return Plan(module)
    fresh: list[Any] = []
    views = _Views(given)
    for output in outputs:
        if not isinstance(output, Node) or _memory(output) not in shared:
            fresh.append(output)
    for output in outputs:
        if isinstance(output, Node) and _memory(output) in shared:
            views.follow(output)
    kept = len(fresh)
    fresh += views.roots
    computing = Graph()
    copies: dict[Node, Node] = {}
    computing.graph_copy(module.graph, copies)
    computing.output(tuple(copies[item] if isinstance(item, Node) else item for item in fresh))
    again = Graph()
    env = {node: again.placeholder(node.name) for node in inputs}
    parts = [again.placeholder(f"result_{i}") for i in range(len(fresh))]
    env |= dict(zip(views.roots, parts[kept:], strict=True))
    rest = iter(parts[:kept])
    made = [
        views.copy(output, again, env) if isinstance(output, Node) and _memory(output) in shared else next(rest)
        for output in outputs
    ]
    again.output(tuple(made))
    replay = GraphModule(module, again)

    def rebuild(arguments: Sequence[Any], results: Sequence[Any]) -> list[Any]:
        return list(replay(*arguments, *results))

    return Plan(GraphModule(module, computing), rebuild)


class _Views:
    """Follows results back to what owns their memory.

    Args:
        given: memory of the graph's arguments.
    """

    def __init__(self, given: set[int]) -> None:
        self._given = given
        self._sources: dict[Node, Node | None] = {}
        self.roots: list[Node] = []
        """Nodes that allocate memory which results share."""

    def follow(self, node: Node) -> None:
        """Find out how to make ``node`` again; :attr:`roots` grows by what it takes."""
        if node in self._sources or node.op in ("placeholder", "get_attr"):
            return
        keys = _memories(node)
        if not keys:  # a size
            if isinstance(node.meta.get("example_value"), torch.Tensor):
                raise _impossible(node)
            self._sources[node] = None
            for source in node.all_input_nodes:
                self.follow(source)
            return
        sources = [source for source in node.all_input_nodes if keys & _memories(source)]
        if not sources:
            if keys & self._given or not isinstance(node.meta.get("example_value"), torch.Tensor):
                raise _impossible(node)
            self._sources[node] = node
            self.roots.append(node)
            return
        if _name(node) in _VIEWS and not node.kwargs.get("inplace"):
            self._sources[node] = None
            for source in node.all_input_nodes:
                self.follow(source)
        elif _writes(node):
            # It returns what it wrote into.
            self._sources[node] = sources[0]
            self.follow(sources[0])
        else:
            raise _impossible(node)

    def copy(self, node: Node, graph: Graph, env: dict[Node, Node]) -> Node:
        """Make ``node`` again in another graph."""
        if node not in env:
            source = self._sources.get(node)
            if source is not None and source is not node:
                env[node] = self.copy(source, graph, env)
            else:
                for argument in node.all_input_nodes:
                    self.copy(argument, graph, env)
                env[node] = graph.node_copy(node, lambda argument: env[argument])
        return env[node]


def _impossible(node: Node) -> UnsupportedError:
    return UnsupportedError(
        f"a result shares memory by way of {_name(node)}, which cannot be repeated", where=node.name
    )


def _name(node: Node) -> str:
    target = node.target
    if target is getattr and isinstance(node.args[1], str):
        return node.args[1]
    if isinstance(target, str):
        return target
    if isinstance(target, torch._ops.OpOverload):
        return target._schema.name.split("::")[-1]
    return str(getattr(target, "__name__", target))


def _writes(node: Node) -> bool:
    name = _name(node)
    in_place = name.endswith("_") and not name.endswith("__")
    return in_place or bool(node.kwargs.get("inplace")) or name in ("iadd", "isub", "imul", "itruediv", "ipow") or any(
        node.meta.get("example_value") is source.meta.get("example_value") for source in node.all_input_nodes[:1]
    )  # fmt: skip


def _memories(node: Node) -> set[int]:
    value = node.meta.get("example_value")
    values = value if isinstance(value, (tuple, list)) else [value]
    found = (_storage(item) for item in values)
    return {key for key in found if key is not None}


def _memory(node: Node) -> int | None:
    return _storage(node.meta.get("example_value"))


def _storage(value: Any) -> int | None:
    if not isinstance(value, torch.Tensor) or value.layout != torch.strided:
        return None
    return int(value.untyped_storage()._cdata)
