"""What the model loses for the errors of each layer: kinds of layers tried, their losses divided by derivatives.

A trial of each single layer would take hours. A trial of all layers of a kind tells what they lose together. What each
layer loses by rounded weights, and by rounded inputs, derivatives tell to second order, for all layers at once (see
``Context.second_order``): a layer near the end can be worth ten times another of its kind. They follow the calibration
inputs, trials the evaluation inputs; so the trials say how much, and the derivatives where.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ....ir.errors import UnsupportedError
from ....ir.graph import tensor_of
from ...base import Change, Context, Noise, Outcome
from ..calibrated import Calibrated
from ..methods import rtn
from ..scheme import PER_CHANNEL, Scheme
from ..targets import Weight
from ..tensors import packs
from .sensitivity import Loss, Losses, kind, restored

_KINDS = 12
"""Kinds of layers that are tried one by one; with more, all are tried together."""
_TINY = 1e-12
Trial = Callable[[Mapping[int, Scheme], Calibrated | None], float]
"""What the model loses with schemes for some weights (by ``id``), rounded by something or to nearest."""
Steps = tuple[int, bool]
"""What decides the steps of rounded inputs: block of channels (0 for a whole token), or whether they are constants."""


@dataclass
class Worth:
    """What the model loses for the errors of weights, by their ``id``.

    Attributes:
        weights: for a relative squared error of 1 of the outputs of its products.
        inputs: by rounding what its products read; empty if nothing is known but the error of their outputs.
    """

    weights: dict[int, float] = field(default_factory=dict)
    inputs: dict[tuple[int, Steps], float] = field(default_factory=dict)

    def loss(self, weight: Weight, scheme: Scheme, error: Loss) -> float:
        """What the model is expected to lose by a weight in a scheme."""
        steps, own = _steps(scheme), self.weights[id(weight)]
        if steps is None:
            return error.fitted * own
        known = self.inputs.get((id(weight), steps))
        return error.fitted * own + (error.inputs * own if known is None else known)


def measure(
    weights: Sequence[Weight],
    probe: Callable[[Weight], Scheme],
    prober: Calibrated | None,
    schemes: Sequence[Scheme],
    errors: Losses,
    trial: Trial,
    context: Context,
    outcome: Outcome,
) -> Worth:
    """Try kinds of layers, and compute derivatives.

    Args:
        weights: whose inputs are known.
        probe: the scheme that a weight is tried with.
        prober: rounds it then; None if that is to nearest. ``errors`` learns what it leaves.
        schemes: that may be asked for later.
        errors: of the outputs.
        trial: of some weights in a scheme.
        context: gives derivatives.
        outcome: gets a remark if there are none.
    """
    if not weights:
        return Worth()
    kinds: dict[str, list[Weight]] = {}
    for weight in weights:
        kinds.setdefault(kind(weight), []).append(weight)
    groups = kinds if len(kinds) <= _KINDS else {"all layers": list(weights)}
    lost: list[float] = []
    for done, (name, members) in enumerate(groups.items()):
        context.progress(done, len(groups), f"what errors cost in {name}")
        lost.append(max(trial({id(weight): probe(weight) for weight in members}, prober), _TINY))
    if prober is not None:
        for weight in weights:
            if not probe(weight).is_fine:
                errors.learn(weight, probe(weight), prober.codes(weight, probe(weight)).figures)
    found = Worth()
    of = {id(weight): errors.of(weight, probe(weight)) for weight in weights}
    error = {key: max(each.nearest if prober is None else each.fitted, _TINY) for key, each in of.items()}
    derived = _second_order(weights, probe, prober, schemes, errors, context, outcome)
    for loss, members in zip(lost, groups.values(), strict=True):
        if derived is None:
            total = sum(error[id(weight)] + of[id(weight)].inputs for weight in members)
            found.weights.update({id(weight): loss / total for weight in members})
            continue
        mine = {id(weight) for weight in members}
        by_weights = sum(derived.weights[key] for key in mine)
        by_inputs = sum(derived.loss(weight, probe(weight), Loss(0.0, 0.0, 0.0)) for weight in members)
        # Errors of inputs are noise, and independent: derivatives know what that costs. Those of weights are the same
        # for all tokens and go together, so that the model may lose more than the sum; what it loses more is theirs.
        less = min(loss / max(by_weights + by_inputs, _TINY), 1.0)
        more = max((loss - by_inputs) / max(by_weights, _TINY), less)
        found.weights.update({key: more * derived.weights[key] / error[key] for key in mine})
        found.inputs.update({key: less * value for key, value in derived.inputs.items() if key[0] in mine})
    return found


def _second_order(
    weights: Sequence[Weight],
    probe: Callable[[Weight], Scheme],
    prober: Calibrated | None,
    schemes: Sequence[Scheme],
    errors: Losses,
    context: Context,
    outcome: Outcome,
) -> Worth | None:
    """What the model loses by each weight as it is tried, and by its rounded inputs; None without derivatives."""
    if context.second_order is None:
        return None
    changes = [
        Change(weight.value, int(weight.layout == "kn"), _difference(weight, probe(weight), prober))
        for weight in weights
    ]
    wanted = {_steps(scheme) for scheme in [*schemes, *map(probe, weights)]} - {None}
    places = [(weight, steps) for weight in weights for steps in sorted(filter(None, wanted))]
    noises = [
        Noise(weight.products, block, float(errors.span(weight).scale) if constant else None)
        for weight, (block, constant) in places
    ]
    try:
        changed, rounded = context.second_order(changes, noises)
    except UnsupportedError as error:
        outcome.skipped("", f"layers of a kind count alike, at whatever depth: {error}")
        return None
    inputs = {(id(weight), steps): loss for (weight, steps), loss in zip(places, rounded, strict=True)}
    return Worth({id(weight): loss for weight, loss in zip(weights, changed, strict=True)}, inputs)


def _steps(scheme: Scheme) -> Steps | None:
    """What decides the steps of the inputs of products in a scheme; None if these are not rounded."""
    if scheme.format == "int" and scheme.group_size != PER_CHANNEL:
        # The kernel for weights in groups rounds its input, too, by the same groups.
        return None if scheme.float_inputs else (scheme.group_size, False)
    return None if scheme.activations is None else (0, not scheme.activations.dynamic)


def _difference(weight: Weight, scheme: Scheme, prober: Calibrated | None) -> Callable[[], rtn.Array]:
    """Computes by how much a weight changes when it is rounded."""

    def compute() -> rtn.Array:
        tensor = tensor_of(weight.value)
        assert tensor is not None
        array, turned, k = tensor.numpy(), weight.layout == "kn", weight.channels[1]
        matrix = rtn.as_float32(array.T if turned else array)
        if prober is None or scheme.is_fine:
            found = restored(matrix, scheme)
        else:
            codes = prober.codes(weight, scheme).codes
            if packs(weight, scheme):
                codes = rtn.Codes(rtn.unpack(codes.codes, k), codes.scales, codes.zero_points)
            found = rtn.dequantize(codes, scheme, k)
        found = found - matrix
        return np.ascontiguousarray(found.T if turned else found).reshape(array.shape)

    return compute
