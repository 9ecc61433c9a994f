"""``Rotate``: the residual stream in another basis, in which no channel stands out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir

from ...ir.errors import OptionError
from ...ir.graph import Graph, module_path
from ...ir.rewrite import Editor
from ..base import Context, Outcome, Pass, Stage
from ..precise import PRECISE
from . import fold
from .orthogonal import rotation
from .stream import Norm, Stream, find

RULE = "rotate the residual stream"
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Rotate(Pass):
    """Rotate residual streams by a random orthogonal matrix (QuIP, Chee et al. 2023; QuaRot, Ashkboos et al. 2024).

    The stream is found by data flow: embeddings and products write it, additions join it, normalizations and products
    read it. What writes is rotated, what reads rotates back, and the weights of normalizations move into the products
    behind them; outputs stay what they are. A rotated matrix has no outliers, so the scale of a group of weights fits
    all of them: do this before rounding weights to few bits. A language model whose head shares the table of its
    embedding gets one small product before the head, in which the last normalization's weight is applied: it stays in
    8 bits whatever the scheme.

    Attributes:
        seed: of the random matrix.
        only_calibrated: do nothing without calibration inputs. Rounding to nearest is not helped by a rotation
            everywhere: weights that were rounded once before lie on a grid, which it destroys (SmolLM2 out of a 4-bit
            file: 2.05 times the perplexity of float32 instead of 1.56).

    Raises:
        OptionError: the seed is negative.
    """

    stage = Stage.SMOOTH
    seed: int = 0
    only_calibrated: bool = False

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise OptionError(f"seed={self.seed!r} is negative", where="Rotate", fix="use 0 or a positive number")

    def run(self, graph: Graph, context: Context) -> Outcome:
        """Rotate every stream that can be; say of each other one what stands in the way."""
        outcome, edit = Outcome(), Editor(graph, RULE)
        if self.only_calibrated and not context.has_calibration:
            outcome.skipped("", "nothing is rotated: there are no calibration inputs to round for")
            return outcome
        streams = find(graph)
        for stream in streams:
            where = module_path(stream.norms[0].node) if stream.norms else ""
            if stream.obstacle is not None:
                reason, reader = stream.obstacle
                outcome.missed(reader or where, f"its stream is not rotated: {reason}", channels=stream.size)
                continue
            q = rotation(stream.size, self.seed, keep_mean=stream.centered)
            added = rotate_stream(edit, stream, q)
            outcome.count(RULE)
            products = len(stream.writers) + len(stream.readers) + sum(len(norm.products) for norm in stream.norms)
            more = f"; {added} product added before the shared head" if added else ""
            outcome.applied(
                where,
                f"stream of {stream.size} channels rotated in {products} products and {len(stream.tables)} embeddings"
                + more,
                channels=stream.size,
                products=products,
                embeddings=len(stream.tables),
                norms=len(stream.norms),
                added=added,
            )
        if not streams:
            outcome.skipped("", "there is nothing to rotate: no normalization reads a residual stream")
        return outcome


def rotate_stream(edit: Editor, stream: Stream, q: Array) -> int:
    """Rotate everything around a stream; the number of products added."""
    for _, matrix in stream.writers:
        fold.outputs(edit, matrix, q)
    for _, matrix in stream.readers:
        fold.inputs(edit, matrix, None, q)
    for node, index in stream.vectors:
        fold.vector(edit, node, index, q)
    added = sum(_norm(edit, norm, q) for norm in stream.norms)
    rotated: dict[onnx_ir.Value, onnx_ir.Value] = {}
    whole = q.astype(np.float32)
    for node in stream.tables:
        old = node.inputs[0]
        assert old is not None
        if old not in rotated:
            rotated[old] = fold.changed(edit, old, lambda w: fold.right(w, whole))
    for old, new in rotated.items():
        for user, index in tuple(old.uses()):
            user.replace_input_with(index, new)
        fold.drop(edit, old)
    return added


def _norm(edit: Editor, norm: Norm, q: Array) -> int:
    """Move the weight of a normalization into the products behind it; the number of products added."""
    gain, node = norm.gain, norm.node
    for _, matrix in norm.products:
        fold.inputs(edit, matrix, gain, q)
    added = 0
    if norm.heads:
        # The head's table is rotated as the embedding's: what is left is the weight, seen in the new basis.
        first = norm.heads[0]
        edit.at(first, [node])
        dtype = node.outputs[0].dtype
        assert dtype is not None
        weight = edit.initializer(((q.T * gain) @ q).astype(dtype.numpy()), "rotated_gain")
        made = edit.op("MatMul", [node.outputs[0], weight], hint="rotated_gain")
        product = made.producer()
        assert product is not None
        product.metadata_props[PRECISE] = "it carries the weight of a normalization"
        for head in norm.heads:
            head.replace_input_with(0, made)
        added = 1
    fold.replace(edit, node, 1, np.ones_like)
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        fold.vector(edit, node, 2, q / gain[:, None])
    return added
