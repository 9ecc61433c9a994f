"""``Quantize("auto", budget=...)``: the scheme of each product that makes the model fastest or smallest within a loss.

What a scheme costs a product is measured: the time of its kernel on this machine, and the relative error of its outputs
on the calibration inputs. How much the model loses for such an error differs by kind of layer, and is measured, too:
each kind is rounded alone, and the outputs of the model compared. Losses of independent small errors add up, so the
choice is a knapsack with one item of each group, which dynamic programming solves (Kellerer et al. 2004, section 11.5).
Schemes of few bits are tried for the whole model, too, because finer groups gain more there than layer by layer.
A trial of the whole choice then corrects the estimate, and the problem is solved anew. What is tried is rounded as it
will be.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ....ir.errors import CalibrationError, UnsupportedError
from ....ir.graph import Graph, tensor_of
from ...base import Context, Cost, Outcome, Trial
from ...precise import PRECISE
from .. import formats, offsets
from ..calibrated import Calibrated
from ..inputs import activations, static
from ..plan import Totals
from ..rounding import Rounding
from ..scheme import NAMED, Scheme
from ..targets import Weight, find
from ..tensors import stored_bytes
from .knapsack import solve
from .sensitivity import Losses, kind

NAME = "auto"
OBJECTIVES = ("time", "size")
_DEFAULT = ("w8a16", "w4a16", "w8a8", "w8a8_static", "nf4")
_FINE = replace(NAMED["w4a16"], group_size=32)
_OFFSETS = replace(_FINE, symmetric=True, offsets=True)
"""Loses nothing of weights that a format with offsets has rounded before."""
_PROBE = NAMED["w4a16"]
"""What a kind of layer is rounded by to see what its errors cost the model."""
_COARSE = 8
"""Schemes of fewer bits are tried for the whole model; the errors of others cost little."""
_ALIKE = 0.9
"""A scheme whose expected loss is more than this part of that of one tried before tells nothing new."""
_KINDS = 12
"""Kinds of layers that are tried one by one; with more, all count alike."""
_ROUNDS = 5
"""Choices that are tried at most."""
_NEAR = 0.97
"""A choice that loses more than this part of the budget is good enough."""
_MARGIN = 1.01
"""So many times what the last choice lost beyond expectation is expected of the next."""
_SLOWER = 1.05
"""A scheme that takes longer than float32 by more than this factor does not pay, even for its size."""


@dataclass(frozen=True)
class Wishes:
    """What the user asked for; see :class:`~..weights.Quantize`."""

    budget: float
    objective: str
    prompt: int
    generated: int | None
    candidates: tuple[str, ...]
    half_scales: bool = False

    @property
    def schemes(self) -> list[Scheme]:
        """What may be chosen."""
        schemes = [NAMED[name] for name in self.candidates or _DEFAULT]
        if not self.candidates:
            schemes += [_FINE, _OFFSETS]
        return [replace(s, half_scales=self.half_scales and s.takes_half_scales) for s in schemes]

    @property
    def probe(self) -> Scheme:
        """What a kind of layer is tried with."""
        return replace(_PROBE, half_scales=self.half_scales)


@dataclass
class Unit:
    """Products that get one scheme, because they share inputs and can be joined then.

    Attributes:
        weights: theirs.
        schemes: that they can have; None is float32, and the first.
        times: seconds of each.
        sizes: bytes of each.
        errors: relative squared error of their outputs by each as it will be rounded, weight by weight.
        probed: the same by what a kind of layer is tried with, as it is tried; empty if nothing is known of them.
    """

    weights: list[Weight]
    schemes: list[Scheme | None] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    sizes: list[float] = field(default_factory=list)
    errors: list[list[float]] = field(default_factory=list)
    probed: list[float] = field(default_factory=list)


def require(context: Context) -> None:
    """Check that :func:`choose` can do its work.

    Raises:
        CalibrationError: there are no calibration inputs.
        UnsupportedError: nothing can be measured for the target.
    """
    if context.cost is None:
        raise UnsupportedError(
            f"nothing can be measured for the target {context.target!r}",
            where="Quantize",
            fix='name a scheme, or compile for "onnxruntime"',
        )
    if not context.has_calibration or context.trial is None:
        raise CalibrationError(
            "the scheme 'auto' needs calibration inputs",
            where="calibration=",
            fix="pass calibration=batches, or --calibration FILE on the command line",
        )


def choose(
    free: Sequence[Weight], context: Context, wishes: Wishes, rounder: Calibrated | None, outcome: Outcome
) -> tuple[list[tuple[Weight, Scheme]], int]:
    """Schemes of the weights that get one, and how many weights stay float.

    Args:
        free: weights that may be quantized, by whatever scheme; nothing is changed.
        context: gives statistics, costs and trials.
        wishes: of the user.
        rounder: rounds them as they will be rounded; None if that is to nearest.
        outcome: gets a remark for each scheme, and for what was refused.
    """
    assert context.cost is not None and context.trial is not None
    units = _units([weight for weight in free if weight.products])
    if not units:
        outcome.missed("", "nothing was chosen: no product can be quantized")
        return [], sum(weight.size for weight in free)
    choice = _Choice(units, context, context.cost, context.trial, wishes, rounder)
    picks, found = choice.search()
    choice.tell(outcome, picks, found)
    result: list[tuple[Weight, Scheme]] = []
    left = sum(weight.size for weight in free if not weight.products)
    for unit, pick in zip(units, picks, strict=True):
        scheme = unit.schemes[pick]
        if scheme is None:
            left += sum(weight.size for weight in unit.weights)
            continue
        result += [(weight, _own(weight, scheme)) for weight in unit.weights]
    return result, left


class _Choice:
    """The measurements that a choice is made of, and the choice."""

    def __init__(
        self,
        units: Sequence[Unit],
        context: Context,
        cost: Cost,
        trial: Trial,
        wishes: Wishes,
        rounder: Calibrated | None,
    ) -> None:
        self._units, self._context, self._cost, self._trial, self._wishes = units, context, cost, trial, wishes
        self._rounder = rounder
        # Codes of a scheme that is likely to be chosen are of use later.
        likely = wishes.objective == "size" or context.decodes
        self._prober = rounder if likely and wishes.probe in wishes.schemes else None
        self._budget = math.log1p(wishes.budget) if context.decodes else wishes.budget**2
        self._losses = Losses([w for unit in units for w in unit.weights], context, rounder)
        for done, unit in enumerate(units):
            context.progress(done, len(units), "measuring schemes")
            self._fill(unit)
        self._worth = self._measure_worth()

    def search(self) -> tuple[list[int], float]:
        """The best choice whose trial keeps the budget, and what it is expected to lose; nothing if there is none."""
        units = self._units
        costs = [unit.times if self._wishes.objective == "time" else unit.sizes for unit in units]
        losses = [[self._loss(unit, errors) for errors in unit.errors] for unit in units]
        tried: dict[tuple[int, ...], float] = {}

        def trial(picks: list[int]) -> float:
            if tuple(picks) not in tried:
                pairs = zip(units, picks, strict=True)
                schemes = {id(weight): unit.schemes[pick] for unit, pick in pairs for weight in unit.weights}
                tried[tuple(picks)] = self._try(schemes, self._rounder)
            return tried[tuple(picks)]

        factors = self._compare_wholes(costs, losses, trial)
        for unit, options in zip(units, losses, strict=True):
            options[:] = [factors.get(str(s), 1.0) * loss for s, loss in zip(unit.schemes, options, strict=True)]
        factor = 1.0
        for _ in range(_ROUNDS):
            picks = solve(costs, [[factor * loss for loss in options] for options in losses], self._budget)
            if not any(picks) or tuple(picks) in tried:
                break
            real, expected = trial(picks), _total(losses, picks)
            if _NEAR * self._budget <= real <= self._budget:
                break
            # Aimed a little below the budget, so that the next choice keeps it.
            factor = max(real / max(expected, 1e-12), 1e-3) * _MARGIN
        kept = {picks: real for picks, real in tried.items() if real <= self._budget}
        best = min(kept, key=lambda picks: _total(costs, picks), default=(0,) * len(units))
        return list(best), kept.get(best, 0.0)

    def _compare_wholes(
        self, costs: Sequence[Sequence[float]], losses: Sequence[Sequence[float]], trial: Callable[[list[int]], float]
    ) -> dict[str, float]:
        """By what to correct the losses expected of each scheme, from trials of coarse ones for the whole model.

        A scheme that is not tried, because others cost no more and lose no more or lose almost the same, gets the
        factor of the one tried whose loss is nearest.
        """
        wholes: dict[Scheme, list[int]] = {}
        cheapest = [min(range(len(prices)), key=prices.__getitem__) for prices in costs]
        for scheme in self._wishes.schemes:
            if any(scheme in unit.schemes for unit in self._units):
                wholes[scheme] = [
                    unit.schemes.index(scheme) if scheme in unit.schemes else other
                    for unit, other in zip(self._units, cheapest, strict=True)
                ]
        price = {scheme: _total(costs, picks) for scheme, picks in wholes.items()}
        loss = {scheme: max(_total(losses, picks), 1e-12) for scheme, picks in wholes.items()}
        tried: dict[Scheme, float] = {}
        for scheme in sorted(wholes, key=loss.__getitem__, reverse=True):
            others = [other for other in wholes if other != scheme]
            beaten = any(price[other] <= price[scheme] and loss[other] <= loss[scheme] for other in others)
            alike = any(loss[scheme] > _ALIKE * loss[other] for other in tried)
            if scheme.bits < _COARSE and not beaten and not alike:
                tried[scheme] = trial(wholes[scheme]) / loss[scheme]
        if not tried:
            return {}
        factors: dict[str, float] = {}
        for scheme in wholes:
            distances = {other: abs(math.log(loss[other] / loss[scheme])) for other in tried}
            factors[str(scheme)] = tried[min(distances, key=distances.__getitem__)]
        return factors

    def tell(self, outcome: Outcome, picks: Sequence[int], found: float) -> None:
        """Make the remarks: what was chosen, and what was refused and why."""
        units, wishes = self._units, self._wishes
        counts: Counter[str] = Counter()
        for unit, pick in zip(units, picks, strict=True):
            counts[str(unit.schemes[pick] or "float32")] += len(unit.weights)
        listed = "; ".join(f"{count} × {name}" for name, count in counts.most_common())
        what = "perplexity × " if self._context.decodes else "relative error "
        share = math.exp(found) if self._context.decodes else math.sqrt(max(found, 0.0))
        before, after = (
            sum(unit.times[pick] for unit, pick in zip(units, chosen, strict=True))
            for chosen in ([0] * len(picks), picks)
        )
        outcome.applied(
            "",
            f"chosen for {wishes.objective} within the budget: {listed}; expected {what}{share:.3f}, "
            f"products {after / before:.2f} of the time of float32",
            expected_loss=found,
            budget=self._budget,
            time_ratio=round(after / before, 4),
            **{name: count for name, count in counts.items()},
        )
        if self._rounder is not None and any(picks) and not self._context.trial_held_out:
            outcome.skipped(
                "",
                "the budget was kept on the inputs that the rounding was fitted to, others lose more: "
                "with evaluation= it is kept on inputs of their own",
            )
        for scheme in wishes.schemes:
            if str(scheme) in counts:
                continue
            pairs = [(self._time(w, scheme), self._time(w, None))
                     for unit in units for w in unit.weights if _obstacle(w, scheme) is None]  # fmt: skip
            if not pairs:
                outcome.skipped("", f"{scheme}: refused, no product can have it")
                continue
            ratio = sum(a for a, _ in pairs) / sum(b for _, b in pairs)
            why = "slower than float32" if ratio > 1 else "another scheme is better for the budget"
            outcome.skipped("", f"{scheme}: refused, {why} ({ratio:.2f} of its time on this machine)", time_ratio=ratio)

    def _fill(self, unit: Unit) -> None:
        """Options of a unit."""
        sizes = [weight.channels for weight in unit.weights]
        tensors = [tensor_of(weight.value) for weight in unit.weights]
        self._add(unit, None, sum(t.nbytes for t in tensors if t is not None), [0.0] * len(sizes))
        if not all(self._losses.knows(weight) for weight in unit.weights):
            return
        probed = [self._losses.of(weight, _own(weight, self._wishes.probe)) for weight in unit.weights]
        unit.probed = [loss.nearest if self._prober is None else loss.fitted for loss in probed]
        for scheme in self._wishes.schemes:
            own = [_own(weight, scheme) for weight in unit.weights]
            if any(_obstacle(weight, one) is not None for weight, one in zip(unit.weights, own, strict=True)):
                continue
            errors = [self._losses.of(weight, one).fitted for weight, one in zip(unit.weights, own, strict=True)]
            widths = [int(t.dtype.itemsize) for t in tensors if t is not None]
            size = sum(stored_bytes(n, k, one, width) for (n, k), one, width in zip(sizes, own, widths, strict=True))
            self._add(unit, scheme, size, errors)

    def _add(self, unit: Unit, scheme: Scheme | None, size: float, errors: list[float]) -> None:
        time = sum(self._time(weight, scheme) for weight in unit.weights)
        if scheme is not None and self._wishes.objective == "size" and time > _SLOWER * unit.times[0]:
            return
        unit.schemes.append(scheme)
        unit.times.append(time)
        unit.sizes.append(size)
        unit.errors.append(errors)

    def _time(self, weight: Weight, scheme: Scheme | None) -> float:
        """Seconds that the products by a weight take for a prompt and what is decoded after it."""
        n, k = weight.channels
        wishes = self._wishes
        generated = (wishes.prompt if wishes.generated is None else wishes.generated) if self._context.decodes else 0
        seconds = self._cost(wishes.prompt, k, n, scheme)
        if generated:
            seconds += generated * self._cost(1, k, n, scheme)
        return seconds * len(weight.products)

    def _loss(self, unit: Unit, errors: Sequence[float]) -> float:
        pairs = zip(errors, unit.weights, strict=True)
        return sum(error * self._worth[kind(weight)] for error, weight in pairs) if any(errors) else 0.0

    def _measure_worth(self) -> dict[str, float]:
        """What the model loses for the relative error of one layer, by kind of layer."""
        kinds: dict[str, list[Weight]] = {}
        errors: dict[int, float] = {}
        for unit in self._units:
            for weight, error in zip(unit.weights if unit.probed else (), unit.probed, strict=True):
                kinds.setdefault(kind(weight), []).append(weight)
                errors[id(weight)] = error
        groups = [([name], members) for name, members in kinds.items()]
        if len(kinds) > _KINDS:
            groups = [(list(kinds), [w for members in kinds.values() for w in members])]
        result: dict[str, float] = {}
        for done, (names, members) in enumerate(groups):
            self._context.progress(done, len(groups), f"what errors cost in {', '.join(names)}")
            lost = self._try({id(weight): self._wishes.probe for weight in members}, self._prober)
            total = sum(errors[id(weight)] for weight in members)
            result.update(dict.fromkeys(names, max(lost, 1e-12) / max(total, 1e-12)))
        return result

    def _try(self, schemes: Mapping[int, Scheme | None], rounder: Calibrated | None = None) -> float:
        """What the model loses with some of its weights rounded, to nearest or by ``rounder``."""
        names = {
            weight.value.name: _own(weight, scheme)
            for unit in self._units
            for weight in unit.weights
            if (scheme := schemes.get(id(weight))) is not None
        }

        def change(copy: Graph) -> None:
            found = [weight for weight in find(copy).weights if weight.obstacle is None]
            chosen = [(weight, names[weight.value.name]) for weight in found if weight.value.name in names]
            fitted = [weight for weight, scheme in chosen if scheme.format == "int" and not scheme.is_fine]
            rounding = Rounding(copy, self._context, Outcome(), Totals(), rounder, fitted)
            rounding.run(chosen)
            edit, order = rounding.edit, rounding.order
            inputs = [(weight.products, s.activations) for weight, s in chosen if s.activations is not None]
            for products, rounded in inputs:
                if not rounded.dynamic:
                    static.read_through(edit, products, lambda value: self._losses.span(value.name or ""), order)
            by_token = [node for products, rounded in inputs if rounded.dynamic for node in products]
            activations.quantize_inputs(edit, by_token, order)

        return self._trial(change)


def _total(options: Sequence[Sequence[float]], picks: Sequence[int]) -> float:
    """The sum of one option of each group."""
    return sum(values[pick] for values, pick in zip(options, picks, strict=True))


def _own(weight: Weight, scheme: Scheme) -> Scheme:
    """The scheme of a weight in a unit of it: one that a pass asked to keep precise has 8 bits."""
    raised = any(PRECISE in node.metadata_props for node in weight.products)
    return replace(NAMED["w8a16"], half_scales=scheme.half_scales) if raised and scheme.bits < 8 else scheme


def _units(weights: Sequence[Weight]) -> list[Unit]:
    """Weights that are joined by a common input, in graph order."""
    units: list[tuple[set[str], Unit]] = []
    for weight in weights:
        names = {node.inputs[0].name or "" for node in weight.products if node.inputs[0] is not None}
        joined = [entry for entry in units if entry[0] & names and not (weight.tables or entry[1].weights[0].tables)]
        if joined:
            joined[0][0].update(names)
            joined[0][1].weights.append(weight)
        else:
            units.append((names, Unit([weight])))
    return [unit for _, unit in units]


def _obstacle(weight: Weight, scheme: Scheme) -> str | None:
    if scheme.format != "int":
        return formats.obstacle(weight)
    if scheme.offsets:
        return offsets.obstacle(weight, scheme)
    return activations.obstacle(weight) if scheme.activations is not None else None
