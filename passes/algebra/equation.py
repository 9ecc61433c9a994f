"""What an equation is: two ways to write the same, and the conditions under which they are."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from .terms import Apply, Term, flat, operators, parse


class Property(enum.Enum):
    """The property of arithmetic that an equation follows from."""

    ASSOCIATIVE = "associative"
    DISTRIBUTIVE = "distributive"
    COMMUTATIVE = "commutative"


class Condition(enum.Enum):
    """What must hold of the value that a name matched."""

    UNREDUCED = "does not vary along the reduced axes"
    SCALAR = "is a single number"
    POSITIVE = "is a constant above zero"
    LIKE = "has the shape of the others so marked"
    SMALL = "is smaller than the result, joined with the others so marked"


@dataclass(frozen=True)
class Equation:
    """One row.

    Attributes:
        left: what is looked for.
        right: what takes its place.
        follows: the property that it follows from.
        exact: whether both sides give the same bits for all inputs, infinities included, up to the sign of a zero and
            where Relu or Sign meet NaN.
        integers: whether it also holds for integers, which wrap around; there it is always exact.
        where: conditions by name.
        assuming: names that must be positive for both sides to be equal at all; never so for exact rows.
    """

    left: str
    right: str
    follows: Property
    exact: bool = False
    integers: bool = False
    where: tuple[tuple[str, Condition], ...] = ()
    assuming: str = ""

    @property
    def name(self) -> str:
        """The equation as it is written."""
        return f"{self.left} => {self.right}"

    @property
    def pattern(self) -> Term:
        """The left side, nested sums and products taken together."""
        return flat(parse(self.left))

    @property
    def replacement(self) -> Term:
        """The right side."""
        return parse(self.right)

    @property
    def root(self) -> str:
        """The last operator of the left side."""
        term = self.pattern
        assert isinstance(term, Apply)
        return term.op

    @property
    def reduces(self) -> bool:
        """Whether a reduction stands in it."""
        return not {"sum", "mean", "prod", "top", "bottom"}.isdisjoint(operators(self.pattern))
