"""Run by ``test_codegen.py`` in a process of its own with the interpreter: ``burnish.compile`` end to end."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import burnish
import numpy as np
import torch
from burnish.ir.errors import InputError
from burnish.passes.quantize import Quantize
from torch import nn


class Network(nn.Module):
    """A normalization, a product with an activation, and a residual sum."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(12)
        self.up, self.down = nn.Linear(12, 20), nn.Linear(20, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(nn.functional.gelu(self.up(self.norm(x))))


class Wide(nn.Module):
    """Two products that are large enough for int8."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(256, 256), nn.Linear(256, 256)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(nn.functional.gelu(self.up(x)))


def eight_by_eight() -> None:
    """W8A8 with one zero point for all tokens, which is off here unless asked for."""
    model, data = Wide().eval(), [torch.randn(16, 256) for _ in range(6)]
    compiled = burnish.compile(
        model, (data[0],), dynamic_shapes=({0: torch.export.Dim("tokens")},), backend="triton", cache=False,
        passes=[Quantize("w8a8", fixed_zero_points=1.4)], calibration=data[:4],
    )  # fmt: skip
    assert any("one zero point for all tokens" in remark.reason for _, remark in compiled.report.remark_rows())
    assert compiled.session.source.count("= w8a8(") == 2
    right = model(data[5])
    assert (compiled(data[5]) - right).norm() < 0.02 * right.norm()


def main() -> None:
    torch.manual_seed(0)
    model, x = Network().eval(), torch.randn(3, 5, 12)
    batch = torch.export.Dim("batch", min=1, max=64)
    with torch.no_grad():
        for backend in ("triton", "reference"):
            compiled = burnish.compile(model, (x,), dynamic_shapes=({0: batch},), backend=backend, cache=False)
            for size in (3, 1, 7):
                y = torch.randn(size, 5, 12)
                assert (compiled(y) - model(y)).abs().max() < 1e-5
                # Not contiguous, and NumPy in, NumPy out.
                other = torch.randn(5, size, 12).transpose(0, 1)
                assert (compiled(other) - model(other)).abs().max() < 1e-5
                found = compiled(y.numpy())
                assert isinstance(found, np.ndarray) and np.abs(found - model(y).numpy()).max() < 1e-5
            assert compiled.report.target == backend
            try:
                compiled(x.double())
                raise AssertionError("float64 was taken for float32")
            except InputError as error:
                assert "DOUBLE" in str(error)
            with tempfile.TemporaryDirectory() as folder:
                for name in ("saved", "saved.onnx"):
                    compiled.save(Path(folder) / name)
                    again = burnish.load(Path(folder) / name)
                    assert (again(x) - model(x)).abs().max() < 1e-5
                kernels = Path(folder) / "saved" / "model.py"
                assert kernels.exists() == (backend == "triton")
                if backend == "triton":
                    assert "@triton.jit" in kernels.read_text()
            if backend == "triton":
                assert any(item.spec.startswith("fuse") for item in compiled.report.passes)
                said = [group.reason for group in compiled.report.backend]
                assert any("generated kernel" in reason for reason in said), said
                assert any("left to PyTorch" in reason for reason in said), said
                # Without a fused block, each operator is a kernel.
                alone = burnish.compile(model, (x,), passes=[], backend=backend, cache=False)
                assert (alone(x) - model(x)).abs().max() < 1e-5
        eight_by_eight()
    print("all right")


if __name__ == "__main__":
    sys.exit(main())
