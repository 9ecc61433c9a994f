"""Compiling is measured in a process of its own; a saved model runs without the heavy packages."""

from __future__ import annotations

import json
from pathlib import Path

import burnish
import pytest
from burnish.ir.errors import ModelError
from burnish.tools import bench_scale
from burnish.tools.make_folder import Shape, make_folder

TINY = Shape(layers=2, hidden=64, inner=128, heads=4, kv_heads=2, vocabulary=8192, context=128, tied=True)


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(bench_scale.SHAPES, "tiny", TINY)


def test_compiling_is_measured_and_cleaned_up(tmp_path: Path) -> None:
    figures = bench_scale.compile_shape("tiny", 1, tmp_path)
    assert figures["layers"] == 1
    assert figures["weight_bytes"] > 1e6
    assert 0 < figures["compiled_bytes"] < figures["weight_bytes"]
    assert figures["seconds"] > 0.5
    assert 100e6 < figures["peak_anonymous_bytes"] < 1.5e9  # torch and transformers are imported there
    assert list(tmp_path.iterdir()) == []


def test_failure_of_the_command_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_scale, "make_folder", lambda shape, path: path.mkdir() or 0)
    with pytest.raises(ModelError, match="compiling tiny ended with status 1"):
        bench_scale.compile_shape("tiny", 1, tmp_path)


def test_saved_model_runs_light(tmp_path: Path) -> None:
    make_folder(TINY, tmp_path / "tiny")
    burnish.export(tmp_path / "tiny", tmp_path / "smollm2-w4a16", passes="w4a16", cache=False)
    figures = bench_scale.run_saved(tmp_path)
    assert figures["imported"] == []
    assert 20e6 < figures["bytes"] < 150e6  # with torch imported it is more than 250 MB


def test_rows_of_other_layers_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = iter([1.0, 2.0, 3.0])
    monkeypatch.setattr(
        bench_scale, "calibrated_row", lambda count, work, sequences: {"layers": count, "seconds": next(told)}
    )
    for layers in (["4", "2"], ["4"]):
        assert bench_scale.main(["--calibrated", *layers, "--out", str(tmp_path), "--work", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "scale.json").read_text())["calibrated"]["rows"]
    assert [(row["layers"], row["seconds"]) for row in rows] == [(2, 2.0), (4, 3.0)]
