"""A two-layer network as an ONNX file, and what it computes."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper


@dataclass(frozen=True)
class Network:
    """An ONNX file of ``relu(x @ w1 + b) @ w2`` with x [batch, inside]."""

    path: Path
    proto: onnx.ModelProto
    x: np.ndarray
    y: np.ndarray


@pytest.fixture
def network(tmp_path: Path) -> Callable[..., Network]:
    """Writes such a file; ``external`` puts the weights into a file of their own."""

    def make(inside: int = 64, wide: int = 128, outside: int = 32, *, external: bool = False, seed: int = 0) -> Network:
        generator = np.random.default_rng(seed)
        w1 = generator.standard_normal((inside, wide), np.float32)
        w2 = generator.standard_normal((wide, outside), np.float32)
        b = generator.standard_normal(wide).astype(np.float32)
        nodes = [
            helper.make_node("MatMul", ["x", "w1"], ["a"]),
            helper.make_node("Add", ["a", "b"], ["c"]),
            helper.make_node("Relu", ["c"], ["d"]),
            helper.make_node("MatMul", ["d", "w2"], ["y"]),
        ]
        graph = helper.make_graph(
            nodes,
            "network",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", inside])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", outside])],
            [numpy_helper.from_array(a, name) for a, name in ((w1, "w1"), (b, "b"), (w2, "w2"))],
        )
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
        path = tmp_path / f"network{seed}.onnx"
        copy = onnx.ModelProto()
        copy.CopyFrom(proto)
        onnx.save(copy, path, save_as_external_data=external, location=f"{path.name}.weights", size_threshold=0)
        x = generator.standard_normal((3, inside)).astype(np.float32)
        return Network(path, proto, x, np.maximum(x @ w1 + b, 0) @ w2)

    return make
