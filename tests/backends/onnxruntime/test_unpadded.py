"""Attention whose mask hides nothing: the same outputs with and without padding, and which kernel is taken when."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir
import pytest
from burnish.backends.onnxruntime.lower import lower
from burnish.backends.onnxruntime.session import Session
from burnish.backends.onnxruntime.unpadded import LENGTH, TOKENS
from burnish.backends.onnxruntime.writer import to_bytes
from burnish.ir.graph import Graph, all_nodes
from burnish.ir.verify import verify
from burnish.passes import Canonicalize
from burnish.passes.base import Context
from hypothesis import given, settings
from hypothesis import strategies as st

Array = np.ndarray[Any, Any]
SIZE = 16
TEXT = """
g (float[B,S,16] q, float[B,S,16] k, float[B,S,16] v, {kind}[B,1,1,S] m) => (float[B,S,16] y, float[B,S,16] z)
<int64[1] zero = {{0}}, int64[1] one = {{1}}, int64[1] two = {{2}}>
{{
  a = Shape (q)
  c = Slice (a, zero, one)
  d = Slice (a, one, two)
  shape = Concat <axis = 0> (c, one, d, d)
  e = Expand (m, shape)
  y = Attention <q_num_heads = 2, kv_num_heads = 2{how}> (q, k, v, e)
  z = Attention <q_num_heads = 2, kv_num_heads = 2{how}> (y, k, v, e)
}}
"""


def text(kind: str = "bool", how: str = "") -> str:
    """Two attentions that share a mask of keys."""
    return TEXT.format(kind=kind, how=how)


def feeds(rows: int, length: int, hidden: int, kind: str = "bool") -> dict[str, Array]:
    """Random operands; the last ``hidden`` keys of the first row are padding."""
    random = np.random.default_rng(rows * 1000 + length)
    found = {name: random.standard_normal((rows, length, SIZE)).astype(np.float32) for name in "qkv"}
    seen = np.ones((rows, 1, 1, length), bool)
    seen[0, ..., length - hidden :] = False
    return found | {"m": seen if kind == "bool" else np.where(seen, 0, -1e30).astype(np.float32)}


def lowered(parse: Any, source: str) -> Graph:
    graph: Graph = parse(source)
    lower(graph)
    verify(graph, lowered=True)
    return graph


def kinds(graph: Graph) -> list[str]:
    return sorted(node.op_type for node in all_nodes(graph) if "Attention" in node.op_type)


@pytest.mark.parametrize("kind", ["bool", "float"])
@pytest.mark.parametrize("how", ["", ", scale = 0.3", ", softcap = 0.0, qk_matmul_output_mode = 0, is_causal = 0"])
def test_what_is_taken_when(kind: str, how: str, parse: Any) -> None:
    graph = lowered(parse, text(kind, how))
    ifs = [node for node in graph.graph if node.op_type == "If"]
    assert len(ifs) == 2 and kinds(graph) == ["Attention"] * 4 + ["MultiHeadAttention"] * 2
    assert len({node.inputs[0] for node in ifs}) == 1  # the mask is looked at once
    (inner,) = [node for node in ifs[0].attributes["else_branch"].as_graph() if node.op_type == "If"]
    tiled, seen = ifs[0].inputs[0], inner.inputs[0]
    assert tiled is not None and seen is not None
    graph.graph.outputs.extend([seen, tiled])
    session = Session(to_bytes(graph), threads=1)
    want = Session(to_bytes(parse(text(kind, how))), threads=1)
    rows = TOKENS // LENGTH
    for many, length, hidden, expected in (
        (rows, LENGTH, 0, (True, True)),
        (rows, LENGTH, 1, (False, False)),
        (rows - 1, LENGTH, 0, (True, False)),
        (1, TOKENS, 0, (True, True)),
        (2 * rows, LENGTH - 1, 0, (True, False)),
        (1, 3, 0, (True, False)),
        (2, 3, 3, (False, False)),
    ):
        given = feeds(many, length, hidden, kind)
        *outputs, nothing_hidden, by_tiles = session.run(given)
        assert (bool(nothing_hidden), bool(by_tiles)) == expected
        for one, other in zip(outputs, want.run(given), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


_MADE: dict[str, Session] = {}


@settings(deadline=None, max_examples=30)
@given(data=st.data(), rows=st.integers(1, 5), length=st.sampled_from([1, 2, 31, 127, 128, 200]))
def test_the_same_outputs(parse: Any, data: st.DataObject, rows: int, length: int) -> None:
    if not _MADE:
        _MADE.update(new=Session(to_bytes(lowered(parse, text()))), old=Session(to_bytes(parse(text()))))
    given_ = feeds(rows, length, data.draw(st.integers(0, length)))
    for one, other in zip(_MADE["new"].run(given_), _MADE["old"].run(given_), strict=True):
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_without_padding_the_mask_changes_no_bit(parse: Any) -> None:
    """So that rows of a batch may run apart: a share without padding takes another kernel than the whole."""
    new, old = Session(to_bytes(lowered(parse, text()))), Session(to_bytes(parse(text())))
    for one, other in zip(new.run(feeds(3, 17, 0)), old.run(feeds(3, 17, 0)), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_mask_of_several_parts(parse: Any) -> None:
    """As the exporter writes it: which keys are padding, and which queries there are."""
    source = text().replace("bool[B,1,1,S] m", "bool[B,1,1,S] m, bool[1,1,S,1] n")
    source = source.replace("e = Expand (m, shape)", "f = And (m, n)\n  e = Expand (f, shape)")
    graph = lowered(parse, source)
    assert kinds(graph) == ["Attention"] * 4 + ["MultiHeadAttention"] * 2
    session, want = Session(to_bytes(graph)), Session(to_bytes(parse(source)))
    for keys, queries in ((0, 0), (3, 0), (0, 3), (3, 3)):
        given_ = feeds(4, 130, keys) | {"n": np.arange(130).reshape(1, 1, 130, 1) >= queries}
        for one, other in zip(session.run(given_), want.run(given_), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_short_sequences_need_no_tiles(parse: Any) -> None:
    graph = lowered(parse, text().replace("B,S,16", "B,64,16").replace("B,1,1,S", "B,1,1,64"))
    assert kinds(graph) == ["Attention"] * 4


def test_fewer_heads_of_keys_are_not_for_the_tiled_kernel(parse: Any) -> None:
    source = text().replace("kv_num_heads = 2", "kv_num_heads = 1")
    source = source.replace("float[B,S,16] k, float[B,S,16] v", "float[B,S,8] k, float[B,S,8] v")
    graph = lowered(parse, source)
    assert kinds(graph) == ["Attention"] * 4
    for hidden in (0, 3):
        given_ = feeds(4, 130, hidden)
        given_ |= {name: given_[name][..., :8] for name in "kv"}
        got, want = (Session(to_bytes(one)).run(given_) for one in (graph, parse(source)))
        np.testing.assert_allclose(got[1], want[1], rtol=1e-4, atol=1e-5)


def test_a_file_that_was_compiled_is_compiled_again(parse: Any) -> None:
    graph = lowered(parse, text())
    outcome = Canonicalize().run(graph, Context())
    assert kinds(graph) == ["Attention"] * 2 and "If" not in {node.op_type for node in graph.graph}
    assert outcome.changed and not {"ReduceMin", "ReduceProd"} & {node.op_type for node in graph.graph}
    for hidden in (0, 5):
        got, want = (Session(to_bytes(one)).run(feeds(4, 130, hidden)) for one in (graph, parse(text())))
        np.testing.assert_allclose(got[1], want[1], rtol=1e-4, atol=1e-5)
    lower(graph)
    assert kinds(graph) == ["Attention"] * 4 + ["MultiHeadAttention"] * 2


def test_the_choice_of_somebody_else_stays(parse: Any) -> None:
    graph = lowered(parse, text())
    for node in graph.graph:
        node.metadata_props.clear()
    Canonicalize().run(graph, Context())
    assert kinds(graph) == ["Attention"] * 4 + ["MultiHeadAttention"] * 2


@pytest.mark.parametrize(
    "source",
    [
        text(how=", is_causal = 1"),
        text(how=", softcap = 2.0"),
        text().replace("B,1,1,S", "B,1,S,S"),
        text()
        .replace("bool[B,1,1,S] m", "bool[B,1,1,S] m, bool[1,1,S,S] n")
        .replace("e = Expand (m, shape)", "e = And (m, n)"),
        text("float").replace("B,1,1,S", "1,2,S,S"),
        # A mask shorter than the keys hides the rest.
        text().replace("B,1,1,S", "B,1,1,M").replace("  e = Expand (m, shape)\n", "").replace("v, e)", "v, m)"),
    ],
)
def test_what_is_left_alone(source: str, parse: Any) -> None:
    graph = lowered(parse, source)
    assert kinds(graph) == ["Attention"] * 2
    assert all(node.op_type != "If" for node in graph.graph)


def test_a_constant_mask_is_left_alone(parse: Any) -> None:
    graph = parse(text("float").replace("B,1,1,S", "1,1,1,5").replace("B,S,16", "B,5,16"))
    mask = graph.graph.inputs.pop()
    tensor = onnx_ir.Tensor(np.zeros((1, 1, 1, 5), np.float32), name="m")
    value = onnx_ir.Value(name="m", type=mask.type, shape=mask.shape, const_value=tensor)
    graph.graph.register_initializer(value)
    for use in tuple(mask.uses()):
        use.node.replace_input_with(use.idx, value)
    lower(graph)
    assert all(node.op_type != "If" for node in graph.graph)
