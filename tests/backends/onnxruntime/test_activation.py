"""GELU with the bias before it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from burnish.backends.onnxruntime.activation import APART_BY
from burnish.backends.onnxruntime.lower import lower
from burnish.ir.graph import RULE

TEXT = """
g (float[2,3,8] x, float[8,16] w1, float[16] w2) => (float[2,3,16] y) {{
  a = MatMul (x, w1)
  b = Add ({operands})
  y = Gelu {how} (b)
}}
"""


@pytest.mark.parametrize("operands", ["a, w2", "w2, a"])
@pytest.mark.parametrize("clock", [None, "BiasGelu", "Gelu"])
def test_joined_unless_measured_to_be_slower(
    operands: str, clock: str | None, parse: Any, run: Any, ops: Any, prefer: Any
) -> None:
    graph = parse(TEXT.format(operands=operands, how=""))
    (want,) = run(graph, optimize=False)
    lower(graph, clock=None if clock is None else prefer(clock))
    assert ops(graph) == ({"MatMul": 1, "Add": 1, "Gelu": 1} if clock == "Gelu" else {"MatMul": 1, "BiasGelu": 1})
    np.testing.assert_allclose(run(graph)[0], want, rtol=1e-5, atol=1e-6)


def test_the_approximation_by_tanh_has_a_kernel_of_its_own(parse: Any, run: Any, ops: Any, prefer: Any) -> None:
    for clock, joined in ((None, True), (prefer("FastGelu"), True), (prefer("Gelu"), False)):
        graph = parse(TEXT.format(operands="a, w2", how='<approximate = "tanh">'))
        (want,) = run(graph, optimize=False)
        lower(graph, clock=clock)
        assert ops(graph) == ({"MatMul": 1, "FastGelu": 1} if joined else {"MatMul": 1, "Add": 1, "Gelu": 1})
        np.testing.assert_allclose(run(graph)[0], want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "text",
    [
        # Somebody else reads the sum.
        """g (float[2,8] x, float[8,4] w1, float[4] w2) => (float[2,4] y, float[2,4] b) {
             a = MatMul (x, w1) b = Add (a, w2) y = Gelu (b) }""",
        # No bias, but another value.
        """g (float[2,8] x, float[2,4] r, float[8,4] w1) => (float[2,4] y) {
             a = MatMul (x, w1) b = Add (a, r) y = Gelu (b) }""",
        # No product.
        "g (float[2,4] x, float[4] w1) => (float[2,4] y) { b = Add (x, w1) y = Gelu (b) }",
    ],
)
def test_it_is_left_alone(text: str, parse: Any, ops: Any) -> None:
    graph = parse(text)
    before = ops(graph)
    lower(graph)
    assert ops(graph) == before


CODES = """
g (float[2,3,64] x) => ({kind}[2,3,64] y{more})
<float scale = {{{scale}}}, uint8 zero = {{20}}, float[64] w = {{{factors}}}>
{{
  a = Gelu (x)
  {between}
  y = QuantizeLinear (b, scale, zero)
}}
"""


def codes(scale: float, largest: float | None = None, more: str = "") -> str:
    """GELU, perhaps a multiplication by channel with this largest factor, and codes."""
    factors = ", ".join(str(0.5 if largest is None or i else largest) for i in range(64))
    between = "b = Identity (a)" if largest is None else "b = Mul (a, w)"
    text = CODES.format(kind="uint8", more=more, scale=scale, factors=factors, between=between)
    return text if largest is not None else text.replace("  b = Identity (a)\n", "").replace("(b, scale", "(a, scale")


def quantized(graph: Any) -> Any:
    """The graph as if a pass had made the codes."""
    for node in graph.graph:
        if node.op_type == "QuantizeLinear":
            node.metadata_props[RULE] = "quantize activations"
    return graph


def by_tanh(graph: Any) -> bool:
    (gelu,) = [node for node in graph.graph if node.op_type == "Gelu"]
    found = gelu.attributes.get("approximate")
    return found is not None and found.as_string() == "tanh"


@pytest.mark.parametrize(
    ("scale", "largest", "taken"),
    [
        (4 * APART_BY + 1e-6, None, True),
        (4 * APART_BY - 1e-6, None, False),
        (0.02, 10.0, True),
        (0.02, 11.0, False),
        (0.02, -11.0, False),
        (0.0, None, False),
    ],
)
def test_by_tanh_where_codes_do_not_tell(
    scale: float, largest: float | None, taken: bool, parse: Any, run: Any
) -> None:
    graph = quantized(parse(codes(scale, largest)))
    (want,) = run(graph, optimize=False)
    said = [remark.reason for remark in lower(graph) if "of a step" in remark.reason]
    assert by_tanh(graph) == taken == bool(said)
    (got,) = run(graph)
    assert np.abs(got.astype(int) - want.astype(int)).max() <= 1


@pytest.mark.parametrize(
    "text",
    [
        codes(0.02, more=", float[2,3,64] a"),
        codes(0.02).replace("QuantizeLinear (a, scale, zero)", "Cast <to = 2> (a)"),
        codes(0.02).replace("float[2,3,64] x", "float[2,3,64] x, float scale").replace("float scale = {0.02}, ", ""),
    ],
)
def test_by_erf_where_something_else_reads_it(text: str, parse: Any) -> None:
    graph = quantized(parse(text))
    lower(graph)
    assert not by_tanh(graph)


def test_a_model_that_came_with_codes_keeps_its_function(parse: Any) -> None:
    graph = parse(codes(0.02))
    lower(graph)
    assert not by_tanh(graph)
    lower(quantized(graph))
    assert by_tanh(graph)


def test_how_far_the_two_forms_are_apart() -> None:
    x = torch.linspace(-9, 9, 200_001, dtype=torch.float64)
    exact, by_tanh_ = (torch.nn.functional.gelu(x, approximate=how) for how in ("none", "tanh"))
    assert 0.94 * APART_BY < float((exact - by_tanh_).abs().max()) < APART_BY
