"""Graphs in text form, recovered and compared with themselves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest
from burnish.ir.infer import infer_graph
from burnish.passes.base import Context, Outcome
from burnish.passes.recover import Recover

Arrays = Mapping[str, np.ndarray]


@dataclass
class Recovered:
    """A graph after recovery, what was said, and the outputs before and after."""

    graph: onnx_ir.Model
    outcome: Outcome
    before: list[np.ndarray]
    after: list[np.ndarray]

    @property
    def operators(self) -> Counter[str]:
        return Counter(node.op_type for node in self.graph.graph)

    @property
    def missed(self) -> list[str]:
        return [remark.reason for remark in self.outcome.remarks if remark.kind == "missed"]

    def equal(self, tolerance: float) -> bool:
        """Whether outputs agree, relative to the largest; NaN and infinities must stand in the same places."""
        for a, b in zip(self.before, self.after, strict=True):
            if a.shape != b.shape or a.dtype != b.dtype or not np.array_equal(np.isnan(a), np.isnan(b)):
                return False
            a, b = np.nan_to_num(a.astype(np.float64)), np.nan_to_num(b.astype(np.float64))
            if np.abs(a - b).max() > tolerance * max(np.abs(a).max(), 1e-30):
                return False
        return True


def run_plainly(model: onnx.ModelProto, feeds: Arrays) -> list[np.ndarray]:
    """The outputs by ONNX Runtime without its optimizer, node by node as written."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, dict(feeds)))


@pytest.fixture(scope="session")
def recover() -> Callable[..., Recovered]:
    """Recovers a graph written as text; ``constants`` become initializers, ``feeds`` are run before and after."""

    def run(
        text: str, constants: Arrays, feeds: Arrays, *, opset: int = 23, target: str = "onnxruntime", **options: bool
    ) -> Recovered:
        proto = onnx.ModelProto(ir_version=10, graph=onnx.parser.parse_graph(text))
        proto.opset_import.add(domain="", version=opset)
        proto.graph.initializer.extend(onnx.numpy_helper.from_array(a, name) for name, a in constants.items())
        onnx.checker.check_model(proto)
        graph = onnx_ir.from_proto(proto)
        infer_graph(graph)
        outcome = Recover(**options).run(graph, Context(target=target))
        after = onnx_ir.to_proto(graph)
        onnx.checker.check_model(after, full_check=True)
        return Recovered(graph, outcome, run_plainly(proto, feeds), run_plainly(after, feeds))

    return run
