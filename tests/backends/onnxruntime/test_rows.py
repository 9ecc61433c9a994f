"""Stretches of operators on rows as matrices: equal results, fewer reshapes, and where nothing is gained."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from burnish.backends.onnxruntime.lower import lower
from burnish.backends.onnxruntime.rows import RULE, flatten_rows
from burnish.backends.onnxruntime.session import Session
from burnish.backends.onnxruntime.writer import to_bytes
from burnish.ir.graph import Graph
from burnish.ir.verify import verify
from hypothesis import given, settings
from hypothesis import strategies as st

Ops = Callable[[Graph], Counter[str]]
Run = Callable[..., list[np.ndarray[Any, Any]]]
Parse = Callable[[str], Graph]

BLOCK = """
g (float[{lead},8] x, float[8,16] w1, float[16] w2, float[16,8] w3, float[8] w4, float[8] w5, float[8] w6)
  => (float[{lead},8] y) {{
  a = MatMul (x, w1)
  b = Add (a, w2)
  c = Gelu (b)
  d = MatMul (c, w3)
  e = Add (w4, d)
  f = Add (x, e)
  y = LayerNormalization <axis = -1> (f, w5, w6)
}}
"""


def executed(graph: Graph, tmp_path: Path) -> Counter[str]:
    """Operators that the runtime runs."""
    target = tmp_path / "optimized.onnx"
    Session(to_bytes(graph), threads=1, optimized_path=target)
    return Counter(node.op_type for node in onnx.load(str(target), load_external_data=False).graph.node)


@pytest.mark.parametrize(
    ("lead", "sizes"), [("2,3", {}), ("B,3", {"B": 2}), ("B,S", {"B": 2, "S": 3}), ("2,S,5", {"S": 3})]
)
def test_a_block_works_on_a_matrix(lead: str, sizes: dict[str, int], parse: Parse, run: Run, ops: Ops) -> None:
    graph = parse(BLOCK.format(lead=lead))
    (want,) = run(graph, **sizes)
    (remark,) = flatten_rows(graph)
    verify(graph)
    assert remark.values == {RULE: 2}
    assert ops(graph)["Reshape"] == 2
    assert [len(node.outputs[0].shape or ()) for node in graph.graph if node.op_type == "MatMul"] == [2, 2]
    assert ops(graph)["Shape"] == (1 if lead == "B,S" else 0)
    np.testing.assert_allclose(run(graph, **sizes)[0], want, rtol=1e-5, atol=1e-6)
    if lead == "B,3":  # no rows at all
        assert run(graph, B=0)[0].shape == (0, 3, 8)


def test_the_runtime_runs_fewer_nodes(parse: Parse, tmp_path: Path) -> None:
    before, after = parse(BLOCK.format(lead="2,3")), parse(BLOCK.format(lead="2,3"))
    flatten_rows(after)
    assert executed(before, tmp_path)["Reshape"] == 4 and executed(after, tmp_path)["Reshape"] == 2
    assert executed(after, tmp_path)["Gemm"] == 2
    named = parse(BLOCK.format(lead="B,S"))
    assert executed(named, tmp_path)["Gemm"] == 0
    flatten_rows(named)
    assert executed(named, tmp_path)["Gemm"] == 2


@pytest.mark.parametrize(
    "text",
    [
        # One product with a bias: a Reshape before and behind it, as the runtime itself would.
        "g (float[2,3,8] x, float[8,4] w1, float[4] w2) => (float[2,3,4] y) { a = MatMul(x, w1) y = Add(a, w2) }",
        # No biases.
        "g (float[2,3,8] x, float[8,8] w1, float[8,8] w2) => (float[2,3,8] y) { a = MatMul(x, w1) y = MatMul(a, w2) }",
        # Each product's rows are mixed before the next: every stretch has one product.
        """g (float[2,3,8] x, float[8,8] w1, float[8] w2, float[8,8] w3, float[8] w4) => (float[2,3,8] y) {
             a = MatMul(x, w1) b = Add(a, w2) c = Softmax <axis = 1> (b) d = MatMul(c, w3) y = Add(d, w4) }""",
    ],
)
def test_it_is_left_alone_where_nothing_is_gained(text: str, parse: Parse) -> None:
    graph = parse(text)
    before = [node.op_type for node in graph.graph]
    assert flatten_rows(graph) == [] and [node.op_type for node in graph.graph] == before


def test_what_is_added_to_each_batch_is_no_row(parse: Parse, run: Run, ops: Ops) -> None:
    """A table of positions has another shape than the rows: the addition stays as it is, and ends the stretch."""
    graph = parse("""
g (float[2,3,8] x, float[3,8] w1, float[8,8] w2, float[8] w3, float[8,8] w4, float[8] w5) => (float[2,3,8] y) {
  p = Add (x, w1)
  a = MatMul (p, w2)
  b = Add (a, w3)
  c = MatMul (b, w4)
  y = Add (c, w5)
}""")
    (want,) = run(graph)
    assert flatten_rows(graph)
    (first, *_) = graph.graph
    assert first.op_type == "Add" and ops(graph)["Reshape"] == 2
    np.testing.assert_allclose(run(graph)[0], want, rtol=1e-5, atol=1e-6)


def test_siblings_share_a_reshape_and_split_ends_on_its_own_axis(parse: Parse, run: Run, ops: Ops) -> None:
    graph = parse("""
g (float[2,3,8] x, float[8,12] w1, float[12] w2, float[8,4] w3, float[4] w4, float[4] w5)
  => (float[2,3,6] p, float[2,3,6] q, float[2,3,4] y) {
  a = MatMul (x, w1)
  b = Add (a, w2)
  p, q = Split <axis = 2, num_outputs = 2> (b)
  c = MatMul (x, w3)
  d = Add (c, w4)
  e = Mul (d, w5)
  y = Sigmoid (e)
}""")
    want = run(graph)
    assert flatten_rows(graph) == []  # two products, three results, one source: nothing gained
    grown = parse("""
g (float[2,3,8] x, float[8,12] w1, float[12] w2, float[12,8] w3, float[8] w4) => (float[2,3,4] p, float[2,3,4] q) {
  a = MatMul (x, w1)
  b = Add (a, w2)
  c = MatMul (b, w3)
  d = Add (c, w4)
  p, q = Split <axis = 2, num_outputs = 2> (d)
}""")
    want = run(grown)
    assert flatten_rows(grown)
    assert ops(grown)["Reshape"] == 3
    for mine, theirs in zip(run(grown), want, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)


STEPS = ("product", "gelu", "norm", "softmax", "mix", "residual", "vector", "twice")


@settings(max_examples=25, deadline=None)
@given(
    steps=st.lists(st.sampled_from(STEPS), min_size=2, max_size=9),
    lead=st.sampled_from(["2,3", "B,S", "B,2"]),
    kept=st.integers(0, 8),
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 4)),
)
def test_random_stacks_compute_the_same(
    parse: Parse, run: Run, steps: list[str], lead: str, kept: int, sizes: tuple[int, int]
) -> None:
    lines, given_, values, weights = [], [f"float[{lead},8] x"], ["x"], 0

    def weight(shape: str) -> str:
        nonlocal weights
        weights += 1
        given_.append(f"float[{shape}] w{weights}")
        return f"w{weights}"

    for index, step in enumerate(steps):
        x, y = values[-1], f"v{index}"
        if step == "product":
            lines += [f"t{index} = MatMul ({x}, {weight('8,8')})", f"{y} = Add (t{index}, {weight('8')})"]
        elif step == "gelu":
            lines.append(f"{y} = Gelu ({x})")
        elif step == "norm":
            lines.append(f"{y} = LayerNormalization <axis = 2> ({x}, {weight('8')})")
        elif step == "softmax":
            lines.append(f"{y} = Softmax <axis = -1> ({x})")
        elif step == "mix":
            lines.append(f"{y} = Softmax <axis = 1> ({x})")
        elif step == "residual":
            lines.append(f"{y} = Add ({x}, {values[len(values) // 2]})")
        elif step == "vector":
            lines.append(f"{y} = Mul ({weight('8')}, {x})")
        else:
            lines += [
                f"t{index} = Concat <axis = -1> ({x}, x)",
                f"{y}, u{index} = Split <axis = -1, num_outputs = 2> (t{index})",
            ]
        values.append(y)
    outputs = list(dict.fromkeys([values[-1], values[1 + kept % len(steps)]]))
    text = f"g ({', '.join(given_)}) => ({', '.join(f'float[{lead},8] {name}' for name in outputs)}) {{\n"
    graph = parse(text + "\n".join(lines) + "\n}")
    named = dict(zip("BS", sizes, strict=True))
    want = run(graph, **named)
    flatten_rows(graph)
    verify(graph)
    lower(graph)
    for mine, theirs in zip(run(graph, **named), want, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5)  # sums of 8 products in another order
