"""Observers: what a pass can ask of the values of a graph on the user's calibration inputs.

An observer says which operators compute its result for one batch, so that only this result leaves the graph, and how
the results of batches combine. A *channel* is the last axis of the observed value; all other axes are *tokens*.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np
import onnx_ir

from ..ir.rewrite import Editor

Array = np.ndarray[Any, Any]
How = Literal["max", "min", "sum"]
"""How the results of two batches combine."""


@dataclass(frozen=True)
class Observer(abc.ABC):
    """A statistic over all tokens of a value with K channels."""

    parts: ClassVar[tuple[How, ...]]
    """How each value that :meth:`insert` returns combines with that of the next batch; sums in float64.

    At least one part is a sum over the observed numbers: ONNX Runtime's maximum loses NaN, a sum keeps it.
    """
    axis: ClassVar[int] = -1
    """Which axis of the observed value holds its channels."""
    per_tensor: ClassVar[bool] = False
    """Whether all numbers of a value are tokens of a single channel: its last axis may then be of any size."""

    @abc.abstractmethod
    def insert(self, edit: Editor, tokens: onnx_ir.Value) -> Sequence[onnx_ir.Value]:
        """Append the operators that compute the parts of one batch.

        Args:
            edit: appends at the end of the graph.
            tokens: the observed value as float32 [T, K].
        """

    @abc.abstractmethod
    def finish(self, parts: Sequence[Array], count: int) -> Array:
        """The statistic out of the combined parts and the number of tokens, as float32."""

    def size(self, channels: int) -> int:
        """Bytes held while batches are added: the parts of one batch, and their total."""
        return 12 * channels * len(self.parts)


@dataclass(frozen=True)
class AbsMax(Observer):
    """max |x| of each channel: [K]."""

    parts = ("max", "sum")

    def insert(self, edit: Editor, tokens: onnx_ir.Value) -> Sequence[onnx_ir.Value]:
        """ReduceMax and ReduceSum of Abs."""
        absolute = edit.op("Abs", [tokens])
        return reduce(edit, "ReduceMax", absolute), reduce(edit, "ReduceSum", absolute)

    def finish(self, parts: Sequence[Array], count: int) -> Array:
        """The maximum."""
        return parts[0].astype(np.float32)


@dataclass(frozen=True)
class MinMax(Observer):
    """min x and max x of each channel: [2, K]."""

    parts = ("min", "max", "sum")

    def insert(self, edit: Editor, tokens: onnx_ir.Value) -> Sequence[onnx_ir.Value]:
        """ReduceMin, ReduceMax and ReduceSum."""
        return [reduce(edit, op, tokens) for op in ("ReduceMin", "ReduceMax", "ReduceSum")]

    def finish(self, parts: Sequence[Array], count: int) -> Array:
        """The minimum above the maximum."""
        return np.stack(parts[:2]).astype(np.float32)


@dataclass(frozen=True)
class Mean(Observer):
    """Mean of x over tokens, of each channel: [K]."""

    parts = ("sum",)

    def insert(self, edit: Editor, tokens: onnx_ir.Value) -> Sequence[onnx_ir.Value]:
        """ReduceSum."""
        return [reduce(edit, "ReduceSum", tokens)]

    def finish(self, parts: Sequence[Array], count: int) -> Array:
        """Sum over count."""
        return np.asarray(parts[0] / count, np.float32)


@dataclass(frozen=True)
class MeanAbs(Observer):
    """Mean of |x| over tokens, of each channel: [K] (AWQ's measure of importance, Lin et al. 2024, section 3.2)."""

    parts = ("sum",)

    def insert(self, edit: Editor, tokens: onnx_ir.Value) -> Sequence[onnx_ir.Value]:
        """ReduceSum of Abs."""
        return [reduce(edit, "ReduceSum", edit.op("Abs", [tokens]))]

    def finish(self, parts: Sequence[Array], count: int) -> Array:
        """Sum over count."""
        return np.asarray(parts[0] / count, np.float32)


@dataclass(frozen=True)
class L2Norm(Observer):
    """√(Σ x²) over all tokens, of each channel: [K] (Wanda's ‖X_j‖₂, Sun et al. 2024, eq. 1)."""

    parts = ("sum",)

    def insert(self, edit: Editor, tokens: onnx_ir.Value) -> Sequence[onnx_ir.Value]:
        """ReduceSum of the squares."""
        return [reduce(edit, "ReduceSum", edit.op("Mul", [tokens, tokens]))]

    def finish(self, parts: Sequence[Array], count: int) -> Array:
        """The root of the sum."""
        return np.sqrt(parts[0]).astype(np.float32)


@dataclass(frozen=True)
class Moments(Observer):
    """Mean of x and mean of x² over tokens, of each channel: [2, K]."""

    parts = ("sum", "sum")

    def insert(self, edit: Editor, tokens: onnx_ir.Value) -> Sequence[onnx_ir.Value]:
        """ReduceSum of the numbers and of their squares."""
        return [reduce(edit, "ReduceSum", tokens), reduce(edit, "ReduceSum", edit.op("Mul", [tokens, tokens]))]

    def finish(self, parts: Sequence[Array], count: int) -> Array:
        """Sums over count."""
        return np.stack([parts[0] / count, parts[1] / count]).astype(np.float32)


@dataclass(frozen=True)
class ChannelMoments(Moments):
    """:class:`Moments` of the second axis: the channels of images."""

    axis = 1


@dataclass(frozen=True)
class Magnitudes(Observer):
    """max |x|, mean |x| and mean x² over tokens, of each channel: [3, K].

    One run over the data for what would take three with :class:`AbsMax`, :class:`MeanAbs` and :class:`L2Norm`.
    """

    parts = ("max", "sum", "sum")

    def insert(self, edit: Editor, tokens: onnx_ir.Value) -> Sequence[onnx_ir.Value]:
        """ReduceMax and ReduceSum of Abs, ReduceSum of the squares."""
        absolute = edit.op("Abs", [tokens])
        square = edit.op("Mul", [tokens, tokens])
        return [
            reduce(edit, "ReduceMax", absolute),
            reduce(edit, "ReduceSum", absolute),
            reduce(edit, "ReduceSum", square),
        ]

    def finish(self, parts: Sequence[Array], count: int) -> Array:
        """The maximum above the sums over count."""
        return np.stack([parts[0], parts[1] / count, parts[2] / count]).astype(np.float32)


@dataclass(frozen=True)
class Hessian(Observer):
    """Mean over tokens of x xᵀ, that is XᵀX / T: [K, K], symmetric (GPTQ's H but for a factor, Frantar et al. 2023).

    The product of one batch is float32, the sum over batches float64. A sum instead of the mean would differ by a
    factor that no method sees: damping is relative to the diagonal.
    """

    parts = ("sum",)

    def insert(self, edit: Editor, tokens: onnx_ir.Value) -> Sequence[onnx_ir.Value]:
        """MatMul of Transpose(X) and X."""
        return [edit.op("MatMul", [edit.op("Transpose", [tokens], {"perm": [1, 0]}), tokens])]

    def finish(self, parts: Sequence[Array], count: int) -> Array:
        """Sum over count, divided in place: this is the largest array of a calibration."""
        return np.divide(parts[0], count, out=parts[0]).astype(np.float32)

    def size(self, channels: int) -> int:
        """Bytes of a float32 product and a float64 total."""
        return 12 * channels * channels


@dataclass(frozen=True)
class DirectionHessian(Hessian):
    """Mean over tokens of x xᵀ / (xᵀx / K): [K, K]; each token counts the same, however large it is.

    Some tokens of language models (the first of a sequence above all) are a thousand times larger than others (massive
    activations, Sun et al. 2024): they alone would decide what a mean over tokens says.
    """

    def insert(self, edit: Editor, tokens: onnx_ir.Value) -> Sequence[onnx_ir.Value]:
        """The tokens divided by the root of their mean square, then as :class:`Hessian`."""
        last = edit.ints([1], "channels_axis")
        mean = edit.op("ReduceMean", [edit.op("Mul", [tokens, tokens]), last], {"keepdims": 1})
        size = edit.op("Sqrt", [edit.op("Add", [mean, _number(edit, 1e-20)])])
        return super().insert(edit, edit.op("Div", [tokens, size]))


@dataclass(frozen=True)
class TokenSpan(Observer):
    """Mean over tokens of (max x - min x)², both ends stretched to 0: [1]. The error of codes by token goes with it."""

    parts = ("sum",)

    def insert(self, edit: Editor, tokens: onnx_ir.Value) -> Sequence[onnx_ir.Value]:
        """ReduceMax and ReduceMin of each token, and the sum of the squares of their differences."""
        last = edit.ints([1], "channels_axis")
        zero = _number(edit, 0)
        high = edit.op("Max", [edit.op("ReduceMax", [tokens, last], {"keepdims": 1}), zero])
        low = edit.op("Min", [edit.op("ReduceMin", [tokens, last], {"keepdims": 1}), zero])
        span = edit.op("Sub", [high, low])
        return [reduce(edit, "ReduceSum", edit.op("Mul", [span, span]))]

    def finish(self, parts: Sequence[Array], count: int) -> Array:
        """Sum over count."""
        return np.asarray(parts[0] / count, np.float32)


ZERO_POINTS = tuple(range(8, 255, 8))
"""Codes of 255 that may stand for zero in all tokens, see :class:`TokenSteps`."""


@dataclass(frozen=True)
class TokenSteps(Observer):
    """Mean over tokens of (255 s)², s the step of codes by token in which code z stands for zero: [Z], z of
    ``ZERO_POINTS``. Beside :class:`TokenSpan` it says by what factor one z for all tokens multiplies the error.
    """

    parts = ("sum",)

    def insert(self, edit: Editor, tokens: onnx_ir.Value) -> Sequence[onnx_ir.Value]:
        """For each z the larger of the steps that the two ends of a token need, and the sum of their squares."""
        last = edit.ints([1], "channels_axis")
        codes = np.asarray(ZERO_POINTS, np.float32)
        above = edit.initializer(255 / (255 - codes)[None], "above_zero")
        below = edit.initializer(-255 / codes[None], "below_zero")
        high, low = (edit.op(op, [tokens, last], {"keepdims": 1}) for op in ("ReduceMax", "ReduceMin"))
        steps = edit.op("Max", [edit.op("Mul", [high, above]), edit.op("Mul", [low, below])])
        return [reduce(edit, "ReduceSum", edit.op("Mul", [steps, steps]))]

    def finish(self, parts: Sequence[Array], count: int) -> Array:
        """Sum over count."""
        return np.asarray(parts[0] / count, np.float32)

    def size(self, channels: int) -> int:
        """Bytes held while batches are added."""
        return 12 * len(ZERO_POINTS)


HISTOGRAM_STEPS = 32
"""Bins of a :class:`Histogram` for each doubling of the magnitude: their edges are 2 % apart."""
HISTOGRAM_LEAST, HISTOGRAM_MOST = -24, 24
"""Powers of two of the least and the largest magnitude that have bins of their own; the outer bins take the rest."""
HISTOGRAM_BINS = HISTOGRAM_STEPS * (HISTOGRAM_MOST - HISTOGRAM_LEAST)
"""Bins of each sign."""


@dataclass(frozen=True)
class Histogram(Observer):
    """Least, largest, and how many numbers are in each bin of a whole tensor: [2 + 2 B], B = ``HISTOGRAM_BINS``.

    Bins are of equal width in log2 |x|, so that one run over the data serves whatever range the numbers have; first
    those of the numbers >= 0 by growing magnitude (zero is in the first), then those of the negative ones.
    """

    parts = ("min", "max", "sum", "sum")
    per_tensor = True

    def insert(self, edit: Editor, tokens: onnx_ir.Value) -> Sequence[onnx_ir.Value]:
        """ReduceMin, ReduceMax, ReduceSum, and ScatterElements of ones."""
        flat = edit.op("Reshape", [tokens, edit.ints([-1])])
        number = partial(_number, edit)
        log = edit.op("Log", [edit.op("Max", [edit.op("Abs", [flat]), number(2.0**HISTOGRAM_LEAST)])])
        place = edit.op("Mul", [log, number(HISTOGRAM_STEPS / math.log(2))])
        place = edit.op("Floor", [edit.op("Sub", [place, number(HISTOGRAM_STEPS * HISTOGRAM_LEAST)])])
        place = edit.op("Clip", [place, number(0), number(HISTOGRAM_BINS - 1)])
        negative = edit.op("Cast", [edit.op("Less", [flat, number(0)])], {"to": onnx_ir.DataType.FLOAT.value})
        place = edit.op("Add", [place, edit.op("Mul", [negative, number(HISTOGRAM_BINS)])])
        place = edit.op("Cast", [place], {"to": onnx_ir.DataType.INT64.value})
        one = edit.op("Expand", [edit.initializer(np.asarray([1], np.int32), "one"), edit.op("Shape", [flat])])
        zeros = edit.initializer(np.zeros(2 * HISTOGRAM_BINS, np.int32), "bins")
        counts = edit.op("ScatterElements", [zeros, place, one], {"axis": 0, "reduction": "add"})
        return [*(reduce(edit, op, tokens) for op in ("ReduceMin", "ReduceMax", "ReduceSum")), counts]

    def finish(self, parts: Sequence[Array], count: int) -> Array:
        """The least and the largest before the counts."""
        return np.concatenate([parts[0], parts[1], parts[3]]).astype(np.float32)

    def size(self, channels: int) -> int:
        """Bytes of the counts of one batch and of their total."""
        return 12 * 2 * HISTOGRAM_BINS


def _number(edit: Editor, value: float) -> onnx_ir.Value:
    return edit.initializer(np.asarray(value, np.float32), "number")


def reduce(edit: Editor, op: str, tokens: onnx_ir.Value) -> onnx_ir.Value:
    """``op`` over the tokens of [T, K]: [K]."""
    opset = edit.graph.opset_imports.get("", 1)
    if opset >= (13 if op == "ReduceSum" else 18):
        return edit.op(op, [tokens, edit.ints([0], "tokens_axis")], {"keepdims": 0})
    return edit.op(op, [tokens], {"axes": [0], "keepdims": 0})


def combine(how: How, total: Array | None, batch: Array) -> Array:
    """``total`` with one more batch, in place where it can be."""
    if how == "sum":
        if total is None:
            return batch.astype(np.float64)
        total += batch
        return total
    if total is None:
        return batch.copy()
    function = np.maximum if how == "max" else np.minimum
    return np.asarray(function(total, batch))


def total(get: Callable[[str], Array], names: Sequence[str]) -> Array:
    """The sum of a statistic over several values, at least one."""
    found = np.array(get(names[0]))
    for name in names[1:]:
        found += get(name)
    return found
