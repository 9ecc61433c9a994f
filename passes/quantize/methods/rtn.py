"""Round-to-nearest quantization of weights, group by group.

Survey, section 3.1: codes are ``Q(r) = round(r / S) + Z`` (equation 3), restored as ``S (Q(r) - Z)`` (equation 4), with
``S = (beta - alpha) / (2^b - 1)`` (equation 6) over the range ``[alpha, beta]`` of the group; section 3.3.1 applies it
to weights alone.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..scheme import Scheme

Array = np.ndarray[Any, Any]

# Rows are worked on in blocks that stay in the second-level cache.
_BLOCK = 1 << 17
_TINY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Codes:
    """A quantized matrix of ``n`` channels of ``k`` weights, in ``g`` groups a channel.

    Attributes:
        codes: uint8 ``[n, k]``, or ``[n, ceil(k / 2)]`` packed two a byte, the first in the low half.
        scales: float32 ``[n, g]``; negative where the group's largest weight decided the sign (symmetric).
        zero_points: uint8 ``[n, g]``, unpacked; None if symmetric (the middle code).
    """

    codes: Array
    scales: Array
    zero_points: Array | None


def as_float32(array: Array) -> Array:
    """``array`` (float32, float16, bfloat16, float64) as float32, contiguous."""
    if array.dtype.name == "bfloat16":
        # A bfloat16 is the upper half of a float32; ml_dtypes' own conversion is several times slower.
        wide = np.ascontiguousarray(array).view(np.uint16).astype(np.uint32)
        wide <<= 16
        return wide.view(np.float32)
    return np.ascontiguousarray(array, dtype=np.float32)


def pack(codes: Array) -> Array:
    """Codes below 16, uint8 ``[n, k]``, two a byte: ``[n, ceil(k / 2)]``, the first of a pair in the low half."""
    if codes.shape[1] % 2:
        codes = np.pad(codes, ((0, 0), (0, 1)))
    packed: Array = codes[:, 0::2] | (codes[:, 1::2] << 4)
    return packed


def unpack(codes: Array, k: int) -> Array:
    """The reverse of :func:`pack`: uint8 ``[n, k]``."""
    return np.stack([codes & 15, codes >> 4], axis=2).reshape(len(codes), -1)[:, :k]


def quantize(
    weights: Array, scheme: Scheme, *, transposed: bool = False, packed: bool = False, precision: Any = np.float32
) -> Codes:
    """Quantize a matrix, channel by channel.

    Args:
        weights: ``[n, k]``, or ``[k, n]`` if ``transposed``; any float type, not copied as a whole.
        scheme: bits, group size, symmetry.
        transposed: channels are columns.
        packed: pack 4-bit codes two a byte along each channel.
        precision: element type that the scales will be stored in; the codes are chosen for scales rounded to it.

    Raises:
        FloatingPointError: a weight is infinite or not a number.
    """
    n, k = weights.shape[::-1] if transposed else weights.shape
    groups = scheme.groups(k)
    pairs = packed and scheme.stored_bits == 4
    codes = np.empty((n, -(-k // 2) if pairs else k), np.uint8)
    scales = np.empty((n, groups), np.float32)
    zeros = None if scheme.symmetric else np.empty((n, groups), np.uint8)
    rows = max(1, _BLOCK // max(k, 1))
    work = _symmetric if scheme.symmetric else _asymmetric

    def block(start: int) -> None:
        stop = min(start + rows, n)
        part = as_float32(weights[:, start:stop].T if transposed else weights[start:stop])
        group = scheme.group(k)
        short = groups * group - k
        if short:
            # Repeating the last weight of a channel changes no group's range.
            part = np.pad(part, ((0, 0), (0, short)), mode="edge")
        scale, zero, result = work(part.reshape(stop - start, groups, group), scheme.levels, precision)
        scales[start:stop] = scale
        if zeros is not None:
            zeros[start:stop] = zero
        flat = result.reshape(stop - start, -1)[:, :k]
        codes[start:stop] = pack(flat) if pairs else flat

    starts = range(0, n, rows)
    if n * k < 1 << 20:
        for start in starts:
            block(start)
    else:
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            list(pool.map(block, starts))
    if not np.isfinite(scales).all():
        raise FloatingPointError("a weight is infinite or not a number")
    return Codes(codes, scales, zeros)


def _asymmetric(part: Array, levels: int, precision: Any) -> tuple[Array, Array | None, Array]:
    # Zero stays exactly representable: a pruned weight stays pruned.
    low = np.minimum(part.min(axis=2), 0)
    high = np.maximum(part.max(axis=2), 0)
    with np.errstate(invalid="ignore", over="ignore"):
        scale = rounded((high - low) / np.float32(levels - 1), precision)
        zero = np.rint(-low / scale)
        part = part * (1 / scale)[..., None]
        np.rint(part, out=part)
        part += zero[..., None]
        np.clip(part, 0, levels - 1, out=part)
        return scale, np.clip(zero, 0, levels - 1).astype(np.uint8), part.astype(np.uint8)


def _symmetric(part: Array, levels: int, precision: Any) -> tuple[Array, Array | None, Array]:
    low, high = part.min(axis=2), part.max(axis=2)
    # The weight of largest magnitude becomes -levels / 2, the end of the range that has one code more; the scale takes
    # the opposite sign. Dividing by levels / 2 - 1 instead would leave that code unused and the steps wider.
    largest = np.where(np.isnan(low) | (-low > high), low, high)
    with np.errstate(invalid="ignore", over="ignore"):
        scale = rounded(largest / np.float32(-(levels // 2)), precision)
        part = part * (1 / scale)[..., None]
        np.rint(part, out=part)
        part += levels // 2
        np.clip(part, 0, levels - 1, out=part)
        return scale, None, part.astype(np.uint8)


def rounded(scale: Array, precision: Any) -> Array:
    """Scales as they will be stored; a group of zeros has scale 1."""
    nothing = np.abs(scale) < _TINY
    if precision != np.float32:
        scale = scale.astype(precision).astype(np.float32)
    if precision == np.float16:
        # What vanishes in 16 bits gets their smallest number: with scale 1 tiny weights would all become zero.
        lost = (scale == 0) & ~nothing
        scale[lost] = np.finfo(np.float16).smallest_subnormal
    scale[nothing] = 1
    return scale


def dequantize(quantized: Codes, scheme: Scheme, k: int) -> Array:
    """The matrix ``[n, k]`` that unpacked codes stand for, float32 (equation 4)."""
    group = scheme.group(k)
    zero: Any = scheme.levels // 2
    if quantized.zero_points is not None:
        zero = np.repeat(quantized.zero_points.astype(np.float32), group, axis=1)[:, :k]
    result: Array = quantized.codes.astype(np.float32)
    # In place: of a head, each copy is hundreds of megabytes.
    result -= zero
    del zero
    result *= np.repeat(quantized.scales, group, axis=1)[:, :k]
    return result
