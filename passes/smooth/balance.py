"""What all smoothing passes do: find groups, measure their inputs, fold the scales that a method chooses, tell."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir

from ...ir.graph import Graph, module_path
from ...ir.rewrite import Editor
from ..base import Context, Outcome
from . import insertion, measured
from .fold import fold
from .groups import Group, find
from .products import Array

Choose = Callable[[Group, measured.Inputs], "tuple[Array | None, dict[str, Any]]"]
"""Scales of a group [group.size], or None to leave it alone, and figures for the report."""


def balance(graph: Graph, context: Context, rule: str, choose: Choose, lone: Choose | None = None) -> Outcome:
    """Scale every group as ``choose`` says; say of each product in none what stands in the way.

    Args:
        graph: rewritten in place.
        context: gives the statistics.
        rule: what the scaling is called.
        choose: scales of a group.
        lone: scales of products in no group, which a multiplication before them takes.

    Raises:
        CalibrationError: there are no calibration inputs, or they give no statistics.
    """
    outcome, found = Outcome(), find(graph)
    alone = insertion.candidates(found) if lone is not None else []
    inputs = measured.Inputs([*found.groups, *alone], context)
    edit = Editor(graph, rule)
    taken: set[onnx_ir.Node] = set()
    # Before the groups: the weights of a product that is at the head of one are read here as they came.
    for group in alone:
        assert lone is not None
        scales, figures = lone(group, inputs)
        if scales is None:
            reason = "a multiplication before its products would not lower their error enough to pay"
            outcome.skipped(module_path(group.node), reason, **figures)
            continue
        told = figures | _spreads(group, inputs, scales)
        insertion.insert(edit, group, scales)
        outcome.count(f"{rule}, by a multiplication")
        what = f"a multiplication before {len(group.consumers)} products takes their scales: nothing before it can"
        outcome.applied(module_path(group.node), what, **told)
        taken.update(consumer.node for consumer in group.consumers)
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
        told = figures | _spreads(group, inputs, scales)
        outcome.applied(where, f"{len(group.consumers)} products take up its scales", **told)
    others = [(node, block) for node, block in found.others if node not in taken]
    measured.tell_others(outcome, replace(found, others=others), scaled=bool(taken))
    return outcome


def _spreads(group: Group, inputs: measured.Inputs, scales: Array) -> dict[str, Any]:
    activations = measured.largest(group, inputs)
    return {
        "channels": int(group.free.sum()),
        "spread_before": _spread(activations),
        "spread_after": _spread(activations / scales),
    }


def _spread(largest: Array) -> float | None:
    """The largest channel over the middle one: what one scale for all channels has to span."""
    alive = largest[largest > 0]
    return float(f"{alive.max() / np.median(alive):.3g}") if alive.size else None
