"""Dense weights in codes of 4 or 8 bits, as the kernels read them.

Codes are unsigned: an integer ``q`` of 4 bits is stored as ``q + 8``, of 8 bits as ``q + 128``, so that a code c with
the zero point z stands for ``(c - z) scale``; 8 and 128 where there are no zero points. A code may also be a place in a
table of 16 or 256 values, or the bits of a float8 e4m3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...ir.errors import ModelError

GROUPS = (32, 64, 128, 256)
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""Quantiles of a normal distribution (Dettmers et al. 2023, appendix E)."""
_E4M3_TOP = 448.0


@dataclass(frozen=True)
class Codes4:
    """A dense matrix [N, K] in 4-bit codes.

    Attributes:
        codes: uint8 [N, K / 2]; byte j of a group holds its column j in the low half and column j + group / 2 above.
        scales: [N, K / group].
        group: columns that share a scale.
        zeros: uint8 [N, K / group], zero points of the codes; None if all are 8.
        table: the 16 values that codes stand for, instead of integers.
        baked: whether the table may be compiled into the kernel: faster, and a kernel to a table.
    """

    codes: Tensor
    scales: Tensor
    group: int
    zeros: Tensor | None = None
    table: tuple[float, ...] | None = None
    baked: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        return self.codes.shape[0], 2 * self.codes.shape[1]


@dataclass(frozen=True)
class Codes8:
    """A dense matrix [N, K] in 8-bit codes.

    Attributes:
        codes: uint8 [N, K].
        scales: [N, K / group], or [N, 1].
        group: columns that share a scale; None if all of a row do.
        kind: "integer", "float" (e4m3) or "table".
        zeros: uint8 of the scales' shape, or None if all are 128.
        table: float32 [256] if the codes are places in it.
    """

    codes: Tensor
    scales: Tensor
    group: int | None = None
    kind: str = "integer"
    zeros: Tensor | None = None
    table: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        return self.codes.shape[0], self.codes.shape[1]


@dataclass(frozen=True)
class Rows8:
    """A matrix [N, K] in 8-bit codes that are multiplied as they are.

    Attributes:
        codes: int8 or float8_e4m3fn [N, K].
        scales: [N].
        sums: int32 [N], of all codes of a channel, for int8.
    """

    codes: Tensor
    scales: Tensor
    sums: Tensor | None = None


def pack4(codes: Tensor, scales: Tensor, group: int, zeros: Tensor | None = None) -> Codes4:
    """Pack codes 0 to 15, [N, K], with scales and zero points [N, K / group].

    Raises:
        ModelError: K is no multiple of the group, or the group has no kernel, or shapes do not fit.
    """
    _check_group(codes, group)
    n, k = codes.shape
    if scales.shape != (n, k // group) or (zeros is not None and zeros.shape != scales.shape):
        raise ModelError(f"scales of shape {list(scales.shape)} are not [{n}, {k // group}]", where="backends/triton",
                         fix="give one scale and zero point to each group of a row")  # fmt: skip
    grouped = codes.reshape(n, k // group, group).to(torch.uint8)
    packed = grouped[..., : group // 2] | (grouped[..., group // 2 :] << 4)
    stored = None if zeros is None else zeros.to(torch.uint8).contiguous()
    return Codes4(packed.reshape(n, k // 2).contiguous(), scales.contiguous(), group, stored)


def quantize4(weights: Tensor, group: int = 64, *, symmetric: bool = True) -> Codes4:
    """Round [N, K] weights to 4 bits, one scale (and zero point) for ``group`` columns.

    Raises:
        ModelError: K is no multiple of the group.
    """
    _check_group(weights, group)
    grouped = weights.float().reshape(len(weights), -1, group)
    scales, zeros = (_symmetric(grouped, 7), None) if symmetric else _asymmetric(grouped, 15)
    places = torch.round(grouped / scales.unsqueeze(-1)) + (8 if zeros is None else zeros.unsqueeze(-1))
    return pack4(places.clamp(0, 15).reshape(weights.shape), scales.to(weights.dtype), group, zeros)


def tabulate4(
    weights: Tensor, group: int = 64, table: Sequence[float] = NF4, *, baked: bool | None = None
) -> Codes4:  # fmt: skip
    """Code [N, K] weights by the nearest of 16 values, scaled so that the largest of a group meets the table's largest.

    Args:
        weights: [N, K].
        group: columns that share a scale.
        table: 16 values in rising order.
        baked: whether the table may be compiled into the kernel; None: only NF4's.

    Raises:
        ModelError: K is no multiple of the group, or the table has not 16 values.
    """
    _check_group(weights, group)
    values = torch.tensor(table, device=weights.device)
    if len(values) != 16:
        raise ModelError(f"a table of {len(values)} values", where="backends/triton", fix="give 16")
    grouped = weights.float().reshape(len(weights), -1, group)
    scales = _nonzero(grouped.abs().amax(-1) / values.abs().max())
    middles = (values[1:] + values[:-1]) / 2
    places = torch.bucketize(grouped / scales.unsqueeze(-1), middles)
    packed = pack4(places.reshape(weights.shape), scales.to(weights.dtype), group)
    chosen = tuple(table) == NF4 if baked is None else baked
    return Codes4(packed.codes, packed.scales, group, None, tuple(table), chosen)


def dequantize4(packed: Codes4) -> Tensor:
    """The weights [N, K] that the codes stand for."""
    n, k = packed.shape
    bytes_ = packed.codes.reshape(n, -1, packed.group // 2)
    places = torch.cat([bytes_ & 15, bytes_ >> 4], -1)
    scales = packed.scales.unsqueeze(-1)
    if packed.table is not None:
        values = torch.tensor(packed.table, device=places.device).to(scales.dtype)[places.int()]
    elif packed.zeros is not None:
        values = places.to(scales.dtype) - packed.zeros.unsqueeze(-1).to(scales.dtype)
    else:
        values = places.to(scales.dtype) - 8
    return (values * scales).reshape(n, k)


def quantize8(weights: Tensor, group: int | None = None, *, symmetric: bool = True) -> Codes8:
    """Round [N, K] weights to 8 bits, one scale for a row or for ``group`` columns.

    Raises:
        ModelError: K is no multiple of the group.
    """
    if group is not None:
        _check_group(weights, group)
    grouped = weights.float().reshape(len(weights), -1, group or weights.shape[1])
    scales, zeros = (_symmetric(grouped, 127), None) if symmetric else _asymmetric(grouped, 255)
    places = torch.round(grouped / scales.unsqueeze(-1)) + (128 if zeros is None else zeros.unsqueeze(-1))
    codes = places.clamp(0, 255).to(torch.uint8).reshape(weights.shape)
    stored = None if zeros is None else zeros.to(torch.uint8)
    return Codes8(codes.contiguous(), scales.to(weights.dtype), group, "integer", stored)


def float8(weights: Tensor) -> Codes8:
    """Round [N, K] weights to float8 e4m3, one scale to a row."""
    scales = _nonzero(weights.float().abs().amax(-1, keepdim=True) / _E4M3_TOP)
    codes = (weights.float() / scales).clamp(-_E4M3_TOP, _E4M3_TOP).to(torch.float8_e4m3fn).view(torch.uint8)
    return Codes8(codes.contiguous(), scales.to(weights.dtype), None, "float")


def tabulate8(places: Tensor, scales: Tensor, table: Tensor, group: int | None = None) -> Codes8:
    """Places uint8 [N, K] in a table of 256 values, with scales [N, K / group] or [N, 1]."""
    return Codes8(places.contiguous(), scales.contiguous(), group, "table", None, table.float().contiguous())


def dequantize8(packed: Codes8) -> Tensor:
    """The weights [N, K] that the codes stand for."""
    n, k = packed.shape
    scales = packed.scales
    grouped = packed.codes.reshape(n, scales.shape[1], -1)
    if packed.kind == "table":
        assert packed.table is not None
        values = packed.table.to(scales.dtype)[grouped.int()]
    elif packed.kind == "float":
        values = grouped.view(torch.float8_e4m3fn).to(scales.dtype)
    else:
        # In float32: bfloat16 has not every whole number to 255.
        zeros = 128.0 if packed.zeros is None else packed.zeros.unsqueeze(-1).float()
        values = (grouped.float() - zeros).to(scales.dtype)
    return (values * scales.unsqueeze(-1)).reshape(n, k)


def _check_group(weights: Tensor, group: int) -> None:
    if group not in GROUPS or weights.dim() != 2 or weights.shape[1] % group:
        raise ModelError(
            f"{weights.shape[-1]} input channels are no multiple of the group of {group}, or no kernel has that group",
            where="backends/triton", fix=f"choose a group of {', '.join(map(str, GROUPS))} that divides them",
        )  # fmt: skip


def _nonzero(scales: Tensor) -> Tensor:
    return torch.where(scales == 0, torch.ones_like(scales), scales)


def _symmetric(grouped: Tensor, top: int) -> Tensor:
    return _nonzero(grouped.abs().amax(-1) / top)


def _asymmetric(grouped: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    low, high = grouped.amin(-1).clamp(max=0), grouped.amax(-1).clamp(min=0)
    scales = _nonzero((high - low) / levels)
    return scales, torch.round(-low / scales).clamp(0, levels)
