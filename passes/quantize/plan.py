"""Which weights of a graph get which scheme, and what that came to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import onnx_ir

from ...ir.graph import Graph, is_op, module_path
from .. import selectors
from ..base import Outcome
from ..precise import PRECISE
from . import formats, offsets
from .inputs import activations, static
from .replace import where
from .scheme import Scheme
from .targets import Targets, Weight


@dataclass(frozen=True)
class Plan:
    """Which scheme each product gets, as the user selected.

    Attributes:
        include: selectors of what to quantize; everything if empty.
        exclude: selectors of what to leave float.
        overrides: schemes of what a selector matches, first match wins; None leaves it float.
        base: the scheme of all others.
    """

    include: Sequence[selectors.Selector]
    exclude: Sequence[selectors.Selector]
    overrides: Sequence[tuple[selectors.Selector, Scheme | None]]
    base: Scheme

    def check(self, nodes: Sequence[onnx_ir.Node]) -> None:
        """Raise SelectorError for a selector that matches none of ``nodes``."""
        used = [*self.include, *self.exclude, *(selector for selector, _ in self.overrides)]
        selectors.require_matches(used, nodes, "products and embeddings")

    def scheme(self, users: Sequence[onnx_ir.Node]) -> tuple[Scheme | None, str | None]:
        """The scheme of a weight with these users, or None and the reason."""
        wanted = [self._wants(node) for node in users]
        if not any(wanted):
            return None, "not selected"
        if not all(wanted):
            other = users[wanted.index(False)]
            return None, f"shared with {module_path(other)}, which is not selected"
        for selector, scheme in self.overrides:
            if any(selector.matches(node) for node in users):
                return scheme, None if scheme else f"override {selector.text!r} leaves it float"
        return self.base, None

    def overridden(self, users: Sequence[onnx_ir.Node]) -> bool:
        """Whether an override says what scheme a weight with these users gets."""
        return any(selector.matches(node) for selector, _ in self.overrides for node in users)

    def split_others(
        self, targets: Targets, graph: Graph, totals: Totals
    ) -> tuple[list[onnx_ir.Node], list[tuple[onnx_ir.Node, str]]]:
        """Of products without a matrix: the convolutions to quantize, and the others with the reason why not."""
        convolutions: list[onnx_ir.Node] = []
        others: list[tuple[onnx_ir.Node, str]] = []
        for node, reason in targets.others:
            scheme, left = self.scheme([node])
            on_codes = scheme is not None and scheme.activations is not None and not scheme.activations.dynamic
            if on_codes and is_op(node, *static.OPERATORS):
                totals.found += 1
                left = static.obstacle(node, graph)
                if left is None:
                    convolutions.append(node)
                    continue
            others.append((node, left or reason))
        return convolutions, others

    def _wants(self, node: onnx_ir.Node) -> bool:
        if self.include and selectors.first(self.include, node) is None:
            return False
        return selectors.first(self.exclude, node) is None


@dataclass
class Totals:
    """What was quantized, for the last remark."""

    found: int = 0
    products: int = 0
    tables: int = 0
    weights: int = 0
    bytes: float = 0
    left_weights: int = 0

    def add(self, weight: Weight, figures: Mapping[str, Any]) -> None:
        """Count a weight."""
        self.products += len(weight.products)
        self.tables += len(weight.tables)
        self.weights += figures["weights"]
        self.bytes += figures["bytes"]

    def report(self, outcome: Outcome) -> None:
        """Make the remark."""
        values = {
            "products": self.products,
            "products_found": self.found,
            "embeddings": self.tables,
            "weights": self.weights,
            "bytes": int(self.bytes),
            "bits_per_weight": round(self.bytes * 8 / self.weights, 4) if self.weights else None,
            "left_float": self.left_weights,
        }
        text = f"{self.products} of {self.found} products with constant weights and {self.tables} embeddings quantized"
        if self.weights:
            bits = values["bits_per_weight"]
            outcome.applied("", f"{text}, {bits} bits per weight with scales, zero points and padding", **values)
        else:
            outcome.missed("", f"nothing was quantized: {text}", **values)


def select(targets: Targets, plan: Plan, outcome: Outcome, totals: Totals) -> list[tuple[Weight, Scheme]]:
    """The weights that a plan quantizes, with their schemes; of each other one a remark says why not."""
    chosen: list[tuple[Weight, Scheme]] = []
    for weight in targets.weights:
        totals.found += len(weight.products)
        scheme, reason = (None, weight.obstacle) if weight.obstacle is not None else plan.scheme(weight.users)
        if scheme is not None:
            scheme = _fitting(weight, scheme, outcome)
            reason = _obstacle(weight, scheme)
        if scheme is not None and reason is None:
            chosen.append((weight, scheme))
            continue
        assert reason is not None
        totals.left_weights += weight.size
        outcome.skipped(where(weight), reason, weight=weight.value.name, weights=weight.size)
    return chosen


def _fitting(weight: Weight, scheme: Scheme, outcome: Outcome) -> Scheme:
    """``scheme`` as far as a weight can have it."""
    if scheme.bits < 8 and any(PRECISE in node.metadata_props for node in weight.products):
        scheme = replace(scheme, bits=8, float_inputs=False)
    if scheme.offsets and (why := offsets.obstacle(weight, scheme)) is not None:
        scheme = replace(scheme, offsets=False, symmetric=False)
        outcome.missed(where(weight), f"no offsets, {scheme}: {why}", weight=weight.value.name)
    return scheme


def _obstacle(weight: Weight, scheme: Scheme) -> str | None:
    """Why no kernel takes a weight in this scheme, or None."""
    reason = formats.obstacle(weight) if scheme.format != "int" else None
    return activations.obstacle(weight) if reason is None and scheme.activations else reason
