"""Places in tensors as SymPy expressions: simplified by how far their symbols run, and printed as source.

Sizes in a kernel are integers, symbols, or products of these: whatever else a dimension is (``past + sequence``) gets a
symbol of its own, see :class:`Sizes`. Indices are not negative wherever they are used, so that the division of Triton,
which rounds to zero, is the floor.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

import sympy

Expr: TypeAlias = sympy.Expr
Index: TypeAlias = tuple[sympy.Expr, ...]

ZERO, ONE = sympy.Integer(0), sympy.Integer(1)


class Quotient(sympy.Function):  # type: ignore[misc]
    """The floor of a ratio."""

    nargs = 2
    is_integer = True
    is_nonnegative = True


class Remainder(sympy.Function):  # type: ignore[misc]
    """What the division leaves, at least zero."""

    nargs = 2
    is_integer = True
    is_nonnegative = True


class Ranges:
    """How far symbols run: from 0 to their extent, exclusive. Symbols without extent are sizes."""

    def __init__(self, extents: Mapping[sympy.Symbol, Expr] | None = None) -> None:
        self.extents: dict[sympy.Symbol, Expr] = dict(extents or {})

    def upper(self, e: Expr) -> Expr | None:
        """A value, made of sizes, that ``e`` does not exceed; None if none is known."""
        if e.is_Symbol:
            return self.extents[e] - 1 if e in self.extents else e
        if e.is_Integer:
            return e
        if e.is_Add:
            return _all(sympy.Add, [self.upper(term) for term in e.args])
        if e.is_Mul:
            number, rest = e.as_coeff_Mul()
            if number < 0:
                least = self.lower(rest)
                return None if least is None else number * least
            if all(self.lower(factor) is not None for factor in e.args):
                return _all(sympy.Mul, [self.upper(factor) for factor in e.args])
            return None
        if isinstance(e, Remainder):
            return e.args[1] - 1
        if isinstance(e, Quotient):
            top = self.upper(e.args[0])
            if top is not None and (exact := divided(top + 1, e.args[1])) is not None:
                return exact - 1
            return top if top is None or not (top.is_Integer and e.args[1].is_Integer) else top // e.args[1]
        return None

    def lower(self, e: Expr) -> Expr | None:
        """A number that ``e`` is not below: 0 or an integer; None if none is known."""
        if e.is_Integer:
            return e
        if e.is_Symbol or isinstance(e, Quotient | Remainder):
            return ZERO
        if e.is_Add:
            return _all(sympy.Add, [self.lower(term) for term in e.args])
        if e.is_Mul:
            number, rest = e.as_coeff_Mul()
            if number < 0:
                top = self.upper(rest)
                return number * top if top is not None and top.is_Integer else None
            lows = [self.lower(factor) for factor in e.args]
            return ZERO if all(low is not None and low >= 0 for low in lows) else None
        return None

    def inside(self, e: Expr, size: Expr) -> bool:
        """Whether 0 ≤ e < size for certain."""
        low, top = self.lower(e), self.upper(e)
        return low is not None and low >= 0 and top is not None and _not_negative(size - top - 1)

    def quotient(self, e: Expr, n: Expr) -> Expr:
        """``floor(e / n)``, simplified."""
        if n == 1:
            return e
        if e.is_Integer and n.is_Integer:
            return sympy.Integer(int(e) // int(n))
        whole, rest = _split(e, n)
        if rest == 0 or self.inside(rest, n):
            return whole
        if isinstance(rest, Quotient):
            return whole + self.quotient(rest.args[0], rest.args[1] * n)
        for factor in _factors(rest):
            smaller = divided(n, factor)
            if smaller is None:
                continue
            multiples, below = _split(rest, factor)
            if multiples != 0 and (below == 0 or self.inside(below, factor)):
                return whole + self.quotient(multiples, smaller)
        return whole + Quotient(rest, n)

    def remainder(self, e: Expr, n: Expr) -> Expr:
        """``e mod n``, simplified."""
        if n == 1:
            return ZERO
        if e.is_Integer and n.is_Integer:
            return sympy.Integer(int(e) % int(n))
        _, rest = _split(e, n)
        if rest == 0 or self.inside(rest, n):
            return rest
        if isinstance(rest, Remainder) and divided(rest.args[1], n) is not None:
            return self.remainder(rest.args[0], n)
        for factor in _factors(rest):
            smaller = divided(n, factor)
            if smaller is None:
                continue
            multiples, below = _split(rest, factor)
            if multiples != 0 and (below == 0 or self.inside(below, factor)):
                return sympy.expand(factor * self.remainder(multiples, smaller) + below)
        return Remainder(rest, n)

    def flat(self, index: Sequence[Expr], sizes: Sequence[Expr]) -> Expr:
        """The row-major position of an element."""
        position: Expr = ZERO
        for i, size in zip(index, sizes, strict=True):
            position = self.joined(position * size + i)
        return position

    def joined(self, e: Expr) -> Expr:
        """``n·floor(a / n) + a mod n`` put together again."""
        e = sympy.expand(e)
        changed = True
        while changed and e.has(Remainder):
            changed = False
            terms = dict(_coefficients(e))
            for term, factor in terms.items():
                if not isinstance(term, Remainder):
                    continue
                a, n = term.args
                upper = self.quotient(a, n)
                rest = sympy.expand(e - factor * term - factor * n * upper)
                joined = sympy.expand(rest + factor * a)
                if not rest.has(term) and len(sympy.Add.make_args(joined)) < len(sympy.Add.make_args(e)):
                    e, changed = joined, True
                    break
        return e

    def unflat(self, position: Expr, sizes: Sequence[Expr]) -> Index:
        """The index of the element at a row-major position."""
        index: list[Expr] = []
        stride: Expr = ONE
        for n in reversed(range(len(sizes))):
            step = self.quotient(position, stride)
            index.append(step if n == 0 else self.remainder(step, sizes[n]))
            stride = stride * sizes[n]
        return tuple(reversed(index))

    def again(self, e: Expr) -> Expr:
        """An expression simplified anew, after symbols of it were replaced."""
        if not e.args or not e.has(Quotient, Remainder):
            return sympy.expand(e)
        parts = [self.again(part) for part in e.args]
        if isinstance(e, Quotient):
            return self.quotient(parts[0], parts[1])
        if isinstance(e, Remainder):
            return self.remainder(parts[0], parts[1])
        return self.joined(e.func(*parts))


def divided(e: Expr, n: Expr) -> Expr | None:
    """``e / n`` where that is whole whatever the symbols are (a sum is taken as it is); None elsewhere."""
    if n == 1:
        return e
    if e.is_Integer and n.is_Integer:
        return sympy.Integer(int(e) // int(n)) if int(e) % int(n) == 0 else None
    ratio = e / n
    if ratio.is_Integer or (not ratio.has(sympy.Pow) and ratio.as_coeff_Mul()[0].is_Integer):
        return ratio
    return ratio if ratio.as_numer_denom()[1] == 1 else None


def _split(e: Expr, n: Expr) -> tuple[Expr, Expr]:
    """The terms that ``n`` divides, divided, and the others."""
    whole, rest = [], []
    for term in sympy.Add.make_args(sympy.expand(e)):
        found = divided(term, n)
        if found is None and term.is_Integer and n.is_Integer and abs(int(term)) >= int(n):
            whole.append(sympy.Integer(int(term) // int(n)))
            rest.append(sympy.Integer(int(term) % int(n)))
        elif found is None:
            rest.append(term)
        else:
            whole.append(found)
    return sympy.Add(*whole), sympy.Add(*rest)


def _coefficients(e: Expr) -> Iterable[tuple[Expr, Expr]]:
    """Terms as (remainder or quotient or rest, what it is multiplied with)."""
    for term in sympy.Add.make_args(e):
        special = [f for f in sympy.Mul.make_args(term) if isinstance(f, Remainder)]
        yield (special[0], term / special[0]) if len(special) == 1 else (term, ONE)


def _factors(e: Expr) -> list[Expr]:
    """What the terms of ``e`` are multiplied with: numbers and sizes; largest first."""
    found: set[Expr] = set()
    for term in sympy.Add.make_args(e):
        number, rest = term.as_coeff_Mul()
        sizes = [f for f in sympy.Mul.make_args(rest) if f.is_Symbol or f.is_Pow]
        number = abs(number)
        found.add(number * sympy.Mul(*sizes))
        for leave in range(len(sizes)):
            found.add(number * sympy.Mul(*(s for i, s in enumerate(sizes) if i != leave)))
        found.add(number)
    found.discard(ONE)
    return sorted(found, key=lambda f: (-f.count_ops(), -int(f.as_coeff_Mul()[0]), str(f)))


def _all(combine: type, parts: Sequence[Expr | None]) -> Expr | None:
    return None if any(part is None for part in parts) else sympy.expand(combine(*parts))


def _not_negative(e: Expr) -> bool:
    """Whether a sum of products of sizes is at least zero for certain."""
    return all(term.as_coeff_Mul()[0] >= 0 for term in sympy.Add.make_args(sympy.expand(e)))


def text(e: Expr, names: Mapping[sympy.Symbol, str] | None = None) -> str:
    """Source of an expression: Python and Triton read the same."""
    return _print(e, names or {}, 0)


def _print(e: Expr, names: Mapping[sympy.Symbol, str], strength: int) -> str:
    """``strength`` of the operator around it: 0 none, 1 sums, 2 products, 3 divisions."""
    if e.is_Symbol:
        return names.get(e, e.name)
    if e.is_Integer:
        return str(e) if e >= 0 or strength == 0 else f"({e})"
    if e.is_Add:
        terms = sorted(e.args, key=lambda t: (t.is_Integer, str(t)))
        positive = [t for t in terms if t.as_coeff_Mul()[0] > 0]
        negative = [t for t in terms if t.as_coeff_Mul()[0] <= 0]
        if any(t.as_coeff_Mul()[0].is_Integer is False for t in terms):
            return _ratio(e, names)
        shown = " + ".join(_print(t, names, 1) for t in positive) or "0"
        shown += "".join(f" - {_print(-t, names, 2)}" for t in negative)
        return f"({shown})" if strength > 0 else shown
    if isinstance(e, Quotient | Remainder):
        sign = "//" if isinstance(e, Quotient) else "%"
        return f"({_print(e.args[0], names, 3)} {sign} {_print(e.args[1], names, 3)})"
    if e.is_Mul or e.is_Pow or e.is_Rational:
        below = e.as_numer_denom()[1]
        if below != 1:
            return _ratio(e, names)
        if e.is_Pow:
            return _join([_print(e.base, names, 2)] * int(e.exp), strength)
        number, _ = e.as_coeff_Mul()
        if number < 0:
            return f"(-{_print(-e, names, 2)})"
        # Sizes first: their product is a stride.
        return _join([_print(f, names, 2) for f in sorted(e.args, key=_order)], strength)
    if isinstance(e, sympy.floor):
        return _ratio(e.args[0], names)
    if isinstance(e, sympy.ceiling):
        return f"(-{_ratio(-e.args[0], names)})"
    if isinstance(e, sympy.Mod):
        return f"({_print(e.args[0], names, 3)} % {_print(e.args[1], names, 3)})"
    if isinstance(e, sympy.Max | sympy.Min):
        word = "max" if isinstance(e, sympy.Max) else "min"
        return f"{word}({', '.join(_print(a, names, 0) for a in sorted(e.args, key=str))})"
    raise ValueError(f"no source for {e}")


def _order(e: Expr) -> tuple[bool, str]:
    return (not e.is_Integer and not e.is_Symbol, str(e))


def _join(parts: Sequence[str], strength: int) -> str:
    shown = " * ".join(parts)
    return f"({shown})" if strength > 2 else shown


def _ratio(e: Expr, names: Mapping[sympy.Symbol, str]) -> str:
    """The floor of a sum of fractions."""
    above, below = sympy.together(e).as_numer_denom()
    return f"({_print(above, names, 3)} // {_print(below, names, 3)})"


_RESERVED = re.compile(
    r"(in|out|x|r|v|d|k|m|tl|place|size|sum|max|min|prod|buf|start|rows|columns|n)_?\d*|.*[^a-z0-9_].*|_.*|\d.*"
)


class Sizes:
    """The sizes of a kernel: integers, symbols, and a symbol of its own for each other expression."""

    def __init__(self) -> None:
        self.meaning: dict[sympy.Symbol, Expr] = {}
        """What the symbols stand for, in sizes of the graph."""
        self._named: dict[Expr, sympy.Symbol] = {}

    def of(self, e: Expr) -> Expr:
        """A size of the graph as it stands in a kernel."""
        if e.is_Integer:
            return e
        if e.is_Symbol:
            return self._symbol(e, e.name)
        if e.is_Mul and all(f.is_Symbol or (f.is_Integer and f > 0) for f in e.args):
            return sympy.Mul(*(self.of(f) for f in e.args))
        return self._symbol(e, "")

    def _symbol(self, e: Expr, name: str) -> sympy.Symbol:
        if e not in self._named:
            good = bool(name) and name.isidentifier() and not keyword.iskeyword(name) and not _RESERVED.fullmatch(name)
            chosen = name if good else f"size{len(self._named)}"
            self._named[e] = sympy.Symbol(chosen, integer=True, nonnegative=True)
            self.meaning[self._named[e]] = e
        return self._named[e]
