"""Which of several variants is taken, and what is said of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from burnish.backends.onnxruntime.choice import Choices
from burnish.ir.graph import Graph

TEXT = "g (float[B,4] x) => (float[B,4] y) { y = Neg (x) }"
VARIANTS = {"usual": lambda small: None, "other": lambda small: None}


class Clock:
    """Gives fixed seconds, and counts how often it is asked."""

    def __init__(self, *seconds: float) -> None:
        self.seconds, self.asked = seconds, 0

    def __call__(self, models: Sequence[Graph]) -> list[float] | None:
        self.asked += 1
        return list(self.seconds) or None


def picked(graph: Graph, clock: Any, times: int = 1) -> tuple[str, Choices]:
    choices = Choices(graph, clock)
    return [choices.pick([graph.graph[0]], VARIANTS, "usual", "like") for _ in range(times)][-1], choices


def test_the_faster_one_by_more_than_noise(parse: Any) -> None:
    graph = parse(TEXT)
    assert picked(graph, Clock(1.0, 0.98))[0] == "usual"
    name, choices = picked(graph, Clock(1.0, 0.5))
    (remark,) = choices.remarks
    assert name == "other" and remark.kind == "applied"
    assert remark.reason == "other for [B, 4]: usual takes 2.00 times the time"
    assert remark.values == {"usual": 1000000.0, "other": 500000.0}


def test_places_that_are_alike_are_timed_once_and_all_told(parse: Any) -> None:
    clock = Clock(1.0, 2.0)
    _, choices = picked(parse(TEXT), clock, times=3)
    assert clock.asked == 1 and len(choices.remarks) == 3


def test_what_was_not_timed_goes_by_the_rule_and_says_so(parse: Any) -> None:
    name, choices = picked(parse(TEXT), Clock())
    assert name == "usual" and choices.remarks[0].kind == "skipped" and "rule of thumb" in choices.remarks[0].reason
    name, choices = picked(parse(TEXT), None)
    assert name == "usual" and not choices.remarks and not choices.measured
