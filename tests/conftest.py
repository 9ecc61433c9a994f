"""Fixtures every folder may use: the real models, fetched once, and two tiny files."""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from burnish.tools.fetch import model_path
from onnx import TensorProto, helper, numpy_helper

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


VOCABULARY, HEADS, HEAD_SIZE = 32, 2, 4


def _value(name: str, kind: int, *shape: int | str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def _save(graph: onnx.GraphProto, path: Path) -> Path:
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10), path)
    return path


@pytest.fixture
def linear_file(tmp_path: Path) -> Callable[..., Path]:
    """Writes ``y = scale * x @ W`` with x [batch, 8] and y [batch, 4]."""

    def write(name: str = "linear.onnx", scale: float = 1.0, input_name: str = "x") -> Path:
        weight = np.random.default_rng(0).standard_normal((8, 4), np.float32) * np.float32(scale)
        graph = helper.make_graph(
            [helper.make_node("MatMul", [input_name, "w"], ["y"])],
            "linear",
            [_value(input_name, TensorProto.FLOAT, "batch", 8)],
            [_value("y", TensorProto.FLOAT, "batch", 4)],
            [numpy_helper.from_array(weight, "w")],
        )
        return _save(graph, tmp_path / name)

    return write


@pytest.fixture
def decoder_file(tmp_path: Path) -> Path:
    """A decoder with a cache in form only: each token's logits are all equal, and the cache grows by zeros."""
    embedding = np.zeros((VOCABULARY, VOCABULARY), np.float32)
    cache = ["past_key_values.0.key", "past_key_values.0.value"]
    present = [name.replace("past_key_values", "present") for name in cache]
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["logits"]),
        helper.make_node("Shape", ["input_ids"], ["shape"]),
        helper.make_node("Gather", ["shape", "zero"], ["batch_size"]),
        helper.make_node("Gather", ["shape", "one"], ["length"]),
        helper.make_node("Concat", ["batch_size", "heads", "length", "size"], ["new_shape"], axis=0),
        helper.make_node("ConstantOfShape", ["new_shape"], ["new"]),
    ]
    nodes += [helper.make_node("Concat", [a, "new"], [b], axis=2) for a, b in zip(cache, present, strict=True)]
    numbers = {"zero": [0], "one": [1], "heads": [HEADS], "size": [HEAD_SIZE]}
    graph = helper.make_graph(
        nodes,
        "decoder",
        [
            _value("input_ids", TensorProto.INT64, "batch", "sequence"),
            _value("attention_mask", TensorProto.INT64, "batch", "total"),
            _value("position_ids", TensorProto.INT64, "batch", "sequence"),
            *(_value(name, TensorProto.FLOAT, "batch", HEADS, "past", HEAD_SIZE) for name in cache),
        ],
        [
            _value("logits", TensorProto.FLOAT, "batch", "sequence", VOCABULARY),
            *(_value(name, TensorProto.FLOAT, "batch", HEADS, "total", HEAD_SIZE) for name in present),
        ],
        [numpy_helper.from_array(embedding, "table")]
        + [numpy_helper.from_array(np.asarray(value, np.int64), name) for name, value in numbers.items()],
    )
    return _save(graph, tmp_path / "decoder.onnx")


@pytest.fixture(scope="session")
def random_graphs() -> Callable[..., Any]:
    """The hypothesis strategy of ``tests/random_graphs.py``: ``data.draw(random_graphs(max_steps=12, symbolic=True))``.

    It draws objects with ``model`` (a ModelProto) and ``feeds(seed, B=…, S=…)``.
    """
    spec = importlib.util.spec_from_file_location("random_graphs", Path(__file__).with_name("random_graphs.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["random_graphs"] = module
    spec.loader.exec_module(module)
    strategy: Callable[..., Any] = module.random_graphs
    return strategy


@pytest.fixture
def least_seconds() -> Callable[[Callable[[], object]], float]:
    """Least processor time of three runs: other processes and a collection of garbage are not the code's own cost."""

    def measure(work: Callable[[], object]) -> float:
        taken = []
        for _ in range(3):
            start = time.process_time()
            work()
            taken.append(time.process_time() - start)
        return min(taken)

    return measure
