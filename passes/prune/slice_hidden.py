"""``SliceHidden``: the residual stream in its principal components, of which the least go."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...ir.errors import OptionError
from ...ir.graph import Graph, module_path
from ...ir.infer import infer_graph
from ...ir.rewrite import Editor
from ..base import Context, Outcome, Pass, Stage
from ..rotate import fold
from ..rotate.rotate import rotate_stream
from ..rotate.stream import Stream, find
from ..statistics import DirectionHessian
from .analyse import analyse
from .remove import gone, remove

RULE = "slice the hidden size"
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class SliceHidden(Pass):
    """Make the hidden size of a model smaller (SliceGPT, Ashkboos et al. 2024).

    A residual stream whose normalizations are root mean squares can be rotated without a change of any output. In the
    basis of its principal components on the calibration inputs the last ones hardly matter: they are cut off everything
    that reads or writes the stream. One basis serves all layers, so that no product is added between them, unlike in
    the paper, where each layer has its own.

    Attributes:
        ratio: share of the hidden size that goes.
        multiple: of the hidden size that stays.

    Raises:
        OptionError: a number that makes no sense.
        CalibrationError: (when run) there are no calibration inputs.
    """

    stage = Stage.PRUNE
    approximate = True

    ratio: float = 0.1
    multiple: int = 8

    def __post_init__(self) -> None:
        if not 0 < self.ratio < 1 or self.multiple < 1:
            raise OptionError(
                f"ratio={self.ratio!r} must be between 0 and 1, multiple={self.multiple!r} 1 or more",
                where="SliceHidden", fix="use ratio=0.1",
            )  # fmt: skip

    def run(self, graph: Graph, context: Context) -> Outcome:
        """Slice every stream that can be; say of each other one what stands in the way."""
        outcome, edit = Outcome(), Editor(graph, RULE)
        infer_graph(graph)
        streams = find(graph)
        for stream in streams:
            where = module_path(stream.norms[0].node) if stream.norms else ""
            if stream.obstacle is not None:
                outcome.missed(stream.obstacle[1] or where, f"its stream is not sliced: {stream.obstacle[0]}")
                continue
            if stream.centered:
                outcome.missed(
                    where, "its stream is not sliced: a LayerNormalization subtracts the mean of all channels"
                )
                continue
            size = max(self.multiple, int(stream.size * (1 - self.ratio)) // self.multiple * self.multiple)
            if size >= stream.size:
                outcome.skipped(where, f"its stream stays: {stream.size} channels are not more than {size}")
                continue
            reason, kept = _slice(graph, edit, stream, size, context)
            if reason is not None:
                outcome.missed(where, f"its stream is rotated, not sliced: {reason}")
                continue
            outcome.count(RULE)
            outcome.applied(
                where, f"hidden size {stream.size} became {size}, {kept:.1%} of the stream's squares stay",
                before=stream.size, after=size, kept=kept,
            )  # fmt: skip
        if not streams:
            outcome.missed("", "there is nothing to slice: no normalization reads a residual stream")
        return outcome


def _slice(graph: Graph, edit: Editor, stream: Stream, size: int, context: Context) -> tuple[str | None, float]:
    """Rotate into principal components and cut; a reason if it cannot be, and the share of squares that stays."""
    inputs = list(dict.fromkeys(v for norm in stream.norms if (v := norm.node.inputs[0]) is not None))
    measured = context.statistics(inputs, DirectionHessian())
    hessian = np.sum([np.asarray(h, np.float64) for h in measured.values()], axis=0)
    powers, vectors = np.linalg.eigh(hessian)
    order = np.argsort(-powers)
    powers, q = powers[order], vectors[:, order]
    rotate_stream(edit, stream, q)
    infer_graph(graph)
    coupling = analyse(graph, across_norms=True)
    value = stream.norms[0].node.inputs[0]
    grid = None if value is None else coupling.grid(value)
    if grid is None or grid.labels.shape != (stream.size,):
        return "its channels were not found again", 1.0
    roots = [int(coupling.parents[atom]) for atom in grid.labels[size:]]
    blocked = coupling.blocked()
    why = next((blocked[root][0] for root in roots if root in blocked), None)
    if why is not None:
        return why, 1.0
    if len(set(roots)) < len(roots):
        return "some of its channels go together only", 1.0
    # The mean is of fewer squares now: normalized values shall be as large as before.
    factor = math.sqrt(stream.size / size)
    for norm in stream.norms:
        fold.replace(edit, norm.node, 1, lambda w: w * factor)
    # The constants that were replaced are others now.
    coupling = analyse(graph, across_norms=True)
    grid = coupling.grid(value)
    assert grid is not None
    roots = [int(coupling.parents[atom]) for atom in grid.labels[size:]]
    remove(edit, coupling, gone(coupling, roots))
    return None, float(powers[:size].sum() / powers.sum())
