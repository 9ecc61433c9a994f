"""Biases of products in their kernel, or in one of their own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from burnish.backends.onnxruntime.lower import lower

TEXT = """
g (float[B,3,8] x, float[8,16] w1, float[{bias}] w2) => (float[B,3,16] y) {{
  a = MatMul (x, w1)
  b = Add ({operands})
  y = Relu (b)
}}
"""


@pytest.mark.parametrize("operands", ["a, w2", "w2, a"])
def test_apart_only_where_that_is_faster(operands: str, parse: Any, run: Any, ops: Any, prefer: Any) -> None:
    for clock, kind in ((None, "Add"), (prefer("Add"), "Add"), (prefer("Sum"), "Sum")):
        graph = parse(TEXT.format(operands=operands, bias=16))
        (want,) = run(graph, optimize=False, B=2)
        lower(graph, clock=clock)
        assert ops(graph) == {"MatMul": 1, kind: 1, "Relu": 1}
        np.testing.assert_allclose(run(graph, B=2)[0], want, rtol=1e-5, atol=1e-6)


def test_what_is_no_bias_is_left_alone(parse: Any, ops: Any, prefer: Any) -> None:
    graph = parse(TEXT.format(operands="a, w2", bias="3,16"))
    lower(graph, clock=prefer("Sum"))
    assert ops(graph) == {"MatMul": 1, "Add": 1, "Relu": 1}
