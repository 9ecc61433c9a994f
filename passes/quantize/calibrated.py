"""Rounding for calibration inputs: a Hessian for each distinct input of the products, and codes out of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir

from ...ir.errors import CalibrationError, ModelError
from ...ir.graph import SPARSITY, Graph, tensor_of
from ...ir.noise import OUTPUT_NOISE, WEIGHT_NOISE, decibels
from .. import propagation
from ..base import Context, Outcome, Request, Sequential
from ..statistics import Hessian, total
from . import beside, offsets
from .methods import columns, gptq, learned, ranges, refine, rtn
from .methods.rtn import Array, Codes
from .scheme import Scheme
from .targets import Weight
from .tensors import packs
from .tensors import precision as stored_precision


@dataclass(frozen=True)
class Rounded:
    """A weight after rounding.

    Attributes:
        codes: packed as :func:`~.tensors.packs` says.
        figures: for the report.
        columns: input channels that stay in floating point beside the codes, int64, or None.
        kept: their weights ``[n, count]``, to be added to what the codes stand for, or None.
        held: offsets of the groups, as :func:`~.offsets.stored` makes them, or None.
    """

    codes: Codes
    figures: dict[str, Any]
    columns: Array | None
    kept: Array | None
    held: onnx_ir.TensorProtocol | None = None


class Calibrated:
    """Rounds weights for the inputs that their products see on the calibration data.

    Args:
        graph: as it is before any of the weights is replaced.
        weights: those to round.
        context: gives the statistics.
        method: ``"gptq"``, ``"clip"`` for rounding to nearest in ranges that were searched for, ``"signround"``, or
            ``"learned_clip"``.
        rounds: how often codes and scales are improved after GPTQ, see :func:`~.methods.refine.refine`.
        propagate: one of :data:`~..propagation.MODES`; weights must then be rounded by :meth:`rank`.
        outcome: gets remarks.

    Raises:
        CalibrationError: there are no calibration inputs, or they give no finite statistics.
    """

    def __init__(
        self,
        graph: Graph,
        weights: Sequence[Weight],
        context: Context,
        method: str = "gptq",
        rounds: int = refine.ROUNDS,
        propagate: str = "off",
        outcome: Outcome | None = None,
    ) -> None:
        values = self.request(weights)[0]
        # Asked even for nothing, where data were asked for by name and there are none.
        asked = bool(values) or not context.has_calibration
        self._walk = propagation.begin(values, context, propagate, outcome) if values else None
        self._errors, self._weights = propagate != "inputs", weights
        asked = asked and self._walk is None
        self._hessians = context.statistics(values, Hessian()) if asked else {}
        self.method, self._rounds = method, rounds
        # Products of the same input follow each other.
        self._corrected: tuple[tuple[str, ...], Array] | None = None
        self._last: tuple[tuple[str, ...], Array, gptq.Feedback] | None = None
        self._found: dict[tuple[str, Scheme], Rounded] | None = None

    def remember(self) -> None:
        """From now on keep the codes of each weight: a trial asks for them, the next one, and then what comes out."""
        self._found = {}

    @classmethod
    def request(cls, weights: Sequence[Weight]) -> Request:
        """The statistics that are asked for, where errors are not propagated."""
        known = [weight for weight in weights if cls.obstacle(weight) is None]
        return list({value.name: value for weight in known for value in _inputs(weight)}.values()), Hessian()

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

    def rank(self, weight: Weight) -> int:
        """When a weight's turn is, where errors propagate: those rounded to nearest come first."""
        rounded = not any(weight is other for other in self._weights) or self.obstacle(weight) is not None
        return -1 if self._walk is None or rounded else propagation.rank(self._walk, _inputs(weight))

    def nearest(self, weight: Weight, scheme: Scheme) -> None:
        """Take note that a weight is rounded to nearest."""
        tensor = tensor_of(weight.value)
        if self._walk is None or tensor is None or scheme.format != "int":
            return

        k, turned, kind = weight.channels[1], weight.layout == "kn", stored_precision(weight, scheme)

        def restored() -> Array:
            held = offsets.deferred(weight, scheme) if scheme.offsets else None
            array = tensor.numpy() if held is None else offsets.left(weight, held).numpy()
            codes = rtn.quantize(array, scheme, transposed=turned, precision=kind.numpy())
            found = rtn.dequantize(codes, scheme, k)
            if held is not None:
                found += offsets.spread(offsets.read(held), k)
            return (found.T if turned else found).reshape(array.shape)

        self._walk.replace(weight.value, restored)

    def codes(self, weight: Weight, scheme: Scheme, keep: int | Array = 0) -> Rounded:
        """Codes of a weight, packed as :func:`~.tensors.packs` says, and figures for the report.

        The figures are the relative squared error of the outputs on the calibration inputs (``output_error``), the same
        for rounding to nearest (``output_error_rtn``) and, where it had to be raised, the ``damping``.

        Args:
            weight: one without obstacle.
            scheme: bits, group size, symmetry.
            keep: number of its input channels to leave in floating point, or which.

        Raises:
            CalibrationError: the statistics of an input are no Hessian.
            ModelError: a weight is infinite or not a number.
        """
        name, whole = weight.value.name or "", isinstance(keep, int) and not keep
        if self._found is None or self._walk is not None or not whole:
            return self._compute(weight, scheme, keep)
        if (name, scheme) not in self._found:
            self._found[name, scheme] = self._compute(weight, scheme, keep)
        return self._found[name, scheme]

    def left(self, weight: Weight, scheme: Scheme, rows: Array) -> float:
        """The part of the output error of rounding to nearest that is left, on some output channels of a weight.

        Output channels are rounded each for itself, so a few tell of all.

        Raises:
            CalibrationError, ModelError: see :meth:`codes`.
        """
        figures = self._compute(weight, scheme, 0, rows).figures
        plain: float = figures["output_error_rtn"]
        return min(figures["output_error"] / plain, 1.0) if plain else 1.0

    def _compute(self, weight: Weight, scheme: Scheme, keep: int | Array, rows: Array | None = None) -> Rounded:
        tensor = tensor_of(weight.value)
        assert tensor is not None
        hessian, feedback = self._feedback(weight)
        array = tensor.numpy()
        matrix = rtn.as_float32(array.T if weight.layout == "kn" else array)
        if rows is not None:
            matrix = matrix[rows]
        if self._walk is not None and self._errors:
            matrix = propagation.propagated(matrix, self._correction(weight, hessian, self._walk))
        k, precision = matrix.shape[1], stored_precision(weight, scheme).numpy()
        power, square = gptq.output_error(matrix, hessian), _square(matrix)
        held: onnx_ir.TensorProtocol | None = None
        if scheme.offsets:
            held = offsets.stored(offsets.find(matrix, scheme), weight, scheme)
            matrix = offsets.without(matrix, offsets.read(held))
        which: Array | None = None
        try:
            nearest = rtn.quantize(matrix, scheme, precision=precision)
            difference = rtn.dequantize(nearest, scheme, k)
            difference -= matrix
            plain = gptq.output_error(difference, hessian)
            rounded, effective = matrix, hessian
            if not isinstance(keep, int) or keep:
                which = columns.most_sensitive(difference, hessian, min(keep, k)) if isinstance(keep, int) else keep
                rounded, effective = matrix.copy(), columns.without(hessian, which)
                rounded[:, which] = 0
                feedback = self._decompose(weight, effective)
            del nearest, difference
            zeros = matrix == 0 if any(SPARSITY in node.metadata_props for node in weight.products) else None
            codes = self._round(rounded, effective, feedback, scheme, precision, zeros)
        except FloatingPointError as error:
            where = f"weight {weight.value.name!r}"
            raise ModelError(f"{error}", where=where, fix="exclude it, or repair the model") from error
        left = rtn.dequantize(codes, scheme, k)
        np.subtract(matrix, left, out=left)
        kept: Array | None = None
        if which is not None:
            kept = beside.stored(columns.kept(left, hessian, which), tensor.dtype)
            left[:, which] -= kept.astype(np.float32)
        if self._walk is not None:
            restored = matrix - left
            if held is not None:
                restored += offsets.spread(offsets.read(held), k)
            self._walk.replace(weight.value, (restored.T if weight.layout == "kn" else restored).reshape(array.shape))
        figures: dict[str, Any] = {"method": self.method}
        lost = gptq.output_error(left, hessian)
        for name, part in (("output_error", lost), ("output_error_rtn", plain)):
            figures[name] = float(f"{part / power:.3g}") if power > 0 else 0.0
        figures[WEIGHT_NOISE] = decibels(square, _square(left))
        figures[OUTPUT_NOISE] = decibels(power, lost)
        if feedback.damping != gptq.DAMPING:
            figures["damping"] = feedback.damping
        if packs(weight, scheme):
            codes = Codes(rtn.pack(codes.codes), codes.scales, codes.zero_points)
        return Rounded(codes, figures, which, kept, held)

    def _round(
        self,
        matrix: Array,
        hessian: Array,
        feedback: gptq.Feedback,
        scheme: Scheme,
        precision: Any,
        zeros: Array | None,
    ) -> Codes:
        """Codes of a matrix; weights that a pattern made zero stay zero."""
        if self.method in ("signround", "learned_clip"):
            shifts = self.method == "signround"
            codes = learned.learn(matrix, hessian, scheme, shifts=shifts, precision=precision)
            return codes if zeros is None else _with_zeros(codes, zeros, scheme)
        if self.method == "clip":
            return ranges.quantize(matrix, hessian.diagonal(), scheme, precision=precision)
        codes = gptq.quantize(matrix, feedback, scheme, precision=precision, pruned=zeros)
        if self._rounds:
            codes = refine.refine(
                matrix, codes, hessian, scheme, rounds=self._rounds, precision=precision, pruned=zeros
            )
        return codes

    def _feedback(self, weight: Weight) -> tuple[Array, gptq.Feedback]:
        names = tuple(value.name or "" for value in _inputs(weight))
        if self._last is None or self._last[0] != names:
            hessian = total(self._hessians.__getitem__ if self._walk is None else self._walk.hessian, names)
            feedback = self._decompose(weight, hessian)
            self._last = (names, hessian, feedback)
        return self._last[1], self._last[2]

    def _correction(self, weight: Weight, hessian: Array, walk: Sequential) -> Array:
        names = tuple(value.name or "" for value in _inputs(weight))
        if self._corrected is None or self._corrected[0] != names:
            self._corrected = (names, propagation.correction(hessian, total(walk.cross, names)))
        return self._corrected[1]

    @staticmethod
    def _decompose(weight: Weight, hessian: Array) -> gptq.Feedback:
        try:
            return gptq.decompose(hessian)
        except FloatingPointError as error:
            name = _inputs(weight)[0].name
            fix = "look for unusual numbers in the calibration inputs"
            raise CalibrationError(str(error), where=f"input {name!r}", fix=fix) from error


def _square(matrix: Array) -> float:
    """The sum of squares, in float64 without a copy."""
    return float(np.einsum("nk,nk->", matrix, matrix, dtype=np.float64))


def _with_zeros(codes: Codes, zeros: Array, scheme: Scheme) -> Codes:
    """Codes of which some stand for zero."""
    k = codes.codes.shape[1]
    middle = (
        np.full_like(codes.scales, scheme.levels // 2, np.uint8) if codes.zero_points is None else codes.zero_points
    )
    spread = np.repeat(middle, scheme.group(k), axis=1)[:, :k]
    return Codes(np.where(zeros, spread, codes.codes), codes.scales, codes.zero_points)


def _inputs(weight: Weight) -> list[onnx_ir.Value]:
    """The distinct values that are multiplied by a weight."""
    values = [node.inputs[0] for node in weight.products]
    return list(dict.fromkeys(value for value in values if value is not None))
