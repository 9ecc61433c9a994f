"""What smoothing knows of a group: statistics of its inputs and its weights, by the channels of its scale."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir

from ...ir.graph import module_path
from ..base import Context, Outcome
from ..statistics import Magnitudes
from .flow import UNSCALED, Consumer
from .groups import Found, Group
from .products import Array

_ROWS = 512
"""Output channels of a matrix that a search looks at: errors of so many say enough about all."""


class Inputs:
    """Statistics of the inputs of groups.

    Raises:
        CalibrationError: there are no calibration inputs (even if there is no group), or they give no statistics.
    """

    def __init__(self, groups: Sequence[Group], context: Context) -> None:
        values: list[onnx_ir.Value] = list(dict.fromkeys(value for group in groups for value in group.inputs))
        asked = bool(values) or not context.has_calibration
        self._magnitudes = context.statistics(values, Magnitudes()) if asked else {}

    def largest(self, consumer: Consumer) -> Array:
        """max|X_j| of each input channel: [K]."""
        return self._of(consumer, 0)

    def mean_abs(self, consumer: Consumer) -> Array:
        """mean|X_j|: [K]."""
        return self._of(consumer, 1)

    def mean_square(self, consumer: Consumer) -> Array:
        """E[X_j²]: [K]."""
        return self._of(consumer, 2)

    def _of(self, consumer: Consumer, which: int) -> Array:
        row: Array = self._magnitudes[consumer.input.name or ""][which]
        return row


def largest(group: Group, inputs: Inputs) -> Array:
    """max|X| over all places that a channel goes to: [group.size], 0 for channels that go nowhere."""
    result = np.zeros(group.size, np.float32)
    for consumer in group.consumers:
        _maximum(result, consumer, inputs.largest(consumer))
    return result


def mean_abs(group: Group, inputs: Inputs) -> Array:
    """mean|X| over all places that a channel goes to: [group.size], 0 for channels that go nowhere."""
    total, count = np.zeros(group.size), np.zeros(group.size)
    for consumer in group.consumers:
        real = consumer.labels != UNSCALED
        np.add.at(total, consumer.labels[real], inputs.mean_abs(consumer)[real])
        np.add.at(count, consumer.labels[real], 1)
    return np.asarray(total / np.maximum(count, 1), np.float32)


def largest_weights(group: Group) -> Array:
    """max|W| over output channels and consumers of each channel: [group.size]."""
    result = np.zeros(group.size, np.float32)
    for consumer in group.consumers:
        _maximum(result, consumer, np.abs(consumer.matrix.read()).max(axis=0))
    return result


def sample(consumer: Consumer) -> Array:
    """Evenly spaced output channels of a consumer's matrix: float32 [at most 512, K]."""
    weights = consumer.matrix.read()
    if len(weights) <= _ROWS:
        return weights
    rows: Array = weights[np.linspace(0, len(weights) - 1, _ROWS).astype(int)]
    return rows


def only_free(group: Group, scales: Array) -> Array:
    """``scales``, with 1 where the group's channel must not be scaled."""
    return np.where(group.free, scales, np.float32(1))


def tell_others(outcome: Outcome, found: Found, *, scaled: bool = False) -> None:
    """A remark for each product that nothing can smooth, and one if there is no group at all and nothing ``scaled``."""
    for node, block in found.others:
        values = {"reader": block.reader} if block.reader else {}
        outcome.missed(module_path(node), block.reason, **values)
    if not found.groups and not scaled:
        outcome.skipped("", "there is nothing to smooth: no product has a producer that can take a scale")


def _maximum(result: Array, consumer: Consumer, values: Array) -> None:
    real = consumer.labels != UNSCALED
    np.maximum.at(result, consumer.labels[real], values[real])
