"""Canonicalize on random graphs: the same bits before and after, for all sizes; nothing left for a second run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir
import onnxruntime
from burnish.frontends.onnx_file import import_onnx
from burnish.passes.base import Context
from burnish.passes.canonicalize import Canonicalize
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

SPECIAL = np.array([0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 1e-40], np.float32)


def run(proto: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def same_bits(left: np.ndarray, right: np.ndarray) -> bool:
    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    if left.dtype.kind != "f":
        return bool((left == right).all())
    nan = np.isnan(left)
    # The payload of a NaN is no result; the sign of a zero is.
    return bool((nan == np.isnan(right)).all()) and left[~nan].tobytes() == right[~nan].tobytes()


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_random_graphs_keep_their_bits(data: st.DataObject, random_graphs: Callable[..., Any]) -> None:
    drawn = data.draw(random_graphs(max_steps=14, symbolic=data.draw(st.booleans())))
    imported = import_onnx(drawn.model)
    outcome = Canonicalize().run(imported.graph, Context())
    after = onnx_ir.to_proto(imported.graph)
    onnx.checker.check_model(after)
    for sizes in ({"B": 2, "S": 3}, {"B": 1, "S": 1}, {"B": 3, "S": 7}):
        feeds = drawn.feeds(data.draw(st.integers(0, 9)), **sizes)
        for value in feeds.values():
            flat = value.reshape(-1)
            places = np.random.default_rng(len(flat)).integers(0, len(flat), len(flat) // 3)
            flat[places] = SPECIAL[places % len(SPECIAL)]
        before = run(drawn.model, feeds)
        for old, new in zip(before, run(after, feeds), strict=True):
            assert same_bits(old, new), outcome.rewrites
    assert not Canonicalize().run(imported.graph, Context()).changed
