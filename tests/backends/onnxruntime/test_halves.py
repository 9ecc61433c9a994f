"""Scales in float16: stored so, widened by the session, through all that moves them about."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import burnish
import numpy as np
import onnx
import onnx_ir
import pytest
import torch
from burnish.ir.errors import OptionError
from burnish.ir.weights import Widened, lazy, rearranged
from burnish.passes.quantize import Quantize
from burnish.passes.quantize.methods import rtn
from burnish.passes.quantize.scheme import Scheme


class Tied(torch.nn.Module):
    """An embedding that is the head, too, and two products of one input."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = torch.nn.Embedding(4096, 128)
        self.up, self.gate = torch.nn.Linear(128, 256, bias=False), torch.nn.Linear(128, 256, bias=False)
        self.down = torch.nn.Linear(256, 128)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.table(ids)
        x = self.down(torch.relu(self.gate(x)) * self.up(x))
        return torch.nn.functional.linear(x, self.table.weight)


DATA = [torch.randint(0, 4096, (2, 24), generator=torch.Generator().manual_seed(i)) for i in range(6)]


def written(folder: Path, passes: str, calibration: Any = None, target: str = "onnxruntime") -> onnx.ModelProto:
    burnish.export(
        Tied().eval(), folder / "m.onnx", (DATA[0],), passes=passes, calibration=calibration, target=target,
        overwrite=True,
    )  # fmt: skip
    return onnx.load(str(folder / "m.onnx"))


@pytest.mark.parametrize("calibration", [None, DATA])
@pytest.mark.parametrize("more", ["", ",offsets=true", ",bits=8"])
def test_halves_are_stored_and_widened(tmp_path: Path, calibration: Any, more: str) -> None:
    full = written(tmp_path, f"quantize(group_size=32{more})", calibration)
    size = sum(file.stat().st_size for file in tmp_path.iterdir())
    half = written(tmp_path, f"quantize(group_size=32,half_scales=true{more})", calibration)
    saved = size - sum(file.stat().st_size for file in tmp_path.iterdir())
    weights = 4096 * 128 + 3 * 256 * 128
    groups = weights // 32 + (3 * 256 * 128 // 32 if "offsets" in more else 0)
    assert saved == pytest.approx(2 * groups, abs=6000)  # two bytes less for each, and the Casts
    kinds = {t.data_type for t in half.graph.initializer if t.name.endswith(".half")}
    assert kinds == {onnx.TensorProto.FLOAT16}
    assert not any(node.op_type == "Cast" and node.input[0].endswith(".half") for node in full.graph.node)
    results = [
        np.asarray(burnish.compile(Tied().eval(), (DATA[0],), passes=f"quantize(group_size=32{how}{more})",
                                   calibration=calibration)(DATA[0]))
        for how in ("", ",half_scales=true")
    ]  # fmt: skip
    expected = Tied().eval()(DATA[0]).detach().numpy()
    errors = [np.linalg.norm(result - expected) / np.linalg.norm(expected) for result in results]
    assert errors[1] < 1.02 * errors[0]


def test_joined_products_keep_them(tmp_path: Path) -> None:
    model = written(tmp_path, "quantize(group_size=32,half_scales=true),merge_products")
    scales = [node.input[2] for node in model.graph.node if node.op_type == "MatMulNBits"]
    made = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "Cast"}
    assert len(scales) == 3 and all(name in made for name in scales)


def test_learned_scales_stay_halves(tmp_path: Path) -> None:
    passes = "quantize(group_size=32,half_scales=true),learn_codes(steps=4,batch=1,rate=0.05)"
    model = written(tmp_path, passes, DATA)
    assert sum(t.name.endswith(".half") for t in model.graph.initializer) == 4


def test_standard_files_have_scales_as_they_are(tmp_path: Path) -> None:
    model = written(tmp_path, "quantize(group_size=32,half_scales=true)", target="onnx")
    scales = {node.input[1] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    arrays = [onnx.numpy_helper.to_array(t) for t in model.graph.initializer if t.name in scales]
    assert len(arrays) == 4
    assert all(a.dtype == np.float32 and np.array_equal(a, a.astype(np.float16).astype(np.float32)) for a in arrays)


def test_tiny_weights_do_not_vanish() -> None:
    """Their scales would be zero in 16 bits."""
    weights = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32) * 1e-7
    scheme = Scheme(4, 32, symmetric=False)
    codes = rtn.quantize(weights, scheme, precision=np.float16)
    restored = rtn.dequantize(codes, scheme, 64)
    assert np.abs(restored - weights).max() < 4e-8 and np.abs(restored).max() > 1.5e-7
    nothing = rtn.quantize(np.zeros((4, 64), np.float32), scheme, precision=np.float16)
    assert (nothing.scales == 1).all()


def test_numbers_are_moved_as_halves() -> None:
    halves = [Widened(onnx_ir.Tensor(np.full((2, 3), i, np.float16))) for i in (1, 2)]
    joined = rearranged(halves, lambda arrays: np.concatenate(arrays, axis=0), (4, 3))
    assert isinstance(joined, Widened) and joined.numpy().dtype == np.float32 and joined.base.shape == (4, 3)
    assert joined.numpy()[:, 0].tolist() == [1, 1, 2, 2]
    mixed = rearranged([halves[0], lazy(lambda: np.zeros((2, 3), np.float32), halves[0].dtype, (2, 3))],
                       lambda arrays: arrays[1], (2, 3))  # fmt: skip
    assert not isinstance(mixed, Widened) and mixed.numpy().sum() == 0


@pytest.mark.parametrize("scheme", ["w8a8", "w8a8_static", "nf4", "fp8"])
def test_other_schemes_have_none(scheme: str) -> None:
    with pytest.raises(OptionError, match="half_scales is for integer weights"):
        Quantize(scheme=scheme, half_scales=True)


def test_weights_of_16_bits_have_them_anyway() -> None:
    """Scales have the type of the weights: nothing to narrow."""
    model = torch.nn.Sequential(torch.nn.Linear(128, 64)).half().eval()
    x = torch.zeros(1, 128).half()
    compiled = burnish.compile(model, (x,), passes="quantize(group_size=32,half_scales=true)")
    assert not any("stored in 16 bits" in remark.reason for _, remark in compiled.report.remark_rows())
