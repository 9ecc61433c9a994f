"""Arithmetic on dimensions."""

import itertools

import onnx_ir
import pytest
from burnish.ir import symbolic
from burnish.ir.symbolic import UNKNOWN, Dim
from hypothesis import given, settings
from hypothesis import strategies as st


def dim(text: str | int) -> Dim:
    return text if isinstance(text, int) else onnx_ir.SymbolicDim(text)


def text(found: Dim) -> str:
    return str(found) if isinstance(found, int) else str(found.value)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (symbolic.add(dim("a"), 0), "a"),
        (symbolic.add(dim("a + 1"), dim("b")), "a + b + 1"),
        (symbolic.sub(dim("a + b"), dim("a")), "b"),
        (symbolic.sub(dim("a"), dim("a")), "0"),
        (symbolic.mul(dim("a"), 0), "0"),
        (symbolic.mul(dim("a"), dim("b")), "a*b"),
        (symbolic.floor_div(dim("8*a"), 8), "a"),
        (symbolic.floor_div(dim("8*a + 16"), 8), "a + 2"),
        (symbolic.floor_div(dim("a*b"), dim("b")), "a"),
        (symbolic.floor_div(dim("a"), 0), "None"),
        # Halving twice is quartering, and one floor has one spelling.
        (symbolic.floor_div(symbolic.floor_div(dim("a"), 2), 2), "floor(a/4)"),
        (symbolic.add(symbolic.floor_div(symbolic.sub(dim("a"), 1), 2), 1), "floor(a/2 + 1/2)"),
        (symbolic.ceil_div(dim("a"), 2), "floor(a/2 + 1/2)"),
        (symbolic.exact_div(dim("a*b + a"), dim("a")), "b + 1"),
        (symbolic.exact_div(7, 2), "None"),
        (symbolic.modulo(dim("a"), 2), "Mod(a, 2)"),
        (symbolic.modulo(symbolic.modulo(dim("a"), 12), 4), "Mod(a, 4)"),
        (symbolic.minimum(dim("2*a"), dim("6*b")), "2*Min(a, 3*b)"),
        (symbolic.maximum(dim("2*a"), 0), "2*a"),
        # A size may be zero.
        (symbolic.maximum(dim("a"), 0), "a"),
        (symbolic.maximum(dim("a"), 1), "Max(1, a)"),
        (symbolic.add(UNKNOWN, 1), "None"),
        (symbolic.product([2, dim("a"), 3]), "6*a"),
        (symbolic.total([]), "0"),
        (symbolic.merge(dim("a"), 4), "4"),
        (symbolic.merge(UNKNOWN, dim("a")), "a"),
    ],
)
def test_arithmetic(found: Dim, expected: str) -> None:
    assert text(found) == expected


def test_equality() -> None:
    assert symbolic.same(dim("a + b"), dim("b + a"))
    assert symbolic.same(dim("2*(a + 1)"), dim("2*a + 2"))
    assert not symbolic.same(dim("a"), dim("b"))
    assert not symbolic.same(UNKNOWN, UNKNOWN)
    assert symbolic.contradict(dim("a"), dim("a + 1"))
    assert not symbolic.contradict(dim("a"), dim("b"))
    assert not symbolic.contradict(dim("a"), 4)
    assert symbolic.contradict(3, 4)


def test_evaluation() -> None:
    assert symbolic.evaluate(dim("floor(a/2) + b"), {"a": 5, "b": 1}) == 3
    assert symbolic.evaluate(dim("a + b"), {"a": 5}) is None
    assert symbolic.evaluate(UNKNOWN, {}) is None
    assert symbolic.symbols_of(dim("floor(a/2) + b")) == {"a", "b"}


def test_a_multiple_of_a_remainder_has_a_remainder() -> None:
    """SymPy squares the inner remainder of the first."""
    for text_, value in (
        ("Mod(2*Mod(a, 6), 3)", lambda a, b: 2 * (a % 6) % 3),
        ("Mod(b*(a % 6) + 1, 4)", lambda a, b: (b * (a % 6) + 1) % 4),
    ):
        for a, b in itertools.product(range(13), range(5)):
            assert symbolic.evaluate(dim(text_), {"a": a, "b": b}) == value(a, b)


def test_a_part_of_the_largest_even_number_is_floored() -> None:
    """SymPy takes it for whole, for both numbers are even."""
    sixth = symbolic.floor_div(symbolic.maximum(dim("2*a"), dim("6*b")), 6)
    for a, b in itertools.product(range(13), range(5)):
        assert symbolic.evaluate(sixth, {"a": a, "b": b}) == max(2 * a, 6 * b) // 6


def test_a_limit_is_found_behind_a_factor() -> None:
    assert symbolic.capped(symbolic.minimum(dim("2*a"), 8), dim("2*a"))
    assert not symbolic.capped(symbolic.minimum(dim("2*a"), 8), dim("a"))
    assert not symbolic.capped(symbolic.minimum(dim("2*a"), dim("4*b")), dim("2*a"))


def test_names_that_are_no_expressions_are_opaque() -> None:
    odd = dim("batch size?")
    assert symbolic.same(odd, odd)
    assert not symbolic.readable("batch size?")
    assert symbolic.readable("a.b") and symbolic.readable("2*a + 1")


EXPRESSION = st.recursive(
    st.one_of(st.integers(0, 6), st.sampled_from(["a", "b"])),
    lambda inner: st.tuples(
        st.sampled_from(["add", "sub", "mul", "floor_div", "modulo", "maximum", "minimum"]), inner, inner
    ),
    max_leaves=6,
)


def build(tree: object, sizes: dict[str, int]) -> tuple[Dim, int | None]:
    """The expression and its value in plain Python."""
    if isinstance(tree, int):
        return tree, tree
    if isinstance(tree, str):
        return dim(tree), sizes[tree]
    assert isinstance(tree, tuple)
    name, left, right = tree
    (a, x), (b, y) = build(left, sizes), build(right, sizes)
    plain = {
        "add": lambda: x + y,
        "sub": lambda: x - y,
        "mul": lambda: x * y,
        "floor_div": lambda: x // y if y else None,
        "modulo": lambda: x % y if y else None,
        "maximum": lambda: max(x, y),
        "minimum": lambda: min(x, y),
    }
    number = None if x is None or y is None else plain[name]()
    return getattr(symbolic, name)(a, b), number


@settings(deadline=None, max_examples=150)
@given(EXPRESSION, st.integers(0, 9), st.integers(0, 9))
def test_expressions_are_right_for_all_sizes(tree: object, a: int, b: int) -> None:
    found, number = build(tree, {"a": a, "b": b})
    if number is not None and symbolic.known(found):
        assert symbolic.evaluate(found, {"a": a, "b": b}) == number
