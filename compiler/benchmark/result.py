"""What a benchmark compares, and the figures that come out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from .machine import describe_machine

if TYPE_CHECKING:
    from rich.table import Table

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Side:
    """One of the things compared.

    Attributes:
        name: what it is called in the result.
        source: an ONNX file, a saved folder, or with ``eager`` a factory ``module:function`` or
            ``module:function:argument`` of a PyTorch module, or of an object that runs something else.
        eager: whether ``source`` is a factory.
        streams: shares of a batch that run side by side, of a file, see :func:`burnish.compile`.
    """

    name: str
    source: str
    eager: bool = False
    streams: int | None = None


@dataclass(frozen=True)
class Scenario:
    """What is measured.

    Attributes:
        name: what it is called in the result.
        kind: ``run`` (a call on given inputs), ``prefill`` (``tokens`` at once) or ``decode`` (``tokens`` one by one,
            each behind the cache of all before it; the first behind ``past``).
    """

    name: str
    kind: Literal["run", "prefill", "decode"]
    tokens: int = 0
    past: int = 0


def prefill(tokens: int = 128) -> Scenario:
    """A first pass over ``tokens`` tokens that returns the logits of all."""
    return Scenario(f"prefill {tokens}", "prefill", tokens)


def decode(past: int = 128, tokens: int = 16) -> Scenario:
    """One token at a time, with ``past`` tokens in the cache on average over ``tokens`` steps."""
    return Scenario(f"decode, {past} past", "decode", tokens, max(past - tokens // 2, 1))


@dataclass(frozen=True)
class Timing:
    """Seconds of one side in one scenario, one figure a round."""

    rounds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median of the rounds, in seconds."""
        return float(np.median(self.rounds))

    @property
    def best(self) -> float:
        """The fastest round, in seconds."""
        return min(self.rounds)

    @property
    def spread(self) -> float:
        """Distance between the quartiles of the rounds, in seconds."""
        low, high = np.percentile(self.rounds, [25, 75])
        return float(high - low)


@dataclass
class Result:
    """Figures of all sides.

    Attributes:
        sides: what was compared; the first is what ratios refer to.
        timings: by scenario name, then by side name.
        memory: highest resident memory of each side's process, in bytes.
        size: bytes of each side's model on disk (0 for a module).
        machine: where it was measured.
        difference: largest difference from the first side's outputs, as a part of their range, by side; only where
            inputs were run.
    """

    sides: list[Side]
    threads: int
    timings: dict[str, dict[str, Timing]] = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)
    size: dict[str, int] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=describe_machine)
    difference: dict[str, float] = field(default_factory=dict)

    def ratio(self, scenario: str, side: str, base: str | None = None) -> float:
        """How many times as long ``side`` takes as ``base`` (default: the first side): median over paired rounds."""
        timings = self.timings[scenario]
        base = base or self.sides[0].name
        pairs = zip(timings[side].rounds, timings[base].rounds, strict=True)
        return float(np.median([one / other for one, other in pairs]))

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON holds it; times in milliseconds, sources without their folders."""
        figures = {
            scenario: {
                name: {
                    "median_ms": round(timing.median * 1e3, 4),
                    "iqr_ms": round(timing.spread * 1e3, 4),
                    "min_ms": round(timing.best * 1e3, 4),
                    "ratio": round(self.ratio(scenario, name), 4),
                    "rounds_ms": [round(seconds * 1e3, 4) for seconds in timing.rounds],
                }
                for name, timing in timings.items()
            }
            for scenario, timings in self.timings.items()
        }
        return {
            "sides": {side.name: asdict(side) | {"source": Path(side.source).name} for side in self.sides},
            "threads": self.threads,
            "scenarios": figures,
            "peak_memory_bytes": self.memory,
            "model_bytes": self.size,
            "difference": self.difference,
            "machine": self.machine,
        }

    def table(self) -> Table:
        """A table for a terminal: milliseconds (quartile distance), ratio to the first side, memory and size."""
        from rich.table import Table

        machine = self.machine
        table = Table(caption=f"{machine['cpu']}, {machine['cores']} cores, {self.threads} threads", title="benchmark")
        table.add_column("")
        for side in self.sides:
            table.add_column(side.name, justify="right")
        for scenario, timings in self.timings.items():
            cells = []
            for side in self.sides:
                timing = timings[side.name]
                scale, unit = (1e3, "ms") if timing.median >= 1e-3 else (1e6, "µs")
                cell = f"{timing.median * scale:.2f} {unit} ± {timing.spread * scale:.2f}"
                if side is not self.sides[0]:
                    cell += f"  {self.ratio(scenario, side.name):.2f}×"
                cells.append(cell)
            table.add_row(scenario, *cells)
        table.add_row("peak memory", *(f"{self.memory[side.name] / 1e6:.0f} MB" for side in self.sides))
        table.add_row("size on disk", *(f"{self.size[s.name] / 1e6:.1f} MB" if not s.eager else "" for s in self.sides))
        if self.difference:
            cells = [f"{self.difference[s.name]:.1e} of range" if s.name in self.difference else "" for s in self.sides]
            table.add_row("largest difference", *cells)
        return table

    def __str__(self) -> str:
        from rich.console import Console

        console = Console(width=120)
        with console.capture() as capture:
            console.print(self.table())
        return capture.get()


def largest_difference(expected: Mapping[str, Array], given: Mapping[str, Array]) -> float:
    """Largest difference over all outputs, each as a part of its expected range; infinite where shapes differ."""
    if expected.keys() != given.keys():
        return math.inf
    worst = 0.0
    for name, want in expected.items():
        have = given[name]
        if want.shape != have.shape:
            return math.inf
        if want.dtype.kind not in "fiub" or want.size == 0:
            continue
        want, have = want.astype(np.float64), have.astype(np.float64)
        if not np.array_equal(np.isfinite(want), np.isfinite(have)):
            return math.inf
        finite = np.isfinite(want)
        if not finite.any():
            continue
        span = float(np.ptp(want[finite])) or float(np.abs(want[finite]).max()) or 1.0
        worst = max(worst, float(np.abs(want - have)[finite].max()) / span)
    return worst
