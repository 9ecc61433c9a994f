"""Ratios of signal to noise, and what they are called among the values of a remark."""

from __future__ import annotations

import math

WEIGHT_NOISE, OUTPUT_NOISE = "weight_signal_to_noise", "output_signal_to_noise"
"""Names of these figures, in dB, among the values of a remark."""


def decibels(power: float, lost: float) -> float:
    """Ratio of signal to noise in dB, at most 200: beyond, numbers of float32 are the same."""
    if lost <= power * 1e-20:
        return 200.0
    return round(10 * math.log10(power / lost), 2) if power > 0 else 0.0
