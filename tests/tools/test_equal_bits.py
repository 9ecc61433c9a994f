"""Rows of the comparison at equal bits: those that were measured, and reasons of those that were not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from burnish.tools.rivals import equal_bits


def test_a_way_that_fails_says_why() -> None:
    rows = {"a": {"seconds": 1.0, "megabytes": 2.5, "cosine": 0.97}, "b": {"failed": "ValueError: no"}}
    assert equal_bits.table(rows).splitlines() == [
        "| way | megabytes | cosine |",
        "| --- | ---: | ---: |",
        "| a | 2.5 | 0.97 |",
        "| b | ValueError: no |  |",
    ]


def test_rows_that_are_there_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[str] = []

    def row(model: str, way: str, count: int, limit: float) -> dict[str, float]:
        measured.append(f"{model} {way}")
        return {"cosine": 0.5}

    ways = {"one": lambda folder: folder, "two": lambda folder: folder}
    monkeypatch.setattr(equal_bits, "_row", row)
    monkeypatch.setattr(equal_bits, "MODELS", {"MiniLM": lambda: ways})
    for only, expected in (
        ("two", ["MiniLM two"]),
        ("", ["MiniLM two", "MiniLM one"]),
        ("", ["MiniLM two", "MiniLM one"]),
    ):
        assert equal_bits.main(["--only", only, "--out", str(tmp_path)]) == 0
        assert measured == expected
    # In the order of the table, whatever came first.
    assert list(json.loads((tmp_path / "equal_bits.json").read_text())["models"]["MiniLM"]) == ["one", "two"]


def test_a_failure_is_a_row(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(folder: Path) -> Path:
        raise RuntimeError(f"nothing in {folder}/deep/model.onnx\nat all")

    monkeypatch.setattr(equal_bits, "MODELS", {"MiniLM": lambda: {"one": broken}})
    assert equal_bits.main(["--row", "MiniLM", "one"]) == 0
    assert capsys.readouterr().out == '{"failed": "RuntimeError: nothing in model.onnx"}\n'


def test_a_way_without_end_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(equal_bits.subprocess, "run", _timed_out)
    assert equal_bits._row("MiniLM", "one", 4, 7) == {"failed": "no result after 7 s"}


def _timed_out(command: list[str], **options: object) -> None:
    assert options["timeout"] == 7
    raise equal_bits.subprocess.TimeoutExpired(command, 7)
