"""How weights with the pattern 2:4 lie in memory for the kernels.

A *quad* is 4 neighbouring input channels of a row, of which the pattern 2:4 keeps two. Values come in two planes, the
first kept value of each quad and the second, so that neighbouring threads read neighbouring numbers. Which two they are
is a mask of 4 bits; a byte has those of two quads of a block of 32, quad j below and quad j + 16 above. With 4-bit
codes a quad is one byte: the code of the first value in the low half.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...ir.errors import ModelError

BLOCK = 32
"""Quads of a block: columns are padded to whole blocks."""
_COLUMNS = 4 * BLOCK
_HALF = _COLUMNS // 2
"""Columns of half a block, which may have a scale of their own."""


@dataclass(frozen=True)
class Sparse24:
    """A matrix [N, K] with the pattern 2:4.

    Attributes:
        values: [2, N, K / 4], the first and the second kept value of each quad.
        masks: uint8 [N, K / 8], where they are.
        columns: K before it was padded to a multiple of 128.
    """

    values: Tensor
    masks: Tensor
    columns: int

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K), K padded."""
        return self.values.shape[1], 4 * self.values.shape[2]


@dataclass(frozen=True)
class Sparse24Codes:
    """A matrix [N, K] with the pattern 2:4 in 4-bit codes; a code c stands for (c - 8) scale.

    Attributes:
        codes: uint8 [N, K / 4], one byte a quad.
        masks: uint8 [N, K / 8].
        scales: [N, K / group].
        group: columns that share a scale.
        columns: K before it was padded to a multiple of 128.
    """

    codes: Tensor
    masks: Tensor
    scales: Tensor
    group: int
    columns: int

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K), K padded."""
        return self.codes.shape[0], 4 * self.codes.shape[1]


def pack24(weights: Tensor) -> Sparse24:
    """Pack [N, K] weights, of which in every quad at most two are not zero.

    Raises:
        ModelError: a quad has more, which one is said; or K is no multiple of 4.
    """
    values, places = _chosen(weights)
    return Sparse24(torch.stack([values[..., 0], values[..., 1]]).contiguous(), _masks(places), weights.shape[1])


def unpack24(packed: Sparse24) -> Tensor:
    """The weights [N, K]."""
    values = packed.values.permute(1, 2, 0)
    return _spread(values, _unmasks(packed.masks))[:, : packed.columns]


def quantize24(weights: Tensor, group: int = 64) -> Sparse24Codes:
    """Round [N, K] weights with the pattern 2:4 to 4 bits, one scale for ``group`` columns.

    Raises:
        ModelError: the pattern is violated, or K is no multiple of the group.
    """
    _check_group(weights, group)
    values, places = _chosen(weights)
    n, quads, _ = values.shape
    # What pads the last block has scales, too.
    grouped = values.reshape(n, -1, group // 4 * 2)
    scales = _scales(grouped)
    codes = _round(grouped, scales).reshape(n, quads, 2)
    packed = codes[..., 0] | (codes[..., 1] << 4)
    return Sparse24Codes(packed.to(torch.uint8).contiguous(), _masks(places), scales.to(weights.dtype), group,
                         weights.shape[1])  # fmt: skip


def pack24_codes(places: Tensor, scales: Tensor, group: int) -> Sparse24Codes:
    """Pack 4-bit codes [N, K], 8 for zero, whose weights have the pattern 2:4, with scales [N, K / group].

    Raises:
        ModelError: the pattern is violated, or K is no multiple of the group.
    """
    _check_group(places, group)
    values, at = _chosen(places.to(torch.int8) - 8)
    codes = (values + 8).to(torch.uint8)
    short = values.shape[1] * 4 // group - scales.shape[1]
    padded = torch.nn.functional.pad(scales, (0, short), value=1.0)
    return Sparse24Codes((codes[..., 0] | (codes[..., 1] << 4)).contiguous(), _masks(at), padded, group,
                         places.shape[1])  # fmt: skip


def dequantize24(packed: Sparse24Codes) -> Tensor:
    """The weights [N, K] that the codes stand for."""
    low, high = packed.codes & 15, packed.codes >> 4
    values = torch.stack([low, high], -1).to(packed.scales.dtype) - 8
    values = values * packed.scales.repeat_interleave(packed.group // 4, 1).unsqueeze(-1)
    return _spread(values, _unmasks(packed.masks))[:, : packed.columns]


def _check_group(weights: Tensor, group: int) -> None:
    if group not in (_HALF, _COLUMNS) or weights.shape[1] % group:
        raise ModelError(
            f"{weights.shape[1]} input channels are no multiple of the group of {group}, or no kernel has that group",
            where="backends/triton", fix=f"choose a group of {_HALF} or {_COLUMNS} that divides them",
        )  # fmt: skip


def _scales(grouped: Tensor) -> Tensor:
    largest = grouped.abs().amax(-1).float() / 7
    return torch.where(largest == 0, torch.ones_like(largest), largest)


def _round(grouped: Tensor, scales: Tensor) -> Tensor:
    return (torch.round(grouped.float() / scales.unsqueeze(-1)).clamp(-8, 7) + 8).to(torch.int32)


def _chosen(weights: Tensor) -> tuple[Tensor, Tensor]:
    """Kept values [N, K / 4, 2] and their places, K padded to whole blocks."""
    if weights.dim() != 2 or weights.shape[1] % 4:
        raise ModelError(
            f"weights of shape {list(weights.shape)} have no whole quads", where="backends/triton",
            fix="use a matrix whose input channels are a multiple of 4",
        )  # fmt: skip
    short = -weights.shape[1] % _COLUMNS
    padded = torch.nn.functional.pad(weights, (0, short))
    quads = padded.reshape(len(padded), -1, 4)
    nonzero = quads != 0
    if bool((nonzero.sum(-1) > 2).any()):
        row, quad = (int(i) for i in torch.nonzero(nonzero.sum(-1) > 2)[0])
        raise ModelError(
            f"row {row} has more than 2 weights other than zero in columns {4 * quad} to {4 * quad + 3}",
            where="backends/triton", fix='prune with pattern="2:4" first',
        )  # fmt: skip
    # Those that are not zero first, in their order; zeros fill up what is missing.
    order = torch.argsort((~nonzero).to(torch.int8), dim=-1, stable=True)[..., :2].sort(-1).values
    return quads.gather(-1, order), order


def _masks(places: Tensor) -> Tensor:
    bits = ((1 << places[..., 0]) | (1 << places[..., 1])).to(torch.uint8).reshape(len(places), -1, 2, BLOCK // 2)
    return (bits[:, :, 0] | (bits[:, :, 1] << 4)).reshape(len(places), -1).contiguous()


def _unmasks(masks: Tensor) -> Tensor:
    """Places [N, K / 4, 2] of the bits."""
    grouped = masks.reshape(len(masks), -1, 1, BLOCK // 2)
    nibbles = torch.cat([grouped & 15, grouped >> 4], 2).reshape(len(masks), -1)
    bits = (nibbles.unsqueeze(-1) >> torch.arange(4, device=masks.device)) & 1
    return torch.argsort(1 - bits.to(torch.int8), dim=-1, stable=True)[..., :2]


def _spread(values: Tensor, places: Tensor) -> Tensor:
    quads = torch.zeros(*values.shape[:2], 4, dtype=values.dtype, device=values.device)
    return quads.scatter(-1, places, values).reshape(len(values), -1)
