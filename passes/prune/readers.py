"""The products and convolutions that read what goes: their weights as matrices, and statistics of their inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir

from ...ir.graph import attribute, dims, is_op, sizes_of, tensor_of
from ..base import Context
from ..statistics import ChannelMoments, DirectionHessian, Moments
from .coupling import Coupling
from .grids import Array
from .units import Group, Place


class Readers:
    """Reading sides of some groups.

    Args:
        coupling: of the graph.
        groups: whose readers are meant.
    """

    def __init__(self, coupling: Coupling, groups: Sequence[Group]) -> None:
        self._coupling = coupling
        self._places = list(dict.fromkeys(place for group in groups for place in group.reads))
        self._moments: dict[str, Array] = {}
        self._hessians: dict[str, Array] = {}

    def measure(self, context: Context, *, hessians: bool, moments: bool) -> None:
        """Take the statistics of the graph as it is; of convolutions moments only.

        Args:
            context: gives them.
            hessians: of the inputs of products.
            moments: of the inputs of products.

        Raises:
            CalibrationError: there are no calibration inputs.
        """
        last: list[onnx_ir.Value] = []
        second: list[onnx_ir.Value] = []
        for place in self._places:
            for value in self.inputs(place):
                (second if is_conv(self._coupling, place) else last).append(value)
        last, second = list(dict.fromkeys(last)), list(dict.fromkeys(second))
        if last and hessians and moments:
            context.prepare((last, DirectionHessian()), (last, Moments()), (second, ChannelMoments()))
        if hessians and (last or not second):
            self._hessians = context.statistics(last, DirectionHessian())
        if moments and (last or not second):
            self._moments = dict(context.statistics(last, Moments()))
        if second:
            self._moments |= context.statistics(second, ChannelMoments())

    def inputs(self, place: Place) -> list[onnx_ir.Value]:
        """The values that are multiplied by a weight, as far as their channels are known."""
        base, number = place
        tensor = tensor_of(base)
        assert tensor is not None
        size = sizes_of(tensor)[number]
        found = []
        for node in self._coupling.places.get(base, []):
            value = node.inputs[0]
            shape = dims(value)
            axis = 1 if is_op(node, "Conv", "ConvTranspose") else -1
            if is_op(node, "Gather") or value is None or tensor_of(value) is not None:
                continue
            if shape is not None and shape[axis] == size and attribute(node, "group", 1) == 1:
                found.append(value)
        return list(dict.fromkeys(found))

    def measured(self, place: Place) -> bool:
        """Whether statistics of the inputs are known."""
        return any((value.name or "") in self._moments or (value.name or "") in self._hessians
                   for value in self.inputs(place))  # fmt: skip

    def moments(self, place: Place) -> Array | None:
        """Mean and mean square of each input channel, float32 [2, k]; None where it is not known."""
        found = [self._moments[v.name or ""] for v in self.inputs(place) if (v.name or "") in self._moments]
        return np.asarray(np.mean(found, axis=0, dtype=np.float32)) if found else None

    def hessian(self, place: Place) -> Array | None:
        """Mean of ``xᵀx`` over tokens, all as long as each other, and readers: float32 [k, k]; None for
        convolutions."""
        found = [self._hessians[v.name or ""] for v in self.inputs(place) if (v.name or "") in self._hessians]
        return np.asarray(np.mean(found, axis=0, dtype=np.float32)) if found else None

    def matrix(self, place: Place) -> Array:
        """The weights as float32 [n, k], k the axis that is read; a kernel's places are rows."""
        base, number = place
        tensor = tensor_of(base)
        assert tensor is not None
        moved = np.moveaxis(np.asarray(tensor.numpy(), np.float32), number, -1)
        return np.ascontiguousarray(moved.reshape(-1, moved.shape[-1]))

    def restored(self, place: Place, matrix: Array) -> Array:
        """A matrix in the shape of the weights."""
        base, number = place
        tensor = tensor_of(base)
        assert tensor is not None
        shape: list[Any] = list(sizes_of(tensor))
        moved = [size for axis, size in enumerate(shape) if axis != number]
        return np.ascontiguousarray(np.moveaxis(matrix.reshape([*moved, shape[number]]), -1, number))


def is_conv(coupling: Coupling, place: Place) -> bool:
    """Whether convolutions read this weight."""
    return any(is_op(node, "Conv", "ConvTranspose") for node in coupling.places.get(place[0], []))
