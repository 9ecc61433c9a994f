"""Block sizes, what was measured before, and where kernels can run."""

from __future__ import annotations

from pathlib import Path

import onnx_ir
import pytest
import torch
from burnish.ir.errors import UnsupportedError

pytest.importorskip("triton", reason="Triton is not installed")

from burnish.backends.triton.launch import BUDGET, Database, candidates
from burnish.backends.triton.session import Session, device_for


@pytest.mark.parametrize("rows", [1, 7, 4096, 10**6])
@pytest.mark.parametrize("columns", [1, 31, 768, 4096])
@pytest.mark.parametrize("outer", [False, True])
def test_a_row_fits_into_its_tile(rows: int, columns: int, outer: bool) -> None:
    for form in ("places", "rows", "loop"):
        options = candidates(form, rows, columns, outer)
        assert 0 < len(options) <= BUDGET and len(set(options)) == len(options)
        for option in options:
            sizes = [n for n in (option.rows, option.columns) if n]
            assert all(n & (n - 1) == 0 for n in (*sizes, option.warps)) and option.warps <= 16
            assert form != "rows" or option.columns >= columns
            assert option.rows * max(option.columns, 1) <= 8192


def test_what_was_measured_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "blocks.json"
    Database(path).put("a", [1, 2, 4])
    assert Database(path).get("a") == [1, 2, 4] and Database(path).get("b") is None
    path.write_text("{ damaged")
    assert Database(path).get("a") is None
    memory = Database(None)
    memory.put("a", [1, 2, 4])
    assert memory.get("a") == [1, 2, 4]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(UnsupportedError, match="TRITON_INTERPRET"):
        device_for()
    with pytest.raises(UnsupportedError, match="there is no GPU"):
        device_for("cuda")
    model = onnx_ir.from_onnx_text(
        """<ir_version: 10, opset_import: ["" : 23]> g (float[2] x) => (float[2] y) { y = Exp (x) }"""
    )
    with pytest.raises(UnsupportedError, match="run on a GPU"):
        Session(model)
