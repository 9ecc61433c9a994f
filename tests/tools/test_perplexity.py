"""Text split by topic, and perplexity against values known beforehand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from burnish.ir.errors import ModelError
from burnish.tools import text
from burnish.tools.perplexity import file_logits, main, negative_log_likelihood, perplexity


def test_held_out_text_shares_no_paragraph_with_calibration() -> None:
    calibration, held_out = text.calibration_text(), text.held_out_text()
    assert not set(calibration.split("\n\n")) & set(held_out.split("\n\n"))
    assert len(calibration) > 150_000
    assert len(held_out) > 60_000
    assert held_out == text.held_out_text()


def test_windows_are_spread_evenly() -> None:
    ids = text.windows(lambda t: list(range(len(t))), "x" * 100, count=3, length=10)
    assert ids.dtype == np.int64
    assert ids[:, 0].tolist() == [0, 45, 90]
    assert ids[2].tolist() == list(range(90, 100))


def test_text_too_short() -> None:
    with pytest.raises(ValueError, match="the text has 5 tokens"):
        text.windows(lambda t: list(range(len(t))), "xxxxx", count=1, length=10)


def test_tokenizer_missing(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no tokenizer\.json"):
        text.load_tokenizer(tmp_path)


def test_likelihood_survives_large_logits() -> None:
    logits = np.random.default_rng(0).standard_normal((130, 50))
    targets = np.arange(130) % 50
    exact = -np.log(np.exp(logits) / np.exp(logits).sum(-1, keepdims=True))[np.arange(130), targets].sum()
    assert negative_log_likelihood(logits, targets) == pytest.approx(exact, rel=1e-12)
    # 2**13 is exact in float32, and its exp is not finite.
    shifted = (logits.astype(np.float32) + np.float32(8192)).astype(np.float64)
    assert negative_log_likelihood(shifted, targets) == pytest.approx(
        negative_log_likelihood(shifted - 8192, targets), rel=1e-12
    )


def test_certain_and_uniform_models() -> None:
    ids = np.array([[1, 2, 3, 1], [2, 3, 1, 2]])

    def certain(window: np.ndarray) -> np.ndarray:
        logits = np.full((1, 4, 5), -1e4, np.float32)
        logits[0, np.arange(3), window[0, 1:]] = 0
        return logits

    assert perplexity(certain, ids) == 1.0
    assert perplexity(lambda window: np.zeros((1, 4, 5), np.float32), ids) == pytest.approx(5.0, rel=1e-12)


def test_file_of_a_decoder(decoder_file: Path) -> None:
    ids = np.random.default_rng(0).integers(0, 32, (2, 16))
    assert perplexity(file_logits(decoder_file), ids) == pytest.approx(32.0, rel=1e-12)
    assert math.isclose(perplexity(file_logits(decoder_file, threads=1), ids[:1]), 32.0)


def test_file_that_is_no_decoder(linear_file) -> None:
    with pytest.raises(ModelError, match="no decoder"):
        file_logits(linear_file())


def test_command_line(
    decoder_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("burnish.tools.perplexity.load_tokenizer", lambda source: lambda t: [ord(c) % 32 for c in t])
    arguments = ["--tokenizer", "any", "--windows", "2", "--length", "64"]
    assert main([str(decoder_file), "--json", *arguments]) == 0
    assert json.loads(capsys.readouterr().out) == {str(decoder_file): pytest.approx(32.0)}
    assert main([str(tmp_path / "absent.onnx"), *arguments]) == 1
    assert "there is no such model" in capsys.readouterr().err
