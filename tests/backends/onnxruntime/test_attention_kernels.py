"""Kernels of attention: equal results, and when another than the usual one is taken."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from burnish.backends.onnxruntime.lower import lower
from burnish.ir.verify import verify

TEXT = """
g (float[B,S,8] q, float[B,{keys},8] k, float[B,{keys},8] v{mask}) => (float[B,S,8] y) {{
  y = Attention <q_num_heads = 2, kv_num_heads = {kv}{how}> (q, k, v{given})
}}
"""
SIZES = {"B": 2, "S": 5, "T": 7}


def text(mask: str = "", how: str = "", keys: str = "S", kv: int = 2) -> str:
    return TEXT.format(
        mask=f", {mask} m" if mask else "", given=", m" if mask else "", how=f", {how}" if how else "", keys=keys, kv=kv
    )


@pytest.mark.parametrize(
    ("given", "kernels"),
    [
        (text(), ("MultiHeadAttention", "Softmax")),
        (text(how="scale = 0.3"), ("MultiHeadAttention", "Softmax")),
        (text(keys="T"), ("MultiHeadAttention", "Softmax")),
        (text("float[B,1,S,S]"), ("MultiHeadAttention", "Softmax")),
        (text("float[1,2,S,S]"), ("MultiHeadAttention", "Softmax")),
        (text(how="is_causal = 1"), ("MultiHeadAttention",)),
    ],
)
def test_another_kernel_where_it_is_faster(
    given: str, kernels: tuple[str, ...], parse: Any, run: Any, ops: Any, prefer: Any
) -> None:
    want = run(parse(given), **SIZES)[0]
    usual = parse(given)
    lower(usual, clock=prefer("Attention"))
    assert ops(usual) == {"Attention": 1}
    for kernel in ("MultiHeadAttention", "Softmax"):
        graph = parse(given)
        lower(graph, clock=prefer(kernel))
        verify(graph, lowered=True)
        assert ops(graph)[kernel] == (kernel in kernels)
        assert ops(graph)["Attention"] == (kernel not in kernels)
        np.testing.assert_allclose(run(graph, **SIZES)[0], want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "given",
    [
        text("bool[B,1,S,S]"),
        text("float[S,S]"),
        text(how="softcap = 2.0"),
        text(kv=1).replace("float[B,S,8] k, float[B,S,8] v", "float[B,S,4] k, float[B,S,4] v"),
        text(how="is_causal = 1", keys="T"),
    ],
)
def test_what_only_the_usual_kernel_does(given: str, parse: Any, ops: Any, prefer: Any) -> None:
    for kernel in ("MultiHeadAttention", "Softmax"):
        graph = parse(given)
        lower(graph, clock=prefer(kernel))
        assert ops(graph) == {"Attention": 1}


CAUSAL = """
g (float[2,5,16] q, float[2,5,{width}] k, float[2,5,{width}] v) => (float[2,5,16] y{cache}) {{
  y{given} = Attention <q_num_heads = 2, kv_num_heads = {kv}, is_causal = 1{how}> (q, k, v)
}}
"""


@pytest.mark.parametrize("kv", [1, 2])
@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize("how", ["", ", scale = 0.3"])
def test_causal_attention_of_plain_sizes(
    kv: int, cache: bool, how: str, parse: Any, run: Any, ops: Any, prefer: Any
) -> None:
    outputs = f", float[2,{kv},5,8] pk, float[2,{kv},5,8] pv" if cache else ""
    given = CAUSAL.format(width=8 * kv, kv=kv, cache=outputs, given=", pk, pv" if cache else "", how=how)
    graph = parse(given)
    names, want = [value.name for value in graph.graph.outputs], run(parse(given))
    lower(graph, clock=prefer("GroupQueryAttention"))
    verify(graph, lowered=True)
    assert ops(graph) == {"GroupQueryAttention": 1}
    assert [value.name for value in graph.graph.outputs] == names
    for mine, theirs in zip(run(graph), want, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)


def test_the_grouped_kernel_needs_plain_sizes_and_a_causal_mask(parse: Any, ops: Any, prefer: Any) -> None:
    plain, odd = text().replace("B,S", "2,5"), text(how="is_causal = 1").replace("B,S", "2,5")  # heads of 4
    for given in (text(how="is_causal = 1"), plain, odd):
        graph = parse(given)
        lower(graph, clock=prefer("GroupQueryAttention"))
        assert ops(graph) == {"Attention": 1}


def test_nothing_is_changed_without_a_measurement(parse: Any, ops: Any) -> None:
    graph = parse(text())
    assert not any("times the time" in remark.reason for remark in lower(graph))
    assert ops(graph) == {"Attention": 1}
