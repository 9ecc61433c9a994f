"""What a rewrite saves: arithmetic and bytes of the nodes that go, less those of the nodes that come."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import onnx_ir

from ...ir.cost import node_cost
from ...ir.symbolic import symbols_of

_SAMPLES = (1, 7, 128, 1000)
"""Named dimensions are tried with these sizes; a rewrite must not cost more at any of them."""


@dataclass(frozen=True)
class Saving:
    """Operations, bytes and nodes saved by one rewrite, summed over the sizes tried; negative where it costs more."""

    flops: int
    bytes: int
    nodes: int

    @property
    def order(self) -> int:
        """An operation counts like a byte: without fusion the one, with it the other is what an element costs."""
        return self.flops + self.bytes


def dying(root: onnx_ir.Node) -> list[onnx_ir.Node]:
    """The nodes that nobody reads any more once nobody reads ``root``, itself included."""
    gone = {root: None}
    stack = [root]
    while stack:
        for value in stack.pop().inputs:
            maker = None if value is None else value.producer()
            if maker is None or maker in gone or any(v.is_graph_output() for v in maker.outputs):
                continue
            if all(use.node in gone for v in maker.outputs for use in v.uses()):
                gone[maker] = None
                stack.append(maker)
    return list(gone)


def saving(gone: Collection[onnx_ir.Node], come: Collection[onnx_ir.Node]) -> Saving | None:
    """What replacing ``gone`` by ``come`` saves; None if it costs more at some size, or if that cannot be told.

    Neither operations nor bytes may be more than before, at any of the sizes tried for named dimensions.
    """
    names = _symbols([*gone, *come])
    flops = moved = 0
    for sizes in _assignments(names):
        before, after = _total(gone, sizes), _total(come, sizes)
        if before is None or after is None or after[0] > before[0] or after[1] > before[1]:
            return None
        flops += before[0] - after[0]
        moved += before[1] - after[1]
    return Saving(flops, moved, len(gone) - len(come))


def _assignments(names: Sequence[str]) -> list[dict[str, int]]:
    """All dimensions small, all large, and each the only large one."""
    if not names:
        return [{}]
    result = [dict.fromkeys(names, size) for size in _SAMPLES]
    if len(names) > 1:
        result.extend({name: 1000 if name == large else 1 for name in names} for large in names[:4])
    return result


def _total(nodes: Iterable[onnx_ir.Node], sizes: dict[str, int]) -> tuple[int, int] | None:
    flops = moved = 0
    for node in nodes:
        cost = node_cost(node, sizes)
        if cost.flops is None or cost.bytes is None:
            return None
        flops += cost.flops
        moved += cost.bytes
    return flops, moved


def _symbols(nodes: Iterable[onnx_ir.Node]) -> list[str]:
    names: dict[str, None] = {}
    for node in nodes:
        for value in (*node.inputs, *node.outputs):
            for dim in (value.shape or ()) if value is not None else ():
                names.update(dict.fromkeys(sorted(symbols_of(dim))))
    return list(names)
