"""The scheme of each product chosen by measurement."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import burnish
import pytest
import torch
from burnish.backends.onnxruntime.session import usable_cpus
from burnish.compiler.calibration.learning import Learning
from burnish.compiler.report import Report
from burnish.compiler.timing import stopwatch
from burnish.compiler.timing.costs import FILE, Costs
from burnish.ir.errors import CalibrationError, OptionError, UnsupportedError
from burnish.passes.quantize import Quantize
from burnish.passes.quantize.calibrated import Calibrated
from burnish.passes.quantize.scheme import NAMED, Scheme
from burnish.passes.quantize.targets import Weight


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.gate = torch.nn.Linear(256, 512), torch.nn.Linear(256, 512)
        self.down = torch.nn.Linear(512, 256)
        self.small = torch.nn.Linear(256, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.down(torch.nn.functional.silu(self.gate(x)) * self.up(x))
        return torch.cat([x, self.small(x)], dim=-1)


DATA = [torch.randn(64, 256, generator=torch.Generator().manual_seed(i)) for i in range(16)]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Measurements are taken once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def steady(monkeypatch: pytest.MonkeyPatch) -> None:
    """Costs by size alone: measured ones of small products are those of a busy machine, which may refuse any scheme."""

    def seconds(_: Costs, m: int, k: int, n: int, scheme: Scheme | None) -> float:
        slower = 20 if scheme == NAMED["nf4"] else 1
        bits = 32 if scheme is None or scheme == NAMED["nf4"] else scheme.bits
        return slower * m * k * n * bits * 1e-12

    monkeypatch.setattr(Costs, "__call__", seconds)


def chosen(cache: Path, **options: Any) -> Report:
    model = burnish.compile(
        Net().eval(), (DATA[0],), dynamic_shapes=({0: torch.export.Dim("batch")},),
        passes=[Quantize("auto", **options)], calibration=DATA[:12], evaluation=DATA[12:], cache=cache,
    )  # fmt: skip
    return model.report


def reasons(report: Report) -> list[str]:
    return [one.reason for _, one in report.remark_rows()]


@pytest.mark.usefixtures("steady")
@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_the_budget_is_kept_and_used(cache: Path, method: str) -> None:
    reports = {
        budget: chosen(cache, budget=budget, objective="size", prompt=1, method=method) for budget in (0.01, 0.05, 0.2)
    }
    errors = {}
    for budget, report in reports.items():
        assert report.accuracy is not None
        errors[budget] = 10 ** (-report.accuracy.signal_to_noise / 20)
        assert errors[budget] < 1.01 * budget  # on the inputs that it was chosen on, rounded as it was tried
        assert not [reason for reason in reasons(report) if "fitted to" in reason]
    assert errors[0.05] > 0.01
    sizes = [report.weight_bytes for report in reports.values()]
    assert sizes[0] > 1.2 * sizes[2] and sizes == sorted(sizes, reverse=True)


def by_hand(cache: Path, **options: Any) -> Report:
    model = burnish.compile(
        Net().eval(), (DATA[0],), dynamic_shapes=({0: torch.export.Dim("batch")},), cache=cache,
        passes=[Quantize("w4a16", half_scales=True, **options)], calibration=DATA[:12], evaluation=DATA[12:],
    )  # fmt: skip
    return model.report


@pytest.mark.usefixtures("steady")
@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_no_scheme_for_all_products_is_better(cache: Path, method: str) -> None:
    for group in (32, 64):
        whole = by_hand(cache, group_size=group, method=method)
        assert whole.accuracy is not None
        error = 10 ** (-whole.accuracy.signal_to_noise / 20)
        report = chosen(cache, budget=1.02 * error, objective="size", prompt=1, method=method)
        assert report.weight_bytes <= whole.weight_bytes
        assert report.accuracy is not None and report.accuracy.signal_to_noise >= whole.accuracy.signal_to_noise - 0.2


@pytest.mark.usefixtures("steady")
def test_no_weight_is_rounded_twice_by_one_scheme(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rounded: Counter[tuple[str | None, Scheme]] = Counter()
    compute = Calibrated._compute

    def counting(self: Calibrated, weight: Weight, scheme: Scheme, *rest: Any) -> Any:
        # Some of the rows alone are an estimate.
        rounded[weight.value.name, scheme] += len(rest) < 2
        return compute(self, weight, scheme, *rest)

    monkeypatch.setattr(Calibrated, "_compute", counting)
    chosen(cache, budget=0.05, objective="size", prompt=1)
    assert len(rounded) > 8 and max(rounded.values()) == 1


class Block(torch.nn.Module):
    """Adds a share of something to its input."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share, self.linear = share, torch.nn.Linear(256, 256)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.share * torch.tanh(self.linear(x))


class Deep(torch.nn.Module):
    """Layers alike but for what they add to the output: much, and little."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = torch.nn.Sequential(*(Block(share) for share in (1.0, 0.03, 1.0, 0.03, 0.03, 1.0)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.blocks(x)
        return result


def deep(**options: Any) -> Report:
    """Without a cache: it would give a result again, whatever a test has changed since."""
    model = burnish.compile(
        Deep().eval(), (DATA[0],), dynamic_shapes=({0: torch.export.Dim("batch")},), cache=False,
        passes=[Quantize("auto", **options)], calibration=DATA[:12], evaluation=DATA[12:],
    )  # fmt: skip
    return model.report


@pytest.mark.usefixtures("steady")
def test_layers_of_a_kind_get_bits_by_what_they_are_worth(monkeypatch: pytest.MonkeyPatch) -> None:
    found = deep(budget=0.012, objective="size", prompt=1)
    bits = {one.layer: one.bits for one in found.layers}
    assert [bits[f"blocks.{at}.linear"] for at in range(6)] == [8, 4, 8, 4, 4, 8]

    def without(*_: Any) -> list[float]:
        raise UnsupportedError("the reference backend has no rule for Odd")

    monkeypatch.setattr(Learning, "second_order", without)
    alike = deep(budget=0.012, objective="size", prompt=1)
    assert alike.weight_bytes > 1.1 * found.weight_bytes
    (told,) = [reason for reason in reasons(alike) if "count alike" in reason]
    assert told.endswith("the reference backend has no rule for Odd")


@pytest.mark.usefixtures("steady")
@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_a_budget_that_others_may_break_is_told(cache: Path, method: str) -> None:
    model = burnish.compile(
        Net().eval(), (DATA[0],), dynamic_shapes=({0: torch.export.Dim("batch")},), calibration=DATA[:12], cache=cache,
        passes=[Quantize("auto", budget=0.1, objective="size", prompt=1, method=method)],
    )  # fmt: skip
    told = [reason for reason in reasons(model.report) if "the budget was kept on the inputs that" in reason]
    assert len(told) == (method == "gptq")  # nothing is fitted by rounding to nearest


@pytest.mark.usefixtures("steady")
def test_what_was_chosen_and_refused_is_told(cache: Path) -> None:
    report = chosen(cache, budget=0.05, generated=0, prompt=64)
    told = reasons(report)
    assert any(reason.startswith("chosen for time within the budget: ") for reason in told)
    (nf4,) = [reason for reason in told if reason.startswith("NF4, one scale per group of 64: refused")]
    assert "of its time on this machine" in nf4


def left(report: Report) -> dict[str, str]:
    """Why layers were left in floating point."""
    rows = [one for _, one in report.remark_rows() if one.reason.startswith("left in floating point: ")]
    return {node: one.reason for one in rows for node in one.nodes}


@pytest.mark.usefixtures("steady")
def test_what_stays_float_is_told_with_its_reason() -> None:
    report = deep(budget=0.002, objective="size", prompt=1)
    rounded, told = {one.layer for one in report.layers}, left(report)
    assert rounded and told and rounded.isdisjoint(told)
    assert len(rounded) + len(told) == 6
    assert all("it was expected to lose" in reason and "of a budget of 4e-06" in reason for reason in told.values())
    told = left(deep(budget=0.05, generated=0, candidates=["nf4"]))
    assert len(told) == 6 and set(told.values()) == {"left in floating point: no scheme makes it faster"}


@pytest.mark.usefixtures("steady")
def test_other_choices_that_were_tried_are_told() -> None:
    report = deep(budget=0.03, objective="size", prompt=1)
    (told,) = [reason for reason in reasons(report) if reason.startswith("also tried, beside ")]
    mine, others = told.removeprefix("also tried, beside ").split(" of what was chosen: ")
    points = [other.split(" for relative error ") for other in others.split("; ")]
    sizes = [float(size.removesuffix(" MB")) for size, _ in points]
    losses = [float(loss) for _, loss in points]
    assert sizes == sorted(sizes) and losses == sorted(losses, reverse=True)
    assert all(
        (size < float(mine.removesuffix(" MB"))) == (loss > 0.03) for size, loss in zip(sizes, losses, strict=True)
    )


@pytest.mark.usefixtures("steady")
def test_products_of_one_input_get_one_scheme(cache: Path) -> None:
    report = chosen(cache, budget=0.1, objective="size", prompt=1)
    bits = {one.layer: one.bits for one in report.layers}
    assert bits["up"] == bits["gate"]


@pytest.mark.usefixtures("steady")
def test_only_named_candidates(cache: Path) -> None:
    report = chosen(cache, budget=0.3, objective="size", prompt=1, candidates=("w8a16",))
    assert {one.bits for one in report.layers} == {8}
    assert not [reason for reason in reasons(report) if "refused" in reason]  # nothing else was up for choice


def test_nothing_fits_a_tiny_budget(cache: Path) -> None:
    report = chosen(cache, budget=1e-7)
    assert report.layers == [] and report.weight_bytes == report.source_bytes


def test_what_it_needs(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="needs calibration inputs"):
        burnish.compile(Net().eval(), (DATA[0],), passes=[Quantize("auto", budget=0.1)])
    with pytest.raises(UnsupportedError, match="nothing can be measured for the target 'onnx'"):
        burnish.export(
            Net().eval(), tmp_path / "m.onnx", (DATA[0],), passes="quantize(scheme=auto,budget=0.1)",
            calibration=DATA[:2], target="onnx",
        )  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scheme": "auto"}, "needs a budget"),
        ({"scheme": "auto", "budget": 0.0}, "needs a budget"),
        ({"scheme": "w4a16", "budget": 0.1}, "a budget is for the scheme 'auto'"),
        ({"scheme": "auto", "budget": 0.1, "objective": "speed"}, "objective='speed' is not known"),
        ({"scheme": "auto", "budget": 0.1, "bits": 4}, "chooses bits and groups itself"),
        ({"scheme": "auto", "budget": 0.1, "prompt": 0}, "numbers of tokens"),
        ({"scheme": "auto", "budget": 0.1, "candidates": ("w5a16",)}, "unknown quantization scheme"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Quantize(**options)


def test_costs_are_measured_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopwatch, "is_quiet", lambda threads: False)
    first = Costs(tmp_path / "kept")
    plain, nf4 = first(4, 512, 512, None), first(4, 512, 512, NAMED["nf4"])
    assert 0 < plain < nf4
    assert [file.name for file in tmp_path.rglob("*.*")] == [FILE]
    second = Costs(tmp_path / "kept")
    monkeypatch.setattr(Costs, "_measure", lambda *_: pytest.fail("measured again"))
    assert second(4, 512, 512, None) == plain


def test_times_of_a_busy_machine_are_not_mixed_with_those_of_a_quiet_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for quiet in (True, False):
        monkeypatch.setattr(stopwatch, "is_quiet", lambda threads, quiet=quiet: quiet)
        Costs(tmp_path)(4, 64, 64, None)
    kept = json.loads((tmp_path / FILE).read_text())
    assert [key.rpartition(": ")[0].rpartition(", ")[2] for key in kept] == [f"{usable_cpus()} threads", "1 thread"]


def test_a_damaged_table_is_measured_anew(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("{")
    assert Costs(tmp_path)(1, 64, 64, None) > 0


@pytest.mark.usefixtures("steady")
def test_scales_are_halves_where_size_counts(cache: Path) -> None:
    sizes = {}
    for half in (None, True, False):
        report = chosen(cache, budget=0.1, objective="size", prompt=1, method="rtn", half_scales=half)
        sizes[half] = report.weight_bytes
    assert sizes[None] == sizes[True] < 0.96 * sizes[False]


@pytest.mark.usefixtures("steady")
def test_an_override_keeps_its_scheme(cache: Path) -> None:
    """Even where it is the one that is written when nothing is chosen."""
    given = (("*up", "w4a16"), ("*gate", "float"))
    report = chosen(cache, budget=1e-7, overrides=given)
    assert {one.layer: one.bits for one in report.layers} == {"up": 4}
