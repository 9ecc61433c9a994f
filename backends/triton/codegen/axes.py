"""Axes of a kernel: which instructions it needs, at which places, and which of its axes are one."""

from __future__ import annotations

from collections.abc import Sequence

import sympy

from .arrays import Bound
from .indexing import ONE, ZERO, Expr, Quotient, Ranges, Remainder
from .reading import Instruction, Reader, Target


class Axes:
    """The instructions that some targets need, and their places once neighbouring axes are joined.

    Args:
        reader: holds the instructions.
        targets: what the kernel writes.

    Attributes:
        reduced, kept: axes that a reduction runs over, and the others.
        needed: instructions, in order.
        place, bounds: of each instruction.
        at: places of the targets.
        groups: what is left of the kept and of the reduced axes.
    """

    def __init__(self, reader: Reader, targets: Sequence[Target]) -> None:
        self.reader, self.targets = reader, targets
        self.reduced = tuple(reader.reduced or ())
        self.kept = tuple(s for s in reader.frame if s not in self.reduced)
        self.needed = self._needed()
        self.place = {i: i.place for i in self.needed}
        self.bounds = {i: i.bounds for i in self.needed}
        self.at = [reader.ranges.flat(t.index, t.array.shape) for t in targets]
        self.ranges = Ranges(reader.ranges.extents)
        self.groups = [self._join(self.kept, "x"), self._join(self.reduced, "r")]
        for group, name in zip(self.groups, ("x", "r"), strict=True):
            self._shorten(group, sympy.Symbol(name, integer=True, nonnegative=True))

    def _needed(self) -> list[Instruction]:
        """Instructions that the targets need, in order."""
        wanted: set[Instruction] = set()
        stack = [t.value for t in self.targets]
        expressions = [i for t in self.targets for i in t.index]
        while stack or expressions:
            if expressions:
                found = [self.reader.instruction_of(s) for s in expressions.pop().free_symbols]
                stack += [i for i in found if i is not None]
                continue
            top = stack.pop()
            if top in wanted:
                continue
            wanted.add(top)
            stack += top.operands
            expressions += [top.place, *(b.place for b in top.bounds)]
        return [i for i in self.reader.instructions if i in wanted]

    def _join(self, symbols: tuple[sympy.Symbol, ...], letter: str) -> list[sympy.Symbol]:
        """Neighbouring axes that all places go through in one stride become one axis."""
        left = list(symbols)
        n = len(left) - 2
        while n >= 0:
            first, second = left[n], left[n + 1]
            size = self.ranges.extents[second]
            new = sympy.Symbol(f"{letter}{len(self.ranges.extents)}", integer=True, nonnegative=True)
            if self._replace(first, second, size, new):
                self.ranges.extents[new] = self.ranges.extents[first] * size
                left[n : n + 2] = [new]
            n -= 1
        return left

    def _shorten(self, group: Sequence[sympy.Symbol], whole: sympy.Symbol) -> None:
        """Where a place goes through all axes in one stride, it is written by the number of the row itself."""
        if len(group) < 2:
            return

        def short(e: Expr) -> Expr:
            found: Expr | None = e
            last = group[-1]
            size: Expr = self.ranges.extents[last]
            for n in range(len(group) - 2, -1, -1):
                new = sympy.Dummy(integer=True, nonnegative=True)
                found = _merged(found, group[n], last, size, new) if found is not None else None
                last, size = new, size * self.ranges.extents[group[n]]
            return e if found is None else found.xreplace({last: whole})

        self.place = {i: short(e) for i, e in self.place.items()}
        self.at = [short(e) for e in self.at]

    def _replace(self, first: sympy.Symbol, second: sympy.Symbol, size: Expr, new: sympy.Symbol) -> bool:
        places: dict[Instruction, Expr] = {}
        bounds: dict[Instruction, tuple[Bound, ...]] = {}
        for instruction in self.needed:
            e = _merged(self.place[instruction], first, second, size, new)
            if e is None:
                return False
            places[instruction] = e
            conditions = []
            for bound in self.bounds[instruction]:
                at = _merged(bound.place, first, second, size, new)
                if at is None:
                    return False
                conditions.append(Bound(at, bound.lower, bound.upper))
            bounds[instruction] = tuple(conditions)
        at_targets = []
        for target in self.at:
            e = _merged(target, first, second, size, new)
            if e is None:
                return False
            at_targets.append(e)
        self.place, self.bounds, self.at = places, bounds, at_targets
        return True


def _merged(e: Expr, first: sympy.Symbol, second: sympy.Symbol, size: Expr, new: sympy.Symbol) -> Expr | None:
    """``e`` in terms of ``new = first·size + second``; None if it is not made of that."""
    if not e.has(first, second):
        return e
    steps, others = {first: ZERO, second: ZERO}, ZERO
    for term in sympy.Add.make_args(sympy.expand(e)):
        if not term.has(first, second):
            others += term
            continue
        plain = [s for s in (first, second) if term.coeff(s) != 0 and not term.coeff(s).has(first, second)]
        if len(plain) == 1 and not term.coeff(plain[0]).has(Quotient, Remainder):
            steps[plain[0]] += term.coeff(plain[0])
            continue
        factors: Expr = ONE
        for factor in sympy.Mul.make_args(term):
            if not factor.has(first, second):
                factors *= factor
            elif isinstance(factor, Quotient | Remainder):
                inner = _merged(factor.args[0], first, second, size, new)
                if inner is None:
                    return None
                factors *= factor.func(inner, factor.args[1])
            else:
                return None
        others += factors
    if sympy.expand(steps[first] - steps[second] * size) != 0:
        return None
    return steps[second] * new + others
