"""RotaryEmbedding out of several exporters' spellings."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

RNG = np.random.default_rng(0)
FLOAT32 = 1e-6  # a sum of two products: two roundings
B, H, S, D = 2, 3, 5, 8

CONSTANTS = {
    "i0": np.asarray([0]), "i1": np.asarray([1]), "i2": np.asarray([2]), "i4": np.asarray([4]),
    "end": np.asarray([1 << 60]),
    "last": np.asarray([3]), "heads": np.asarray([1]), "minus": np.asarray([-1]),
    "inv_freq": (1.0 / 100.0 ** (np.arange(4) / 4)).astype(np.float32).reshape(1, 1, 4),
    "scaling": np.float32(1.25).reshape(()),
    "twice": np.asarray([1, 1, 1, 2]), "whole": np.asarray([0, 0, 8]), "stacked": np.asarray([0, 0, 3, 8]),
}  # fmt: skip
ANGLES = "p = Cast<to=1>(positions) p3 = Unsqueeze(p, minus) f = Mul(p3, inv_freq) "
DOUBLE = "emb = Concat<axis=-1>(f, f) c3 = Cos(emb) s3 = Sin(emb) "
SCALED = "emb = Concat<axis=-1>(f, f) c2 = Cos(emb) s2 = Sin(emb) c3 = Mul(c2, scaling) s3 = Mul(scaling, s2) "
UNSQUEEZE = "cos = Unsqueeze(c3, heads) sin = Unsqueeze(s3, heads) "
TURN = "x1 = Slice(x, i0, i4, last, i1) x2 = Slice(x, i4, end, last, i1) n = Neg(x2) t = Concat<axis=-1>(n, x1) "
SUM = {
    "as written": "a = Mul(x, cos) b = Mul(t, sin) y = Add(a, b)",
    "swapped": "a = Mul(cos, x) b = Mul(sin, t) y = Add(b, a)",
}
HEADER = "g (float[B,3,S,8] x, int64[P,S] positions) => (float[B,3,S,8] y)"


def _feeds(rows=B):
    return {
        "x": RNG.standard_normal((B, H, S, D), np.float32),
        "positions": np.tile(np.arange(S), (rows, 1)) + np.arange(rows)[:, None],
    }


@pytest.mark.parametrize("angles", [DOUBLE, SCALED], ids=["plain", "scaled"])
@pytest.mark.parametrize("order", SUM)
@pytest.mark.parametrize("rows", [1, B], ids=["one row of positions", "a row each"])
def test_rotate_half(recover, angles, order, rows):
    found = recover(f"{HEADER} {{ {ANGLES + angles + UNSQUEEZE + TURN + SUM[order]} }}", CONSTANTS, _feeds(rows))
    assert found.outcome.rewrites == {"RotaryEmbedding": 1}
    # Nothing of the rotation is left, and angles are computed for half a head only.
    assert not {"Slice", "Neg", "Add"} & set(found.operators)
    assert found.operators["Cos"] == found.operators["Sin"] == 1
    cos = next(n for n in found.graph.graph if n.op_type == "Cos")
    assert cos.outputs[0].shape[-1] == D // 2
    assert found.equal(FLOAT32)


def test_split_instead_of_slices(recover):
    turn = "x1, x2 = Split<axis=-1, num_outputs=2>(x) n = Neg(x2) t = Concat<axis=3>(n, x1) "
    found = recover(f"{HEADER} {{ {ANGLES + DOUBLE + UNSQUEEZE + turn + SUM['swapped']} }}", CONSTANTS, _feeds())
    assert found.outcome.rewrites == {"RotaryEmbedding": 1} and found.equal(FLOAT32)


def test_all_layers_share_the_caches(recover):
    second = (
        TURN.replace("x1", "z1").replace("x2", "z2").replace("n ", "m ").replace("(n,", "(m,").replace("t =", "u =")
    )
    second = second.replace("Slice(x,", "Slice(y,") + "c = Mul(y, cos) d = Mul(u, sin) z = Add(c, d)"
    text = HEADER.replace(" y)", " z)") + f" {{ {ANGLES + DOUBLE + UNSQUEEZE + TURN + SUM['swapped']} {second} }}"
    found = recover(text, CONSTANTS, _feeds(1))
    assert found.outcome.rewrites == {"RotaryEmbedding": 2}
    assert found.operators["Cos"] == 1 and found.operators["Expand"] == 2 and found.operators["Shape"] == 1
    assert found.equal(FLOAT32)


def test_caches_looked_up_in_a_table(recover):
    table = np.outer(np.arange(16), CONSTANTS["inv_freq"]).astype(np.float32)
    table = np.concatenate([table, table], -1)
    constants = {**CONSTANTS, "tc": np.cos(table), "ts": np.sin(table)}
    body = "c3 = Gather(tc, positions) s3 = Gather(ts, positions) " + UNSQUEEZE + TURN + SUM["as written"]
    found = recover(f"{HEADER} {{ {body} }}", constants, _feeds())
    assert found.outcome.rewrites == {"RotaryEmbedding": 1} and found.equal(FLOAT32)
    constants["ts"][3, 5] += 1e-3  # now the halves differ
    found = recover(f"{HEADER} {{ {body} }}", constants, _feeds())
    assert not found.outcome.changed and found.equal(0.0)
    assert found.missed == [
        "RotaryEmbedding not recovered: the two halves of the cosines or sines are not known to be equal"
    ]


def test_only_the_first_part_of_a_head_is_rotated(recover):
    part = "x = Slice(z, i0, i8, last, i1) rest = Slice(z, i8, end, last, i1) "
    body = ANGLES + DOUBLE + UNSQUEEZE + part + TURN + SUM["swapped"] + " w = Concat<axis=-1>(y, rest)"
    feeds = {**_feeds(), "z": RNG.standard_normal((B, H, S, 12), np.float32)}
    del feeds["x"]
    text = f"g (float[B,3,S,12] z, int64[P,S] positions) => (float[B,3,S,12] w) {{ {body} }}"
    found = recover(text, {**CONSTANTS, "i8": np.asarray([8])}, feeds)
    assert found.outcome.rewrites == {"RotaryEmbedding": 1}
    assert not {"Slice", "Neg"} & set(found.operators)
    node = next(n for n in found.graph.graph if n.op_type == "RotaryEmbedding")
    assert node.attributes["rotary_embedding_dim"].value == 8
    assert found.equal(FLOAT32)


def test_interleaved_before_heads_are_moved(recover):
    """GPT-J rotates pairs, in [batch, sequence, heads, size]."""
    angles = "c2 = Cos(f) s2 = Sin(f) uc = Unsqueeze(c2, minus) us = Unsqueeze(s2, minus) "
    angles += "dc = Tile(uc, twice) ds = Tile(us, twice) c3 = Reshape(dc, whole) s3 = Reshape(ds, whole) "
    angles += "cos = Unsqueeze(c3, i2) sin = Unsqueeze(s3, i2) "
    turn = "x1 = Slice(x, i0, end, last, i2) x2 = Slice(x, i1, end, last, i2) n = Neg(x2) un = Unsqueeze(n, minus) "
    turn += "u1 = Unsqueeze(x1, minus) st = Concat<axis=-1>(un, u1) t = Reshape(st, stacked) "
    feeds = {**_feeds(), "x": RNG.standard_normal((B, S, H, D), np.float32)}
    text = "g (float[B,S,3,8] x, int64[P,S] positions) => (float[B,S,3,8] y)"
    found = recover(f"{text} {{ {ANGLES + angles + turn + SUM['swapped']} }}", CONSTANTS, feeds)
    assert found.outcome.rewrites == {"RotaryEmbedding": 1}
    node = next(n for n in found.graph.graph if n.op_type == "RotaryEmbedding")
    assert node.attributes["interleaved"].value == 1 and node.attributes["num_heads"].value == 3
    assert found.equal(FLOAT32)


def test_two_halves(recover):
    body = ANGLES + "c3 = Cos(f) s3 = Sin(f) " + UNSQUEEZE
    body += "x1 = Slice(x, i0, i4, last, i1) x2 = Slice(x, i4, end, last, i1) "
    body += "a = Mul(x1, cos) b = Mul(sin, x2) c = Sub(a, b) d = Mul(cos, x2) e = Mul(x1, sin) h = Add(e, d) "
    found = recover(f"{HEADER} {{ {body} y = Concat<axis=-1>(c, h) }}", CONSTANTS, _feeds())
    assert found.outcome.rewrites == {"RotaryEmbedding": 1} and found.equal(FLOAT32)


@pytest.mark.parametrize(
    "old_new",
    [
        ("n = Neg(x2) t = Concat<axis=-1>(n, x1)", "n = Neg(x1) t = Concat<axis=-1>(n, x2)"),
        ("n = Neg(x2) t = Concat<axis=-1>(n, x1)", "n = Neg(x2) t = Concat<axis=-1>(x1, n)"),
        ("y = Add(a, b)", "y = Sub(a, b)"),
        ("Slice(x, i4, end", "Slice(x, i0, i4"),
    ],
    ids=["the other half negated", "halves in place", "difference", "the same half twice"],
)
def test_what_only_looks_like_a_rotation_stays(recover, old_new):
    body = (ANGLES + DOUBLE + UNSQUEEZE + TURN + SUM["as written"]).replace(*old_new)
    found = recover(f"{HEADER} {{ {body} }}", CONSTANTS, _feeds())
    assert found.operators["RotaryEmbedding"] == 0 and found.equal(0.0)


def test_an_opset_without_the_operator_is_told(recover):
    found = recover(
        f"{HEADER} {{ {ANGLES + DOUBLE + UNSQUEEZE + TURN + SUM['swapped']} }}", CONSTANTS, _feeds(), opset=21
    )
    assert not found.outcome.changed
    assert found.missed == ["RotaryEmbedding not recovered: the graph has opset 21, the operator exists since 23"]


@settings(max_examples=15, deadline=None)
@given(
    batch=st.integers(1, 3),
    heads=st.integers(1, 4),
    steps=st.integers(1, 6),
    half=st.integers(1, 6),
    seed=st.integers(0, 99),
)
def test_any_size(recover, batch, heads, steps, half, seed):
    rng = np.random.default_rng(seed)
    constants = {**CONSTANTS, "i4": np.asarray([half]), "inv_freq": rng.random((1, 1, half), np.float32)}
    feeds = {
        "x": rng.standard_normal((batch, heads, steps, 2 * half)).astype(np.float32),
        "positions": rng.integers(0, 50, (batch, steps)),
    }
    text = f"g (float[B,{heads},S,{2 * half}] x, int64[B,S] positions) => (float[B,{heads},S,{2 * half}] y)"
    found = recover(f"{text} {{ {ANGLES + DOUBLE + UNSQUEEZE + TURN + SUM['swapped']} }}", constants, feeds)
    assert found.outcome.rewrites == {"RotaryEmbedding": 1} and found.equal(FLOAT32)
