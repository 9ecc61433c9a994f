"""GELU with the bias before it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from burnish.backends.onnxruntime.lower import lower

TEXT = """
g (float[2,3,8] x, float[8,16] w1, float[16] w2) => (float[2,3,16] y) {{
  a = MatMul (x, w1)
  b = Add ({operands})
  y = Gelu {how} (b)
}}
"""


@pytest.mark.parametrize("operands", ["a, w2", "w2, a"])
@pytest.mark.parametrize("clock", [None, "BiasGelu", "Gelu"])
def test_joined_unless_measured_to_be_slower(
    operands: str, clock: str | None, parse: Any, run: Any, ops: Any, prefer: Any
) -> None:
    graph = parse(TEXT.format(operands=operands, how=""))
    (want,) = run(graph, optimize=False)
    lower(graph, clock=None if clock is None else prefer(clock))
    assert ops(graph) == ({"MatMul": 1, "Add": 1, "Gelu": 1} if clock == "Gelu" else {"MatMul": 1, "BiasGelu": 1})
    np.testing.assert_allclose(run(graph)[0], want, rtol=1e-5, atol=1e-6)


def test_the_approximation_by_tanh_has_a_kernel_of_its_own(parse: Any, run: Any, ops: Any, prefer: Any) -> None:
    for clock, joined in ((None, True), (prefer("FastGelu"), True), (prefer("Gelu"), False)):
        graph = parse(TEXT.format(operands="a, w2", how='<approximate = "tanh">'))
        (want,) = run(graph, optimize=False)
        lower(graph, clock=clock)
        assert ops(graph) == ({"MatMul": 1, "FastGelu": 1} if joined else {"MatMul": 1, "Add": 1, "Gelu": 1})
        np.testing.assert_allclose(run(graph)[0], want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "text",
    [
        # Somebody else reads the sum.
        """g (float[2,8] x, float[8,4] w1, float[4] w2) => (float[2,4] y, float[2,4] b) {
             a = MatMul (x, w1) b = Add (a, w2) y = Gelu (b) }""",
        # No bias, but another value.
        """g (float[2,8] x, float[2,4] r, float[8,4] w1) => (float[2,4] y) {
             a = MatMul (x, w1) b = Add (a, r) y = Gelu (b) }""",
        # No product.
        "g (float[2,4] x, float[4] w1) => (float[2,4] y) { b = Add (x, w1) y = Gelu (b) }",
    ],
)
def test_it_is_left_alone(text: str, parse: Any, ops: Any) -> None:
    graph = parse(text)
    before = ops(graph)
    lower(graph)
    assert ops(graph) == before
