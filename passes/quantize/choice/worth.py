"""What the model loses for the relative error of each layer: kinds of layers tried, their losses divided by depth.

A trial of each single layer would take hours. A trial of all layers of a kind tells what they lose together; how that
is divided among them derivatives tell, for all layers at once (see ``Context.second_order``): a layer near the end
can be worth ten times another of its kind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ....ir.errors import UnsupportedError
from ....ir.graph import tensor_of
from ...base import Change, Context, Outcome
from ..calibrated import Calibrated
from ..methods import rtn
from ..scheme import Scheme
from ..targets import Weight
from ..tensors import packs
from .sensitivity import Losses, kind, restored

_KINDS = 12
"""Kinds of layers that are tried one by one; with more, all are tried together."""
_TINY = 1e-12
Trial = Callable[[Mapping[int, Scheme], Calibrated | None], float]
"""What the model loses with schemes for some weights (by ``id``), rounded by something or to nearest."""


def measure(
    weights: Sequence[Weight],
    probe: Callable[[Weight], Scheme],
    prober: Calibrated | None,
    errors: Losses,
    trial: Trial,
    context: Context,
    outcome: Outcome,
) -> dict[int, float]:
    """What the model loses for a relative squared error of 1 of the outputs of each weight's products, by ``id``.

    Args:
        weights: whose inputs are known.
        probe: the scheme that a weight is tried with.
        prober: rounds it then; None if that is to nearest. ``errors`` learns what it leaves.
        errors: of the outputs.
        trial: of some weights in a scheme.
        context: gives derivatives.
        outcome: gets a remark if there are none.
    """
    kinds: dict[str, list[Weight]] = {}
    for weight in weights:
        kinds.setdefault(kind(weight), []).append(weight)
    groups = {name: members for name, members in kinds.items()}
    if len(kinds) > _KINDS:
        groups = {"all layers": list(weights)}
    lost: list[float] = []
    for done, (name, members) in enumerate(groups.items()):
        context.progress(done, len(groups), f"what errors cost in {name}")
        lost.append(trial({id(weight): probe(weight) for weight in members}, prober))
    for weight in weights if prober is not None else ():
        if not probe(weight).is_fine:
            errors.learn(weight, probe(weight), prober.codes(weight, probe(weight)).figures)
    own = [errors.of(weight, probe(weight)) for weight in weights]
    error = {
        id(weight): max(each.nearest if prober is None else each.fitted, _TINY)
        for weight, each in zip(weights, own, strict=True)
    }
    shares = _second_order(weights, probe, prober, context, outcome) or error
    result: dict[int, float] = {}
    for loss, members in zip(lost, groups.values(), strict=True):
        total = sum(max(shares[id(weight)], _TINY) for weight in members)
        for weight in members:
            share = max(shares[id(weight)], _TINY) / total
            result[id(weight)] = max(loss, _TINY) * share / error[id(weight)]
    return result


def _second_order(
    weights: Sequence[Weight],
    probe: Callable[[Weight], Scheme],
    prober: Calibrated | None,
    context: Context,
    outcome: Outcome,
) -> dict[int, float] | None:
    """What the model loses by each weight alone, as it is tried; None where there are no derivatives."""
    changes = [
        Change(weight.value, int(weight.layout == "kn"), _difference(weight, probe(weight), prober))
        for weight in weights
    ]
    try:
        found = None if context.second_order is None else context.second_order(changes)
    except UnsupportedError as error:
        outcome.skipped("", f"layers of a kind count alike, at whatever depth: {error}")
        return None
    return None if found is None else {id(weight): loss for weight, loss in zip(weights, found, strict=True)}


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
