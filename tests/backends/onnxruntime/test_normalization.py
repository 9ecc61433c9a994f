"""Residual additions joined with normalizations, or kept apart."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from burnish.backends.onnxruntime.lower import lower

TEXT = """
g (float[{lead},8] x, float[{lead},8] r, float[8] w1, float[8] w2, float[8,8] w3)
  => (float[{lead},8] y, float[{lead},8] t) {{
  t = Add (x, r)
  n = {norm}
  y = MatMul (n, w3)
}}
"""
LAYER = "LayerNormalization <axis = -1, epsilon = 0.001> (t, w1, w2)"
ROOT = "RMSNormalization <axis = -1, epsilon = 0.001> (t, w1)"
JOINED = {LAYER: "SkipLayerNormalization", ROOT: "SkipSimplifiedLayerNormalization"}


@pytest.mark.parametrize(
    ("norm", "lead", "joined"),
    [(LAYER, "1,4", False), (LAYER, "64", False), (ROOT, "1,4", True), (ROOT, "B,S", True), (ROOT, "64", False)],
)
def test_by_rule_of_thumb(norm: str, lead: str, joined: bool, parse: Any, run: Any, ops: Any) -> None:
    graph = parse(TEXT.format(lead=lead, norm=norm))
    sizes = {"B": 2, "S": 3}
    want = run(graph, optimize=False, **sizes)
    lower(graph)
    assert (JOINED[norm] in ops(graph)) == joined
    assert ops(graph)["Sum"] == (norm == LAYER)
    for mine, theirs in zip(run(graph, **sizes), want, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("norm", [LAYER, ROOT])
@pytest.mark.parametrize("lead", ["1,4", "64", "B,S"])
def test_by_measurement(norm: str, lead: str, parse: Any, run: Any, ops: Any, prefer: Any) -> None:
    want = run(parse(TEXT.format(lead=lead, norm=norm)), optimize=False, B=2, S=3)
    for joined in (True, False):
        graph = parse(TEXT.format(lead=lead, norm=norm))
        remarks = lower(graph, clock=prefer(JOINED[norm]) if joined else prefer("Sum", "Add"))
        assert (JOINED[norm] in ops(graph)) == joined
        (said,) = [remark for remark in remarks if "2.00 times the time" in remark.reason]
        other = f"addition and {norm.partition(' ')[0]}" if joined else JOINED[norm]
        assert said.kind == "applied" and f"{other} takes 2.00 times" in said.reason
        for mine, theirs in zip(run(graph, B=2, S=3), want, strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "text",
    [
        # A broadcast operand.
        """g (float[2,4,8] x, float[4,8] r, float[8] w1) => (float[2,4,8] y) {
             t = Add (x, r) y = RMSNormalization <axis = -1> (t, w1) }""",
        # Two axes at once.
        """g (float[2,4,8] x, float[2,4,8] r, float[4,8] w1) => (float[2,4,8] y) {
             t = Add (x, r) y = RMSNormalization <axis = 1> (t, w1) }""",
        # A constant: the bias of what came before.
        """g (float[2,4,8] x, float[8] w1, float[8] w2) => (float[2,4,8] y) {
             t = Add (x, w1) y = RMSNormalization <axis = -1> (t, w2) }""",
    ],
)
def test_what_the_joined_kernel_cannot_do(text: str, parse: Any, ops: Any, prefer: Any) -> None:
    graph = parse(text)
    lower(graph, clock=prefer("SkipSimplifiedLayerNormalization"))
    assert ops(graph) == {"Add": 1, "RMSNormalization": 1}
