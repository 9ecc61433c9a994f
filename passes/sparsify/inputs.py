"""What the inputs of products look like on the calibration data, as pruning wants to know it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir

from ...ir.errors import CalibrationError
from ...ir.graph import tensor_of
from .. import propagation
from ..base import Context, Outcome
from ..quantize.methods import gptq
from ..quantize.targets import Weight
from ..statistics import Hessian, Moments, total

Array = np.ndarray[Any, Any]


class Inputs:
    """Statistics of the inputs of some products, of the graph as it is when this is made.

    Args:
        weights: of the products.
        context: gives the statistics.
        hessians: whether Hessians are wanted, or only moments of each channel.
        moments: whether the mean of each channel is.
        propagate: one of :data:`~..propagation.MODES`; weights must then be pruned by :meth:`rank`.
        outcome: gets remarks.

    Raises:
        CalibrationError: there are no calibration inputs, or they give no finite statistics.
    """

    def __init__(
        self,
        weights: Sequence[Weight],
        context: Context,
        *,
        hessians: bool,
        moments: bool,
        propagate: str = "off",
        outcome: Outcome | None = None,
    ) -> None:
        values = list(dict.fromkeys(v for w in weights if self.obstacle(w) is None for v in _values(w)))
        self._walk = propagation.begin(values, context, propagate, outcome) if values else None
        self._errors, still = propagate != "inputs", self._walk is None
        if hessians and moments and still:
            context.prepare((values, Hessian()), (values, Moments()))
        self._hessians = context.statistics(values, Hessian()) if hessians and still else {}
        self._moments = context.statistics(values, Moments()) if (moments or not hessians) and still else {}
        # Products of the same input follow each other.
        self._corrected: tuple[tuple[str, ...], Array] | None = None
        self._last: tuple[tuple[str, ...], str, Array, gptq.Feedback] | None = None

    @staticmethod
    def obstacle(weight: Weight) -> str | None:
        """Why nothing can be known of the inputs of a weight, or None."""
        for value in _values(weight):
            if tensor_of(value) is not None:
                return "its product has a constant input"
            if value.shape is None or not len(value.shape) or value.shape[-1] != weight.channels[1]:
                return "the size of its product's input is not known"
        return None

    def rank(self, weight: Weight) -> int:
        """When a weight's turn is, where errors propagate."""
        if self._walk is None or self.obstacle(weight) is not None:
            return -1
        return propagation.rank(self._walk, _values(weight))

    def target(self, weight: Weight, matrix: Array) -> Array:
        """What a weight [n, k] is to become before it is pruned: itself, or what makes up for errors of its inputs."""
        if self._walk is None or not self._errors:
            return matrix
        names = _names(weight)
        if self._corrected is None or self._corrected[0] != names:
            hessian, cross = total(self._walk.hessian, names), total(self._walk.cross, names)
            self._corrected = (names, propagation.correction(hessian, cross))
        return propagation.propagated(matrix, self._corrected[1])

    def replace(self, weight: Weight, array: Array) -> None:
        """Take note of what became of a weight, in its own layout."""
        if self._walk is not None:
            self._walk.replace(weight.value, array)

    def norms(self, weight: Weight) -> Array:
        """Root of the mean square of each input channel: float32 [k]."""
        if self._moments or self._walk is not None:
            return np.asarray(np.sqrt(self.moments(weight)[1]))
        diagonals = [np.asarray(self._hessians[name].diagonal(), np.float32) for name in _names(weight)]
        return np.asarray(np.sqrt(np.mean(diagonals, axis=0)))

    def moments(self, weight: Weight) -> Array:
        """Mean and mean square of each input channel: float32 [2, k]."""
        if self._walk is None:
            each = [self._moments[name] for name in _names(weight)]
        else:
            each = [np.stack([self._walk.mean(n), self._walk.hessian(n).diagonal()]) for n in _names(weight)]
        return np.asarray(np.mean(each, axis=0, dtype=np.float32))

    def hessian(self, weight: Weight, order: gptq.Order) -> tuple[Array, gptq.Feedback]:
        """Mean of ``xᵀx`` and what rounding or pruning in an order of columns makes of it."""
        names = _names(weight)
        if self._last is None or self._last[:2] != (names, order):
            hessian = total(self._hessians.__getitem__ if self._walk is None else self._walk.hessian, names)
            try:
                self._last = (names, order, hessian, gptq.decompose(hessian, order=order))
            except FloatingPointError as error:
                fix = "look for unusual numbers in the calibration inputs"
                raise CalibrationError(str(error), where=f"input {names[0]!r}", fix=fix) from error
        return self._last[2], self._last[3]


def _values(weight: Weight) -> list[onnx_ir.Value]:
    """The distinct values that are multiplied by a weight."""
    return list(dict.fromkeys(node.inputs[0] for node in weight.products if node.inputs[0] is not None))


def _names(weight: Weight) -> tuple[str, ...]:
    return tuple(value.name or "" for value in _values(weight))
