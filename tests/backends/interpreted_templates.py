"""Run by ``test_triton_templates.py`` in a process of its own with the interpreter: kernels against PyTorch.

Arguments are words that the name of a case must end with, or nothing.
"""

from __future__ import annotations

import sys

import torch
from burnish.backends.triton import codes, fused, gemm, pattern24, quantized, sparse
from burnish.tools.gpu_correctness import cases, pruned
from burnish.tools.gpu_decoder import Shape, right


def _forms() -> None:
    """What the cases leave out: other blocks, prologues, types of the result."""
    x, w = torch.randn(5, 96), torch.randn(40, 96)
    bias = torch.randn(40)
    want = x.double() @ w.double().T + bias.double()
    for tiles in (*gemm.SINGLE, gemm.Tiles(16, 32, 16, 3, 4, 1)):
        got = gemm.gemm(x, w, bias, tiles=tiles, epilogue=fused.multiplied(torch.full((5, 40), 2.0), "relu"))
        assert torch.allclose(got.double(), 2 * want.relu(), atol=1e-4), tiles
    norm, shift = torch.randn(96), torch.randn(96)
    got = gemm.gemm(x, w, bias, prologue=fused.layer_norm(x, norm, shift, 1e-5))
    inner = torch.nn.functional.layer_norm(x.double(), (96,), norm.double(), shift.double(), 1e-5)
    assert torch.allclose(got.double(), inner @ w.double().T + bias.double(), atol=1e-4)
    up = torch.randn(5, 96)
    got = gemm.gemm(x, w, bias, prologue=fused.gate_prologue(up))
    inner = torch.nn.functional.silu(x.double()) * up.double()
    assert torch.allclose(got.double(), inner @ w.double().T + bias.double(), atol=1e-4)
    half = gemm.gemm(x.half(), w.half(), dtype=torch.float32)
    assert half.dtype == torch.float32
    assert torch.allclose(half.double(), x.half().double() @ w.half().double().T, atol=1e-3)
    copied = torch.randn(5, 192)[:, ::2]  # not contiguous
    assert torch.allclose(gemm.gemm(copied, w).double(), copied.double() @ w.double().T, atol=1e-4)
    weights = pruned(33, 36, torch.float32, "cpu")
    y = torch.randn(2, 9, 36)
    got = sparse.sparse24(y, pattern24.pack24(weights), epilogue=fused.Epilogue("relu"))
    assert torch.allclose(got.double(), (y.double() @ weights.double().T).relu(), atol=1e-4)


def _one_row() -> None:
    """Channels that do not fill a program, rows that cannot be read as words, padded columns, blocks by hand."""
    w, x = torch.randn(14, 128), torch.randn(3, 128).half()
    packed = codes.quantize4(w.half(), 32)
    want = x.double() @ codes.dequantize4(packed).double().T
    shifted = torch.empty(129).half()[1:].copy_(x[0])
    assert shifted.data_ptr() % 8
    gate = fused.Epilogue("silu", gated=True)
    gated = torch.nn.functional.silu(want[:, :7]) * want[:, 7:]
    for got, right_ in (
        (quantized.w4a16(x[0], packed), want[0]), (quantized.w4a16(shifted, packed), want[0]),
        (quantized.w4a16(x[1], packed, epilogue=gate), gated[1]),
        (quantized.w4a16(x, packed, shares=quantized.Shares(1, 4, 8, 1, 1)), want),
        (quantized.w4a16(x[:1], packed, epilogue=fused.residual(x[:1, :14])), want[:1] + x[:1, :14].double()),
    ):  # fmt: skip
        assert float((got.double() - right_).abs().max() / right_.abs().max()) < 4e-3
    for eight in (codes.quantize8(w.half(), 32, symmetric=False), codes.quantize8(w[:, :100].half())):
        row = x[:1, : eight.shape[1]]
        other = row.double() @ codes.dequantize8(eight).double().T
        assert float((quantized.w8a16(row, eight).double() - other).abs().max() / other.abs().max()) < 4e-3
    for columns in (128, 100):
        weights = pruned(7, columns, torch.float16, "cpu")
        row = x[:1, :columns]
        other = row.double() @ weights.double().T
        got = sparse.sparse24(row, pattern24.pack24(weights))
        assert float((got.double() - other).abs().max() / other.abs().max()) < 4e-3


def _tma() -> None:
    """The kernel with tensor descriptors, which a launch takes on Hopper GPUs alone."""
    x, w = torch.randn(40, 64).half(), torch.randn(24, 64).half()
    product = fused.Product(x, 1, 40, 24, 1, None, fused.PLAIN, torch.float16)
    gemm._launch_tma(x, w, product, gemm.Tiles(16, 16, 32, 1, 4, 2, tma=True), 64)
    want = x.double() @ w.double().T
    assert float((product.finished()[0].double() - want).abs().max() / want.abs().max()) < 4e-3


def main(endings: list[str]) -> None:
    torch.manual_seed(0)
    ran = 0
    for case in cases("cpu", large=False):
        if endings and not case.name.endswith(tuple(endings)):
            continue
        error = case.error()
        assert error <= 1, f"{case.name}: {error} of what is allowed"
        ran += 1
    _forms()
    _one_row()
    _tma()
    # Roundings to bfloat16 of activations in turn.
    small = Shape(layers=1, hidden=64, inner=96, heads=4, vocabulary=64, capacity=32, past=17)
    assert right("cpu", small) < 4e-2
    print(f"{ran} cases, all right")


if __name__ == "__main__":
    main(sys.argv[1:])
