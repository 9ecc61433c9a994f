"""Which groups are found, which are not and why, and that folding leaves the outputs alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir
import pytest
from burnish.ir.graph import module_path
from burnish.ir.rewrite import Editor
from burnish.ir.verify import verify
from burnish.passes.smooth.fold import fold
from burnish.passes.smooth.groups import Found, find

Array = np.ndarray[Any, Any]
Parse = Callable[..., onnx_ir.Model]
Transformer = Callable[[str], tuple[onnx_ir.Model, Mapping[str, Array]]]
Outputs = Callable[[onnx_ir.Model, Mapping[str, Array]], list[Array]]


def layout(found: Found) -> dict[str, list[str]]:
    """Consumers by producer, layer numbers and prefixes left out of all but the producers."""
    return {
        module_path(group.node): [module_path(c.node).rpartition(".")[2] for c in group.consumers]
        for group in found.groups
    }


def reasons(found: Found) -> dict[str, str]:
    return {module_path(node): block.reason for node, block in found.others}


def test_llama(transformer: Transformer) -> None:
    graph, _ = transformer("llama")
    found = find(graph)
    expected = {}
    for layer in ("model.layers.0", "model.layers.1"):
        expected |= {
            f"{layer}.input_layernorm": ["q_proj", "k_proj", "v_proj"],
            f"{layer}.self_attn.v_proj": ["o_proj"],
            f"{layer}.post_attention_layernorm": ["gate_proj", "up_proj"],
            f"{layer}.mlp.up_proj": ["down_proj"],
        }
    assert layout(found) == {**expected, "model.norm": ["lm_head"]}
    assert found.others == []
    assert all(group.free.all() for group in found.groups)


def test_each_kv_head_has_one_scale_for_its_query_heads(transformer: Transformer) -> None:
    graph, _ = transformer("llama")
    group = next(g for g in find(graph).groups if module_path(g.node).endswith("v_proj"))
    assert group.size == 16
    heads = group.consumers[0].labels.reshape(4, 8)
    assert heads.tolist() == [list(range(8)), list(range(8)), list(range(8, 16)), list(range(8, 16))]


def test_tied_head_is_refused(transformer: Transformer) -> None:
    graph, _ = transformer("tied")
    found = find(graph)
    assert len(found.groups) == 8
    assert reasons(found) == {"lm_head": "the weight of its product is shared with model.embed_tokens"}


def test_bert_normalizes_after_the_residual_sum(transformer: Transformer) -> None:
    graph, _ = transformer("bert")
    found = find(graph)
    assert layout(found) == {f"encoder.layer.{i}.attention.self.value": ["dense"] for i in (0, 1)}
    why = list(reasons(found).values())
    assert len(why) == 11
    assert why.count("Add combines it with another value") == 8
    assert why.count("Gelu is not homogeneous") == 2
    assert reasons(found)["pooler.dense"] == "it is an output of the model"


def test_gpt2_scales_only_the_values_of_its_fused_product(transformer: Transformer) -> None:
    graph, _ = transformer("gpt2")
    found = find(graph)
    expected = {}
    for layer in ("transformer.h.0", "transformer.h.1"):
        expected |= {f"{layer}.ln_1": ["c_attn"], f"{layer}.attn.c_attn": ["c_proj"], f"{layer}.ln_2": ["c_fc"]}
    assert layout(found) == expected
    fused = found.groups[1]
    assert np.flatnonzero(fused.free).tolist() == list(range(64, 96))
    assert len(fused.vectors) == 1  # its bias
    assert sorted(reasons(found).values()) == [
        "Gelu is not homogeneous",
        "Gelu is not homogeneous",
        "the weight of its product is shared with transformer.wte",
    ]


CHAIN = """g (float[B, 8] x) => (float[B, 4] y) {
    a = MatMul(x, w1)
    b = Add(a, bias)
    c = Relu(b)
    y = MatMul(c, w2)
}"""
GATED = """g (float[B, S, 8] x) => (float[B, S, 4] y) {
    a = MatMul(x, w1)
    gate, up = Split <axis = 2, num_outputs = 2> (a)
    s = Sigmoid(gate)
    silu = Mul(gate, s)
    h = Mul(up, silu)
    y = MatMul(h, w2)
}"""
BILINEAR = """g (float[B, 8] x) => (float[B, 4] y) {
    a = MatMul(x, w1)
    b = MatMul(x, w3)
    h = Mul(a, b)
    y = MatMul(h, w2)
}"""
GEMM = """g (float[B, 8] x) => (float[B, 4] y) {
    n = RMSNormalization(x, scale)
    a = Gemm <transB = 1, alpha = 0.5> (n, w1, bias)
    c = LeakyRelu(a)
    y = Gemm(c, w2)
}"""
TAKEN_APART = """g (float[B, S, 8] x, float[B, 2, S, S] probabilities) => (float[B, S, 4] y) {
    v = MatMul(x, w1)
    split = Reshape(v, heads)
    turned = Transpose <perm = [0, 2, 1, 3]> (split)
    mixed = MatMul(probabilities, turned)
    back = Transpose <perm = [0, 2, 1, 3]> (mixed)
    joined = Reshape(back, all)
    y = MatMul(joined, w2)
}"""
THREE_AXES = """g (float[B, S, 12] q, float[B, S, 6] k, float[B, S, 8] x) => (float[B, S, 4] y) {
    v = MatMul(x, w1)
    o = Attention <q_num_heads = 4, kv_num_heads = 2> (q, k, v)
    y = MatMul(o, w2)
}"""
ONE_HEAD = """g (float[B, 2, S, 3] q, float[B, 1, S, 3] k, float[B, S, 8] x) => (float[B, S, 4] y) {
    a = MatMul(x, w1)
    r = Reshape(a, one_head)
    v = Transpose <perm = [0, 2, 1, 3]> (r)
    o = Attention(q, k, v)
    t = Transpose <perm = [0, 2, 1, 3]> (o)
    j = Reshape(t, all)
    y = MatMul(j, w2)
}"""
SHARED_NORM = """g (float[B, 8] x) => (float[B, 4] y, float[B, 8] z) {
    n = RMSNormalization(x, scale)
    r = Relu(x)
    z = RMSNormalization(r, scale)
    y = MatMul(n, w1)
}"""
HEADS = {"heads": np.array([0, 0, 2, 3]), "all": np.array([0, 0, 6])}
CONNECTED: dict[str, tuple[str, dict[str, Any], int, int]] = {
    # text, weights, groups, free channels in all
    "chain": (CHAIN, {"w1": (8, 6), "bias": (6,), "w2": (6, 4)}, 1, 6),
    "gated, fused": (GATED, {"w1": (8, 12), "w2": (6, 4)}, 1, 6),
    "bilinear": (BILINEAR, {"w1": (8, 6), "w3": (8, 6), "w2": (6, 4)}, 1, 6),
    "gemm": (GEMM, {"scale": (8,), "w1": (6, 8), "bias": (6,), "w2": (6, 4)}, 2, 14),
    "attention taken apart": (TAKEN_APART, {"w1": (8, 6), "w2": (6, 4), **HEADS}, 1, 6),
    "attention of three axes": (THREE_AXES, {"w1": (8, 6), "w2": (12, 4)}, 1, 6),
    "one head of values": (
        ONE_HEAD,
        {"w1": (8, 3), "w2": (6, 4), "one_head": np.array([0, 0, 1, 3]), "all": np.array([0, 0, 6])},
        1,
        3,
    ),
    "norm weight shared": (SHARED_NORM, {"scale": (8,), "w1": (8, 4)}, 1, 8),
}


@pytest.mark.parametrize("case", list(CONNECTED))
def test_folding_any_scale_leaves_the_outputs(case: str, parse: Parse, outputs: Outputs) -> None:
    text, weights, count, channels = CONNECTED[case]
    graph = parse(text, **weights)
    random = np.random.default_rng(1)
    feeds = {
        v.name or "": random.standard_normal([{"B": 2, "S": 5}.get(str(d), d) for d in v.shape or ()]).astype(
            np.float32
        )
        for v in graph.graph.inputs
    }
    found = find(graph)
    assert len(found.groups) == count
    assert sum(int(group.free.sum()) for group in found.groups) == channels
    _fold_and_compare(graph, found, feeds, outputs)


@pytest.mark.parametrize("family", ["llama", "tied", "bert", "gpt2"])
def test_folding_leaves_the_outputs_of_transformers(family: str, transformer: Transformer, outputs: Outputs) -> None:
    graph, feeds = transformer(family)
    _fold_and_compare(graph, find(graph), feeds, outputs)


def _fold_and_compare(graph: onnx_ir.Model, found: Found, feeds: Mapping[str, Array], outputs: Outputs) -> None:
    before, nodes = outputs(graph, feeds), len(graph.graph)
    initializers = len(graph.graph.initializers)
    random, edit = np.random.default_rng(0), Editor(graph, "test")
    for group in found.groups:
        scales = np.where(group.free, random.uniform(0.1, 10, group.size), 1).astype(np.float32)
        fold(edit, group, scales)
    verify(graph)
    assert len(graph.graph) == nodes
    assert len(graph.graph.initializers) - initializers in (0, 1)  # 1: a copy of the shared weight
    lazies = [v for v in graph.graph.initializers.values() if isinstance(v.const_value, onnx_ir.LazyTensor)]
    assert len(lazies) >= 2 * len(found.groups) - 1
    for a, b in zip(before, outputs(graph, feeds), strict=True):
        assert np.abs(a - b).max() <= 1e-5 * np.abs(a).max()


def test_consumers_alone_would_change_the_outputs(parse: Parse, outputs: Outputs) -> None:
    """The comparison above can fail: half a fold is seen."""
    graph = parse(CHAIN, w1=(8, 6), bias=(6,), w2=(6, 4))
    feeds = {"x": np.random.default_rng(1).standard_normal((2, 8)).astype(np.float32)}
    (before,) = outputs(graph, feeds)
    (group,) = find(graph).groups
    assert [vector.node.op_type for vector in group.vectors] == ["Add"]
    half = type(group)(group.node, group.size, group.free, (), group.matrix, group.consumers)
    fold(Editor(graph, "test"), half, np.full(6, 3, np.float32))
    (after,) = outputs(graph, feeds)
    assert np.abs(before - after).max() > 0.01 * np.abs(before).max()


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "output": (
        "g (float[B, 8] x) => (float[B, 8] n, float[B, 4] y) { n = RMSNormalization(x, s) y = MatMul(n, w) }",
        {"s": (8,), "w": (8, 4)},
        "it is an output of the model",
    ),
    "residual": (
        "g (float[B, 8] x) => (float[B, 8] y) { n = RMSNormalization(x, s) a = MatMul(n, w) y = Add(a, n) }",
        {"s": (8,), "w": (8, 8)},
        "Add combines it with another value",
    ),
    "another reader": (
        "g (float[B, 8] x) => (float[B, 4] y, float[B, 8] z) "
        "{ n = RMSNormalization(x, s) y = MatMul(n, w) z = Softmax(n) }",
        {"s": (8,), "w": (8, 4)},
        "Softmax reads it, which is no product",
    ),
    "nonlinear": (
        "g (float[B, 8] x) => (float[B, 4] y) { a = MatMul(x, w1) b = Gelu(a) y = MatMul(b, w2) }",
        {"w1": (8, 6), "w2": (6, 4)},
        "Gelu is not homogeneous",
    ),
    "squared": (
        "g (float[B, 8] x) => (float[B, 4] y) { a = MatMul(x, w1) b = Mul(a, a) y = MatMul(b, w2) }",
        {"w1": (8, 6), "w2": (6, 4)},
        "Mul reads it twice",
    ),
    "one number for all": (
        "g (float[B, 8] x) => (float[B, 4] y) { a = MatMul(x, w1) b = Add(a, c) y = MatMul(b, w2) }",
        {"w1": (8, 6), "c": (1,), "w2": (6, 4)},
        "the constant of Add is not one number a channel",
    ),
    "two products of one weight": (
        "g (float[B, 8] x) => (float[B, 8] z) { n = RMSNormalization(x, s) y = MatMul(n, w) z = MatMul(y, w) }",
        {"s": (8,), "w": (8, 8)},
        "the weight of its product is shared with node_",
    ),
    "product of two activations": (
        "g (float[B, S, 8] x) => (float[B, S, 4] z) "
        "{ n = RMSNormalization(x, s) y = MatMul(n, w) t = Transpose <perm = [0, 2, 1]> (x) q = MatMul(n, t) "
        "z = MatMul(q, y) }",
        {"s": (8,), "w": (8, 4)},
        "its product is by no constant matrix",
    ),
    "cache": (
        "g (float[B, 2, S, 3] q, float[B, S, 8] x, float[B, 2, P, 3] pk, float[B, 2, P, 3] pv) "
        "=> (float[B, S, 4] y, float[B, 2, T, 3] k1, float[B, 2, T, 3] v1) "
        "{ a = MatMul(x, w1) r = Reshape(a, heads) v = Transpose <perm = [0, 2, 1, 3]> (r) "
        "o, k1, v1 = Attention(q, q, v, , pk, pv) t = Transpose <perm = [0, 2, 1, 3]> (o) j = Reshape(t, all) "
        "y = MatMul(j, w2) }",
        {"w1": (8, 6), "w2": (6, 4), **HEADS},
        "Attention keeps it in a cache outside the model",
    ),
    "subgraph": (
        "g (float[B, 8] x, bool c) => (float[B, 4] y, float[B, 8] z) { n = RMSNormalization(x, s) y = MatMul(n, w) "
        "z = If (c) <then_branch = t () => (float[B, 8] u) { u = Relu(n) }, "
        "else_branch = e () => (float[B, 8] v) { v = Neg(n) }> }",
        {"s": (8,), "w": (8, 4)},
        "Relu inside a subgraph reads it",
    ),
    "no producer": (
        "g (float[B, 8] x) => (float[B, 4] y) { y = MatMul(x, w) }",
        {"w": (8, 4)},
        "no normalization or product before it can take the scale of its input",
    ),
}


@pytest.mark.parametrize("case", list(REFUSED))
def test_refused(case: str, parse: Parse) -> None:
    text, weights, reason = REFUSED[case]
    found = find(parse(text, **weights))
    assert found.groups == []
    assert any(why.startswith(reason.removesuffix("node_")) for why in reasons(found).values()), reasons(found)


def test_swapped_operands_are_found(parse: Parse) -> None:
    text = CHAIN.replace("Add(a, bias)", "Add(bias, a)")
    assert len(find(parse(text, w1=(8, 6), bias=(6,), w2=(6, 4))).groups) == 1
    text = GATED.replace("Mul(up, silu)", "Mul(silu, up)")
    assert len(find(parse(text, w1=(8, 12), w2=(6, 4))).groups) == 1


def test_a_weight_that_the_caller_may_override_is_no_constant(parse: Parse) -> None:
    text = "g (float[B, 8] x, float[8] s) => (float[B, 4] y) { n = RMSNormalization(x, s) y = MatMul(n, w) }"
    assert find(parse(text, w=(8, 4))).groups == []


def test_half_precision_keeps_its_type(parse: Parse) -> None:
    half = {name: np.ones(shape, np.float16) for name, shape in {"s": (8,), "w": (8, 4)}.items()}
    text = "g (float16[B, 8] x) => (float16[B, 4] y) { n = RMSNormalization(x, s) y = MatMul(n, w) }"
    graph = parse(text, **half)
    fold(Editor(graph, "test"), find(graph).groups[0], np.full(8, 4, np.float32))
    values = {v.dtype for v in graph.graph.initializers.values()}
    assert values == {onnx_ir.DataType.FLOAT16}
    weights = {tuple(v.shape or ()): v.const_value.numpy() for v in graph.graph.initializers.values() if v.const_value}
    assert np.all(weights[(8,)] == 0.25)
    assert np.all(weights[(8, 4)] == 4)
