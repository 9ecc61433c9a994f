"""Fixtures every folder may use: the real models, fetched once, and a quiet set-up."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from burnish.tools.fetch import model_path

# Test workers share the cores; a thread pool each as wide as the machine would fight over them.
os.environ.setdefault("OMP_NUM_THREADS", "1" if "PYTEST_XDIST_WORKER" in os.environ else str(os.cpu_count() or 1))


def _model(name: str) -> Callable[[], Path]:
    @pytest.fixture(scope="session", name=name)
    def fixture() -> Path:
        return model_path(name)

    return fixture


smollm2 = _model("smollm2")  # SmolLM2-135M-Instruct.Q4_1.gguf
minilm = _model("minilm")  # a Hugging Face folder
ppocr_det = _model("ppocr_det")
ppocr_rec = _model("ppocr_rec")
yolov8n = _model("yolov8n")
magika = _model("magika")
silero_vad = _model("silero_vad")


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep compiled models of the test run out of the user's cache."""
    os.environ["BURNISH_CACHE"] = str(tmp_path_factory.mktemp("cache"))
