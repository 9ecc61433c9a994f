"""One zero point for all tokens of a W8A8 product's input where calibration inputs say that it does as well."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import burnish
import numpy as np
import onnx
import pytest
import torch
from burnish.backends.onnxruntime.session import Session
from burnish.compiler.calibration.statistics import Statistics
from burnish.ir.errors import CalibrationError, OptionError
from burnish.passes.quantize import Quantize
from burnish.passes.statistics import ZERO_POINTS
from hypothesis import given, settings
from hypothesis import strategies as st

WIDTH = 256


class Net(torch.nn.Module):
    """Two-sided inputs, one-sided ones behind a GELU, or inputs whose large end changes sides from token to token."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kind = kind
        self.inner, self.outer = torch.nn.Linear(WIDTH, WIDTH), torch.nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[tokens, 256] to [tokens, 256]."""
        y = self.inner(x) + x
        if self.kind == "gelu":
            y = torch.nn.functional.gelu(y)
        elif self.kind == "sides":
            y = y + torch.cat([30 * x[:, :1], torch.zeros_like(x[:, 1:])], dim=-1)
        return self.outer(y)


DATA = [torch.randn(64, WIDTH, generator=torch.Generator().manual_seed(i)) * 10 ** (i % 3) for i in range(12)]


def compiled(kind: str = "two", **options: Any) -> burnish.CompiledModel:
    shapes = ({0: torch.export.Dim("tokens")},) if options.pop("dynamic", True) else None
    quantize = Quantize("w8a8", include="outer", **options)
    return burnish.compile(
        Net(kind).eval(), (DATA[0],), dynamic_shapes=shapes, passes=[quantize], calibration=DATA[:8],
        evaluation=DATA[8:], cache=False,
    )  # fmt: skip


def told(model: burnish.CompiledModel, kind: str = "applied") -> list[str]:
    rows = [remark for _, remark in model.report.remark_rows() if remark.kind == kind]
    return [one.reason for one in rows if "one zero point for all tokens" in one.reason]


def operators(model: burnish.CompiledModel) -> dict[str, int]:
    found: dict[str, int] = {}
    for node in onnx.load(model.path).graph.node:
        found[node.op_type] = found.get(node.op_type, 0) + 1
    return found


@pytest.mark.parametrize(("kind", "dynamic"), [("two", True), ("two", False), ("gelu", True)])
def test_fewer_operators_and_nearly_nothing_lost(kind: str, dynamic: bool) -> None:
    model, each = compiled(kind, dynamic=dynamic), compiled(kind, dynamic=dynamic, fixed_zero_points=0)
    assert told(each) == [] and len(told(model)) == 1
    with_one, without = operators(model), operators(each)
    assert with_one["MatMulIntegerToFloat"] == without["MatMulIntegerToFloat"] == 1
    assert "Concat" in without and not {"Concat", "Round", "Div", "Sub"} & set(with_one)
    assert sum(without.values()) - sum(with_one.values()) >= 5
    figures = [one.report.accuracy for one in (model, each)]
    assert figures[0].signal_to_noise > figures[1].signal_to_noise - 1.5  # decibels
    assert model.report.weight_bytes <= each.report.weight_bytes  # no columns for zero points


def test_a_gelu_gets_a_zero_point_near_its_end() -> None:
    def zero(kind: str) -> int:
        model = compiled(kind)
        graph = onnx.load(model.path).graph
        (product,) = [node for node in graph.node if node.op_type == "MatMulIntegerToFloat"]
        (tensor,) = [one for one in graph.initializer if one.name == product.input[4]]
        return int(onnx.numpy_helper.to_array(tensor))

    assert zero("gelu") < 64 and 112 <= zero("two") <= 144


def test_ends_that_change_sides_keep_their_zero_points() -> None:
    model = compiled("sides")
    assert told(model) == [] and "Concat" in operators(model)
    (reason,) = told(model, "missed")
    assert reason.startswith("none of 1 inputs") and reason.endswith("or more, and 1.4 is allowed")
    forced = compiled("sides", fixed_zero_points=100.0)
    assert len(told(forced)) == 1
    assert forced.report.accuracy.signal_to_noise < model.report.accuracy.signal_to_noise - 3.0


class Shared(Net):
    """One weight meets an input with two sides, and one whose large end changes sides."""

    def __init__(self) -> None:
        super().__init__("two")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[tokens, 256] to [tokens, 256]."""
        return self.outer(super().forward(x) + torch.cat([300 * x[:, :1], torch.zeros_like(x[:, 1:])], dim=-1))


def test_a_weight_that_two_inputs_meet_stays_in_int8() -> None:
    model = burnish.compile(
        Shared().eval(), (DATA[0],), dynamic_shapes=({0: torch.export.Dim("tokens")},), calibration=DATA[:8],
        passes=[Quantize("w8a8", include="outer*")], cache=False,
    )  # fmt: skip
    assert told(model) == [] and operators(model)["MatMulIntegerToFloat"] == 2
    (reason,) = told(model, "missed")
    assert reason.endswith("those that could are inputs of weights that meet others, which cannot")


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 1000), tokens=st.integers(1, 6), factor=st.sampled_from([0.0, 1e-6, 1.0, 1e4]),
    side=st.sampled_from([-1.0, 0.0, 1.0]),
)  # fmt: skip
def test_tokens_unlike_the_data_are_not_clipped(seed: int, tokens: int, factor: float, side: float) -> None:
    """Their steps are at most those that the wider of the two sides of the code asks for."""
    if not _KEPT:
        _KEPT.append(compiled())
    (model,) = _KEPT
    x = np.random.default_rng(seed).standard_normal((tokens, WIDTH)).astype(np.float32)
    x = np.abs(x) * side if side else x
    x *= factor
    net = Net("two").eval()
    right = net(torch.from_numpy(x)).detach().numpy()
    inside = net.inner(torch.from_numpy(x)).detach().numpy() + x
    room = min(min(ZERO_POINTS), 255 - max(ZERO_POINTS))
    steps = np.abs(inside).max(axis=1, keepdims=True) / room
    weight = np.abs(net.outer.weight.detach().numpy()).sum(axis=1)
    got = np.asarray(model(x))
    assert np.all(np.abs(got - right) <= steps * weight + 0.02 * np.abs(inside).sum(axis=1, keepdims=True) + 1e-5)


_KEPT: list[burnish.CompiledModel] = []


def test_statistics_take_one_run(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[int] = []
    leave = Statistics.__exit__
    monkeypatch.setattr(Statistics, "__exit__", lambda self, *how: (runs.append(self.runs), leave(self, *how))[1])
    assert told(compiled())
    assert runs == [1]


@pytest.mark.parametrize("options", [{"fixed_zero_points": 0}, {"method": "rtn"}, {"outliers": 6.0}])
def test_nobody_asked(options: dict[str, Any]) -> None:
    model = compiled(**options)
    assert told(model) == told(model, "missed") == []


def test_asked_by_name_where_no_input_is_quantized_by_token() -> None:
    model = burnish.compile(
        Net("two").eval(), (DATA[0],), passes=[Quantize("w4a16", fixed_zero_points=1.4)], calibration=DATA[:2],
        cache=False,
    )  # fmt: skip
    reasons = [remark.reason for _, remark in model.report.remark_rows() if remark.kind == "missed"]
    assert "fixed_zero_points: no input is quantized by token" in reasons


def test_a_portable_file_has_the_same(tmp_path: Path) -> None:
    burnish.export(
        Net("two").eval(), tmp_path / "m.onnx", (DATA[0],), dynamic_shapes=({0: torch.export.Dim("tokens")},),
        passes=[Quantize("w8a8")], calibration=DATA[:8], target="onnx", cache=False,
    )  # fmt: skip
    x = DATA[9].numpy()
    (got,) = Session(tmp_path / "m.onnx").run({Session(tmp_path / "m.onnx").inputs[0].name: x})
    right = Net("two").eval()(DATA[9]).detach().numpy()
    assert np.linalg.norm(got - right) < 0.02 * np.linalg.norm(right)


def test_errors() -> None:
    with pytest.raises(OptionError, match=r"fixed_zero_points=-1.0 is no factor of an error"):
        Quantize("w8a8", fixed_zero_points=-1.0)
    with pytest.raises(OptionError, match="fixed_zero_points quantizes them otherwise"):
        Quantize("w8a8", fixed_zero_points=1.5, outliers=6.0)
    with pytest.raises(OptionError, match="'auto' leaves tokens their scales and zero points, fixed_zero_points takes"):
        Quantize("auto", budget=0.05, fixed_zero_points=1.4)
    with pytest.raises(CalibrationError, match="calibration inputs are needed"):
        burnish.compile(Net("two").eval(), (DATA[0],), passes=[Quantize("w8a8", fixed_zero_points=1.5)], cache=False)
