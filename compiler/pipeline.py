"""Runs a list of passes over a graph: order, checks between passes, timing, and what to say when one fails."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

from ..ir.errors import BurnishError, ModelError, OptionError, PassError, VerificationError, nearest
from ..ir.graph import Graph, all_nodes
from ..passes.base import Context, Outcome, Pass
from ..passes.spec import check_order, format_pass

Verify = Literal["off", "structure", "numerics"]


@dataclass
class PassRecord:
    """What one pass did.

    Attributes:
        spec: the pass and its options.
        seconds: time it took, without the checks after it.
        outcome: its rewrites and remarks.
        nodes_before: number of nodes before.
        nodes_after: number of nodes after.
        error: relative error of the outputs against the graph before the pass; None if it was not measured.
    """

    spec: str
    seconds: float
    outcome: Outcome
    nodes_before: int
    nodes_after: int
    error: float | None = None


class Callback(Protocol):
    """Sees the graph before the first pass, after each pass, and after the last."""

    def begin(self, graph: Graph) -> None:
        """Before the first pass."""

    def after(self, item: Pass, graph: Graph, record: PassRecord) -> None:
        """After each pass."""

    def end(self, graph: Graph) -> None:
        """After the last pass."""


def check_mode(verify: str) -> Verify:
    """``verify`` if it is one of the modes.

    Raises:
        OptionError: it is not.
    """
    modes: tuple[Verify, ...] = get_args(Verify)
    for mode in modes:
        if verify == mode:
            return mode
    raise OptionError(f"verify={verify!r} is not a way to verify", fix=nearest(str(verify), get_args(Verify)))


def run_passes(
    graph: Graph, passes: Sequence[Pass], context: Context, callbacks: Sequence[Callback] = ()
) -> list[PassRecord]:
    """Run ``passes`` over ``graph`` in place.

    Args:
        graph: the graph to rewrite.
        passes: in the order they run.
        context: what the passes may ask.
        callbacks: called before the first pass, after each, and after the last.

    Raises:
        OptionError: the list goes backwards; no pass has run.
        PassError: a pass failed or left a graph that a callback refuses; names the passes that ran before it.
    """
    check_order(passes)
    records: list[PassRecord] = []
    for callback in callbacks:
        try:
            callback.begin(graph)
        except VerificationError as error:
            raise ModelError(
                f"the imported graph is not valid: {error.what}",
                where=error.where,
                fix="repair the model; if it is right, report this with the model",
            ) from error
    for at, item in enumerate(passes):
        spec = format_pass(item)
        context.progress(at, len(passes), spec)
        before = sum(1 for _ in all_nodes(graph))
        start = time.perf_counter()
        try:
            outcome = item.run(graph, context)
        except BurnishError:
            raise
        except MemoryError:
            raise
        except Exception as error:
            raise PassError(
                f"the pass {spec} failed: {type(error).__name__}: {error}",
                where=_history(records),
                fix="leave the pass out, and report this with the model",
            ) from error
        seconds = time.perf_counter() - start
        record = PassRecord(spec, seconds, outcome, before, sum(1 for _ in all_nodes(graph)))
        for callback in callbacks:
            try:
                callback.after(item, graph, record)
            except VerificationError as error:
                raise PassError(
                    f"the pass {spec} broke the graph: {error.what}",
                    where="; ".join(filter(None, [error.where, _history(records)])),
                    fix="leave the pass out, and report this with the model",
                ) from error
        records.append(record)
    for callback in callbacks:
        callback.end(graph)
    if passes:
        context.progress(len(passes), len(passes), "passes")
    return records


def _history(records: Sequence[PassRecord]) -> str:
    if not records:
        return "no pass ran before it"
    return "ran before it: " + ", ".join(record.spec for record in records)
