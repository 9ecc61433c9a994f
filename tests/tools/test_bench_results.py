"""What benchmark scripts write, and the tables made of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from burnish.compiler.benchmark import Result, Side, Timing
from burnish.tools import bench, bench_files
from burnish.tools.bench_results import Check, checks_table, decoder_table, files_table, fill, write_results

SECONDS = {"torch.onnx.export": (0.02, 0.02, 0.02), "w4a16": (0.01, 0.01, 0.01)}


@pytest.fixture
def decoder() -> dict:
    sides = [Side("torch.onnx.export", "/somewhere/model.onnx"), Side("w4a16", "/somewhere/w4a16")]
    timings = {name: Timing(seconds) for name, seconds in SECONDS.items()}
    result = Result(sides, 2, {"prefill 128": timings, "decode, 128 past": timings})
    result.memory = {"torch.onnx.export": 700_000_000, "w4a16": 250_000_000}
    result.size = {"torch.onnx.export": 540_000_000, "w4a16": 79_900_000}
    perplexity = {"torch.onnx.export": 14.62, "w4a16": 16.9}
    checks = [Check("size", 79.9, 80, " MB").to_json(), Check("speed", 1.1, 1.03, "×").to_json()]
    return {"model": "SmolLM2", **result.to_json(), "perplexity": perplexity, "checks": checks}


def test_decoder_table(decoder: dict) -> None:
    assert decoder_table(decoder).splitlines() == [
        "| SmolLM2 | `torch.onnx.export`, ONNX Runtime | Burnish `w4a16` |",
        "| --- | ---: | ---: |",
        "| size on disk | 540 MB | 80 MB |",
        "| peak memory | 700 MB | 250 MB |",
        "| prefill 128 tokens | 20.0 ms | 10.0 ms (0.50×) |",
        "| decode, 128 past, per token | 20.0 ms | 10.0 ms (0.50×) |",
        "| perplexity, held-out text | 14.62 | 16.90 |",
    ]


def test_checks(decoder: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert write_results(tmp_path / "new" / "decoder.json", decoder) == 1
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["decoder.json"]
    assert json.loads((tmp_path / "new" / "decoder.json").read_text()) == decoder
    shown = capsys.readouterr().out.splitlines()
    assert shown == ["ok     size: 79.9 MB (limit 80 MB)", "FAILED speed: 1.1× (limit 1.03×)"]
    assert checks_table(decoder).splitlines()[2:] == [
        "| size | 79.9 MB | 80 MB | yes |",
        "| speed | 1.1× | 1.03× | **no** |",
    ]


def test_no_path_of_this_machine_is_written(decoder: dict) -> None:
    assert "/somewhere" not in json.dumps(decoder)


def test_fill() -> None:
    document = "a <!-- x -->\nold\n<!-- end x --> b"
    filled = fill(document, {"x": "new"})
    assert filled == "a <!-- x -->\nnew\n<!-- end x --> b"
    assert fill(filled, {"x": "new"}) == filled
    with pytest.raises(ValueError, match="no block <!-- y -->"):
        fill(document, {"y": ""})
    with pytest.raises(ValueError, match="no block"):
        fill("<!-- x --> never closed", {"x": ""})


def test_files_are_measured_and_rendered(
    linear_file, decoder: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("burnish.compiler.benchmark.runner._TURN", 0.01)
    case = bench_files.Case("linear", linear_file, lambda generator: {"x": np.ones((2, 8), np.float32)})
    results = bench_files.measure((case,), tmp_path / "work", rounds=5)
    assert [check["name"].partition(":")[0] for check in results["checks"]] == ["linear", "linear"]
    assert results["checks"][1] == {
        "name": "linear: difference, of range", "value": 0.0, "limit": 1e-4, "unit": "", "passed": True,
    }  # fmt: skip
    (row,) = files_table(results).splitlines()[2:]
    assert row.startswith("| linear | ")
    assert row.endswith("| 0e+00 |")

    write_results(tmp_path / "decoder.json", decoder)
    write_results(tmp_path / "files.json", results)
    row = {
        "model": "tiny", "layers": 3, "weight_bytes": 2_200_000_000, "compiled_bytes": 620_000_000, "seconds": 21.4,
        "peak_anonymous_bytes": 900_000_000,
    }  # fmt: skip
    write_results(tmp_path / "scale.json", {"compiling": [row], "checks": []})
    write_results(tmp_path / "frontend.json", {"seconds": {"import": 0.156}, "checks": []})
    block = "<!-- {0} -->\n<!-- end {0} -->\n"
    figures = {"default": {"median_ms": 20.0}, "w4a16": {"median_ms": 5.0}}
    generation = {
        "sides": list(figures), "scenarios": {"decode, 128 past": figures, "decode, 2048 past": figures},
        "cache_bytes_per_token": {"default": 46080.0, "w4a16": 11520.0}, "machine": decoder["machine"],
        "agreement": {"default": [None, None], "w4a16": [3, 7], "w4a16, prompts w8a8": [None, 5]}, "checks": [],
        "speculation": {
            "others": {"tokens_per_second": {"plain": 100.0, "prompt lookup": 90.0}, "same_tokens": True,
                       "model_runs": {"plain": 64, "prompt lookup": 60}},
        },
    }  # fmt: skip
    attention = {
        "lengths": {"1024": {"ms": {"exact": 10.0, "window": 5.0}, "error": {"exact": 0.0, "window": 0.25},
                             "peak_memory_bytes": {"exact": 100_000_000, "window": 50_000_000}}},
        "machine": decoder["machine"], "checks": [],
    }  # fmt: skip
    write_results(tmp_path / "generation.json", generation)
    write_results(tmp_path / "attention.json", attention)
    tool = {"median_ms": 9.0, "iqr_ms": 0.5}
    rivals = {
        "sides": ["tool"], "scenarios": {"prefill 128": {"tool": tool}}, "model_bytes": {"tool": 10_000_000},
        "peak_memory_bytes": {"tool": 20_000_000}, "failed": {"other": "ImportError: no"},
    }  # fmt: skip
    kinds = {"decoders": {**rivals, "perplexity": {"tool": 14.0}}, "encoders": {**rivals, "cosine": {"tool": 0.99}}}
    write_results(tmp_path / "rivals.json", {**kinds, "machine": decoder["machine"], "checks": []})
    shutil.copy(bench.ROOT / "benchmarks/gpu.json", tmp_path / "gpu.json")
    sides = {"float32": {"median_ms": 10.0}, "static": {"median_ms": 5.0, "ratio": 0.5}}
    eight = {
        "encoders": {"scenarios": {"call": sides}, "cosine": {"static": 0.99}},
        "decoders": {
            "scenarios": {"prefill 128": sides},
            "perplexity": {"float32": {"news": 30.0}, "static": {"news": 33.0}},
        },
        "detectors": {
            "yolo": {
                "scenarios": {"call": sides}, "missing": {"other": "ModelError: no"},
                "agreement": {"static": {"detections": 9, "f1": 0.9, "overlap": 0.95, "score_difference": 0.05}},
            },
        },
        "machine": decoder["machine"], "checks": [],
    }  # fmt: skip
    write_results(tmp_path / "eight_bits.json", eight)
    (tmp_path / "docs").mkdir()
    for name, key in (("decoding", "generation"), ("attention", "sparse")):
        (tmp_path / "docs" / f"{name}.md").write_text("".join(block.format(n) for n in (key, "machine")))
    (tmp_path / "README.md").write_text("".join(block.format(name) for name in ("decoder", "machine")))
    names = ("rival decoders", "rival encoders", "decoder", "machine", "files", "frontend", "scale", "checks")
    names += ("eight bits", "eight bits machine", "rivals machine", "gpu", "gpu one row", "gpu few rows")
    names += ("gpu many rows", "gpu attention", "gpu decoding attention", "gpu blocks", "gpu decoder")
    (tmp_path / "docs" / "benchmarks.md").write_text("".join(block.format(name) for name in names))
    bench.render(tmp_path, tmp_path)
    assert "| size on disk | 540 MB | 80 MB |" in (tmp_path / "README.md").read_text()
    page = (tmp_path / "docs" / "benchmarks.md").read_text()
    assert "| linear | " in page
    assert "| import | 0.16 |" in page
    assert "cases right" in page and "| eager bf16 | " in page
    assert "| MiniLM, 8 × 128 | static | 5.0 ms (0.50×) | cosine 0.9900 |" in page
    assert "| SmolLM2, prefill 128 | static | 5.0 ms (0.50×) | perplexity 1.100× (news) |" in page
    assert "overlap 0.950, scores differ by 0.050, F1 0.90 of 9 detections |" in page
    assert "| yolo | other | – | ModelError: no |" in page
    assert "| tool | 10 MB | 20 MB | 9.0 ms ± 0.5 | 14 |" in page and "| other | ImportError: no |" in page
    assert "| tiny | 3 | 2.20 GB | 0.62 GB | 21 s | 900 MB |" in page
    page = (tmp_path / "docs" / "decoding.md").read_text()
    assert "| `w4a16` | 5.0 ms | 5.0 ms | 0.0 ms | 11,520 | 0 of 2 | 7 |" in page
    assert "| `w4a16, prompts w8a8` | – | – | – | – | 1 of 2 | 5 |" in page
    assert "| 20 prompts, others | 100 tokens/s | 90 tokens/s | 0.90× | 1.07 | yes |" in page
    assert "| window | 5 ms (0.50×) | 50 MB | 0.25 |" in (tmp_path / "docs" / "attention.md").read_text()
