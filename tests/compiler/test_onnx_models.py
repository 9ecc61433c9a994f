"""Real ONNX files compiled with ``default``: the same outputs, and what was found in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import burnish
import numpy as np
import onnxruntime
import pytest

LIMIT = 1e-4
"""Largest difference allowed, as a part of the range of an output."""


def images(*shape: int) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(0).standard_normal(shape, np.float32)}


def sound(rate: int, length: int) -> dict[str, np.ndarray]:
    data = np.random.default_rng(0).standard_normal((1, length), np.float32) / 10
    return {"input": data, "state": np.zeros((2, 1, 128), np.float32), "sr": np.array(rate, np.int64)}


CASES: dict[str, tuple[str, list[dict[str, np.ndarray]], dict[str, int]]] = {
    "detector": ("ppocr_det", [images(1, 3, 64, 96), images(2, 3, 96, 64)], {"Gelu": 13}),
    "recognizer": ("ppocr_rec", [images(1, 3, 48, 320), images(3, 3, 48, 160)], {"Gelu": 13, "LayerNormalization": 5}),
    "detector of objects": ("yolov8n", [{"images": images(1, 3, 320, 320)["x"]}], {}),
    "file types": (
        "magika",
        [{"bytes": np.random.default_rng(i).integers(0, 257, (i, 2048)).astype(np.int32)} for i in (1, 3)],
        {"Gelu": 2},
    ),
    "voice": ("silero_vad", [sound(16000, 512), sound(8000, 256)], {}),
}


@pytest.mark.parametrize("name", CASES)
def test_equal_outputs(name: str, request: pytest.FixtureRequest) -> None:
    fixture, calls, recovered = CASES[name]
    path: Path = request.getfixturevalue(fixture)
    compiled = burnish.compile(path, threads=1, cache=False, progress=False)
    plain = session(path)
    assert [s.name for s in compiled.inputs] == [v.name for v in plain.get_inputs()]
    assert [s.name for s in compiled.outputs] == [v.name for v in plain.get_outputs()]
    for feeds in calls:
        results = compiled(**feeds)
        for new, old in zip(results if isinstance(results, tuple) else (results,), plain.run(None, feeds), strict=True):
            span = max(float(np.ptp(old)), float(np.abs(old).max()))
            assert new.shape == old.shape and float(np.abs(new - old).max()) <= LIMIT * span
    found: dict[str, int] = {}
    for done in compiled.report.passes:
        for rule, times in done.rewrites.items():
            found[rule] = found.get(rule, 0) + times
    assert {rule: found.get(rule) for rule in recovered} == recovered


def test_the_detector_loses_its_identities(ppocr_det: Path) -> None:
    compiled = burnish.compile(ppocr_det, threads=1, cache=False, progress=False)
    rewrites = compiled.report.passes[0].rewrites
    assert rewrites["Identity(x) => x"] == 147


def session(path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
