"""Every row of the table: proved with SymPy where it can, computed on random inputs, matched and built in a graph."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import numpy as np
import pytest
import sympy
from burnish.ir.rewrite import Editor
from burnish.passes.algebra.build import build
from burnish.passes.algebra.equation import Condition, Equation, Property
from burnish.passes.algebra.equations import EQUATIONS
from burnish.passes.algebra.match import matches
from burnish.passes.algebra.terms import operators, parse, variables

ORDERED = {"max", "min", "abs", "relu", "sign", "top", "bottom"}
ROWS = [pytest.param(equation, id=equation.name) for equation in EQUATIONS]


def test_the_table_has_rows_of_each_property() -> None:
    found = Counter(equation.follows for equation in EQUATIONS)
    # The paper counts 45, 38 and 66.
    assert found[Property.ASSOCIATIVE] >= 45 and found[Property.DISTRIBUTIVE] >= 38
    assert found[Property.COMMUTATIVE] >= 66
    assert len({equation.name for equation in EQUATIONS}) == len(EQUATIONS)


def test_no_exact_row_assumes_a_sign() -> None:
    assert not [equation.name for equation in EQUATIONS if equation.exact and equation.assuming]


def test_what_is_no_term() -> None:
    for text in ("a[0]", "f(a)", "a if b else c", "a < b"):
        with pytest.raises(ValueError, match="is no term"):
            parse(text)


def _cases(equation: Equation) -> list[dict[str, Any]]:
    """Pairs of symbols by name: in each order of their values and of zero, where order matters to the equation."""
    names = sorted({v.name for v in variables(equation.pattern)})
    used = {*operators(equation.pattern), *operators(equation.replacement)}
    pairs: dict[str, Any] = {}
    for name in names:
        conditions = {condition for n, condition in equation.where if n == name}
        positive = name in equation.assuming or Condition.POSITIVE in conditions
        if "where" in used and name == "c":
            pairs[name] = (sympy.true, sympy.false)
        elif {"and", "or", "not"} & used:
            pairs[name] = (sympy.Symbol(name), sympy.Symbol(name))
        elif "@" in used:
            entries = sympy.symbols(f"{name}:4", real=True)
            single = Condition.SCALAR in conditions
            pairs[name] = (sympy.Symbol(name, real=True) if single else sympy.Matrix(2, 2, entries),) * 2
        else:
            made = [sympy.Symbol(f"{name}{i}", real=True, positive=positive or None, nonzero=True) for i in (0, 1)]
            single = Condition.UNREDUCED in conditions or not equation.reduces
            pairs[name] = (made[0], made[0]) if single else tuple(made)
    if not ORDERED & used or "where" in used:
        return [pairs]
    free = list(dict.fromkeys(s for pair in pairs.values() for s in pair))
    result = []
    for order in itertools.permutations([*free, sympy.Integer(0)]):
        at = order.index(0)
        if any(s.is_positive for s in order[:at]):
            continue
        steps = sympy.symbols(f"d:{len(order)}", positive=True)
        values = {s: -sum(steps[i:at]) if i < at else sum(steps[at:i]) for i, s in enumerate(order) if i != at}
        result.append({name: tuple(s.subs(values) for s in pair) for name, pair in pairs.items()})
    return result


def _zero(left: Any, right: Any) -> bool:
    if isinstance(left, sympy.logic.boolalg.Boolean):
        return bool(sympy.simplify_logic(sympy.Equivalent(left, right)) == sympy.true)
    if isinstance(left, sympy.MatrixBase):
        return bool((left - right).expand().is_zero_matrix)
    if left == right:
        return True
    difference = sympy.expand(left - right)
    if difference == 0:
        return True
    for way in (
        lambda d: sympy.cancel(d.rewrite(sympy.exp)),
        lambda d: sympy.piecewise_fold(d).simplify(),
        lambda d: sympy.simplify(sympy.expand_log(d)),
        lambda d: sympy.powsimp(sympy.powdenest(d)).simplify(),
        lambda d: d.rewrite(sympy.ceiling),
    ):
        if way(difference) == 0:
            return True
    return False


def test_functions_that_are_taken_to_increase_do() -> None:
    x, p = sympy.Symbol("x", real=True), sympy.Symbol("p", positive=True)
    for value in (
        sympy.exp(x),
        1 / (1 + sympy.exp(-x)),
        sympy.log(1 + sympy.exp(x)),
        sympy.erf(x),
        sympy.sqrt(p),
        sympy.log(p),
    ):
        assert sympy.diff(value, *value.free_symbols).is_positive
    assert (
        sympy.simplify(sympy.diff(sympy.tanh(x), x).rewrite(sympy.exp) - 1 / sympy.cosh(x).rewrite(sympy.exp) ** 2) == 0
    )


@pytest.mark.parametrize("equation", ROWS)
def test_both_sides_are_equal_by_symbols(equation: Equation, symbolic: Any) -> None:
    if "round" in set(operators(equation.pattern)):
        pytest.skip("SymPy has no rounding of halves to even")
    opaque = bool({"max", "min", "top", "bottom"} & set(operators(equation.pattern)))
    proved = 0
    for pairs in _cases(equation):
        try:
            left, right = (symbolic(term, pairs, opaque) for term in (equation.pattern, equation.replacement))
        except ValueError as error:
            # The root of what is negative in this case is no real number: both sides are NaN.
            assert "not comparable" in str(error)
            continue
        if any(side.has(sympy.I) for side in (*left, *right)):
            continue
        for a, b in zip(left, right, strict=True):
            assert _zero(a, b), (a, b)
            proved += 1
    assert proved


@pytest.mark.parametrize("equation", ROWS)
def test_both_sides_are_equal_on_numbers(equation: Equation, evaluate: Any, arrays_for: Any) -> None:
    """In float64, up to its rounding; exact rows in float32 by their bits, infinities and huge numbers included."""
    dtype = np.int64 if "<<" in set(operators(equation.pattern)) else np.float64
    for seed in range(3):
        arrays = arrays_for(equation, seed, dtype=dtype)
        left, right = (evaluate(term, arrays) for term in (equation.pattern, equation.replacement))
        defined = np.isfinite(left) if left.dtype.kind == "f" else np.ones(left.shape, bool)
        assert defined.mean() > 0.2
        np.testing.assert_allclose(*np.broadcast_arrays(left, right), rtol=1e-9, atol=1e-9)
    if equation.integers:
        arrays = arrays_for(equation, dtype=np.int32)
        left, right = (evaluate(term, arrays) for term in (equation.pattern, equation.replacement))
        np.testing.assert_array_equal(left, right)
    if equation.exact and dtype is np.float64:
        for seed in range(8):
            arrays = arrays_for(equation, seed, special=True)
            left, right = (evaluate(term, arrays) for term in (equation.pattern, equation.replacement))
            # assert_array_equal takes NaN for equal to NaN and 0.0 for equal to −0.0, nothing else.
            np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("equation", ROWS)
def test_a_row_is_found_and_built(
    equation: Equation, swapped: bool, evaluate: Any, arrays_for: Any, graph_for: Any, run: Any, reference: Any
) -> None:
    integers = "<<" in set(operators(equation.pattern))
    arrays = arrays_for(equation, dtype=np.uint32 if integers else np.float32)
    graph = graph_for(parse(equation.left), arrays, swapped=swapped)
    if integers:
        run = reference
    before = run(graph, arrays)
    root = graph.graph.outputs[0].producer()
    assert root is not None
    found = list(matches(equation, root, regroup=not equation.exact))
    assert found, equation.name
    edit = Editor(graph, equation.name).at(root)
    value = build(edit, found[0])
    edit.replace(root.outputs[0], value)
    edit.sweep([root])
    (after,) = run(graph, arrays)
    # float32 rounds each step; terms that cancel keep the error of the larger ones.
    scale = max(1.0, float(np.abs(np.nan_to_num(before[0].astype(np.float64))).max()))
    np.testing.assert_allclose(after, before[0], rtol=2e-5, atol=2e-5 * scale)
