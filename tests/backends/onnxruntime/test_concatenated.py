"""Convolutions of concatenations as sums of convolutions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from burnish.backends.onnxruntime.concatenated import RULE
from burnish.backends.onnxruntime.lower import lower
from burnish.ir.verify import verify
from hypothesis import given, settings
from hypothesis import strategies as st

TEXT = """
g (float[B,{a},{h},6] x, float[B,{b},{h},6] r, float[{out},{both},3,3] w1, float[{out}] w2) => (float[B,{out},H,6] y) {{
  c = Concat <axis = {axis}> (x, r)
  d = Conv <{how}> (c, w1{bias})
  y = Relu (d)
}}
"""
SAME = "kernel_shape = [3, 3], pads = [1, 1, 1, 1]"


def text(a: int = 8, b: int = 16, out: int = 8, h: int = 5, how: str = SAME, axis: int = 1, bias: bool = True) -> str:
    return TEXT.format(
        a=a, b=b, out=out, h=h, both=a + b if axis == 1 else a, how=how, axis=axis, bias=", w2" if bias else ""
    )


def test_only_where_it_was_measured_to_be_faster(parse: Any, ops: Any, prefer: Any) -> None:
    for clock, divided in ((None, False), (prefer("Concat"), False), (prefer("Add"), True)):
        graph = parse(text())
        remarks = lower(graph, clock=clock)
        assert ops(graph) == ({"Conv": 2, "Add": 1, "Relu": 1} if divided else {"Concat": 1, "Conv": 1, "Relu": 1})
        assert any(RULE in remark.values for remark in remarks) == divided


@settings(max_examples=15, deadline=None)
@given(
    a=st.sampled_from([8, 16]), b=st.sampled_from([8, 24]), bias=st.booleans(), h=st.integers(3, 7),
    batch=st.integers(1, 2),
    how=st.sampled_from([SAME, "kernel_shape = [3, 3], strides = [2, 1], pads = [1, 1, 1, 1]",
                         'kernel_shape = [3, 3], auto_pad = "SAME_UPPER", dilations = [1, 1]']),
)  # fmt: skip
def test_the_sum_is_the_same(
    parse: Any, run: Any, ops: Any, prefer: Any, a: int, b: int, bias: bool, h: int, batch: int, how: str
) -> None:
    graph = parse(text(a, b, h=h, how=how, bias=bias))
    (want,) = run(graph, optimize=False, B=batch)
    lower(graph, clock=prefer("Add"))
    verify(graph, lowered=True)
    assert ops(graph)["Conv"] == 2
    np.testing.assert_allclose(run(graph, B=batch)[0], want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "changed",
    [{"a": 4}, {"out": 4}, {"how": SAME.replace("pads", "group = 1, pads").replace("group = 1", "group = 2")}],
)
def test_it_is_left_alone(changed: dict[str, Any], parse: Any, ops: Any, prefer: Any) -> None:
    given_ = text(**changed)
    if "how" in changed:
        given_ = given_.replace("float[8,24,3,3]", "float[8,12,3,3]")
    graph = parse(given_)
    lower(graph, clock=prefer("Add"))
    assert ops(graph) == {"Concat": 1, "Conv": 1, "Relu": 1}


SKIP = """
g (float[1,8,6,6] x, float[1,8,6,6] r, float[8,8,3,3] w1, float[8,16,3,3] w2) => (float[1,8,6,6] y) {{
  a = Conv <{same}> (x, w1)
  b = Relu (a)
  c = Concat <axis = 1> (b, {other})
  y = Conv <{same}> (c, w2)
}}
"""


@pytest.mark.parametrize(("other", "part", "divided"), [("r", 1.0, True), ("r", 1.1, False), ("a", 1.0, False)])
def test_noise_decides_for_the_part_that_comes_in_blocks(
    other: str, part: float, divided: bool, parse: Any, ops: Any
) -> None:
    """What a convolution made stays in its layout if the others are not copied together with it."""
    graph = parse(SKIP.format(same=SAME, other=other))
    lower(graph, clock=lambda models: [1.0, part])
    assert ops(graph)["Concat"] == (not divided)


def test_a_concatenation_that_others_read_stays(parse: Any, ops: Any, prefer: Any) -> None:
    graph = parse(text().replace("float[B,8,H,6] y)", "float[B,8,H,6] y, float[B,24,5,6] c)"))
    lower(graph, clock=prefer("Add"))
    assert ops(graph)["Concat"] == 1
