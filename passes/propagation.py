"""Errors that go from product to product: what passes that compress weights one after the other do about them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir

from ..ir.errors import OptionError, UnsupportedError, nearest
from .base import Context, Outcome, Sequential, without_data
from .statistics import Array

MODES = ("off", "inputs", "errors", "auto")
"""Statistics of the float model's inputs; of the inputs that weights compressed before make (as GPTQ, SparseGPT and
Wanda measure them); of these, with weights that first make up for the errors of their inputs (GPTAQ, Li et al. 2025);
the last where there are calibration inputs and the reference backend runs the model."""
DAMPING = 0.01
"""Added to the diagonal of the Hessian, relative to its mean, where weights make up for errors of their inputs."""


def check(mode: str, where: str) -> None:
    """Refuse a value of the option ``propagate`` that does not exist.

    Raises:
        OptionError: it does not.
    """
    if mode not in MODES:
        raise OptionError(f"propagate={mode!r} does not exist", where=where, fix=nearest(str(mode), MODES))


def resolved(mode: str, context: Context) -> str:
    """What a mode comes to: ``"auto"`` is off where there is no data."""
    return "off" if mode == "auto" and context.sequential is None else mode


def begin(
    values: Sequence[onnx_ir.Value], context: Context, mode: str, outcome: Outcome | None = None
) -> Sequential | None:
    """Inputs measured in order, if they are to be.

    Args:
        values: the inputs.
        context: gives them.
        mode: one of :data:`MODES`.
        outcome: gets the remark that ``"auto"`` cannot be done.

    Raises:
        CalibrationError: there are no calibration inputs.
        UnsupportedError: the reference backend does not run the model.
    """
    mode = resolved(mode, context)
    if mode == "off":
        return None
    if context.sequential is None:
        raise without_data("propagate=")
    try:
        return context.sequential(values, mode != "inputs")
    except UnsupportedError as error:
        if mode != "auto":
            raise
        if outcome is not None:
            outcome.missed(error.where or "", f"errors before a product are not made up for: {error.what}")
        return None


def rank(walk: Sequential, values: Sequence[onnx_ir.Value]) -> int:
    """The round behind which a weight can be compressed that multiplies these; -1 for one that multiplies nothing."""
    return max((walk.rank(value.name or "") for value in values), default=-1)


def propagated(matrix: Array, correction: Array) -> Array:
    """Weights [N, K] that make up for the errors of their inputs, by their :func:`correction`."""
    return np.asarray(matrix + matrix @ correction, np.float32)


def correction(hessian: Array, cross: Array) -> Array:
    """What weights change by, relative to themselves, to make up for the errors of their inputs: float32 [K, K].

    The mean of ``|W f - V x|²`` is least for ``V = W E[f xᵀ] E[x xᵀ]⁻¹`` (whose difference from W GPTAQ, Li et al.
    2025, spreads over GPTQ's steps). It is found as a step away from W, so that damping draws it back to W.

    Args:
        hessian: mean of ``x xᵀ``, [K, K].
        cross: mean of ``x fᵀ``, f the inputs of the float model, [K, K].
    """
    damped = hessian.astype(np.float64)
    damped.flat[:: len(damped) + 1] += DAMPING * max(float(np.mean(hessian.diagonal())), 1e-30)
    step = np.linalg.solve(damped, (cross - hessian).astype(np.float64))
    return np.ascontiguousarray(step.T, np.float32)
