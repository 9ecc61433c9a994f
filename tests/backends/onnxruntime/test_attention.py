"""Attention on flat heads whose keys and values are outputs of the graph, too."""

from __future__ import annotations

from typing import Any

import numpy as np
from burnish.backends.onnxruntime.lower import lower
from burnish.ir.verify import verify

TEXT = """
g (float[B,S,8] x, float[8,8] w1, float[8,4] w2, float[8,4] w3) => (float[B,S,8] y{outputs}) {{
  p = MatMul (x, w1)
  r = MatMul (x, w2)
  s = MatMul (x, w3)
  four = Constant <value = int64[4] {{0, 0, 2, 4}}> ()
  two = Constant <value = int64[4] {{0, 0, 1, 4}}> ()
  flat = Constant <value = int64[3] {{0, 0, 8}}> ()
  p4 = Reshape (p, four)
  r4 = Reshape (r, two)
  s4 = Reshape (s, two)
  q = Transpose <perm = [0, 2, 1, 3]> (p4)
  k = Transpose <perm = [0, 2, 1, 3]> (r4)
  v = Transpose <perm = [0, 2, 1, 3]> (s4)
  {early}
  a = Attention <is_causal = 1> (q, k, v)
  b = Transpose <perm = [0, 2, 1, 3]> (a)
  y = Reshape (b, flat)
}}
"""
CACHE = ", float[B,1,S,4] k, float[B,1,S,4] v"


def test_the_operator_gives_keys_and_values(parse: Any, run: Any, ops: Any) -> None:
    graph = parse(TEXT.format(outputs=CACHE, early=""))
    names = [value.name for value in graph.graph.outputs]
    want = run(graph, B=2, S=3)
    lower(graph)
    verify(graph, lowered=True)
    assert ops(graph) == {"MatMul": 3, "Attention": 1}
    assert [value.name for value in graph.graph.outputs] == names
    for mine, theirs in zip(run(graph, B=2, S=3), want, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)


def test_what_is_read_before_must_be_there_before(parse: Any, run: Any, ops: Any) -> None:
    graph = parse(TEXT.format(outputs=", float[B,1,S,4] n", early="n = Neg (k)"))
    want = run(graph, B=2, S=3)
    lower(graph)
    assert ops(graph)["Transpose"] == 4
    for mine, theirs in zip(run(graph, B=2, S=3), want, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)
