"""Attention out of several exporters' spellings, and masks that hide whole rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

RNG = np.random.default_rng(0)
B, H, Q, K, D = 2, 3, 4, 5, 8
# Softmax and two products of at most 8 terms, in another order: a few ulp of float32 (6e-8) each.
FLOAT32 = 3e-6
LOWEST = float(np.finfo(np.float32).min)
HEADER = "g (float[B,3,Q,8] q, float[B,3,K,8] k, float[B,3,K,8] v) => (float[B,3,Q,8] y)"
FEEDS = {
    "q": RNG.standard_normal((B, H, Q, D), np.float32),
    "k": RNG.standard_normal((B, H, K, D), np.float32),
    "v": RNG.standard_normal((B, H, K, D), np.float32),
}
CONSTANTS = {
    "scale": np.asarray(0.3, np.float32), "root": np.asarray(0.3**0.5, np.float32),
    "inv": np.asarray(1 / 0.3, np.float32),
    "zero": np.asarray(0, np.float32), "lowest": np.asarray(LOWEST, np.float32), "inf": np.asarray(-np.inf, np.float32),
    "low": np.asarray(-1e4, np.float32), "small": np.asarray(-5, np.float32), "cap": np.asarray(2, np.float32),
    "bias": RNG.standard_normal((3, 4, 5)).astype(np.float32), "one": np.asarray(1, np.float32),
}  # fmt: skip
TAIL = "p = Softmax<axis=-1>(s) y = MatMul(p, v)"
GUARDED = "p0 = Softmax<axis=-1>(s) nan = IsNaN(p0) p = Where(nan, zero, p0) y = MatMul(p, v)"
PLAIN = "kt = Transpose<perm=[0,1,3,2]>(k) s0 = MatMul(q, kt) s1 = Mul(s0, scale) "
PRODUCTS = {
    "on scores": PLAIN,
    "swapped": "kt = Transpose<perm=[0,1,3,2]>(k) s0 = MatMul(q, kt) s1 = Mul(scale, s0) ",
    "division": "kt = Transpose<perm=[0,1,3,2]>(k) s0 = MatMul(q, kt) s1 = Div(s0, inv) ",
    "on queries": "kt = Transpose<perm=[0,1,3,2]>(k) qs = Mul(q, scale) s1 = MatMul(qs, kt) ",
    "on keys before": "ks = Mul(k, scale) kt = Transpose<perm=[0,1,3,2]>(ks) s1 = MatMul(q, kt) ",
    "on both": "kt = Transpose<perm=[0,1,3,2]>(k) qs = Mul(q, root) ks = Mul(root, kt) s1 = MatMul(qs, ks) ",
}


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("bias", ["s = Identity(s1) ", "s = Add(s1, bias) ", "s = Add(bias, s1) "])
def test_scale_and_bias(recover, product, bias):
    found = recover(f"{HEADER} {{ {PRODUCTS[product] + bias + TAIL} }}", CONSTANTS, FEEDS)
    assert found.outcome.rewrites == {"Attention": 1}
    # A bias is spread over queries and keys only where its size is not known to be theirs.
    assert found.operators["Attention"] == 1 and not {"Softmax", "MatMul"} & set(found.operators)
    node = next(n for n in found.graph.graph if n.op_type == "Attention")
    assert node.attributes["scale"].value == pytest.approx(0.3, rel=1e-6)
    assert found.equal(FLOAT32)


def test_keys_transposed_with_their_heads(recover):
    """[batch, sequence, heads, size] goes to [batch, heads, size, sequence] in one Transpose."""
    text = HEADER.replace("float[B,3,K,8] k,", "float[B,K,3,8] k,")
    body = PLAIN.replace("[0,1,3,2]", "[0,2,3,1]") + "s = Identity(s1) " + TAIL
    found = recover(f"{text} {{ {body} }}", CONSTANTS, {**FEEDS, "k": FEEDS["k"].transpose(0, 2, 1, 3).copy()})
    assert found.operators == {"Transpose": 1, "Attention": 1} and found.equal(FLOAT32)


@pytest.mark.parametrize("heads", [1, 3])
def test_repeated_heads_are_not_repeated(recover, heads):
    repeat = "{0}1 = Unsqueeze({0}0, two) {0}2 = Expand({0}1, times) {0} = Reshape({0}2, merged) "
    body = repeat.format("k") + repeat.format("v") + PLAIN + "s = Identity(s1) " + TAIL
    text = f"g (float[B,6,Q,8] q, float[B,{heads},K,8] k0, float[B,{heads},K,8] v0) => (float[B,6,Q,8] y)"
    constants = {
        **CONSTANTS,
        "two": np.asarray([2]),
        "times": np.asarray([1, 1, 6 // heads, 1, 1]),
        "merged": np.asarray([0, 6, -1, 8]),
    }
    feeds = {
        "q": RNG.standard_normal((B, 6, Q, D), np.float32),
        "k0": RNG.standard_normal((B, heads, K, D), np.float32),
        "v0": RNG.standard_normal((B, heads, K, D), np.float32),
    }
    found = recover(f"{text} {{ {body} }}", constants, feeds)
    assert found.operators == {"Attention": 1} and found.equal(FLOAT32)


def test_softcap_before_the_mask(recover):
    body = PLAIN + "c0 = Div(s1, cap) c1 = Tanh(c0) c2 = Mul(c1, cap) s = Add(c2, bias) " + TAIL
    found = recover(f"{HEADER} {{ {body} }}", CONSTANTS, FEEDS)
    assert found.operators["Attention"] == 1 and found.operators["Tanh"] == 0 and found.equal(FLOAT32)


def test_products_of_rank_3(recover):
    text = "g (float[N,Q,8] q, float[N,K,8] k, float[N,K,8] v) => (float[N,Q,8] y)"
    body = PLAIN.replace("[0,1,3,2]", "[0,2,1]") + "s = Identity(s1) " + TAIL
    found = recover(f"{text} {{ {body} }}", CONSTANTS, {n: a[0] for n, a in FEEDS.items()})
    assert found.operators == {"Unsqueeze": 3, "Attention": 1, "Squeeze": 1} and found.equal(FLOAT32)


def test_half_precision_with_softmax_in_float32(recover):
    text = HEADER.replace("float[", "float16[")
    body = PLAIN + "s = Cast<to=1>(s1) p0 = Softmax<axis=-1>(s) p = Cast<to=10>(p0) y = MatMul(p, v)"
    constants = {"scale": CONSTANTS["scale"].astype(np.float16)}
    found = recover(f"{text} {{ {body} }}", constants, {n: a.astype(np.float16) for n, a in FEEDS.items()})
    assert found.operators == {"Attention": 1} and found.equal(5e-3)  # float16: 4.9e-4 a rounding
    assert found.graph.graph[0].attributes["softmax_precision"].value == 1


def _rows(kind):
    """[B, 1, Q, K] of booleans: which keys a query sees."""
    keep = RNG.random((B, 1, Q, K)) < 0.6
    keep[..., 0] = True
    if kind == "whole row hidden":
        keep[0, 0, 1] = False
    return keep


@pytest.mark.parametrize("rows", ["some keys hidden", "whole row hidden"])
@pytest.mark.parametrize("fill", ["lowest", "inf", "low"])
@pytest.mark.parametrize("tail", [TAIL, GUARDED], ids=["plain", "guarded against NaN"])
@pytest.mark.parametrize("form", ["choice", "inverted choice", "bias"])
def test_masks_mean_what_they_did(recover, rows, fill, tail, form):
    """A hidden row gives the mean of the values, NaN or zero, exactly as the original does."""
    mask = {
        "choice": f"s = Where(keep, s1, {fill}) ",
        "inverted choice": f"drop = Not(keep) s = Where(drop, {fill}, s1) ",
        "bias": f"m = Where(keep, zero, {fill}) s = Add(s1, m) ",
    }[form]
    keep = _rows(rows)
    found = recover(
        f"{HEADER.replace('float[B,3,Q,8] q', 'float[B,3,Q,8] q, bool[B,1,Q,K] keep')} {{ {PLAIN + mask + tail} }}",
        CONSTANTS,
        {**FEEDS, "keep": keep},
    )
    assert found.outcome.rewrites == {"Attention": 1} and not found.missed
    assert np.isnan(found.before[0]).any() == (rows == "whole row hidden" and fill == "inf" and tail is TAIL)
    assert found.equal(FLOAT32)


@pytest.mark.parametrize("hidden", ["nothing", "finite", "infinite", "both"])
def test_a_mask_that_the_caller_gives(recover, hidden):
    mask = np.where(_rows("some keys hidden"), 0, LOWEST).astype(np.float32)
    if hidden in ("finite", "both"):
        mask[0, 0, 1] = LOWEST
    if hidden in ("infinite", "both"):
        mask[1, 0, 2] = -np.inf
    if hidden == "both":
        mask[0, 0, 1, :2] = -np.inf
    text = HEADER.replace("float[B,3,Q,8] q", "float[B,3,Q,8] q, float[B,1,Q,K] mask")
    found = recover(f"{text} {{ {PLAIN} s = Add(mask, s1) {TAIL} }}", CONSTANTS, {**FEEDS, "mask": mask})
    assert found.outcome.rewrites == {"Attention": 1}
    assert np.isnan(found.before[0]).any() == (hidden in ("infinite", "both"))
    assert found.equal(FLOAT32)


@pytest.mark.parametrize("shape", [(B, 1, 1, K), (1, K), (K,), (H, 1, K), (1, H, Q, K), (Q, 1), (1, 1, 1, 1)])
def test_masks_of_fewer_dimensions_are_spread(recover, shape):
    mask = RNG.standard_normal(shape).astype(np.float32)
    dims = ",".join(map(str, shape))
    text = HEADER.replace("float[B,3,Q,8] q", f"float[B,3,Q,8] q, float[{dims}] mask")
    found = recover(f"{text} {{ {PLAIN} s = Add(s1, mask) {TAIL} }}", CONSTANTS, {**FEEDS, "mask": mask})
    assert found.operators["Attention"] == 1 and found.equal(FLOAT32)


def test_layers_share_one_mask(recover):
    mask = "m = Where(keep, zero, lowest) "
    layers = PLAIN + mask + "s = Add(s1, m) " + TAIL.replace("y", "x")
    layers += " t0 = MatMul(x, kt) t1 = Mul(t0, scale) t = Add(t1, m) r = Softmax<axis=-1>(t) y = MatMul(r, v)"
    text = HEADER.replace("float[B,3,Q,8] q", "float[B,3,Q,8] q, bool[B,1,1,K] keep")
    keep = np.ones((B, 1, 1, K), bool)
    keep[0, ..., 2:] = False
    found = recover(f"{text} {{ {layers} }}", CONSTANTS, {**FEEDS, "keep": keep})
    assert found.outcome.rewrites == {"Attention": 2}
    assert found.operators["Expand"] == 1 and found.operators["Max"] == 1
    assert found.equal(FLOAT32)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (PLAIN + "s = Identity(s1) p = Softmax<axis=2>(s) y = MatMul(p, v)", "last axis"),
        (PLAIN + "s = Where(keep, s1, small) " + TAIL, "not low enough"),
        (PLAIN + "s2 = Where(keep, s1, inf) s = Where(other, s2, lowest) " + TAIL, "two masks"),
        (
            PLAIN + "s = Identity(s1) p = Softmax<axis=-1>(s) y0 = MatMul(p, v) r = ReduceSum(p) y = Add(y0, r)",
            "used by",
        ),
        (PLAIN + "s = Identity(s1) " + TAIL + " z = Neg(s1)", "used by more than the softmax"),
        ("kt = Reshape(k, turned) s = MatMul(q, kt) " + TAIL, "not transposed"),
        (PLAIN.replace("Mul(s0, scale)", "Mul(s0, small)") + "s = Identity(s1) " + TAIL, "scale is not positive"),
        (PLAIN + "s2 = Add(s1, bias) s = Mul(s2, scale) " + TAIL, None),
    ],
    ids=["axis", "fill", "two masks", "probabilities used", "scores used", "reshaped keys", "negative", "scaled mask"],
)
def test_what_is_not_the_same_stays(recover, body, reason):
    outputs = "float[B,3,Q,8] y, float[B,3,Q,K] z" if "z =" in body else "float[B,3,Q,8] y"
    text = "g (float[B,3,Q,8] q, float[B,3,K,8] k, float[B,3,K,8] v, bool[B,1,Q,K] keep, bool[B,1,Q,K] other)"
    constants = {**CONSTANTS, "turned": np.asarray([2, 3, 8, 5])}
    feeds = {**FEEDS, "keep": _rows("whole row hidden"), "other": _rows("whole row hidden")}
    body = body.replace("ReduceSum(", "ReduceSum<keepdims=0>(")
    found = recover(f"{text} => ({outputs}) {{ {body} }}", constants, feeds)
    assert found.operators["Attention"] == 0 and found.equal(0.0)
    assert (len(found.missed) == 1 and reason in found.missed[0]) if reason else not found.missed


def test_an_opset_without_attention_is_told(recover):
    found = recover(f"{HEADER} {{ {PLAIN} s = Identity(s1) {TAIL} }}", CONSTANTS, FEEDS, opset=20)
    assert not found.outcome.changed
    assert found.missed == ["Attention not recovered: the graph has opset 20, the operator exists since 23"]


def test_an_opset_whose_attention_the_runtime_takes_apart_is_told(recover):
    assert recover(f"{HEADER} {{ {PLAIN} s = Identity(s1) {TAIL} }}", CONSTANTS, FEEDS, opset=24).outcome.changed
    found = recover(f"{HEADER} {{ {PLAIN} s = Identity(s1) {TAIL} }}", CONSTANTS, FEEDS, opset=25)
    assert not found.outcome.changed
    assert found.missed == ["Attention not recovered: ONNX Runtime has no kernel for it in opset 25"]


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.tuples(*[st.integers(1, 4)] * 5),
    batch_mask=st.booleans(),
    head_mask=st.booleans(),
    query_mask=st.booleans(),
    fill=st.sampled_from([LOWEST, -np.inf, -1e9, -3.0]),
    density=st.floats(0, 1),
    guarded=st.booleans(),
    seed=st.integers(0, 999),
)
def test_any_size_and_mask(recover, sizes, batch_mask, head_mask, query_mask, fill, density, guarded, seed):
    batch, heads, queries, keys, width = sizes
    rng = np.random.default_rng(seed)
    shape = (batch if batch_mask else 1, heads if head_mask else 1, queries if query_mask else 1, keys)
    mask = np.where(rng.random(shape) < density, 0, fill).astype(np.float32)
    keyed = f"float[{batch},{heads},K,{width}]"
    text = f"g (float[{batch},{heads},Q,{width}] q, {keyed} k, {keyed} v, "
    text += f"float[{','.join(map(str, shape))}] mask) => (float[{batch},{heads},Q,{width}] y)"
    feeds = {
        "q": rng.standard_normal((batch, heads, queries, width)).astype(np.float32),
        "k": rng.standard_normal((batch, heads, keys, width)).astype(np.float32),
        "v": rng.standard_normal((batch, heads, keys, width)).astype(np.float32),
        "mask": mask,
    }
    found = recover(f"{text} {{ {PLAIN} s = Add(s1, mask) {GUARDED if guarded else TAIL} }}", CONSTANTS, feeds)
    assert found.outcome.rewrites == {"Attention": 1} and found.equal(1e-5)


def test_a_classifier_is_no_near_miss(recover):
    text = "g (float[B,8] x) => (float[B,5] p) { s = MatMul(x, w) p = Softmax<axis=-1>(s) }"
    found = recover(text, {"w": RNG.standard_normal((8, 5), np.float32)}, {"x": FEEDS["q"][0, 0]})
    assert not found.outcome.changed and not found.missed


def test_two_attentions_that_overlap_share_a_mask(recover):
    """The second softmax stands before the first product with values: the mask must precede both."""
    body = PLAIN + "s = Add(s1, mask) p = Softmax<axis=-1>(s) t0 = MatMul(k, kt) t1 = Mul(t0, scale) t = Add(t1, mask) "
    body += "r = Softmax<axis=-1>(t) w = Neg(v) z = MatMul(r, w) u = Abs(v) y = MatMul(p, u)"
    text = HEADER.replace("float[B,3,Q,8] q", "float[B,3,Q,8] q, float[B,1,1,K] mask")
    text = text.replace("Q,8]", "K,8]").replace(" y)", " y, float[B,3,K,8] z)")
    feeds = {**FEEDS, "q": FEEDS["k"][::-1].copy(), "mask": RNG.standard_normal((B, 1, 1, K), np.float32)}
    found = recover(f"{text} {{ {body} }}", CONSTANTS, feeds)
    assert found.outcome.rewrites == {"Attention": 2} and found.operators["Expand"] == 1
    assert found.equal(FLOAT32)
