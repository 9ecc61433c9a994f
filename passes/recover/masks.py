"""What is added to attention scores before the softmax, in the form that ``Attention`` takes.

ONNX Runtime's kernel wants a mask with explicit query and key axes, and gives zero for a row whose mask is nowhere
above the lowest finite number. A decomposed softmax gives the mean of the values for a row of lowest finite numbers,
and NaN for a row of -inf. The masks built here keep what the original does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir

from ...ir.graph import dims, is_op, rank, tensor_of
from ...ir.rewrite import Editor
from ...ir.symbolic import same
from .match import FLOATS, strip

_MOVES = ("Unsqueeze", "Squeeze", "Reshape", "Expand", "Slice", "Transpose", "Gather", "Tile", "Flatten", "Split")
_LARGEST_READ = 1 << 24
_DOMINATED = -9e3
"""A fill this low leaves probability 0 beside any score that a float32 model computes (exp(-100) is denormal)."""


class Refused(Exception):
    """Attention would not compute the same; the message says why."""


@dataclass(frozen=True)
class Bias:
    """``value`` is added to the scores."""

    value: onnx_ir.Value


@dataclass(frozen=True)
class Fill:
    """Scores are replaced by the number ``fill`` where ``condition`` is ``masked``."""

    condition: onnx_ir.Value
    masked: bool
    fill: float


@dataclass(frozen=True)
class Extremes:
    """Whether a value may hold the lowest finite number (or one near it), and -inf."""

    lowest: bool
    infinite: bool

    def __or__(self, other: Extremes) -> Extremes:
        return Extremes(self.lowest or other.lowest, self.infinite or other.infinite)


_TAME, _ANY = Extremes(False, False), Extremes(True, True)


@dataclass
class Masks:
    """Masks made so far, so that all layers share them."""

    made: dict[tuple[object, ...], onnx_ir.Value] = field(default_factory=dict)
    extremes: dict[onnx_ir.Value, Extremes] = field(default_factory=dict)

    def build(
        self,
        edit: Editor,
        terms: Sequence[Bias | Fill],
        query: onnx_ir.Value,
        key: onnx_ir.Value,
        guarded: bool,
    ) -> onnx_ir.Value | None:
        """One additive mask for ``terms``, or None if there are none.

        Args:
            edit: inserts what is missing.
            terms: outermost first.
            query: [batch, heads, queries, size].
            key: [batch, heads, keys, size].
            guarded: the original replaces NaN by zero after the softmax.

        Raises:
            Refused: the terms cannot be combined into a mask that does the same.
        """
        if not terms:
            return None
        dtype = query.dtype
        assert dtype is not None
        plain = [t.value for t in terms if isinstance(t, Bias) and self.look(t.value) == _TAME]
        strong = [t for t in terms if not (isinstance(t, Bias) and t.value in plain)]
        if len(strong) > 1:
            raise Refused("two masks may hide the same row, and together they differ from one")
        for term in terms:
            _check_broadcast(term.value if isinstance(term, Bias) else term.condition, query)
        mask = self._strong(edit, strong[0], dtype, guarded) if strong else None
        for value in plain:
            if value.dtype != dtype:
                raise Refused(f"the bias has element type {value.dtype}, the queries have {dtype}")
            mask = value if mask is None else edit.op("Add", [mask, value], dtype=dtype)
        assert mask is not None
        return self._spread(edit, mask, query, key)

    def _strong(self, edit: Editor, term: Bias | Fill, dtype: onnx_ir.DataType, guarded: bool) -> onnx_ir.Value:
        key = (term, guarded)
        if key not in self.made:
            if isinstance(term, Fill):
                self.made[key] = self._filled(edit, term, dtype, guarded)
            else:
                self.made[key] = self._safe(edit, term.value, self.look(term.value), dtype, guarded)
        return self.made[key]

    def _filled(self, edit: Editor, term: Fill, dtype: onnx_ir.DataType, guarded: bool) -> onnx_ir.Value:
        fill = term.fill
        if fill != -np.inf:
            if dtype != onnx_ir.DataType.FLOAT or fill > _DOMINATED:
                raise Refused(f"masked scores become {fill:g}, which is not low enough to hide them")
            fill = float(np.finfo(np.float32).min) / 2
        zero, low = _number(edit, 0.0, dtype), _number(edit, fill, dtype)
        branches = [low, zero] if term.masked else [zero, low]
        mask = edit.op("Where", [term.condition, *branches], dtype=dtype)
        return self._safe(edit, mask, Extremes(False, fill == -np.inf), dtype, guarded)

    def _safe(
        self, edit: Editor, mask: onnx_ir.Value, extremes: Extremes, dtype: onnx_ir.DataType, guarded: bool
    ) -> onnx_ir.Value:
        """``mask`` with rows changed that the kernel would treat otherwise than a softmax does."""
        if mask.dtype != dtype:
            raise Refused(f"the mask has element type {mask.dtype}, the queries have {dtype}")
        if not _hides_a_row(mask):
            return mask
        shape = mask.shape
        if extremes.lowest:
            if dtype != onnx_ir.DataType.FLOAT:
                raise Refused("a row of lowest half-precision numbers cannot be told from a hidden one")
            # Half the lowest number hides as well, and the kernel does not take the row for an empty one.
            lowest = float(np.finfo(np.float32).min)
            if extremes.infinite:
                found = edit.op("LessOrEqual", [mask, _number(edit, lowest, dtype)], dtype=onnx_ir.DataType.BOOL)
                finite = edit.op("Not", [edit.op("IsInf", [mask], dtype=onnx_ir.DataType.BOOL, shape=shape)])
                found = edit.op("And", [found, finite], dtype=onnx_ir.DataType.BOOL, shape=shape)
                mask = edit.op("Where", [found, _number(edit, lowest / 2, dtype), mask], dtype=dtype, shape=shape)
            else:
                mask = edit.op("Max", [mask, _number(edit, lowest / 2, dtype)], dtype=dtype, shape=shape)
        if extremes.infinite and not guarded:
            # A softmax over -inf alone is NaN; the kernel passes NaN of the mask on.
            highest = edit.op("ReduceMax", [mask, edit.ints([-1])], {"keepdims": 1}, dtype=dtype)
            empty = edit.op("IsInf", [highest], {"detect_positive": 0}, dtype=onnx_ir.DataType.BOOL)
            mask = edit.op("Where", [empty, _number(edit, float("nan"), dtype), mask], dtype=dtype, shape=shape)
        return mask

    def _spread(self, edit: Editor, mask: onnx_ir.Value, query: onnx_ir.Value, key: onnx_ir.Value) -> onnx_ir.Value:
        """``mask`` with its query and key axes as long as the scores', which the kernel wants."""
        shape, q, k = dims(mask), dims(query), dims(key)
        assert q is not None and k is not None
        if shape is not None and len(shape) >= 2 and same(shape[-2], q[-2]) and same(shape[-1], k[-2]):
            return mask
        names = [str(d) if isinstance(d, int) or d.value is not None else None for d in (q[-2], k[-2])]
        memo = (mask, *names) if None not in names else (mask, query, key)
        if memo not in self.made:
            sizes = [
                edit.op("Shape", [v], {"start": 2, "end": 3}, dtype=onnx_ir.DataType.INT64, shape=[1])
                for v in (query, key)
            ]
            target = edit.op("Concat", [edit.ints([1, 1]), *sizes], {"axis": 0})
            lead = list((*([1] * 4), *(shape or ()))[-4:-2]) if shape is not None else [None, None]
            self.made[memo] = edit.op("Expand", [mask, target], dtype=mask.dtype, shape=[*lead, q[-2], k[-2]])
        return self.made[memo]

    def look(self, value: onnx_ir.Value) -> Extremes:
        """What ``value`` may hold, from the constants it is computed with."""
        value = strip(value)
        if value not in self.extremes:
            self.extremes[value] = _ANY  # while it is being looked at; graphs have no cycles
            self.extremes[value] = self._look(value)
        return self.extremes[value]

    def _look(self, value: onnx_ir.Value) -> Extremes:
        if value.dtype is not None and value.dtype not in FLOATS:
            return _TAME
        tensor = tensor_of(value)
        if tensor is not None:
            return _of_constant(tensor)
        node = value.producer()
        if node is None:
            return _ANY
        sources = [v for v in node.inputs if v is not None]
        if is_op(node, *_MOVES):
            return self.look(sources[0])
        if is_op(node, "Concat", "Add", "Sub", "Mul"):
            found = _TAME
            for source in sources:
                found |= self.look(source)
            return found
        if is_op(node, "Where"):
            return self.look(sources[1]) | self.look(sources[2])
        if is_op(node, "Cast", "Neg", "Div"):
            return self.look(sources[0])
        if is_op(node, "MatMul", "Gemm", "Conv", "LayerNormalization", "Sigmoid", "Tanh", "Softmax", "Relu"):
            return _TAME
        return _ANY


def _of_constant(tensor: onnx_ir.TensorProtocol) -> Extremes:
    if tensor.size > _LARGEST_READ or tensor.size == 0:
        return _ANY if tensor.size else _TAME
    array = np.abs(np.asarray(tensor.numpy(), dtype=np.float64))
    infinite = bool(np.isinf(array).any())
    limit = 6e4 if tensor.dtype == onnx_ir.DataType.FLOAT16 else 1e38
    return Extremes(bool((array[np.isfinite(array)] >= limit).any()), infinite)


def _hides_a_row(mask: onnx_ir.Value) -> bool:
    """Whether every element of some row may be hidden; known for constants only."""
    tensor = tensor_of(strip(mask))
    if tensor is None or tensor.size > _LARGEST_READ or len(tensor.shape) == 0:
        return True
    array = np.asarray(tensor.numpy(), dtype=np.float64)
    return bool((array.max(axis=-1) <= _DOMINATED).any())


def _number(edit: Editor, number: float, dtype: onnx_ir.DataType) -> onnx_ir.Value:
    return edit.initializer(onnx_ir.Tensor(np.asarray(number, dtype=dtype.numpy())), "mask_value")


def _check_broadcast(mask: onnx_ir.Value, query: onnx_ir.Value) -> None:
    """A mask must not have more batches or heads than the scores."""
    shape, q = dims(mask), dims(query)
    if shape is None or q is None or rank(mask) is None or len(shape) > 4:
        raise Refused("the rank of the mask is not known, or above 4")
    for have, want in zip(reversed(shape[:-2]), reversed(q[:-2]), strict=False):
        if isinstance(have, int) and have != 1 and isinstance(want, int) and have != want:
            raise Refused("the mask has another number of batches or heads than the scores")
        if want == 1 and have != 1:
            raise Refused("the mask may have more batches or heads than the scores")
