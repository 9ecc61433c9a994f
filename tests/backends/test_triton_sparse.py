"""Weights with the pattern 2:4: packing and errors."""

from __future__ import annotations

import pytest
import torch
from burnish.backends.triton import pattern24, sparse
from burnish.ir.errors import InputError, ModelError
from hypothesis import given
from hypothesis import strategies as st


@given(st.integers(1, 9), st.integers(1, 20), st.integers(0, 99))
def test_packing_is_undone(n: int, quads: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(n, quads, 4, generator=generator)
    # Any two of each quad at most, none at all included.
    gone = torch.rand(n, quads, 4, generator=generator).argsort(-1) < torch.randint(
        2, 5, (n, quads, 1), generator=generator
    )
    weights = torch.where(gone, 0.0, weights).reshape(n, -1)
    packed = pattern24.pack24(weights)
    assert torch.equal(pattern24.unpack24(packed), weights)
    assert packed.values.numel() + 0 == 2 * n * packed.shape[1] // 4


def test_codes_are_within_half_a_step() -> None:
    weights = torch.randn(16, 128).reshape(16, 32, 4)
    weights[..., :2] = 0
    weights = weights.reshape(16, 128)
    coded = pattern24.quantize24(weights, 64)
    steps = coded.scales.repeat_interleave(64, 1)
    # A half step, and float32's rounding of the scale.
    assert ((pattern24.dequantize24(coded) - weights).abs() <= 0.5001 * steps).all()


def test_a_violated_pattern_is_named() -> None:
    weights = torch.zeros(3, 16)
    weights[1, 9:12] = 1
    with pytest.raises(ModelError, match=r"row 1 .* columns 8 to 11"):
        pattern24.pack24(weights)
    with pytest.raises(ModelError, match="no whole quads"):
        pattern24.pack24(torch.zeros(2, 6))
    with pytest.raises(ModelError, match="no multiple"):
        pattern24.quantize24(torch.zeros(2, 96), 64)


def test_what_does_not_fit_is_refused() -> None:
    packed = pattern24.pack24(torch.zeros(8, 64))
    for x, bias in (
        (torch.zeros(2, 60), None), (torch.zeros(2, 64, dtype=torch.float16), None),
        (torch.zeros(2, 64), torch.zeros(7)), (torch.zeros(2, 64, dtype=torch.int32), None),
    ):  # fmt: skip
        with pytest.raises(InputError):
            sparse.sparse24(x, packed, bias)
