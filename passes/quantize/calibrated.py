"""Rounding for calibration inputs: a Hessian for each distinct input of the products, and codes out of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir

from ...ir.errors import CalibrationError, ModelError
from ...ir.graph import Graph, tensor_of
from ..base import Context
from ..statistics import Hessian
from . import gptq, refine, rtn
from .rtn import Array, Codes
from .scheme import Scheme
from .targets import Weight
from .tensors import packs


class Calibrated:
    """Rounds weights for the inputs that their products see on the calibration data.

    Args:
        graph: as it is before any of the weights is replaced.
        weights: those to round.
        context: gives the statistics.
        rounds: how often codes and scales are improved after GPTQ, see :func:`~.refine.refine`.

    Raises:
        CalibrationError: there are no calibration inputs, or they give no finite statistics.
    """

    def __init__(self, graph: Graph, weights: Sequence[Weight], context: Context, rounds: int = refine.ROUNDS) -> None:
        values = {value.name: value for weight in weights if self.obstacle(weight) is None for value in _inputs(weight)}
        # Asked even for nothing, where data were asked for by name and there are none.
        asked = bool(values) or not context.has_calibration
        self._hessians = context.statistics(list(values.values()), Hessian()) if asked else {}
        # Products of the same input follow each other.
        self._rounds = rounds
        self._last: tuple[tuple[str, ...], Array, gptq.Feedback] | None = None

    @staticmethod
    def obstacle(weight: Weight) -> str | None:
        """Why nothing can be known of the inputs of a weight, or None."""
        if not weight.products:
            return "no product multiplies by it"
        k = weight.channels[1]
        for value in _inputs(weight):
            if tensor_of(value) is not None:
                return "its product has a constant input"
            if value.shape is None or not len(value.shape) or value.shape[-1] != k:
                return "the size of its product's input is not known"
        return None

    def codes(self, weight: Weight, scheme: Scheme) -> tuple[Codes, dict[str, Any]]:
        """Codes of a weight, packed as :func:`~.tensors.packs` says, and figures for the report.

        The figures are the relative squared error of the outputs on the calibration inputs (``output_error``), the same
        for rounding to nearest (``output_error_rtn``) and, where it had to be raised, the ``damping``.

        Raises:
            CalibrationError: the statistics of an input are no Hessian.
            ModelError: a weight is infinite or not a number.
        """
        tensor = tensor_of(weight.value)
        assert tensor is not None
        hessian, feedback = self._feedback(weight)
        array = tensor.numpy()
        matrix = rtn.as_float32(array.T if weight.layout == "kn" else array)
        precision = tensor.dtype.numpy()
        try:
            codes = gptq.quantize(matrix, feedback, scheme, precision=precision)
            if self._rounds:
                codes = refine.refine(matrix, codes, hessian, scheme, rounds=self._rounds, precision=precision)
            nearest = rtn.quantize(matrix, scheme, precision=precision)
        except FloatingPointError as error:
            where = f"weight {weight.value.name!r}"
            raise ModelError(f"{error}", where=where, fix="exclude it, or repair the model") from error
        figures: dict[str, Any] = {"method": "gptq"}
        power = gptq.output_error(matrix, hessian)
        for name, one in (("output_error", codes), ("output_error_rtn", nearest)):
            lost = gptq.output_error(rtn.dequantize(one, scheme, matrix.shape[1]) - matrix, hessian)
            figures[name] = float(f"{lost / power:.3g}") if power > 0 else 0.0
        if feedback.damping != gptq.DAMPING:
            figures["damping"] = feedback.damping
        if packs(weight, scheme):
            codes = Codes(rtn.pack(codes.codes), codes.scales, codes.zero_points)
        return codes, figures

    def _feedback(self, weight: Weight) -> tuple[Array, gptq.Feedback]:
        names = tuple(value.name or "" for value in _inputs(weight))
        if self._last is None or self._last[0] != names:
            hessian = np.array(self._hessians[names[0]])
            for name in names[1:]:
                hessian += self._hessians[name]
            try:
                feedback = gptq.decompose(hessian)
            except FloatingPointError as error:
                raise CalibrationError(
                    str(error), where=f"input {names[0]!r}", fix="look for unusual numbers in the calibration inputs"
                ) from error
            self._last = (names, hessian, feedback)
        return self._last[1], self._last[2]


def _inputs(weight: Weight) -> list[onnx_ir.Value]:
    """The distinct values that are multiplied by a weight."""
    values = [node.inputs[0] for node in weight.products]
    return list(dict.fromkeys(value for value in values if value is not None))
