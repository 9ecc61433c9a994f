"""The demo's table, its errors, and (slow) the whole of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from burnish.compiler.benchmark import Result, Side, Timing
from burnish.ir.errors import ModelError
from burnish.tools import demo
from rich.console import Console


def test_table(capsys: pytest.CaptureFixture[str]) -> None:
    sides = [Side("PyTorch", "m:f", eager=True), Side("default", "a"), Side("w4a16", "b")]
    timings = {side.name: Timing((0.08 / factor,) * 5) for side, factor in zip(sides, (1, 4, 10), strict=True)}
    result = Result(sides, 2, {"prefill 128": timings, "decode, 128 past": timings})
    result.memory = {"PyTorch": 1_300_000_000, "default": 700_000_000, "w4a16": 250_000_000}
    result.size = {"PyTorch": 0, "default": 540_000_000, "w4a16": 79_900_000}
    demo.show(result, {"PyTorch": 14.62, "default": 14.62, "w4a16": 17.0}, Console(width=120))
    shown = capsys.readouterr().out
    for text in (
        "79.9 MB",
        "1300 MB",
        "80.0 ms",
        "20.0 ms (4.0× faster)",
        "8.0 ms (10.0× faster)",
        "17.00",
        "2 threads",
    ):
        assert text in shown


def test_errors_come_without_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(name: str) -> Path:
        raise ModelError("no model today", fix="come back tomorrow")

    monkeypatch.setattr("burnish.tools.fetch.model_path", refuse)
    assert demo.main(["--work", str(tmp_path)]) == 1
    assert capsys.readouterr().err == "error: no model today\n  fix: come back tomorrow\n"


@pytest.mark.slow
def test_whole_demo(smollm2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main(["--work", str(tmp_path), "--windows", "1", "--tokens", "8"]) == 0
    shown = capsys.readouterr().out
    assert "size on disk" in shown
    assert "Burnish w4a16, 4-bit weights" in shown
