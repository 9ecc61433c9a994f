"""Accuracy in the report: end to end, layer by layer, and drawn."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import burnish
import numpy as np
import pytest
import torch
from burnish.compiler.accuracy import Comparison
from burnish.compiler.plots import frontier, plot_frontier
from burnish.compiler.report import Report
from burnish.ir.errors import OutputError, UnsupportedError
from burnish.ir.noise import decibels

RANDOM = np.random.default_rng(0)


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down = torch.nn.Linear(96, 160), torch.nn.Linear(160, 96)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(torch.relu(self.up(x)))


DATA = [torch.randn(12, 96, generator=torch.Generator().manual_seed(i)) for i in range(24)]


def compiled(**options: Any) -> Report:
    model = burnish.compile(Net().eval(), (DATA[0],), dynamic_shapes=({0: torch.export.Dim("batch")},), **options)
    return model.report


def test_known_figures() -> None:
    total = Comparison(decoder=True)
    p, q = RANDOM.standard_normal((1, 5, 7)), RANDOM.standard_normal((1, 5, 7))
    ids = RANDOM.integers(0, 7, (1, 5))
    total.add(p, q, ids)
    found = total.result(held_out=True)
    a, b = (torch.log_softmax(torch.from_numpy(x[0]), -1) for x in (p, q))
    kl = torch.nn.functional.kl_div(b, a, reduction="batchmean", log_target=True)
    nll = torch.nn.functional.nll_loss(b[:-1], torch.from_numpy(ids[0, 1:]))
    assert found.divergence == pytest.approx(float(kl))
    assert found.perplexity == pytest.approx(math.exp(float(nll)))
    assert found.agreement == pytest.approx(float((a.argmax(-1) == b.argmax(-1)).double().mean()))
    assert found.cosine == pytest.approx(
        float(torch.cosine_similarity(torch.from_numpy(p[0]), torch.from_numpy(q[0])).mean())
    )
    assert found.signal_to_noise == pytest.approx(10 * np.log10((p**2).sum() / ((p - q) ** 2).sum()), abs=0.01)


def test_the_same_outputs_have_no_noise() -> None:
    total = Comparison(decoder=False)
    total.add(np.ones((3, 4)), np.ones((3, 4)))
    found = total.result(held_out=False)
    assert found.signal_to_noise == 200 and found.cosine == pytest.approx(1) and found.perplexity is None


def test_decibels() -> None:
    assert decibels(100, 1) == 20 and decibels(0, 0) == 200 and decibels(0, 1) == 0


def test_fewer_bits_are_noisier_in_the_report() -> None:
    eight = compiled(passes="w8a16", calibration=DATA[:16], evaluation=DATA[16:])
    four = compiled(passes="w4a16", calibration=DATA[:16], evaluation=DATA[16:])
    assert eight.accuracy is not None and four.accuracy is not None
    assert eight.accuracy.held_out and eight.accuracy.inputs == 8
    assert eight.accuracy.signal_to_noise > four.accuracy.signal_to_noise + 10
    assert four.accuracy.cosine < eight.accuracy.cosine <= 1
    assert len(four.layers) == 2 and all(one.outputs is not None for one in four.layers)
    assert all(a.weights > b.weights for a, b in zip(eight.layers, four.layers, strict=True))


def test_layers_are_measured_without_data_too() -> None:
    report = compiled(passes="w4a16")
    assert report.accuracy is None
    assert [one.outputs for one in report.layers] == [None, None]
    assert all(10 < one.weights < 35 for one in report.layers)


def test_calibration_inputs_stand_in_and_are_named() -> None:
    report = compiled(passes="w4a16", calibration=DATA[:16])
    assert report.accuracy is not None and not report.accuracy.held_out
    assert "on 8 calibration inputs" in str(report)


def test_a_lossless_compilation_is_not_compared() -> None:
    assert compiled(calibration=DATA[:2]).accuracy is None
    report = compiled(evaluation=DATA[:2])
    assert report.accuracy is not None and report.accuracy.signal_to_noise > 100


def test_it_survives_json_and_is_in_the_page(tmp_path: Path) -> None:
    report = compiled(passes="w4a16", calibration=DATA[:16])
    again = Report.from_json(report.to_json())
    assert again.accuracy == report.accuracy and again.layers == report.layers
    assert len(json.loads(report.to_json())["layers"]) == 2
    report.save(tmp_path / "r.html")
    assert "Layers that rounding cost most" in (tmp_path / "r.html").read_text()


def test_the_picture(tmp_path: Path) -> None:
    report = compiled(passes="w4a16", calibration=DATA[:16])
    report.plot(tmp_path / "layers.svg")
    text = (tmp_path / "layers.svg").read_text()
    assert text.startswith("<?xml") and len(text) > 3000
    with pytest.raises(OutputError, match="cannot be written"):
        report.plot(tmp_path / "no" / "layers.svg")
    with pytest.raises(OutputError):
        report.plot(tmp_path / "layers.xyz")
    with pytest.raises(UnsupportedError, match="no layer was rounded"):
        compiled().plot(tmp_path / "none.svg")


def test_the_frontier(tmp_path: Path) -> None:
    points = [("a", 1.0, 5.0), ("b", 2.0, 6.0), ("c", 3.0, 1.0), ("d", 3.0, 2.0)]
    assert [name for name, _, _ in frontier(points)] == ["a", "c"]
    plot_frontier(points, tmp_path / "f.png", x="size", y="loss")
    assert (tmp_path / "f.png").stat().st_size > 5000
