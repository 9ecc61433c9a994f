"""LLM.int8(): input channels with outliers stay in floating point beside an int8 product (Dettmers et al. 2022).

The paper looks for outliers in each input as it comes; here they are channels that exceeded the threshold on the
calibration inputs. They are few, and always the same (section 4 of the paper).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir

from ....ir.rewrite import Editor
from ...base import Context, Outcome
from ...statistics import AbsMax
from ..methods.rtn import Array
from ..targets import Weight


class Outliers:
    """Input channels of products that hold outliers.

    Args:
        weights: of products whose inputs are to be quantized token by token.
        threshold: magnitude above which a number is an outlier.
        context: gives the statistics.

    Raises:
        CalibrationError: there are no calibration inputs, or they give no finite statistics.
    """

    def __init__(self, weights: Sequence[Weight], threshold: float, context: Context) -> None:
        inputs = {id(w): [x for node in w.products if (x := node.inputs[0]) is not None] for w in weights}
        values = list(dict.fromkeys(value for found in inputs.values() for value in found))
        largest = context.statistics(values, AbsMax()) if values or not context.has_calibration else {}
        self._of: dict[onnx_ir.Value, frozenset[int]] = {
            value: frozenset(np.flatnonzero(largest[value.name or ""] > threshold).tolist()) for value in values
        }
        # A weight leaves out the same channels of all its inputs, and an input those of all its weights.
        settled = False
        while not settled:
            settled = True
            for found in inputs.values():
                joined = frozenset[int]().union(*(self._of[value] for value in found))
                for value in found:
                    settled &= self._of[value] == joined
                    self._of[value] = joined

    def columns(self, weight: Weight) -> Array:
        """Channels that a weight leaves to a float product: int64, ascending."""
        value = weight.products[0].inputs[0]
        return np.array(sorted(self._of.get(value, ())) if value is not None else (), np.int64)

    def mask(self, value: onnx_ir.Value) -> Array | None:
        """0 for the channels of an input that hold outliers and 1 for the others, float32; None without any."""
        found = self._of.get(value)
        size = None if value.shape is None else value.shape[-1]
        if not found or not isinstance(size, int):
            return None
        mask = np.ones(size, np.float32)
        mask[list(found)] = 0
        return mask

    def tell(self, outcome: Outcome, threshold: float) -> None:
        """Say how many there are."""
        counts = [len(found) for found in self._of.values()]
        if not any(counts):
            outcome.missed("", f"no input channel exceeds {threshold:g}: nothing stays in floating point")
            return
        outcome.applied(
            "",
            f"{sum(counts)} input channels exceed {threshold:g} and stay in floating point",
            inputs=len(counts),
            with_outliers=sum(map(bool, counts)),
            largest=max(counts),
        )


def without(edit: Editor, value: onnx_ir.Value, mask: Array) -> onnx_ir.Value:
    """``value`` with zeros for its outliers."""
    factor = edit.initializer(mask, f"{value.name or 'input'}.mask")
    return edit.op("Mul", [value, factor], dtype=value.dtype, shape=value.shape)
