"""Blocks of the pass ``Fuse`` do not hide products from the kernels for quantized weights."""

from __future__ import annotations

from pathlib import Path

import burnish
import torch


def test_quantized_products_inside_blocks_get_their_kernel(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.GELU(), torch.nn.Linear(128, 64)).eval()
    x = torch.randn(3, 64)
    plain = burnish.compile(model, (x,), passes="quantize(bits=8)")
    fused = burnish.compile(model, (x,), passes="quantize(bits=8),fuse")
    assert fused.report.operators["com.microsoft.MatMulNBits"] == 2
    assert fused.report.operators == plain.report.operators
    assert "fused blocks written out" in str(fused.report)
    torch.testing.assert_close(fused(x), plain(x), rtol=0, atol=0)
