"""The mean of what is lost, added to what reads it (FLAP, An et al. 2024, section 4.3)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir

from ...ir.graph import is_op, sizes_of, tensor_of
from ...ir.rewrite import Editor
from ..base import Outcome
from .coupling import Coupling
from .grids import Array
from .readers import Readers, is_conv
from .units import Place


class Biases:
    """Biases of the readers of what goes: those of convolutions change before a removal, others are added after it.

    Args:
        edit: of the graph.
        coupling: of the graph before the removal.
        readers: with statistics.
        gone: which atoms go.
    """

    def __init__(self, edit: Editor, coupling: Coupling, readers: Readers, gone: Array) -> None:
        self._edit, self._coupling, self._readers, self._gone = edit, coupling, readers, gone
        self._after: list[tuple[onnx_ir.Node, Array]] = []
        self._missing: list[onnx_ir.Node] = []

    def prepare(self, places: Sequence[Place], *, convolutions_only: bool) -> None:
        """Compute the biases of some readers; convolutions that have one get theirs now."""
        for base, number in dict.fromkeys(places):
            moments = self._readers.moments((base, number))
            nodes = [node for node in self._coupling.places[base] if not is_op(node, "Gather")]
            if moments is None:
                continue
            lost = self._gone[self._coupling.weights[base][number].atoms]
            tensor = tensor_of(base)
            assert tensor is not None
            moved = np.moveaxis(np.asarray(tensor.numpy(), np.float64), number, -1)
            shift = moved[..., lost] @ moments[0][lost].astype(np.float64)
            if is_conv(self._coupling, (base, number)):
                # A kernel's places see the mean each, but at the rim.
                shift = shift.reshape(shift.shape[0], -1).sum(axis=1)
                for node in nodes:
                    self._convolution(node, shift)
            elif not convolutions_only:
                self._after += [(node, self._kept(base, number, shift)) for node in nodes]

    def _kept(self, base: onnx_ir.Value, number: int, shift: Array) -> Array:
        other = self._coupling.weights[base].get(1 - number)
        return shift if other is None else shift[~self._gone[other.atoms]]

    def _convolution(self, node: onnx_ir.Node, shift: Array) -> None:
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        tensor = tensor_of(bias)
        if bias is None or tensor is None or is_op(node, "ConvTranspose") or sizes_of(tensor)[0] != len(shift):
            self._missing.append(node)
            return
        array = (np.asarray(tensor.numpy(), np.float64) + shift).astype(tensor.dtype.numpy())
        new = self._edit.at(node).initializer(onnx_ir.Tensor(array, dtype=tensor.dtype), f"{bias.name}.shifted")
        node.replace_input_with(2, new)
        self._edit.drop_initializer(bias)

    def add(self, outcome: Outcome) -> None:
        """Add the biases of products behind them."""
        for node in self._missing:
            outcome.missed(node.name or node.op_type, "the mean of what went is not added: there is no bias")
        order = {node: i for i, node in enumerate(self._edit.graph.graph)}
        for node, shift in self._after:
            out = node.outputs[0]
            if out.dtype is None:
                continue
            constant = self._edit.initializer(onnx_ir.Tensor(shift.astype(out.dtype.numpy()), dtype=out.dtype), "mean")
            first = min((use.node for use in out.uses()), key=order.__getitem__, default=None)
            self._edit.replace(out, self._edit.at(first, [node]).op("Add", [out, constant]))
