"""``CompactZeros``: products with blocks of zeros become fewer, smaller dense products.

A panel is a stretch of neighbouring output channels. Where all weights of a panel on an input channel are zero, the
panel does without that channel: ``y = concat over panels of x[..., kept] @ W[kept, panel]``. Any machine that
multiplies dense matrices is then faster, if what is saved is more than choosing the channels and joining the panels
takes; that is measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir

from ...ir.errors import OptionError
from ...ir.graph import Graph, attribute, is_op, tensor_of
from ...ir.rewrite import Editor
from .. import selectors
from ..base import Context, Outcome, Panels, Pass, Stage
from ..quantize.replace import where
from ..quantize.targets import FLOATS, Weight, find

Array = np.ndarray[Any, Any]
RULE = "compact zeros"
NARROWEST = 32
"""Output channels of a panel, at least: narrower products run far below the machine's speed."""
_ALIKE = 16
_TRIED = 3
"""Ways to divide a product that are measured, those of least arithmetic."""


def used(weights: Array, width: int) -> list[Array]:
    """The input channels that each panel needs, at least one.

    Args:
        weights: ``[k, n]``.
        width: output channels of a panel; divides n.

    Returns:
        For each panel the ascending numbers of its channels.
    """
    k, n = weights.shape
    need = (weights != 0).reshape(k, n // width, width).any(axis=2)
    need[0, ~need.any(axis=0)] = True
    return [np.flatnonzero(column) for column in need.T]


def widths(weights: Array, least: float) -> list[int]:
    """Widths of panels that save at least a share of the arithmetic, the one that saves most first.

    Args:
        weights: ``[k, n]``.
        least: share of the multiplications.
    """
    k, n = weights.shape
    found: list[tuple[int, int]] = []
    for count in range(1, n // min(n, NARROWEST) + 1):
        if n % count == 0:
            work = sum(len(channels) for channels in used(weights, n // count)) * (n // count)
            found.append((work, count))
    # The same arithmetic in fewer products is better.
    fewest: dict[int, int] = {}
    for work, count in sorted(found):
        fewest.setdefault(work, count)
    return [n // count for work, count in fewest.items() if work <= (1 - least) * k * n]


def multiply(
    edit: Editor, x: onnx_ir.Value, channels: Sequence[Array], parts: Sequence[onnx_ir.Value]
) -> onnx_ir.Value:
    """Insert the products of panels.

    Args:
        edit: of the graph, where they are inserted.
        x: ``[..., k]``.
        channels: that each panel needs, as :func:`used` gives them.
        parts: the weights of each panel, ``[channels, width]``.
    """
    made = []
    for kept, part in zip(channels, parts, strict=True):
        made.append(edit.op("MatMul", [_chosen(edit, x, kept), part]))
    return made[0] if len(made) == 1 else edit.op("Concat", made, {"axis": -1})


def _chosen(edit: Editor, x: onnx_ir.Value, kept: Array) -> onnx_ir.Value:
    size = None if x.shape is None else x.shape[-1]
    if len(kept) == size:
        return x
    first, last = int(kept[0]), int(kept[-1])
    if last - first + 1 == len(kept):
        bounds = [edit.ints([value], "bounds") for value in (first, last + 1, -1)]
        return edit.op("Slice", [x, *bounds])
    return edit.op("Gather", [x, edit.ints([int(at) for at in kept], "kept")], {"axis": -1})


@dataclass(frozen=True)
class CompactZeros(Pass):
    """Products whose weights have blocks of zeros become smaller dense products, where that is faster.

    Nothing is lost: the outputs are the same sums without the zeros. It pays for panels such as ``prune(pattern=
    "768x1")`` leaves (each stretch of 768 output channels does without some input channels), and for channels that are
    zero altogether; single zeros, 2:4 and small blocks leave nothing to leave out.

    Attributes:
        rows: tokens or pixels of the product that is measured.
        gain: share of a product's measured time that must be saved.
        include: selectors of the products; all if empty.
        exclude: selectors of what to leave alone.

    Raises:
        OptionError: a value that makes no sense.
        SelectorError: a malformed selector, or (when run) one that matches nothing.
    """

    stage = Stage.SPARSIFY

    rows: int = 128
    gain: float = 0.05
    include: str | Sequence[str] = ()
    exclude: str | Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.rows < 1 or not 0 <= self.gain < 1:
            raise OptionError(
                f"rows={self.rows!r} must be 1 or more, gain={self.gain!r} a share below 1",
                where="CompactZeros", fix="use rows=128, gain=0.05",
            )  # fmt: skip
        for name in ("include", "exclude"):
            value = getattr(self, name)
            object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(value))
        selectors.parse_all((*self.include, *self.exclude))

    def run(self, graph: Graph, context: Context) -> Outcome:
        """Divide every product that gains; say of the others why not."""
        outcome, edit = Outcome(), Editor(graph, RULE)
        weights = [w for w in find(graph).weights if w.products]
        nodes = [node for weight in weights for node in weight.products]
        include, exclude = selectors.parse_all(self.include), selectors.parse_all(self.exclude)
        selectors.require_matches([*include, *exclude], nodes, "products")
        if context.cost is None:
            outcome.missed("", "nothing is divided: no times can be measured here, so nothing is known to pay")
            return outcome
        for done, weight in enumerate(weights):
            context.progress(done, len(weights), f"dividing {weight.value.name}")
            chosen = all(
                (not include or selectors.first(include, node) is not None) and selectors.first(exclude, node) is None
                for node in weight.products
            )
            reason = self._divide(edit, weight, context, outcome) if chosen else "not selected"
            if reason is not None:
                outcome.skipped(where(weight), reason, weights=weight.size)
        if not outcome.changed:
            outcome.missed("", "no product has blocks of zeros that are worth leaving out")
        return outcome

    def _divide(self, edit: Editor, weight: Weight, context: Context, outcome: Outcome) -> str | None:
        """Divide one product; the reason if it stays whole."""
        tensor = tensor_of(weight.value)
        if tensor is None or tensor.dtype not in FLOATS or weight.layout is None or weight.tables:
            return "its weight is no constant of floating point that only products read"
        if any(is_op(node, "Gemm") and not _plain(node) for node in weight.products):
            return "its Gemm scales or transposes"
        array = tensor.numpy() if weight.layout == "kn" else tensor.numpy().T
        k, n = array.shape
        zeros = 1 - np.count_nonzero(array) / array.size
        tried = widths(array, self.gain)[:_TRIED]
        if not tried:
            what = f"none of its inputs is useless to {NARROWEST} outputs together"
            return f"{zeros:.0%} of its weights are zero, but {what}"
        assert context.cost is not None
        dense = context.cost(self.rows, k, n, None)
        times = []
        for width in tried:
            mean = float(np.mean([len(channels) for channels in used(array, width)]))
            # Alike for layers that are nearly alike, so that few are measured.
            kept = min(k, int(np.ceil(mean / _ALIKE)) * _ALIKE)
            times.append(context.cost(self.rows, k, n, Panels(n // width, kept)) / dense)
        best = int(np.argmin(times))
        if times[best] > 1 - self.gain:
            return f"in {n // tried[best]} panels it takes {times[best]:.2f} times the dense product's time"
        channels = used(array, tried[best])
        panels = np.split(array, len(channels), axis=1)
        edit.at(weight.products[0])
        chosen = [np.ascontiguousarray(panel[kept]) for panel, kept in zip(panels, channels, strict=True)]
        name, path = f"{weight.value.name}.panel", where(weight)
        parts = [edit.initializer(onnx_ir.Tensor(part, dtype=tensor.dtype), name) for part in chosen]
        for node in list(weight.products):
            _replace(edit, node, channels, parts)
        edit.drop_initializer(weight.value)
        work = sum(len(kept) for kept in channels) / (k * len(channels))
        outcome.count(RULE)
        outcome.applied(
            path,
            f"{k} x {n} became {len(channels)} products of {work:.0%} of the weights: "
            f"measured on this machine, {times[best]:.2f} times the dense product's time",
            panels=len(channels), work=round(work, 4), time_ratio=round(times[best], 3),
        )  # fmt: skip
        return None


def _replace(edit: Editor, node: onnx_ir.Node, channels: Sequence[Array], parts: Sequence[onnx_ir.Value]) -> None:
    x = node.inputs[0]
    assert x is not None
    edit.at(node)
    found = multiply(edit, x, channels, parts)
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        found = edit.op("Add", [found, node.inputs[2]])
    edit.replace(node.outputs[0], found)
    edit.sweep([node])


def _plain(node: onnx_ir.Node) -> bool:
    """Whether a Gemm is a product and an addition, its weight perhaps transposed."""
    return not attribute(node, "transA", 0) and attribute(node, "alpha", 1.0) == attribute(node, "beta", 1.0) == 1.0
