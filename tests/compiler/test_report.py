"""Reports: grouping, the three ways they are shown, and reading them back."""

import json
from pathlib import Path

import pytest
from burnish.compiler.report import PassReport, Report, error_text, group, seconds_text, size_text
from burnish.ir.errors import ArtifactError, OutputError
from burnish.ir.remarks import Remark


@pytest.fixture
def report() -> Report:
    remarks = [Remark("applied", f"layers.{i}.q_proj", "4-bit, groups of 64", {"weights": 10}) for i in range(5)]
    remarks.append(Remark("skipped", "lm_head", "too <small>"))
    return Report(
        model="tiny",
        route="onnx",
        target="onnxruntime",
        source_bytes=4_000_000,
        weights=1_000_000,
        weight_bytes=562_500,
        file_bytes=600_000,
        nodes_before=10,
        nodes_after=8,
        operators={"com.microsoft.MatMulNBits": 5, "Relu": 3},
        seconds={"import": 0.5, "passes": 120.0},
        passes=[PassReport("quantize(bits=4)", 0.25, 10, 8, {"quantize weights": 5, "none": 0}, group(remarks), 0.012)],
        frontend=group([Remark("applied", "", "opset raised from 17 to 23")]),
        verify="numerics",
        error=0.012,
        runtime="1.23",
        versions={"burnish": "0.1.0"},
    )


def test_grouping_counts_and_keeps_the_order() -> None:
    found = group(
        [Remark("missed", "a", "one"), Remark("applied", "b", "one"), Remark("missed", "c", "one", {"axis": 1})]
    )
    assert [(item.kind, item.reason, item.count) for item in found] == [("missed", "one", 2), ("applied", "one", 1)]
    assert found[0].nodes == ("a", "c")
    assert found[0].values == ({}, {"axis": 1})
    assert found[1].values == ()


def test_figures(report: Report) -> None:
    assert report.bits_per_weight == 4.5
    assert report.nonstandard == {"com.microsoft.MatMulNBits": 5}
    figures = dict(report.summary())
    assert figures["weights"] == "4.0 MB → 562.5 kB (7.1× smaller)"
    assert figures["bits per weight"] == "4.50 (1,000,000 weights)"
    assert figures["nodes"] == "10 → 8"
    assert figures["not in ONNX"] == "com.microsoft.MatMulNBits × 5"
    assert figures["time"] == "import 500 ms, passes 2.0 min"


def test_text(report: Report) -> None:
    text = str(report)
    assert "quantize weights × 5" in text and "none × 0" not in text
    assert "layers.0.q_proj, layers.1.q_proj, layers.2.q_proj, and 2 more" in text
    assert "1.2e-02" in text
    assert max(map(len, text.splitlines())) <= 110
    assert "\x1b" not in text


def test_html_is_escaped(report: Report) -> None:
    page = report._repr_html_()
    assert "too &lt;small&gt;" in page and "<small>, " not in page
    assert page.count("<table") == page.count("</table>") == 3


def test_json(report: Report, tmp_path: Path) -> None:
    assert Report.from_json(report.to_json()) == report
    report.save(tmp_path / "report.json")
    raw = json.loads((tmp_path / "report.json").read_text())
    assert raw["bits_per_weight"] == 4.5
    assert raw["passes"][0]["remarks"][0]["nodes"][4] == "layers.4.q_proj"
    report.save(tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text() == report._repr_html_()
    assert sorted(item.name for item in tmp_path.iterdir()) == ["report.html", "report.json"]


def test_saving_where_nothing_can_be_written(report: Report, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        report.save(tmp_path / "missing" / "report.json")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"passes": 3}'])
def test_damaged(text: str) -> None:
    with pytest.raises(ArtifactError, match="report is damaged"):
        Report.from_json(text)


def test_units() -> None:
    assert [size_text(n) for n in (0, 999, 1000, 77_400_000, 13.5e9)] == [
        "0 B",
        "999 B",
        "1.0 kB",
        "77.4 MB",
        "13.50 GB",
    ]
    assert [seconds_text(s) for s in (0.0004, 0.25, 12.34, 150)] == ["0 ms", "250 ms", "12.3 s", "2.5 min"]
    assert [error_text(e) for e in (None, 0.0, 0.00123)] == ["–", "0", "1.2e-03"]
