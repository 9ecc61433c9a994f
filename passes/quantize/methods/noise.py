"""How much rounding disturbs the weights of a matrix."""

from __future__ import annotations

import numpy as np

from ....ir.noise import decibels
from ..scheme import Scheme
from .rtn import Array, Codes, as_float32, dequantize

_ROWS = 256
"""Output channels of a matrix that are looked at: as many as say enough about all."""


def weight_noise(
    weights: Array, codes: Codes, scheme: Scheme, *, transposed: bool, packed: bool, signal: Array | None = None
) -> float:
    """Signal to noise of a rounded matrix in dB, by at most 256 evenly spaced output channels.

    Args:
        weights: ``[n, k]``, or ``[k, n]`` if ``transposed``; any float type.
        codes: as :func:`~.rtn.quantize` returned them.
        scheme: bits, group size, symmetry.
        transposed: channels are columns.
        packed: codes are packed two a byte.
        signal: what counts as the signal, of the shape of ``weights``, where these are not the whole of it.
    """
    n, k = weights.shape[::-1] if transposed else weights.shape
    rows = np.linspace(0, n - 1, min(n, _ROWS)).astype(int)
    part, power = (
        as_float32(whole[:, rows].T if transposed else whole[rows])
        for whole in (weights, weights if signal is None else signal)
    )
    chosen = codes.codes[rows]
    if packed and scheme.stored_bits == 4:
        chosen = np.stack([chosen & 15, chosen >> 4], axis=2).reshape(len(rows), -1)[:, :k]
    zeros = None if codes.zero_points is None else codes.zero_points[rows]
    error = dequantize(Codes(chosen, codes.scales[rows], zeros), scheme, k) - part
    return decibels(float((power.astype(np.float64) ** 2).sum()), float((error.astype(np.float64) ** 2).sum()))
