"""What rounding costs the outputs of a product, estimated from statistics of its inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from ....ir.graph import module_path, tensor_of
from ...base import Context
from ...statistics import Hessian, Histogram, TokenSpan
from .. import formats, offsets
from ..calibrated import Calibrated
from ..inputs import histogram
from ..methods import gptq, rtn
from ..methods.rtn import Array
from ..scheme import PER_CHANNEL, Scheme
from ..targets import Weight

_ROWS = 256
"""Output channels of a matrix that are looked at."""
_KEPT = 8
"""Weights whose rows are kept: as many as are asked about in turn, scheme after scheme."""


def kind(weight: Weight) -> str:
    """What a weight is in its block: the last part of its module's path, and its shape."""
    name = module_path(weight.products[0]).rsplit(".", 1)[-1]
    n, k = weight.channels
    return f"{name.rstrip('0123456789_')} {n}x{k}" if "/" in name or not name else name


class Loss(NamedTuple):
    """Relative squared error of outputs: by rounding weights as will be done, to nearest, and by rounding inputs."""

    fitted: float
    nearest: float
    inputs: float


class Losses:
    """Relative squared errors of the outputs of products on the calibration inputs.

    Args:
        weights: of the products, none of them replaced yet.
        context: gives the statistics.
        rounder: of the weights, as they will be rounded; None if all rounding is to nearest.

    Raises:
        CalibrationError: there are no calibration inputs, or they give no finite statistics.
    """

    def __init__(self, weights: Sequence[Weight], context: Context, rounder: Calibrated | None) -> None:
        self._known = [weight for weight in weights if Calibrated.obstacle(weight) is None]
        values, _ = Calibrated.request(weights)
        self._hessians = context.statistics(values, Hessian())
        self._spans = context.statistics(values, TokenSpan())
        self._histograms = context.statistics(values, Histogram())
        self._rounder = rounder
        self._ratios: dict[tuple[str, Scheme], float] = {}
        self._learned: dict[int, float] = {}
        self._read: dict[int, Array] = {}
        self._measured: dict[tuple[int, Scheme], Loss] = {}

    def knows(self, weight: Weight) -> bool:
        """Whether anything is known of the inputs of a weight."""
        return any(weight is other for other in self._known)

    def span(self, weight: Weight) -> histogram.Range:
        """The range of a static quantization of what a weight is multiplied by."""
        value = weight.products[0].inputs[0]
        assert value is not None
        return self.span_of(value.name or "")

    def span_of(self, name: str) -> histogram.Range:
        """The range of a static quantization of an input."""
        return histogram.choose(self._histograms[name], "minmax")

    def of(self, weight: Weight, scheme: Scheme) -> Loss:
        """The errors of the products by a weight in a scheme."""
        place = (id(weight), scheme)
        if place not in self._measured:
            self._measured[place] = self._measure(weight, scheme)
        return self._measured[place]

    def learn(self, weight: Weight, scheme: Scheme, figures: Mapping[str, Any]) -> None:
        """Take note of what second-order rounding really left of the error of a weight: the figures of its codes.

        What it leaves differs by weight; from scheme to scheme it differs as it does for another weight of the kind.
        """
        plain, of_kind = figures["output_error_rtn"], self._ratio(weight, scheme)
        if plain and of_kind:
            self._learned[id(weight)] = figures["output_error"] / plain / of_kind
        self._measured = {place: loss for place, loss in self._measured.items() if place[0] != id(weight)}

    def _measure(self, weight: Weight, scheme: Scheme) -> Loss:
        value = weight.products[0].inputs[0]
        assert value is not None
        key, rows = value.name or "", self._rows(weight)
        hessian = self._hessians[key]
        power = max(gptq.output_error(rows, hessian), 1e-30)
        lost = gptq.output_error(restored(rows, scheme) - rows, hessian) / power
        ratio = self._ratio(weight, scheme) if lost else 1.0
        extra = 0.0
        grouped = scheme.format == "int" and scheme.group_size != PER_CHANNEL
        if scheme.activations is not None or grouped:
            if grouped or (scheme.activations is not None and scheme.activations.dynamic):
                # The kernel for weights in groups rounds its input, too, in parts of a token.
                step = float(self._spans[key][0]) / 255**2 / 12 * (0.5 if grouped else 1)
            else:
                step = histogram.expected_error(self._histograms[key], self.span_of(key))
            extra = step * float((rows.astype(np.float64) ** 2).sum()) / power
        return Loss(lost * ratio, lost, extra)

    def _rows(self, weight: Weight) -> Array:
        """Some of the rows of a weight, kept for the next scheme: it may be computed whenever it is read."""
        if id(weight) not in self._read:
            tensor = tensor_of(weight.value)
            assert tensor is not None
            array = tensor.numpy()
            matrix = rtn.as_float32(array.T if weight.layout == "kn" else array)
            if len(self._read) >= _KEPT:
                self._read.pop(next(iter(self._read)))
            self._read[id(weight)] = np.ascontiguousarray(matrix[_some(len(matrix))])
        return self._read[id(weight)]

    def _ratio(self, weight: Weight, scheme: Scheme) -> float:
        """What second-order rounding leaves of the error, by one weight of each kind and what was learned."""
        if self._rounder is None or scheme.format != "int" or scheme.is_fine:
            return 1.0
        place = (kind(weight), replace(scheme, activations=None))
        if place not in self._ratios:
            self._ratios[place] = self._rounder.left(weight, place[1], _some(weight.channels[0]))
        return min(self._ratios[place] * self._learned.get(id(weight), 1.0), 1.0)


def prepare(weights: Sequence[Weight], context: Context) -> None:
    """Have all statistics computed in one run that :class:`Losses` and the rounding of ``weights`` ask for."""
    values, hessian = Calibrated.request(weights)
    context.prepare((values, hessian), (values, TokenSpan()), (values, Histogram()))


def _some(count: int) -> Array:
    """Some of so many output channels."""
    return np.linspace(0, count - 1, min(count, _ROWS)).astype(int)


def restored(rows: Array, scheme: Scheme) -> Array:
    """What a matrix ``[n, k]`` becomes by rounding to nearest."""
    if scheme.format == "nf4":
        codes, scales = formats.nf4(rows, scheme.group(rows.shape[1]))
        whole: Array = (formats.NF4[codes] * scales).reshape(len(rows), -1)[:, : rows.shape[1]]
        return whole
    if scheme.format == "fp8":
        numbers, steps = formats.fp8(rows)
        exact: Array = numbers.astype(np.float32) * steps[:, None]
        return exact
    if scheme.offsets:
        held = offsets.find(rows, scheme)
        left = restored(offsets.without(rows, held), replace(scheme, offsets=False))
        return left + offsets.spread(held, rows.shape[1])
    return rtn.dequantize(rtn.quantize(rows, scheme), scheme, rows.shape[1])
