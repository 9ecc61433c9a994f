"""Gelu, Sigmoid and HardSigmoid out of several exporters' spellings."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

RNG = np.random.default_rng(0)
FEEDS = {"x": RNG.standard_normal((4, 33), np.float32) * 3}
HEADER = "g (float[N,33] x) => (float[N,33] y)"
# The runtime's erf is a polynomial good to a few 1e-7; tanh and exp likewise. Relative to the largest output, ~9.
FLOAT32 = 1e-6


def _scalars(**values):
    return {name: np.asarray(value, np.float32) for name, value in values.items()}


NUMBERS = _scalars(
    one=1, half=0.5, root2=math.sqrt(2), inv_root2=math.sqrt(0.5), two=2, three=3, six=6, zero=0, cubic=0.044715,
    root2pi=math.sqrt(2 / math.pi), tenth=0.1, sixth=1 / 6, minus=-1,
)  # fmt: skip

EXACT = {
    "x * (1 + erf) * half": "a = Div(x, root2) e = Erf(a) b = Add(e, one) c = Mul(x, b) y = Mul(c, half)",
    "half * (x * (erf + 1))": "a = Div(x, root2) e = Erf(a) b = Add(one, e) c = Mul(b, x) y = Mul(half, c)",
    "(x * half) * (1 + erf)": "a = Mul(x, inv_root2) e = Erf(a) b = Add(e, one) c = Mul(x, half) y = Mul(c, b)",
    "x * (half * (1 + erf))": "a = Mul(inv_root2, x) e = Erf(a) b = Add(e, one) c = Mul(half, b) y = Mul(x, c)",
    "x * (half + half * erf)": "a = Div(x, root2) e = Erf(a) h = Mul(e, half) b = Add(h, half) y = Mul(x, b)",
    "x * (1 + erf) / 2": "a = Div(x, root2) e = Erf(a) b = Add(e, one) c = Mul(x, b) y = Div(c, two)",
}
INNER = {
    "pow": "p = Pow(x, three) q = Mul(cubic, p) s = Add(x, q) u = Mul(root2pi, s) ",
    "products": "p = Mul(x, x) o = Mul(p, x) q = Mul(o, cubic) s = Add(q, x) u = Mul(s, root2pi) ",
    "factored": "p = Mul(x, x) o = Mul(p, cubic) q = Add(o, one) s = Mul(x, q) u = Mul(s, root2pi) ",
    "scaled first": "p = Mul(x, x) o = Mul(p, cubic) q = Add(one, o) r = Mul(root2pi, x) u = Mul(r, q) ",
}
OUTER = {
    "half x first": "t = Tanh(u) b = Add(t, one) c = Mul(half, x) y = Mul(c, b)",
    "half last": "t = Tanh(u) b = Add(one, t) c = Mul(b, x) y = Mul(c, half)",
}


@pytest.mark.parametrize("spelling", EXACT)
def test_exact_gelu(recover, spelling):
    found = recover(f"{HEADER} {{ {EXACT[spelling]} }}", NUMBERS, FEEDS)
    assert found.operators == {"Gelu": 1} and found.outcome.rewrites == {"Gelu": 1}
    assert found.graph.graph[0].attributes["approximate"].as_string() == "none"
    assert found.equal(FLOAT32)


@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("outer", OUTER)
def test_gelu_by_tanh(recover, inner, outer):
    found = recover(f"{HEADER} {{ {INNER[inner] + OUTER[outer]} }}", NUMBERS, FEEDS)
    assert found.operators == {"Gelu": 1}
    assert found.graph.graph[0].attributes["approximate"].as_string() == "tanh"
    assert found.equal(FLOAT32)


def test_a_bias_before_stays(recover):
    body = "x = Add(z, bias) " + EXACT["x * (1 + erf) * half"]
    constants = {**NUMBERS, "bias": RNG.standard_normal(33, np.float32)}
    found = recover(f"g (float[N,33] z) => (float[N,33] y) {{ {body} }}", constants, {"z": FEEDS["x"]})
    assert found.operators == {"Add": 1, "Gelu": 1} and found.equal(FLOAT32)


@pytest.mark.parametrize(
    ("body", "reasons"),
    [
        (EXACT["x * (1 + erf) * half"].replace("root2", "two"), ["the argument of Erf is not x / sqrt(2)"]),
        (EXACT["x * (1 + erf) * half"].replace("half", "six"), ["1 + erf or tanh is not multiplied by x / 2"]),
        (
            EXACT["x * (1 + erf) * half"].replace("Mul(x, b)", "Mul(a, b)"),
            ["1 + erf or tanh is not multiplied by x / 2"],
        ),
        (EXACT["x * (1 + erf) * half"].replace("Add(e, one)", "Add(e, half)"), []),
        ((INNER["pow"] + OUTER["half last"]).replace("cubic", "tenth"), []),
        ((INNER["pow"] + OUTER["half last"]).replace("Pow(x, three)", "Pow(x, two)"), []),
    ],
    ids=["erf(x / 2)", "times six", "a * (1 + erf)", "erf + 0.5", "0.1 x^3", "x^2"],
)
def test_what_only_looks_like_gelu_stays(recover, body, reasons):
    found = recover(f"{HEADER} {{ {body} }}", NUMBERS, FEEDS)
    assert found.operators["Gelu"] == 0 and found.equal(0.0)
    assert found.missed == [f"Gelu not recovered: {reason}" for reason in reasons]


def test_an_opset_without_gelu_is_told(recover):
    found = recover(f"{HEADER} {{ {EXACT['x * (1 + erf) * half']} }}", NUMBERS, FEEDS, opset=19)
    assert not found.outcome.changed
    assert found.missed == ["Gelu not recovered: the graph has opset 19, the operator exists since 20"]


@pytest.mark.parametrize(
    ("body", "operators"),
    [
        ("n = Neg(x) e = Exp(n) b = Add(e, one) y = Div(x, b)", {"Sigmoid": 1, "Mul": 1}),
        ("n = Neg(x) e = Exp(n) b = Add(one, e) y = Div(one, b)", {"Sigmoid": 1}),
        ("n = Mul(minus, x) e = Exp(n) b = Add(one, e) y = Reciprocal(b)", {"Sigmoid": 1}),
        ("e = Exp(x) b = Add(one, e) y = Reciprocal(b)", {"Exp": 1, "Add": 1, "Reciprocal": 1}),
        ("n = Neg(x) e = Exp(n) b = Add(two, e) y = Reciprocal(b)", {"Neg": 1, "Exp": 1, "Add": 1, "Reciprocal": 1}),
    ],
    ids=["silu", "sigmoid", "sigmoid by reciprocal", "of the other sign", "2 + exp"],
)
def test_sigmoid(recover, body, operators):
    found = recover(f"{HEADER} {{ {body} }}", NUMBERS, FEEDS)
    assert found.operators == operators and found.equal(FLOAT32)


@pytest.mark.parametrize(
    ("body", "operators"),
    [
        ("a = Add(x, three) c = Clip(a, zero, six) y = Div(c, six)", {"HardSigmoid": 1}),
        ("a = Add(three, x) c = Clip(a, zero, six) d = Mul(c, sixth) y = Mul(x, d)", {"HardSigmoid": 1, "Mul": 1}),
        ("a = Add(x, three) c = Clip(a, zero, three) y = Div(c, six)", {"Add": 1, "Clip": 1, "Div": 1}),
        ("a = Add(x, two) c = Clip(a, zero, six) y = Div(c, six)", {"Add": 1, "Clip": 1, "Div": 1}),
    ],
    ids=["div", "hard swish", "other bound", "other shift"],
)
def test_hard_sigmoid(recover, body, operators):
    found = recover(f"{HEADER} {{ {body} }}", NUMBERS, FEEDS)
    assert found.operators == operators and found.equal(FLOAT32)


@settings(max_examples=30, deadline=None)
@given(factor=st.floats(0.5, 2.0), digits=st.integers(2, 8))
def test_only_the_right_constant_matches(recover, factor, digits):
    """A constant written to few digits is accepted down to 1e-3; anything further is another function."""
    number = round(math.sqrt(2) * factor, digits)
    numbers = {**NUMBERS, "root2": np.asarray(number, np.float32)}
    found = recover(f"{HEADER} {{ {EXACT['x * (1 + erf) * half']} }}", numbers, FEEDS)
    off = abs(math.sqrt(2) / number - 1)
    if abs(off - 1e-3) > 1e-4:
        assert found.outcome.rewrites == ({"Gelu": 1} if off < 1e-3 else {})
    assert found.equal(2e-3 if found.outcome.changed else 0.0)
