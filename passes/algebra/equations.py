"""The table of equations: what may be written in another way, and under which conditions.

Each row reads as it is computed: the left side is looked for, the right side takes its place where it costs less. Rows
are grouped by the property of arithmetic that they follow from (Niu et al. 2021, section 4.2 and table 4). ``Exact``
rows give the same bits for all inputs, infinities included, up to the sign of a zero and where Relu or Sign meet NaN;
the others change rounding, overflow, or the domain (``√a·√a`` needs ``a ≥ 0``) and are used only when asked for.
"""

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
        exact: whether both sides give the same bits (see the module).
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


def _rows(
    follows: Property,
    *texts: str,
    exact: bool = False,
    integers: bool = False,
    where: dict[str, Condition | tuple[Condition, ...]] | None = None,
    assuming: str = "",
) -> list[Equation]:
    rows = []
    for text in texts:
        left, found, right = text.partition(" = ")
        if not found:
            raise ValueError(f"{text!r} is no equation")
        conditions = tuple(
            (name, condition)
            for names, given in (where or {}).items()
            for name in names
            for condition in (given if isinstance(given, tuple) else (given,))
        )
        rows.append(Equation(left, right, follows, exact, integers, conditions, assuming))
    return rows


_ASSOCIATIVE = [
    # Constants meet, and what is smaller than the result is joined first.
    *_rows(
        Property.ASSOCIATIVE,
        "a * k * m = a * (k * m)",
        "a + k + m = a + (k + m)",
        "(a + k) - m = a + (k - m)",
        "(a - k) + m = a + (m - k)",
        "(a - k) - m = a - (k + m)",
        "k - (a + m) = (k - m) - a",
        "k - (a - m) = (k + m) - a",
        "k - (m - a) = a + (k - m)",
        "(k - a) + m = (k + m) - a",
        "(k - a) - m = (k - m) - a",
        integers=True,
    ),
    *_rows(
        Property.ASSOCIATIVE,
        "(a * k) / m = a * (k / m)",
        "(a / k) * m = a * (m / k)",
        "(a / k) / m = a / (k * m)",
        "(k / a) * m = (k * m) / a",
        "(k / a) / m = (k / m) / a",
        "k / (a * m) = (k / m) / a",
        "k / (a / m) = (k * m) / a",
        "k / (m / a) = a * (k / m)",
    ),
    *_rows(
        Property.ASSOCIATIVE,
        "a * b * c = a * (b * c)",
        "a + b + c = a + (b + c)",
        integers=True,
        where={"bc": Condition.SMALL},
    ),
    *_rows(
        Property.ASSOCIATIVE,
        "(a - b) + c = a + (c - b)",
        "(a - b) - c = a - (b + c)",
        integers=True,
        where={"bc": Condition.SMALL},
    ),
    *_rows(
        Property.ASSOCIATIVE,
        "(a / b) / c = a / (b * c)",
        "(a / b) * c = a * (c / b)",
        where={"bc": Condition.SMALL},
    ),
    *_rows(
        Property.ASSOCIATIVE,
        "recip(a) * recip(a * b) = recip(a) ** 2 * recip(b)",
        "recip(a) * recip(b) = recip(a * b)",
        "recip(recip(a)) = a",
        "recip(a / b) = b / a",
        "a * recip(b) = a / b",
        "a / recip(b) = a * b",
        "(a / b) * (c / d) = (a * c) / (b * d)",
        "(a / b) / (c / d) = (a * d) / (b * c)",
        "a / (b / c) = (a * c) / b",
        "exp(a) * exp(b) = exp(a + b)",
        "exp(a) / exp(b) = exp(a - b)",
        "exp(a) * recip(exp(b)) = exp(a - b)",
        "(a * sum(b)) * (sum(b) * c) = (a * c) * sum(b) ** 2",
        "prod(a) * prod(b) = prod(a * b)",
    ),
    *_rows(
        Property.ASSOCIATIVE,
        "sqrt(a) * sqrt(a) = a",
        "sqrt(a) * sqrt(b) = sqrt(a * b)",
        "sqrt(a) / sqrt(b) = sqrt(a / b)",
        "a / sqrt(a) = sqrt(a)",
        "log(a) + log(b) = log(a * b)",
        "log(a) - log(b) = log(a / b)",
        "pow(a, k) * pow(a, m) = pow(a, k + m)",
        "pow(a, k) * pow(b, k) = pow(a * b, k)",
        "pow(pow(a, k), m) = pow(a, k * m)",
        "pow(a, 0.5) = sqrt(a)",
        assuming="abc",
    ),
    *_rows(
        Property.ASSOCIATIVE,
        "abs(a) * abs(b) = abs(a * b)",
        "abs(a) / abs(b) = abs(a / b)",
        "max(max(a, k), m) = max(a, max(k, m))",
        "min(min(a, k), m) = min(a, min(k, m))",
        "max(a, a) = a",
        "min(a, a) = a",
        "a and a = a",
        "a or a = a",
        exact=True,
    ),
]

_DISTRIBUTIVE = [
    *_rows(
        Property.DISTRIBUTIVE,
        "a * b + a * c = a * (b + c)",
        "a * b - a * c = a * (b - c)",
        "a + a * b = a * (b + 1)",
        "a - a * b = a * (1 - b)",
        "a * b - a = a * (b - 1)",
        "(a + b) ** 2 - (a + b) * c = (a + b) * (a + b - c)",
        "a ** 2 + 2 * a * b + b ** 2 = (a + b) ** 2",
        "a ** 2 - 2 * a * b + b ** 2 = (a - b) ** 2",
        "a ** 2 - b ** 2 = (a - b) * (a + b)",
        "(a * k + m) * n = a * (k * n) + m * n",
        "(a + m) * k + n = a * k + (m * k + n)",
        "(a - m) * k + n = a * k + (n - m * k)",
        integers=True,
    ),
    *_rows(
        Property.DISTRIBUTIVE,
        "a / c + b / c = (a + b) / c",
        "a / c - b / c = (a - b) / c",
        "(a * k + m) / n = a * (k / n) + m / n",
        "(a + m) / k + n = a / k + (m / k + n)",
        "(a - m) / k + n = a / k + (n - m / k)",
        "(a / k + m) * n = a * (n / k) + m * n",
        "sum(a) + sum(b) = sum(a + b)",
        "sum(a) - sum(b) = sum(a - b)",
        "mean(a) + mean(b) = mean(a + b)",
        "mean(a) - mean(b) = mean(a - b)",
        "max(a + c, b + c) = max(a, b) + c",
        "min(a + c, b + c) = min(a, b) + c",
        "max(a - c, b - c) = max(a, b) - c",
        "min(a - c, b - c) = min(a, b) - c",
    ),
    *_rows(
        Property.DISTRIBUTIVE,
        "sum(a * b) = sum(a) * b",
        "sum(a / b) = sum(a) / b",
        "mean(a * b) = mean(a) * b",
        "mean(a / b) = mean(a) / b",
        "mean(a + b) = mean(a) + b",
        "mean(a - b) = mean(a) - b",
        "top(a + b) = top(a) + b",
        "top(a - b) = top(a) - b",
        "bottom(a + b) = bottom(a) + b",
        "bottom(a - b) = bottom(a) - b",
        where={"b": Condition.UNREDUCED},
    ),
    *_rows(
        Property.DISTRIBUTIVE,
        "a @ b + a @ c = a @ (b + c)",
        "a @ b - a @ c = a @ (b - c)",
        "b @ a + c @ a = (b + c) @ a",
        "b @ a - c @ a = (b - c) @ a",
        where={"bc": Condition.LIKE},
    ),
    *_rows(
        Property.DISTRIBUTIVE,
        "(a * s) @ b = (a @ b) * s",
        "a @ (b * s) = (a @ b) * s",
        "(a / s) @ b = (a @ b) / s",
        "a @ (b / s) = (a @ b) / s",
        "(a @ b) * s = (a * s) @ b",
        "(a @ b) * s = a @ (b * s)",
        "(a @ b) / s = (a / s) @ b",
        "(a @ b) / s = a @ (b / s)",
        where={"s": Condition.SCALAR},
    ),
    *_rows(
        Property.DISTRIBUTIVE,
        "max(a * k, b * k) = max(a, b) * k",
        "min(a * k, b * k) = min(a, b) * k",
        "max(a / k, b / k) = max(a, b) / k",
        "min(a / k, b / k) = min(a, b) / k",
        exact=True,
        where={"k": Condition.POSITIVE},
    ),
    *_rows(
        Property.DISTRIBUTIVE,
        "where(c, a + b, a + d) = a + where(c, b, d)",
        "where(c, a * b, a * d) = a * where(c, b, d)",
        "where(c, a - b, a - d) = a - where(c, b, d)",
        "where(c, b - a, d - a) = where(c, b, d) - a",
        "where(c, a / b, a / d) = a / where(c, b, d)",
        "where(c, b / a, d / a) = where(c, b, d) / a",
        exact=True,
        integers=True,
    ),
    *_rows(
        Property.DISTRIBUTIVE,
        "(a and b) or (a and c) = a and (b or c)",
        "(a or b) and (a or c) = a or (b and c)",
        "a or (a and b) = a",
        "a and (a or b) = a",
        "(not a) and (not b) = not (a or b)",
        "(not a) or (not b) = not (a and b)",
        exact=True,
    ),
]

_COMMUTATIVE = [
    # Signs move out, and meet.
    *_rows(
        Property.COMMUTATIVE,
        "a + (-b) = a - b",
        "a - (-b) = a + b",
        "-(a - b) = b - a",
        "(-a) * (-b) = a * b",
        "(-a) * k = a * (-k)",
        "-(a * k) = a * (-k)",
        "c + (-a) * b = c - a * b",
        "c - (-a) * b = c + a * b",
        exact=True,
        integers=True,
    ),
    *_rows(
        Property.COMMUTATIVE,
        "(-a) / (-b) = a / b",
        "(-a) / k = a / (-k)",
        "-(a / k) = a / (-k)",
        "-(k / a) = (-k) / a",
        "k / (-a) = (-k) / a",
        "c + (-a) / b = c - a / b",
        "c - (-a) / b = c + a / b",
        "(-a) @ b = -(a @ b)",
        "a @ (-b) = -(a @ b)",
        "abs(-a) = abs(a)",
        "abs(abs(a)) = abs(a)",
        "abs(a - b) * abs(a - b) = (a - b) ** 2",
        "abs(a) * abs(a) = a * a",
        "abs(a * a) = a * a",
        "abs(exp(a)) = exp(a)",
        "abs(relu(a)) = relu(a)",
        "abs(sqrt(a)) = sqrt(a)",
        "relu(abs(a)) = abs(a)",
        "relu(a * a) = a * a",
        "relu(exp(a)) = exp(a)",
        "relu(sigmoid(a)) = sigmoid(a)",
        "relu(sqrt(a)) = sqrt(a)",
        "cos(-a) = cos(a)",
        "-sin(-a) = sin(a)",
        "-tanh(-a) = tanh(a)",
        "-erf(-a) = erf(a)",
        "-floor(-a) = ceil(a)",
        "-ceil(-a) = floor(a)",
        "-round(-a) = round(a)",
        "floor(floor(a)) = floor(a)",
        "ceil(ceil(a)) = ceil(a)",
        "round(round(a)) = round(a)",
        "sign(sign(a)) = sign(a)",
        "max(a, b) + min(a, b) = a + b",
        "max(a, b) * min(a, b) = a * b",
        "max(a, b) - min(a, b) = abs(a - b)",
        "max(-a, -b) = -min(a, b)",
        "min(-a, -b) = -max(a, b)",
        "max(relu(a), relu(b)) = relu(max(a, b))",
        "min(relu(a), relu(b)) = relu(min(a, b))",
        "relu(a) + relu(-a) = abs(a)",
        exact=True,
    ),
    # Reductions and what does not care for order.
    *_rows(
        Property.COMMUTATIVE,
        "sum(-a) = -sum(a)",
        "mean(-a) = -mean(a)",
        "top(-a) = -bottom(a)",
        "bottom(-a) = -top(a)",
        "top(relu(a)) = relu(top(a))",
        "bottom(relu(a)) = relu(bottom(a))",
        "top(floor(a)) = floor(top(a))",
        "top(ceil(a)) = ceil(top(a))",
        "bottom(floor(a)) = floor(bottom(a))",
        "bottom(ceil(a)) = ceil(bottom(a))",
        "prod(abs(a)) = abs(prod(a))",
        exact=True,
    ),
    *_rows(
        Property.COMMUTATIVE,
        "top(a * k) = top(a) * k",
        "top(a / k) = top(a) / k",
        "bottom(a * k) = bottom(a) * k",
        "bottom(a / k) = bottom(a) / k",
        exact=True,
        where={"k": (Condition.POSITIVE, Condition.UNREDUCED)},
    ),
    *_rows(
        Property.COMMUTATIVE,
        "top(max(a, b)) = max(top(a), b)",
        "bottom(min(a, b)) = min(bottom(a), b)",
        exact=True,
        where={"b": Condition.UNREDUCED},
    ),
    *_rows(
        Property.COMMUTATIVE,
        "sum(a << b) = sum(a) << b",
        exact=True,
        integers=True,
        where={"b": Condition.UNREDUCED},
    ),
    *_rows(
        Property.COMMUTATIVE,
        "prod(exp(a)) = exp(sum(a))",
        "prod(recip(a)) = recip(prod(a))",
        "prod(a ** 2) = prod(a) ** 2",
        "top(exp(a)) = exp(top(a))",
        "top(tanh(a)) = tanh(top(a))",
        "top(sigmoid(a)) = sigmoid(top(a))",
        "top(softplus(a)) = softplus(top(a))",
        "top(erf(a)) = erf(top(a))",
        "bottom(exp(a)) = exp(bottom(a))",
        "bottom(tanh(a)) = tanh(bottom(a))",
        "bottom(sigmoid(a)) = sigmoid(bottom(a))",
        "bottom(softplus(a)) = softplus(bottom(a))",
        "bottom(erf(a)) = erf(bottom(a))",
        "max(exp(a), exp(b)) = exp(max(a, b))",
        "min(exp(a), exp(b)) = exp(min(a, b))",
        "max(tanh(a), tanh(b)) = tanh(max(a, b))",
        "min(tanh(a), tanh(b)) = tanh(min(a, b))",
        "max(sigmoid(a), sigmoid(b)) = sigmoid(max(a, b))",
        "min(sigmoid(a), sigmoid(b)) = sigmoid(min(a, b))",
    ),
    *_rows(
        Property.COMMUTATIVE,
        "sum(log(a)) = log(prod(a))",
        "prod(sqrt(a)) = sqrt(prod(a))",
        "prod(pow(a, 0.5)) = pow(prod(a), 0.5)",
        "top(sqrt(a)) = sqrt(top(a))",
        "bottom(sqrt(a)) = sqrt(bottom(a))",
        "top(log(a)) = log(top(a))",
        "bottom(log(a)) = log(bottom(a))",
        "max(sqrt(a), sqrt(b)) = sqrt(max(a, b))",
        "max(log(a), log(b)) = log(max(a, b))",
        "exp(log(a)) = a",
        "exp(-log(a)) = recip(a)",
        "log(recip(a)) = -log(a)",
        assuming="ab",
    ),
    *_rows(
        Property.COMMUTATIVE,
        "log(exp(a)) = a",
        "sqrt(a * a) = abs(a)",
        "abs(a) * sign(a) = a",
        "relu(a) - relu(-a) = a",
        "max(a, min(a, b)) = a",
        "min(a, max(a, b)) = a",
        "recip(1 + exp(-a)) = sigmoid(a)",
        "1 / (1 + exp(-a)) = sigmoid(a)",
        "exp(a) / (exp(a) + 1) = sigmoid(a)",
        "log(1 + exp(a)) = softplus(a)",
        "2 * sigmoid(2 * a) - 1 = tanh(a)",
        "exp(a) ** 2 = exp(2 * a)",
    ),
    # A choice between two results of one function is the function of the choice.
    *_rows(
        Property.COMMUTATIVE,
        *(
            f"where(c, {f}(a), {f}(b)) = {f}(where(c, a, b))"
            for f in ("abs", "erf", "exp", "log", "recip", "relu", "sigmoid", "softplus", "sqrt", "tanh")
        ),
        "where(c, -a, -b) = -where(c, a, b)",
        "where(c, a, a) = a",
        "where(not c, a, b) = where(c, b, a)",
        exact=True,
    ),
]

EQUATIONS: tuple[Equation, ...] = (*_ASSOCIATIVE, *_DISTRIBUTIVE, *_COMMUTATIVE)
"""Every row of the table."""
