"""Constants behind a convolution become part of it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir
import pytest
from burnish.passes import Recover
from burnish.passes.base import Context

Parse = Callable[..., onnx_ir.Model]
Outputs = Callable[[onnx_ir.Model, Any], list[Any]]
FEEDS = {"x": np.random.default_rng(3).standard_normal((2, 8, 9, 9)).astype(np.float32)}
CONV = "c = Conv <kernel_shape = [3, 3]> (x, w)"
HEAD = "g (float[b, 8, h, h] x) => (float[b, 16, k, k] y)"
VECTOR = np.random.default_rng(5).uniform(0.5, 2, (16, 1, 1)).astype(np.float32)


@pytest.mark.parametrize(
    ("body", "weights"),
    [
        (f"{CONV} y = Add(c, v)", {"v": VECTOR}),
        (f"{CONV} y = Add(v, c)", {"v": VECTOR[None]}),
        (f"{CONV} y = Sub(c, v)", {"v": VECTOR}),
        (f"{CONV} y = Mul(c, v)", {"v": VECTOR}),
        (f"{CONV} d = Mul(c, s) y = Add(d, v)", {"v": VECTOR, "s": np.asarray([0.3], np.float32)}),
        (f"{CONV} y = BatchNormalization(c, g, v, m, g)", {k: VECTOR.reshape(-1) for k in "gvm"}),
        ("c = ConvTranspose <kernel_shape = [3, 3]> (x, u) y = Add(c, v)", {"v": VECTOR, "u": [8, 16, 3, 3]}),
        ("c = ConvTranspose <kernel_shape = [3, 3]> (x, u) y = Mul(c, v)", {"v": VECTOR, "u": [8, 16, 3, 3]}),
        (
            "c = ConvTranspose <kernel_shape = [3, 3], group = 2> (x, u) y = BatchNormalization(c, g, v, m, g)",
            {**{k: VECTOR.reshape(-1) for k in "gvm"}, "u": [8, 8, 3, 3]},
        ),
    ],
)
def test_folded(parse: Parse, outputs: Outputs, body: str, weights: dict[str, Any]) -> None:
    given = {"w": [16, 8, 3, 3], **weights}
    used = {name: what for name, what in given.items() if re.search(rf"\b{name}\b", body)}
    graph = parse(f"{HEAD} {{ {body} }}", **used)
    (before,) = outputs(graph, FEEDS)
    Recover().run(graph, Context())
    assert Counter(node.op_type for node in graph.graph).total() == 1
    np.testing.assert_allclose(outputs(graph, FEEDS)[0], before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("body", "weights"),
    [
        (f"{CONV} y = Sub(v, c)", {"v": VECTOR}),
        (f"{CONV} y = Add(c, v)", {"v": np.ones((7, 7), np.float32)}),
        (f"{CONV} r = Relu(c) d = Add(c, v) y = Mul(d, r)", {"v": VECTOR}),
    ],
)
def test_left_alone(parse: Parse, outputs: Outputs, body: str, weights: dict[str, Any]) -> None:
    given = {"w": [16, 8, 3, 3]} if "x, w" in body else {}
    graph = parse(f"{HEAD} {{ {body} }}", **given, **weights)
    count = len(list(graph.graph))
    (before,) = outputs(graph, FEEDS)
    Recover().run(graph, Context())
    assert len(list(graph.graph)) == count
    np.testing.assert_array_equal(outputs(graph, FEEDS)[0], before)
