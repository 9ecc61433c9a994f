"""What nobody reads is removed: nodes, their inputs, initializers."""

from __future__ import annotations

from .work import Work, used

_STANDARD = frozenset(("", "ai.onnx", "ai.onnx.ml", "burnish", "com.microsoft"))


def remove_dead(work: Work) -> None:
    """Remove nodes without readers, last first; operators of unknown domains stay, they might do something."""
    graph = work.graph.graph
    for node in reversed(graph):
        if node.domain in _STANDARD and not any(map(used, node.outputs)):
            graph.remove(node, safe=True)
            work.count("dead node")
    for name, value in list(graph.initializers.items()):
        if not used(value) and not value.is_graph_input():
            del graph.initializers[name]
            work.count("dead initializer")
