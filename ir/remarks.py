"""Remarks: what a frontend, pass or backend did to a node, nearly did, or left alone, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["applied", "missed", "skipped"]


@dataclass(frozen=True)
class Remark:
    """One thing worth telling the user.

    Attributes:
        kind: ``applied`` (a rewrite was made), ``missed`` (it nearly matched) or ``skipped`` (left alone on purpose).
        node: module path or name of the node; empty where it concerns the whole graph.
        reason: one sentence.
        values: figures that belong to it, JSON-serializable.
    """

    kind: Kind
    node: str
    reason: str
    values: Mapping[str, Any] = field(default_factory=dict)
