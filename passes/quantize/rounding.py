"""Rounds the weights that were chosen, one after the other, and tells what became of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir

from ...ir.graph import Graph
from ...ir.remarks import Remark
from ...ir.rewrite import Editor
from .. import selectors
from ..base import Context, Outcome
from ..precise import PRECISE
from . import beside, offsets
from .calibrated import Calibrated, Rounded
from .inputs import activations
from .inputs.outliers import Outliers
from .plan import Totals
from .replace import keep, nearest, rewrite, store, where
from .scheme import Scheme
from .targets import Weight
from .tensors import Tensors, ready

RULE = "quantize weights"


class Rounding:
    """Puts codes in the place of weights.

    Args:
        graph: to edit.
        context: is told how far it is.
        outcome: gets remarks.
        totals: gets figures.
        rounder: rounds for calibration inputs; None rounds everything to nearest.
        fitted: the weights that ``rounder`` rounds.
        outliers: input channels that stay in floating point where inputs are quantized, or None.
        columns: how many columns of a weight stay in floating point.
        keep_in: selectors of the products that keep them; all if empty.
    """

    def __init__(
        self,
        graph: Graph,
        context: Context,
        outcome: Outcome,
        totals: Totals,
        rounder: Calibrated | None,
        fitted: Sequence[Weight],
        outliers: Outliers | None = None,
        columns: int = 0,
        keep_in: Sequence[selectors.Selector] = (),
    ) -> None:
        self.edit = Editor(graph, RULE)
        self.order = {node: i for i, node in enumerate(graph.graph)}
        self._context, self._outcome, self._totals = context, outcome, totals
        self._rounder, self._fitted, self._outliers = rounder, {id(weight) for weight in fitted}, outliers
        self._columns, self._keep_in = columns, keep_in

    def run(self, chosen: Sequence[tuple[Weight, Scheme]]) -> None:
        """Round each weight to its scheme, in this order."""
        shifted: list[tuple[Sequence[onnx_ir.Node], onnx_ir.TensorProtocol]] = []
        for done, (weight, scheme) in enumerate(chosen):
            if scheme.format != "int":
                figures = store(self.edit, weight, scheme, self.order)
                self._totals.add(weight, figures)
                self._outcome.count(RULE)
                self._outcome.applied(where(weight), f"{scheme}, rounded to nearest", **figures)
                continue
            if self._rounder is not None and id(weight) in self._fitted:
                self._context.progress(done, len(chosen), f"{self._rounder.method} {weight.value.name}")
            held = self._one(weight, scheme)
            if held is not None:
                shifted.append((weight.products, held))
        beside.offsets(self.edit, shifted, self.order)

    def _one(self, weight: Weight, scheme: Scheme) -> onnx_ir.TensorProtocol | None:
        """Round a weight to integers; its offsets, if it has any."""
        late: dict[str, Any] = {}
        rounded = self._for_inputs(weight, scheme)
        held: onnx_ir.TensorProtocol | None
        tensors: Tensors
        if rounded is not None:
            tensors, held = ready(rounded.codes, weight, scheme), rounded.held
        else:
            held = offsets.deferred(weight, scheme) if scheme.offsets else None
            tensors = nearest(weight, scheme, late, held)
            if self._rounder is not None:
                self._rounder.nearest(weight, scheme)
        figures = rewrite(self.edit, weight, scheme, tensors, self.order, held)
        if rounded is not None:
            figures |= rounded.figures | keep(self.edit, weight, rounded, figures)
        self._totals.add(weight, figures)
        self._outcome.count(RULE)
        shared = f", shared by {len(weight.users)} nodes" if len(weight.users) > 1 else ""
        kernel = "" if scheme.bits == scheme.stored_bits else f", stored in {scheme.stored_bits}: no kernel takes fewer"
        late |= figures
        self._outcome.remarks.append(Remark("applied", where(weight), f"{scheme}{shared}{kernel}", late))
        return held

    def _for_inputs(self, weight: Weight, scheme: Scheme) -> Rounded | None:
        """Codes for the calibration inputs, or None where a weight is rounded to nearest."""
        if self._rounder is None or id(weight) not in self._fitted:
            return None
        if (obstacle := self._rounder.obstacle(weight)) is not None:
            self._outcome.missed(where(weight), f"rounded to nearest: {obstacle}", weight=weight.value.name)
            return None
        columns = self._columns if not self._keep_in or _matches(self._keep_in, weight) else 0
        if columns and (why := _not_kept(weight, scheme)) is not None:
            self._outcome.missed(where(weight), f"no columns are kept: {why}", weight=weight.value.name)
            columns = 0
        by_token = activations.by_token(weight, scheme)
        split = self._outliers.columns(weight) if self._outliers is not None and by_token else ()
        return self._rounder.codes(weight, scheme, np.asarray(split) if len(split) else columns)


def _matches(wanted: Sequence[selectors.Selector], weight: Weight) -> bool:
    return any(selectors.first(wanted, node) is not None for node in weight.users)


def _not_kept(weight: Weight, scheme: Scheme) -> str | None:
    """Why no columns of a weight can stay in floating point beside its codes, or None."""
    if weight.tables:
        return "an embedding reads the weight, too"
    if scheme.activations is not None:
        return "its input is quantized"
    if any(PRECISE in node.metadata_props for node in weight.products):
        return "it has 8 bits already"
    return None
