"""What all smoothing passes do: find groups, measure their inputs, fold the scales that a method chooses, tell."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ...ir.graph import Graph, module_path
from ...ir.rewrite import Editor
from ..base import Context, Outcome
from . import measured
from .fold import fold
from .groups import Group, find
from .products import Array

Choose = Callable[[Group, measured.Inputs], "tuple[Array | None, dict[str, Any]]"]
"""Scales of a group [group.size], or None to leave it alone, and figures for the report."""


def balance(graph: Graph, context: Context, rule: str, choose: Choose) -> Outcome:
    """Scale every group as ``choose`` says; say of each product in none what stands in the way.

    Raises:
        CalibrationError: there are no calibration inputs, or they give no statistics.
    """
    outcome, found = Outcome(), find(graph)
    inputs = measured.Inputs(found.groups, context)
    edit = Editor(graph, rule)
    for done, group in enumerate(found.groups):
        context.progress(done, len(found.groups), rule)
        where = module_path(group.node)
        scales, figures = choose(group, inputs)
        if scales is None:
            outcome.skipped(where, "scaling does not lower the error of its products", **figures)
            continue
        scales = measured.only_free(group, scales)
        fold(edit, group, scales)
        outcome.count(rule)
        activations = measured.largest(group, inputs)
        outcome.applied(
            where,
            f"{len(group.consumers)} products take up its scales",
            **figures,
            channels=int(group.free.sum()),
            spread_before=_spread(activations),
            spread_after=_spread(activations / scales),
        )
    measured.tell_others(outcome, found)
    return outcome


def _spread(largest: Array) -> float | None:
    """The largest channel over the middle one: what one scale for all channels has to span."""
    alive = largest[largest > 0]
    return float(f"{alive.max() / np.median(alive):.3g}") if alive.size else None
