"""What removing atoms saves: weights, arithmetic, or time on this machine."""

from __future__ import annotations

import numpy as np
import onnx_ir

from ...ir.errors import UnsupportedError
from ...ir.graph import dims, is_op, sizes_of, tensor_of
from ..base import Context
from .coupling import Coupling
from .grids import Array
from .units import Group

MEASURES = ("parameters", "flops", "time")
_TOKENS = 128


class Savings:
    """Shares of the cost of a model's products, convolutions and embeddings.

    Args:
        coupling: of the graph.
        of: ``"parameters"``, ``"flops"`` or ``"time"``.
        context: gives times of products on this machine.

    Raises:
        UnsupportedError: times are asked for and nothing can be measured.
    """

    def __init__(self, coupling: Coupling, of: str, context: Context) -> None:
        self.coupling, self.of, self._context = coupling, of, context
        if of == "time" and context.cost is None:
            raise UnsupportedError("no times can be measured here", where="PruneStructures", fix='use of="flops"')
        self._price = {base: self._weight_price(base) for base in coupling.weights}
        self._whole = self._cost(np.zeros(len(coupling.parents), bool), self._price)

    def share(self, gone: Array) -> float:
        """The share of the cost that goes with some atoms."""
        return 1 - self._cost(gone, self._price) / self._whole if self._whole else 0.0

    def parameters(self, gone: Array) -> int:
        """Weights that are left."""
        return int(self._cost(gone, dict.fromkeys(self._price, 1.0)))

    def unit(self, group: Group) -> float:
        """What a unit of a group saves, if all others stay."""
        total = 0.0
        for (base, number), places in group.axes.items():
            tensor = tensor_of(base)
            assert tensor is not None
            total += self._price[base] * places.shape[1] * (int(tensor.size) / sizes_of(tensor)[number])
        return total

    def _cost(self, gone: Array, prices: dict[onnx_ir.Value, float]) -> float:
        total = 0.0
        for base, axes in self.coupling.weights.items():
            tensor = tensor_of(base)
            assert tensor is not None
            sizes = list(sizes_of(tensor))
            for number, axis in axes.items():
                sizes[number] = int((~gone[axis.atoms]).sum())
            total += prices[base] * float(np.prod(sizes))
        return total

    def _weight_price(self, base: onnx_ir.Value) -> float:
        """The cost of one weight."""
        if self.of == "parameters":
            return 1.0
        price = 0.0
        for node in self.coupling.places.get(base, []):
            if is_op(node, "Conv", "ConvTranspose"):
                # Each weight of a kernel works once for each place of the output, transposed of the input.
                shape = dims(node.outputs[0] if is_op(node, "Conv") else node.inputs[0]) or ()
                price += float(np.prod([size for size in shape[2:] if isinstance(size, int)]))
            elif not is_op(node, "Gather"):
                price += 1.0
        if self.of == "time" and price and self._context.cost is not None:
            tensor = tensor_of(base)
            assert tensor is not None
            if len(tensor.shape) == 2:
                k, n = sizes_of(tensor)
                price *= self._context.cost(_TOKENS, k, n, None) / (_TOKENS * k * n)
        return price
