"""Weights in codes of 4 and 8 bits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from burnish.backends.triton import codes
from burnish.ir.errors import ModelError
from burnish.passes.quantize.formats import NF4
from hypothesis import given
from hypothesis import strategies as st


@given(st.integers(1, 9), st.integers(1, 3), st.sampled_from(codes.GROUPS), st.booleans(), st.integers(0, 99))
def test_integers_are_within_half_a_step(n: int, groups: int, group: int, symmetric: bool, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(n, groups * group, generator=generator) + (0 if symmetric else 0.5)
    packed = codes.quantize4(weights, group, symmetric=symmetric)
    assert packed.shape == weights.shape and packed.codes.numel() * 2 == weights.numel()
    # A half step, and float32's rounding of the scale; a zero point that is rounded moves the ends by another half.
    step = packed.scales.repeat_interleave(group, 1) * (0.5001 if symmetric else 1.001)
    assert ((codes.dequantize4(packed) - weights).abs() <= step).all()
    for eight in (codes.quantize8(weights, symmetric=symmetric), codes.quantize8(weights, group, symmetric=symmetric)):
        wide = eight.scales.repeat_interleave(weights.shape[1] // eight.scales.shape[1], 1)
        assert ((codes.dequantize8(eight) - weights).abs() <= wide * (0.5001 if symmetric else 1.001)).all()


def test_packed_codes_are_those_given() -> None:
    places = torch.arange(64).reshape(1, 64) % 16
    packed = codes.pack4(places, torch.ones(1, 2), 32, torch.full((1, 2), 3))
    assert torch.equal(codes.dequantize4(packed), places.float() - 3)
    assert packed.codes[0, 0] == (0 | 16 % 16 << 4) and packed.codes[0, 1] == (1 | (17 % 16) << 4)


def test_tables_give_the_nearest_value() -> None:
    weights = torch.randn(8, 64)
    packed = codes.tabulate4(weights, 64)
    assert packed.baked and packed.table == codes.NF4
    scaled = weights / packed.scales
    nearest = torch.tensor(codes.NF4)[(scaled.unsqueeze(-1) - torch.tensor(codes.NF4)).abs().argmin(-1)]
    assert torch.allclose(codes.dequantize4(packed), nearest * packed.scales)
    assert not codes.tabulate4(weights, 64, [i / 15 for i in range(16)]).baked
    table = torch.randn(256)
    places = torch.randint(0, 256, (8, 64), dtype=torch.uint8)
    wide = codes.dequantize8(codes.tabulate8(places, torch.full((8, 1), 2.0), table))
    assert torch.equal(wide, 2 * table[places.int()])


def test_the_table_is_that_of_the_pass() -> None:
    assert np.array_equal(np.array(codes.NF4, np.float32), NF4)


def test_float8_has_three_bits_after_the_first() -> None:
    weights = torch.randn(8, 64)
    packed = codes.float8(weights)
    # Half a unit in the last of 4 binary places, or of the smallest steps.
    allowed = torch.maximum(weights.abs() / 16, packed.scales * 2.0**-10) * 1.001
    assert ((codes.dequantize8(packed) - weights).abs() <= allowed).all()


def test_what_has_no_kernel_is_refused() -> None:
    for call in (
        lambda: codes.quantize4(torch.zeros(2, 96), 64), lambda: codes.quantize4(torch.zeros(2, 96), 48),
        lambda: codes.quantize8(torch.zeros(2, 96), 64), lambda: codes.tabulate4(torch.zeros(2, 64), 64, [0.0, 1.0]),
        lambda: codes.pack4(torch.zeros(2, 64), torch.ones(2, 2), 64),
    ):  # fmt: skip
        with pytest.raises(ModelError):
            call()
