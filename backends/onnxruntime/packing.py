"""Byte layout of block-quantized weights in ONNX Runtime's contrib operators, as pure functions.

``MatMulNBits`` takes codes as uint8 ``[N, blocks, block_size * bits / 8]``, low bits first, the last block of a row
padded; zero points as uint8 ``[N, ceil(blocks * bits / 8)]``, each row padded to a byte; scales as ``[N, blocks]``.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

BLOCKS = (16, 32, 64, 128, 256)
"""Block sizes that the kernels take."""


def pack_rows(codes: Array, bits: int) -> Array:
    """Codes, uint8 ``[n, k]``, as bytes ``[n, ceil(k * bits / 8)]``."""
    if bits == 8:
        return np.ascontiguousarray(codes)
    if codes.shape[1] % 2:
        codes = np.pad(codes, ((0, 0), (0, 1)))
    packed: Array = codes[:, 0::2] | (codes[:, 1::2] << 4)
    return packed


def pack_blocks(codes: Array, bits: int, block: int) -> Array:
    """Codes, uint8 ``[n, k]``, in blocks: uint8 ``[n, ceil(k / block), block * bits / 8]``."""
    n, k = codes.shape
    blocks = -(-k // block)
    if blocks * block != k:
        codes = np.pad(codes, ((0, 0), (0, blocks * block - k)))
    return pack_rows(codes, bits).reshape(n, blocks, block * bits // 8)


def block_for_channel(k: int, bits: int) -> int:
    """The block size that stores channels of ``k`` weights with one scale (repeated) in the fewest bytes."""
    return min(BLOCKS[1:], key=lambda block: (-(-k // block) * (block * bits // 8 + 4), -block))
