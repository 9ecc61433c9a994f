"""One scale from calibration inputs where the tokens of a W8A8 product's input are alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import burnish
import numpy as np
import onnxruntime
import pytest
import torch
from burnish.compiler.calibration.statistics import Statistics
from burnish.compiler.report import Report
from burnish.ir.errors import CalibrationError, OptionError
from burnish.passes import SmoothQuant
from burnish.passes.quantize import Quantize
from burnish.passes.quantize.inputs import alike
from burnish.passes.quantize.inputs.histogram import choose, expected_error
from burnish.passes.statistics import HISTOGRAM_BINS, HISTOGRAM_LEAST, HISTOGRAM_STEPS

WIDTH = 256


class Net(torch.nn.Module):
    """Behind the normalization all tokens have one length; the hidden ones of ``down`` have what the gate lets through.

    Without ``spread`` one channel is a hundred times the others where the first input is positive: half of the tokens.
    """

    def __init__(self, spread: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.spread = spread
        self.norm = torch.nn.RMSNorm(WIDTH, elementwise_affine=False)
        self.up, self.gate = torch.nn.Linear(WIDTH, WIDTH), torch.nn.Linear(WIDTH, WIDTH)
        self.down = torch.nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.spread:
            x = torch.cat([x[:, :-1], 100 * (x[:, :1] > 0)], dim=-1)
        y = self.norm(x)
        return x + self.down((self.gate(y) ** 3) * self.up(y))


DATA = [torch.randn(64, WIDTH, generator=torch.Generator().manual_seed(i)) * 10 ** (i % 3) for i in range(12)]


def compiled(spread: bool = True, **options: Any) -> burnish.CompiledModel:
    return burnish.compile(
        Net(spread).eval(), (DATA[0],), dynamic_shapes=({0: torch.export.Dim("tokens")},),
        passes=[Quantize("w8a8", **options)], calibration=DATA[:8], evaluation=DATA[8:], cache=False,
    )  # fmt: skip


def how(report: Report) -> list[str]:
    """How the inputs of products are quantized, each once."""
    reasons = [remark.reason for _, remark in report.remark_rows() if remark.reason.startswith("input quantized")]
    return sorted("one scale" if "one scale from calibration inputs" in reason else "by token" for reason in reasons)


def told(report: Report) -> list[str]:
    return [remark.reason for _, remark in report.remark_rows() if "alike from token to token" in remark.reason]


def missed(report: Report) -> list[str]:
    """Why none got one scale."""
    rows = [remark.reason for _, remark in report.remark_rows() if remark.kind == "missed"]
    return [reason for reason in rows if "alike enough" in reason or reason.startswith("fixed_inputs")]


def test_what_a_normalization_makes_gets_one_scale() -> None:
    model = compiled()
    assert how(model.report) == ["by token", "one scale"]
    (reason,) = told(model.report)
    assert reason.startswith("1 of 1 inputs behind normalizations are alike") and "by a factor of 2." in reason


def test_nearly_nothing_is_lost() -> None:
    lost = {limit: compiled(fixed_inputs=limit).report.accuracy for limit in (0.0, None)}
    assert lost[None].signal_to_noise > lost[0.0].signal_to_noise - 2.0  # decibels
    assert lost[None].cosine > 0.999


def test_tokens_that_differ_keep_their_scales() -> None:
    report = compiled(spread=False).report
    assert set(how(report)) == {"by token"} and told(report) == []
    (reason,) = missed(report)
    assert reason.startswith("none of 1 inputs behind normalizations") and reason.endswith("and 2.5 is allowed")
    forced = compiled(spread=False, fixed_inputs=1000.0).report
    assert "one scale" in how(forced)
    assert forced.accuracy.signal_to_noise < report.accuracy.signal_to_noise - 1.0


class PostNorm(torch.nn.Module):
    """The residual reads what the normalization makes, of which one channel is large in every other token."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.up = torch.nn.LayerNorm(WIDTH), torch.nn.Linear(WIDTH, WIDTH)
        self.norm.weight.data[7] = 60

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(x)
        return y + self.up(y)


@pytest.mark.parametrize("insert", [False, True])
def test_an_inserted_multiplication_makes_tokens_alike(insert: bool) -> None:
    model = burnish.compile(
        PostNorm().eval(), (DATA[0],), dynamic_shapes=({0: torch.export.Dim("tokens")},),
        passes=[SmoothQuant(0.95, insert=insert), Quantize("w8a8")], calibration=DATA[:8], cache=False,
    )  # fmt: skip
    assert how(model.report) == (["one scale"] if insert else ["by token"])


@pytest.mark.parametrize("options", [{"fixed_inputs": 0}, {"method": "rtn"}, {"outliers": 6.0}])
def test_nobody_asked(options: dict[str, Any]) -> None:
    report = compiled(**options).report
    assert told(report) == missed(report) == []


def test_asked_by_name_where_no_normalization_made_an_input() -> None:
    report = compiled(fixed_inputs=2.5, include="down").report
    assert missed(report) == ["fixed_inputs: no input behind a normalization is quantized by token"]


def test_by_rounding_to_nearest_where_asked_for() -> None:
    assert "one scale" in how(compiled(method="rtn", fixed_inputs=2.5).report)


def test_statistics_take_one_run(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[int] = []
    leave = Statistics.__exit__
    monkeypatch.setattr(Statistics, "__exit__", lambda self, *how: (runs.append(self.runs), leave(self, *how))[1])
    compiled()
    assert runs == [1]


def test_a_token_larger_than_all_of_the_data_does_no_harm() -> None:
    """It is no larger behind the normalization."""
    model = compiled()
    x = DATA[9].numpy() * 1e4
    right = Net(True).eval()(torch.from_numpy(x)).detach().numpy()
    got = np.asarray(model(x))
    assert np.linalg.norm(got - right) < 0.01 * np.linalg.norm(right)


def test_a_portable_file_has_the_same(tmp_path: Path) -> None:
    report = burnish.export(
        Net(True).eval(), tmp_path / "m.onnx", (DATA[0],), dynamic_shapes=({0: torch.export.Dim("tokens")},),
        passes="w8a8", calibration=DATA[:8], target="onnx",
    )  # fmt: skip
    assert told(report)
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    (got,) = session.run(None, {session.get_inputs()[0].name: DATA[9].numpy()})
    right = Net(True).eval()(DATA[9]).detach().numpy()
    assert np.linalg.norm(got - right) < 0.01 * np.linalg.norm(right)


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="is no factor of an error"):
        Quantize("w8a8", fixed_inputs=-1.0)
    with pytest.raises(OptionError, match="fixed_inputs quantizes them otherwise"):
        Quantize("w8a8", fixed_inputs=2.5, outliers=6.0)
    with pytest.raises(OptionError, match="'auto' leaves tokens their scales and zero points, fixed_inputs takes"):
        Quantize("auto", budget=0.05, fixed_inputs=2.5)
    with pytest.raises(CalibrationError):
        burnish.compile(Net(True).eval(), (DATA[0],), passes=[Quantize("w8a8", fixed_inputs=2.5)], cache=False)


def test_the_limit_is_above_what_normal_numbers_need() -> None:
    """576 normal numbers a token: the figure of the module's docstring."""
    x = np.random.default_rng(0).standard_normal((4096, 576)).astype(np.float32)
    bins = np.clip((np.log2(np.maximum(np.abs(x), 2.0**HISTOGRAM_LEAST)) - HISTOGRAM_LEAST) * HISTOGRAM_STEPS, 0, None)
    counts = np.bincount((bins.astype(int) + HISTOGRAM_BINS * (x < 0)).ravel(), minlength=2 * HISTOGRAM_BINS)
    observed = np.concatenate([[x.min(), x.max()], counts]).astype(np.float32)
    by_token = float(((x.max(1) - x.min(1)) ** 2).mean()) / 255**2 / 12
    growth = expected_error(observed, choose(observed, "mse")) / by_token
    assert 1.7 < growth < 1.9 < alike.LIMIT
