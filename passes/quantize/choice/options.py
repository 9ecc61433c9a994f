"""What each product may be rounded by, and what that costs: time, bytes, and loss of the model, all measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from ....ir.graph import Graph, tensor_of
from ...base import Context, Outcome
from ...precise import PRECISE
from .. import formats, offsets
from ..calibrated import Calibrated
from ..inputs import activations, static
from ..plan import Totals
from ..rounding import Rounding
from ..scheme import NAMED, Scheme
from ..targets import Weight, find
from ..tensors import stored_bytes
from .sensitivity import Losses
from .worth import measure

_DEFAULT = ("w8a16", "w4a16", "w8a8", "w8a8_static", "nf4")
_FINE = replace(NAMED["w4a16"], group_size=32)
_FINE_8 = replace(NAMED["w8a16"], group_size=32)
"""Its kernel rounds inputs by groups of 32, too: half of what that costs in groups of 64."""
_OFFSETS = replace(_FINE, symmetric=True, offsets=True)
"""Loses nothing of weights that a format with offsets has rounded before."""
_PROBE = NAMED["w4a16"]
"""What a kind of layer is rounded by to see what its errors cost the model."""
_SLOWER = 1.5
"""A scheme that takes longer than float32 by more than this factor does not pay, even for its size. Times of small
products on a busy machine are no better than a third."""


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
    def fast(self) -> bool:
        """Whether the model is to be fastest, not smallest."""
        return self.objective == "time"

    @property
    def schemes(self) -> list[Scheme]:
        """What may be chosen."""
        schemes = [NAMED[name] for name in self.candidates or _DEFAULT]
        if not self.candidates:
            schemes += [_FINE, _OFFSETS, _FINE_8]
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
        losses: what the model is expected to lose by each; by float32 nothing.
    """

    weights: list[Weight]
    schemes: list[Scheme | None] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    sizes: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)


class Options:
    """The options of all units, with what they cost, and trials of choices among them.

    Args:
        weights: that may be quantized, each with products; nothing is changed.
        context: gives statistics, costs and trials; :func:`~.auto.require` has seen it.
        wishes: of the user.
        rounder: rounds weights as they will be rounded; None if that is to nearest.
        outcome: gets a remark if less can be known.

    Attributes:
        units: in graph order.
        wishes: of the user.
        costs: what is to be least, of each option of each unit: seconds or bytes.
        losses: what the model is expected to lose by each option of each unit; of float32 nothing.
        tried: what the model really lost by the choices that were tried.
    """

    def __init__(
        self,
        weights: Sequence[Weight],
        context: Context,
        wishes: Wishes,
        rounder: Calibrated | None,
        outcome: Outcome,
    ) -> None:
        assert context.cost is not None and context.trial is not None
        self._context, self._cost, self._trial = context, context.cost, context.trial
        self.wishes = wishes
        self._rounder = rounder
        # Codes of a scheme that is likely to be chosen are of use later.
        likely = not wishes.fast or context.decodes
        prober = rounder if likely and wishes.probe in wishes.schemes else None
        self.units = _units(weights)
        self._errors = Losses([weight for unit in self.units for weight in unit.weights], context, rounder)
        known = [weight for unit in self.units if self._knows(unit) for weight in unit.weights]
        schemes, errors = wishes.schemes, self._errors

        def probe(weight: Weight) -> Scheme:
            return own_scheme(weight, wishes.probe)

        self._worth = measure(known, probe, prober, schemes, errors, self._try, context, outcome)
        for done, unit in enumerate(self.units):
            context.progress(done, len(self.units), "measuring schemes")
            self._fill(unit)
        self.costs = [unit.times if wishes.fast else unit.sizes for unit in self.units]
        self.losses = [unit.losses for unit in self.units]
        self.tried: dict[tuple[int, ...], float] = {}

    def try_picks(self, picks: Sequence[int]) -> float:
        """What the model loses with an option of each unit, rounded as it will be."""
        pairs = zip(self.units, picks, strict=True)
        schemes = {id(weight): unit.schemes[pick] for unit, pick in pairs for weight in unit.weights}
        lost = self.tried[tuple(picks)] = self._try(schemes, self._rounder)
        return lost

    def time(self, weight: Weight, scheme: Scheme | None) -> float:
        """Seconds that the products by a weight take for a prompt and what is decoded after it."""
        n, k = weight.channels
        wishes = self.wishes
        generated = (wishes.prompt if wishes.generated is None else wishes.generated) if self._context.decodes else 0
        seconds = self._cost(wishes.prompt, k, n, scheme)
        if generated:
            seconds += generated * self._cost(1, k, n, scheme)
        return seconds * len(weight.products)

    def _knows(self, unit: Unit) -> bool:
        """Whether anything is known of the inputs of all its weights."""
        return all(self._errors.knows(weight) for weight in unit.weights)

    def _fill(self, unit: Unit) -> None:
        """Options of a unit."""
        sizes = [weight.channels for weight in unit.weights]
        tensors = [tensor_of(weight.value) for weight in unit.weights]
        self._add(unit, None, sum(t.nbytes for t in tensors if t is not None), 0.0)
        if not self._knows(unit):
            return
        for scheme in self.wishes.schemes:
            own = [own_scheme(weight, scheme) for weight in unit.weights]
            if any(obstacle(weight, one) is not None for weight, one in zip(unit.weights, own, strict=True)):
                continue
            pairs = list(zip(unit.weights, own, strict=True))
            loss = sum(self._worth.loss(weight, one, self._errors.of(weight, one)) for weight, one in pairs)
            widths = [int(t.dtype.itemsize) for t in tensors if t is not None]
            size = sum(stored_bytes(n, k, one, width) for (n, k), one, width in zip(sizes, own, widths, strict=True))
            self._add(unit, scheme, size, loss)

    def _add(self, unit: Unit, scheme: Scheme | None, size: float, loss: float) -> None:
        time = sum(self.time(weight, scheme) for weight in unit.weights)
        if scheme is not None and not self.wishes.fast and time > _SLOWER * unit.times[0]:
            return
        unit.schemes.append(scheme)
        unit.times.append(time)
        unit.sizes.append(size)
        unit.losses.append(loss)

    def _try(self, schemes: Mapping[int, Scheme | None], rounder: Calibrated | None = None) -> float:
        """What the model loses with some of its weights rounded, to nearest or by ``rounder``."""
        names = {
            weight.value.name: own_scheme(weight, scheme)
            for unit in self.units
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
                    static.read_through(edit, products, lambda value: self._errors.span_of(value.name or ""), order)
            by_token = [node for products, rounded in inputs if rounded.dynamic for node in products]
            activations.quantize_inputs(edit, by_token, order)

        return self._trial(change)


def own_scheme(weight: Weight, scheme: Scheme) -> Scheme:
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


def obstacle(weight: Weight, scheme: Scheme) -> str | None:
    """Why a weight cannot have a scheme, or None."""
    if scheme.format != "int":
        return formats.obstacle(weight)
    if scheme.offsets:
        return offsets.obstacle(weight, scheme)
    return activations.obstacle(weight) if scheme.activations is not None else None
