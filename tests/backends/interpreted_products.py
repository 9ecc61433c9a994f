"""Run by ``test_triton_products.py`` in a process of its own with the interpreter: products against PyTorch."""

from __future__ import annotations

import itertools

import torch
from burnish.backends.triton import packing, products

TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def _pruned(n: int, k: int, dtype: torch.dtype) -> torch.Tensor:
    weights = torch.randn(n, k)
    quads = weights.reshape(n, -1, 4)
    keep = torch.zeros_like(quads).scatter(-1, quads.abs().topk(2, -1).indices, 1)
    return (quads * keep).reshape(n, k).to(dtype)


def _close(got: torch.Tensor, want: torch.Tensor, dtype: torch.dtype, what: str) -> None:
    assert got.dtype == dtype and got.shape == want.shape, what
    if not got.numel():
        return
    scale = float(want.abs().max()) or 1.0
    error = float((got.double() - want).abs().max()) / scale
    assert error < TOLERANCE[dtype], f"{what}: {error}"


def main() -> None:
    torch.manual_seed(0)
    shapes = [((1,), 33, 64), ((5,), 64, 192), ((2, 9), 40, 36), ((17,), 24, 128), ((0,), 8, 64)]
    for dtype, (lead, n, k) in itertools.product(TOLERANCE, shapes):
        x = torch.randn(*lead, 2 * k).to(dtype)[..., ::2]  # not contiguous
        bias = torch.randn(n).to(dtype)
        weights = _pruned(n, k, dtype)
        packed = packing.pack24(weights)
        assert torch.equal(packing.unpack24(packed), weights)
        for given in (None, bias):
            want = x.double() @ weights.double().T + (0 if given is None else given.double())
            for blocks in (None, products.BLOCKS[0], products.BLOCKS[2]):
                _close(
                    products.sparse24(x, packed, given, blocks=blocks), want, dtype, f"sparse24 {dtype} {lead} {n} {k}"
                )
        if k % 64:
            continue
        coded = packing.quantize24(weights, 64)
        dense = packing.quantize4(torch.randn(n, k).to(dtype), 64)
        for given in (None, bias):
            add = 0 if given is None else given.double()
            want = x.double() @ packing.dequantize24(coded).double().T + add
            _close(products.sparse24_w4(x, coded, given), want, dtype, f"sparse24_w4 {dtype} {lead} {n} {k}")
            want = x.double() @ packing.dequantize4(dense).double().T + add
            _close(products.w4(x, dense, given), want, dtype, f"w4 {dtype} {lead} {n} {k}")
    print("all right")


if __name__ == "__main__":
    main()
