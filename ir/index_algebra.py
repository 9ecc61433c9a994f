"""Composition of index maps: chains of Reshape, Transpose, Slice … as one expression, simplified by extents of indices.

An index of size ``n`` runs over ``0 … n-1``; that is what lets ``floor((a*n + b)/n)`` become ``a``. Sizes are integers
or expressions of named sizes, which are at least one wherever an element with an index exists at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

import sympy

from .index_maps import Index, IndexMap

Extents: TypeAlias = Mapping[sympy.Symbol, sympy.Expr]
"""By index, its size: the index runs from 0 to one less."""


def extents_of(indices: Sequence[sympy.Symbol], sizes: Sequence[sympy.Expr | int | None]) -> Extents:
    """Extents for a tensor of ``sizes`` indexed by ``indices``; sizes that are not known are left out."""
    return {i: sympy.sympify(n) for i, n in zip(indices, sizes, strict=True) if n is not None}


def compose(outer: IndexMap, inner: IndexMap, extents: Extents, which: int = 0) -> IndexMap | None:
    """Where an element comes from through two operators.

    Args:
        outer: map of an operator.
        inner: map of the operator that makes input ``which`` of the first.
        extents: of the indices of the outer operator's output, and of its reduced indices where they are known.
        which: the input of ``outer`` that ``inner`` makes.

    Returns:
        A map from the output of ``outer`` to the inputs of ``inner``, simplified; what ``inner`` runs over has further
        indices ``k``. An index that is itself data keeps its name ``x1(…)`` where it is an input of ``outer``, and is
        ``x{which}.1(…)`` where it is an input of ``inner``. None where ``outer`` does not read that input by an index.
    """
    read = outer.inputs[which]
    if read is None:
        return None
    count = len(outer.reduced)
    moved = {k: sympy.Symbol(f"k{count + n}", integer=True, nonnegative=True) for n, k in enumerate(inner.reduced)}
    places: dict[sympy.Basic, sympy.Basic] = {**dict(zip(inner.outputs, read, strict=True)), **moved}
    known = dict(extents)
    known.update({k: e for k, e in zip(outer.reduced, outer.extents, strict=True) if e is not None})
    known.update({moved[k]: e for k, e in zip(inner.reduced, inner.extents, strict=True) if e is not None})
    simplifier = _Simplifier(known, places)
    inputs: list[Index | None] = []
    for index in inner.inputs:
        if index is None:
            inputs.append(None)
        else:
            inputs.append(tuple(simplifier.run(_renamed(expr, which)) for expr in index))
    return IndexMap(outer.outputs, (*outer.reduced, *moved.values()), (*outer.extents, *inner.extents), tuple(inputs))


def simplified(index: IndexMap, extents: Extents) -> IndexMap:
    """The same map with every index simplified."""
    known = dict(extents)
    known.update({k: e for k, e in zip(index.reduced, index.extents, strict=True) if e is not None})
    inputs = tuple(None if i is None else tuple(simplify_index(e, known) for e in i) for i in index.inputs)
    return replace(index, inputs=inputs)


def _renamed(expr: sympy.Expr, which: int) -> sympy.Expr:
    """Data of the inner operator under a name of its own."""
    calls = expr.atoms(sympy.core.function.AppliedUndef)
    if not calls:
        return expr
    return expr.replace(
        lambda e: isinstance(e, sympy.core.function.AppliedUndef),
        lambda e: sympy.Function(f"x{which}.{e.func.__name__[1:]}", integer=True, nonnegative=True)(*e.args),
    )


def simplify_index(expr: sympy.Expr, extents: Extents) -> sympy.Expr:
    """An equal expression with fewer floors and remainders, for indices that stay below their extents."""
    return _Simplifier(extents).run(expr)


class _Simplifier:
    """Simplifies, and puts expressions in the places of symbols as it goes.

    SymPy must not do the latter: its evaluation of ``Mod(2*Mod(i, 6), 3)`` squares the inner remainder (1.14).
    """

    def __init__(self, extents: Extents, places: Mapping[sympy.Basic, sympy.Basic] | None = None) -> None:
        self._extents = extents
        self._memo: dict[sympy.Expr, sympy.Expr] = {}
        self._places = {symbol: _Simplifier(extents).run(expr) for symbol, expr in (places or {}).items()}

    def run(self, expr: sympy.Expr) -> sympy.Expr:
        """Simplify from the leaves up."""
        if expr in self._places:
            return self._places[expr]
        if not expr.args:
            return sympy.Integer(0) if self._extents.get(expr) == 1 else expr
        found = self._memo.get(expr)
        if found is None:
            args = [self.run(arg) for arg in expr.args]
            found = self._memo[expr] = self._node(expr, args)
        return found

    def _node(self, expr: sympy.Expr, args: list[sympy.Expr]) -> sympy.Expr:
        if isinstance(expr, sympy.floor):
            number, divisor = sympy.fraction(sympy.together(args[0]))
            return self.quotient(number, divisor)
        if isinstance(expr, sympy.Mod):
            return self.remainder(args[0], args[1])
        if isinstance(expr, sympy.Add):
            return self._sum(sympy.expand(expr.func(*args)))
        return expr.func(*args)

    def quotient(self, number: sympy.Expr, divisor: sympy.Expr) -> sympy.Expr:
        """The floor of ``number / divisor``."""
        number = sympy.expand(number)
        if divisor == 1:
            return number
        if isinstance(number, sympy.floor):
            # floor(floor(x / a) / b) is floor(x / (a b)).
            inner, by = sympy.fraction(sympy.together(number.args[0]))
            return self.quotient(inner, by * divisor)
        whole, rest = self._divided(number, divisor)
        if rest == 0 or self._within(rest, divisor):
            return whole
        common = self._common(rest, divisor)
        if common != 1:
            rest, divisor = sympy.expand(sympy.cancel(rest / common)), sympy.cancel(divisor / common)
            if divisor == 1:
                return whole + rest
        return whole + sympy.floor(rest / divisor)

    def remainder(self, number: sympy.Expr, divisor: sympy.Expr) -> sympy.Expr:
        """``number`` modulo ``divisor``."""
        if divisor == 1:
            return sympy.Integer(0)
        _, rest = self._divided(sympy.expand(number), divisor)
        if isinstance(rest, sympy.Mod) and _exact(rest.args[1], divisor) is not None:
            return self.remainder(rest.args[0], divisor)
        if rest == 0 or self._within(rest, divisor):
            return rest
        return sympy.Mod(rest, divisor, evaluate=False) if not rest.is_number else sympy.Mod(rest, divisor)

    def _divided(self, number: sympy.Expr, divisor: sympy.Expr) -> tuple[sympy.Expr, sympy.Expr]:
        """Quotient of the terms that ``divisor`` divides, and the other terms."""
        whole, rest = sympy.Integer(0), sympy.Integer(0)
        for term in sympy.Add.make_args(number):
            part = _exact(term, divisor)
            if part is None:
                rest += term
            else:
                whole += part
        return whole, rest

    def _common(self, rest: sympy.Expr, divisor: sympy.Expr) -> sympy.Expr:
        """A number that divides all terms and the divisor, what is left over of the terms being less than it."""
        coefficient, _ = divisor.as_coeff_Mul()
        numbers = [
            abs(int(term.as_coeff_Mul()[0])) for term in sympy.Add.make_args(rest) if term.as_coeff_Mul()[0].is_Integer
        ]
        if not coefficient.is_Integer or len(numbers) != len(sympy.Add.make_args(rest)):
            return sympy.Integer(1)
        return sympy.igcd(int(coefficient), *numbers)

    def _sum(self, expr: sympy.Expr) -> sympy.Expr:
        """``a * floor(x / a) + x mod a`` is ``x``, with a common factor or without."""
        terms = list(sympy.Add.make_args(expr))
        for at, term in enumerate(terms):
            factor, mod = _times(term, sympy.Mod)
            if mod is None:
                continue
            x, a = mod.args
            wanted = sympy.expand(factor * a * self.quotient(x, a))
            rest = sympy.expand(sympy.Add(*(t for i, t in enumerate(terms) if i != at)) - wanted)
            if len(sympy.Add.make_args(rest)) < len(terms) - 1 + (rest == 0) or rest == 0:
                return self._sum(sympy.expand(rest + factor * x))
        return expr

    def _within(self, expr: sympy.Expr, bound: sympy.Expr) -> bool:
        """Whether ``0 <= expr < bound``."""
        low, high = self.lowest(expr), self.highest(expr)
        return low is not None and high is not None and _nonnegative(low) and _nonnegative(bound - 1 - high)

    def highest(self, expr: sympy.Expr) -> sympy.Expr | None:
        """A bound from above, made of sizes; None if none is known."""
        if expr in self._extents:
            return self._extents[expr] - 1
        if expr.is_number:
            return expr
        if isinstance(expr, sympy.Mod):
            return expr.args[1] - 1
        if isinstance(expr, sympy.floor):
            number, divisor = sympy.fraction(sympy.together(expr.args[0]))
            top = self.highest(number)
            if top is None:
                return None
            return sympy.floor(top / divisor) if top.is_number and divisor.is_number else top / divisor
        if isinstance(expr, sympy.Add):
            return _joined(sympy.Add, [self.highest(term) for term in expr.args])
        if isinstance(expr, sympy.Mul):
            number, rest = expr.as_coeff_Mul()
            if number < 0:
                low = self.lowest(rest)
                return None if low is None else number * low
            if all((low := self.lowest(factor)) is not None and _nonnegative(low) for factor in expr.args):
                return _joined(sympy.Mul, [self.highest(factor) for factor in expr.args])
            return None
        # A size is its own bound; an index without extent, or data, has none.
        return expr if expr.is_Symbol and not _is_index(expr) else None

    def lowest(self, expr: sympy.Expr) -> sympy.Expr | None:
        """A bound from below, made of sizes; None if none is known."""
        if expr.is_number:
            return expr
        if isinstance(expr, sympy.Add):
            return _joined(sympy.Add, [self.lowest(term) for term in expr.args])
        if isinstance(expr, sympy.Mul):
            number, rest = expr.as_coeff_Mul()
            if number < 0:
                high = self.highest(rest)
                return None if high is None else number * high
        if expr.is_Symbol and not _is_index(expr):
            return expr
        return sympy.Integer(0) if expr.is_nonnegative else None


def _is_index(symbol: sympy.Symbol) -> bool:
    return symbol.name[:1] in ("i", "k", "x") and symbol.name[1:].isdigit()


def _joined(function: type[sympy.Expr], parts: Sequence[sympy.Expr | None]) -> sympy.Expr | None:
    known = [part for part in parts if part is not None]
    return function(*known) if len(known) == len(parts) else None


def _exact(term: sympy.Expr, divisor: sympy.Expr) -> sympy.Expr | None:
    """``term / divisor`` if that is an integer for all values of the symbols, else None."""
    ratio = sympy.cancel(term / divisor)
    number, below = sympy.fraction(ratio)
    return ratio if below == 1 and number.is_integer else None


def _times(term: sympy.Expr, kind: type[sympy.Expr]) -> tuple[sympy.Expr, sympy.Expr | None]:
    """``term`` as (factor, one expression of ``kind``)."""
    if isinstance(term, kind):
        return sympy.Integer(1), term
    if isinstance(term, sympy.Mul):
        found = [factor for factor in term.args if isinstance(factor, kind)]
        if len(found) == 1:
            return term / found[0], found[0]
    return term, None


def _nonnegative(expr: sympy.Expr) -> bool:
    """Whether an expression of sizes is at least zero, each size being at least one."""
    expr = sympy.expand(expr)
    if expr.is_number:
        return bool(expr >= 0)
    more = {s: sympy.Symbol(s.name, integer=True, nonnegative=True) + 1 for s in expr.free_symbols}
    shifted = sympy.expand(expr.xreplace(more))
    return bool(shifted.is_nonnegative)
