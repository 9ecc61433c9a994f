"""What a pass is: a frozen dataclass whose fields are its options, and the outcome it must report."""

from __future__ import annotations

import abc
import enum
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ..ir.graph import Graph
from ..ir.remarks import Remark


class Stage(enum.IntEnum):
    """When a pass runs; a list of passes must not go backwards.

    Fusing before quantizing would hide the matrices from the quantizer, and so on.
    """

    CANONICALIZE = 0
    RECOVER = 1
    PRUNE = 2
    SMOOTH = 3
    SPARSIFY = 4
    QUANTIZE = 5
    ATTENTION = 6
    FUSE = 7


@dataclass
class Outcome:
    """What a pass did.

    Attributes:
        rewrites: number of rewrites by rule name.
        remarks: what was applied, nearly applied and left alone, with reasons.
    """

    rewrites: dict[str, int] = field(default_factory=dict)
    remarks: list[Remark] = field(default_factory=list)

    @property
    def changed(self) -> bool:
        """Whether the graph was changed at all."""
        return any(self.rewrites.values())

    def count(self, rule: str, times: int = 1) -> None:
        """Record ``times`` rewrites by ``rule``."""
        self.rewrites[rule] = self.rewrites.get(rule, 0) + times

    def applied(self, node: str, reason: str, **values: Any) -> None:
        """Record a rewrite worth telling."""
        self.remarks.append(Remark("applied", node, reason, values))

    def missed(self, node: str, reason: str, **values: Any) -> None:
        """Record a near miss."""
        self.remarks.append(Remark("missed", node, reason, values))

    def skipped(self, node: str, reason: str, **values: Any) -> None:
        """Record something left alone on purpose."""
        self.remarks.append(Remark("skipped", node, reason, values))

    def merge(self, other: Outcome) -> None:
        """Add another outcome to this one."""
        for rule, times in other.rewrites.items():
            self.count(rule, times)
        self.remarks.extend(other.remarks)


@dataclass(frozen=True)
class Context:
    """What a pass may ask besides the graph.

    Attributes:
        target: where the result is to run; passes refuse what does not pay there.
        calibration: the user's inputs, or None; a pass that needs them and has none raises an error.
        progress: called with (done, total, what) during long work.
    """

    target: str = "onnxruntime"
    calibration: Iterable[Mapping[str, Any]] | None = None
    progress: Callable[[int, int, str], None] = lambda done, total, what: None


@dataclass(frozen=True)
class Pass(abc.ABC):
    """A rewrite of a whole graph, in place. Subclasses are frozen dataclasses; their fields are their options."""

    stage: ClassVar[Stage]

    @abc.abstractmethod
    def run(self, graph: Graph, context: Context) -> Outcome:
        """Rewrite ``graph`` in place and say what was done.

        A pass that changes nothing returns an outcome with a remark that says why.
        """
