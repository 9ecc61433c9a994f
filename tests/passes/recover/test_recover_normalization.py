"""LayerNormalization and RMSNormalization out of several exporters' spellings."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

RNG = np.random.default_rng(0)
# Both forms are float32 sums over at most a few dozen elements in different order: a few ulp (6e-8), with margin.
FLOAT32 = 2e-6

HEADER = "g (float[B,S,8] x) => (float[B,S,8] y)"
TWO, EPS, ONE = np.float32(2), np.float32(1e-5), np.float32(1)
CONSTANTS = {
    "two": np.asarray(TWO),
    "eps": np.asarray(EPS),
    "one": np.asarray(ONE),
    "half": np.float32(0.5).reshape(()),
    "minus_half": np.float32(-0.5).reshape(()),
    "axes": np.asarray([-1]),
    "w": RNG.standard_normal(8, np.float32),
    "b": RNG.standard_normal(8, np.float32),
}
FEEDS = {"x": RNG.standard_normal((2, 3, 8), np.float32) * 3 + 1}

STATISTICS = "m = ReduceMean(x, axes)  d = Sub(x, m)  "
VARIANCE = {
    "pow": "s = Pow(d, two)  v = ReduceMean(s, axes)  ",
    "mul": "s = Mul(d, d)  v = ReduceMean(s, axes)  ",
}
SUM = {"eps last": "a = Add(v, eps)  ", "eps first": "a = Add(eps, v)  "}
QUOTIENT = {
    "div": "r = Sqrt(a)  n = Div(d, r)  ",
    "pow half": "r = Pow(a, half)  n = Div(d, r)  ",
    "reciprocal": "r = Sqrt(a)  i = Reciprocal(r)  n = Mul(d, i)  ",
    "reciprocal first": "r = Sqrt(a)  i = Reciprocal(r)  n = Mul(i, d)  ",
    "one over": "r = Sqrt(a)  i = Div(one, r)  n = Mul(d, i)  ",
    "negative power": "i = Pow(a, minus_half)  n = Mul(d, i)  ",
}
AFFINE = {
    "scale, bias": "p = Mul(n, w)  y = Add(p, b)",
    "swapped": "p = Mul(w, n)  y = Add(b, p)",
}


def _used(text):
    """The constants that a body reads."""
    words = set(re.findall(r"\w+", text))
    return {name: array for name, array in CONSTANTS.items() if name in words}


@pytest.mark.parametrize("variance", VARIANCE)
@pytest.mark.parametrize("sum_", SUM)
@pytest.mark.parametrize("quotient", QUOTIENT)
@pytest.mark.parametrize("affine", AFFINE)
def test_layer_normalization(recover, variance, sum_, quotient, affine):
    body = STATISTICS + VARIANCE[variance] + SUM[sum_] + QUOTIENT[quotient] + AFFINE[affine]
    found = recover(f"{HEADER} {{ {body} }}", _used(body), FEEDS)
    assert found.operators == {"LayerNormalization": 1}
    assert found.outcome.rewrites == {"LayerNormalization": 1}
    assert found.equal(FLOAT32) and not found.missed


@pytest.mark.parametrize("quotient", QUOTIENT)
@pytest.mark.parametrize(
    "scale", ["y = Mul(n, w)", "y = Mul(w, n)", "g = Add(w, one)  y = Mul(n, g)", "y = Identity(n)"]
)
def test_rms_normalization(recover, quotient, scale):
    body = "s = Pow(x, two)  v = ReduceMean(s, axes)  a = Add(v, eps)  " + QUOTIENT[quotient].replace("d", "x") + scale
    found = recover(f"{HEADER} {{ {body} }}", _used(body), FEEDS)
    assert found.outcome.rewrites == {"RMSNormalization": 1}
    assert found.operators["RMSNormalization"] == 1 and found.operators["ReduceMean"] == 0
    assert found.equal(FLOAT32)


def test_tensorflow_multiplies_the_scale_first(recover):
    body = (
        STATISTICS
        + VARIANCE["mul"]
        + "a = Add(v, eps)  r = Sqrt(a)  i = Reciprocal(r)  f = Mul(i, w)  p = Mul(x, f)  q = Mul(m, f)  "
        + "t = Sub(b, q)  y = Add(p, t)"
    )
    found = recover(f"{HEADER} {{ {body} }}", _used(body), FEEDS)
    # x * f + (b - m * f) cancels where x is near its mean: the original loses a digit or two.
    assert found.operators == {"LayerNormalization": 1} and found.equal(1e-5)


def test_axes_as_an_attribute_before_opset_18(recover):
    body = (
        "m = ReduceMean<axes=[-1]>(x)  d = Sub(x, m)  s = Pow(d, two)  v = ReduceMean<axes=[2]>(s)  a = Add(v, eps)  "
        + QUOTIENT["div"]
        + AFFINE["swapped"]
    )
    found = recover(f"{HEADER} {{ {body} }}", _used(body), FEEDS, opset=17)
    assert found.operators == {"LayerNormalization": 1} and found.equal(FLOAT32)


def test_an_opset_without_the_operator_is_told(recover):
    body = (
        "m = ReduceMean<axes=[-1]>(x)  d = Sub(x, m)  s = Pow(d, two)  v = ReduceMean<axes=[-1]>(s)  a = Add(v, eps)  "
    )
    body += QUOTIENT["div"] + AFFINE["swapped"]
    found = recover(f"{HEADER} {{ {body} }}", _used(body), FEEDS, opset=16)
    assert not found.outcome.changed
    assert found.missed == ["LayerNormalization not recovered: the graph has opset 16, the operator exists since 17"]


def test_one_normalized_value_with_two_scales(recover):
    """Parallel residuals: after common subexpressions were merged, two norms share all but scale and bias."""
    body = STATISTICS + VARIANCE["pow"] + SUM["eps last"] + QUOTIENT["div"]
    body += "p = Mul(n, w)  y = Add(p, b)  q = Mul(n, b)  z = Add(q, w)"
    found = recover(f"g (float[B,S,8] x) => (float[B,S,8] y, float[B,S,8] z) {{ {body} }}", _used(body), FEEDS)
    assert found.operators == {"LayerNormalization": 2} and found.equal(FLOAT32)


def test_half_precision_with_statistics_in_float32(recover):
    """Llama in float16: cast up, normalize, cast back, scale. That is RMSNormalization with stash_type 1."""
    body = "u = Cast<to=1>(x)  s = Pow(u, two)  v = ReduceMean(s, axes)  a = Add(v, eps)  r = Sqrt(a)  "
    body += "i = Reciprocal(r)  n = Mul(u, i)  h = Cast<to=10>(n)  y = Mul(w, h)"
    constants = {**_used(body), "w": CONSTANTS["w"].astype(np.float16)}
    feeds = {"x": FEEDS["x"].astype(np.float16)}
    found = recover(f"g (float16[B,S,8] x) => (float16[B,S,8] y) {{ {body} }}", constants, feeds)
    assert found.operators == {"RMSNormalization": 1}
    assert found.graph.graph[0].attributes["stash_type"].value == 1
    assert found.equal(2e-3)  # two roundings to float16 (4.9e-4 each)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (STATISTICS.replace("axes", "other") + VARIANCE["pow"].replace("axes", "other"), "last axes"),
        (STATISTICS.replace("Sub(x, m)", "Sub(m, x)") + VARIANCE["pow"], None),
        (STATISTICS + VARIANCE["pow"].replace("Pow(d, two)", "Pow(d, three)"), None),
        (STATISTICS + VARIANCE["pow"] + "@eps", "not a constant number"),
        (STATISTICS + VARIANCE["pow"] + "@numerator", "does not divide"),
    ],
    ids=["axis 1", "mean minus x", "cube", "eps per row", "another numerator"],
)
def test_what_only_looks_like_a_norm_stays(recover, body, reason):
    rest = SUM["eps last"] + QUOTIENT["div"] + AFFINE["swapped"]
    if body.endswith("@eps"):
        body, rest = body[:-4], rest.replace("eps", "b")
    if body.endswith("@numerator"):
        body, rest = body[:-10], rest.replace("Div(d, r)", "Div(b, r)")
    body += rest
    constants = {**CONSTANTS, "other": np.asarray([1]), "three": np.float32(3).reshape(())}
    used = {name: array for name, array in constants.items() if name in re.findall(r"\w+", body)}
    found = recover(f"{HEADER} {{ {body} }}", used, FEEDS)
    assert found.operators["LayerNormalization"] == 0 and found.equal(0.0 if not found.outcome.changed else FLOAT32)
    if reason is not None:
        assert len(found.missed) == 1 and reason in found.missed[0]


def test_a_scale_of_another_shape_is_no_part_of_the_norm(recover):
    body = STATISTICS + VARIANCE["pow"] + SUM["eps last"] + QUOTIENT["div"] + "y = Mul(n, rows)"
    constants = {**_used(body), "rows": RNG.standard_normal((3, 1), np.float32)}
    found = recover(f"{HEADER} {{ {body} }}", constants, FEEDS)
    assert found.operators == {"LayerNormalization": 1, "Mul": 1} and found.equal(FLOAT32)


def test_switched_off(recover):
    body = STATISTICS + VARIANCE["pow"] + SUM["eps last"] + QUOTIENT["div"] + AFFINE["swapped"]
    found = recover(f"{HEADER} {{ {body} }}", _used(body), FEEDS, normalization=False)
    assert not found.outcome.changed
    assert [r.kind for r in found.outcome.remarks] == ["skipped"]


@settings(max_examples=25, deadline=None)
@given(
    shape=st.lists(st.integers(2, 7), min_size=2, max_size=4),
    count=st.integers(1, 2),
    log_eps=st.floats(-12, -1),
    mean=st.booleans(),
    leading=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_shape_and_epsilon(recover, shape, count, log_eps, mean, leading, seed):
    count = min(count, len(shape) - 1)
    rng = np.random.default_rng(seed)
    tail = shape[-count:]
    constants = {
        "two": CONSTANTS["two"],
        "eps": np.asarray(10.0**log_eps, np.float32),
        "axes": np.arange(len(shape) - count, len(shape)),
        "w": rng.standard_normal(([1] if leading else []) + tail).astype(np.float32),
    }
    body = ("m = ReduceMean(x, axes)  d = Sub(x, m)  " if mean else "d = Identity(x)  ") + VARIANCE["pow"]
    body += SUM["eps last"] + QUOTIENT["div"] + "y = Mul(n, w)"
    dims = ",".join(map(str, shape))
    feeds = {"x": rng.standard_normal(shape).astype(np.float32)}
    found = recover(f"g (float[{dims}] x) => (float[{dims}] y) {{ {body} }}", constants, feeds)
    operator = "LayerNormalization" if mean else "RMSNormalization"
    assert found.outcome.rewrites == {operator: 1}
    node = next(n for n in found.graph.graph if n.op_type == operator)
    assert node.attributes["epsilon"].value == pytest.approx(10.0**log_eps, rel=1e-6)
    # The variance of two close numbers loses digits in both forms: 1e-4 of the largest.
    assert found.equal(1e-4)
