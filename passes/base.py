"""What a pass is: a frozen dataclass whose fields are its options, and the outcome it must report."""

from __future__ import annotations

import abc
import enum
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np
import onnx_ir

from ..ir.errors import CalibrationError
from ..ir.excerpt import Clock
from ..ir.graph import Graph
from ..ir.remarks import Remark
from .statistics import Observer

Cost = Callable[[int, int, int, Any], float]
"""Seconds of a product of [M, K] and [K, N] on the machine at hand: by a scheme, in float32 with :class:`Zeros` or in
:class:`Panels`, or in float32 if that is None."""
Trial = Callable[[Callable[[Graph], None]], float]
"""What a change of the graph, made to a copy of it, costs on the evaluation inputs, or on those for calibration where
there are none: the divergence of next-token distributions in nats for a language model, else the relative squared error
of the first output."""
Observe = Callable[[Sequence[onnx_ir.Value], Observer], dict[str, np.ndarray[Any, Any]]]
"""Statistics of values of the graph at hand, by the names of the values."""
Request = tuple[Sequence[onnx_ir.Value], Observer]
"""Values, and the statistic that is wanted of each."""


class Latency(Protocol):
    """Takes the time of a small model, such as one block of a fusion plan."""

    machine: str
    """What it runs on, in words."""

    def __call__(self, model: Graph) -> float:
        """Seconds of one run on made-up inputs."""


@dataclass(frozen=True)
class Zeros:
    """Float weights of which some are zero, as something that a product can be measured with.

    Attributes:
        pattern: where they are, as the pass ``prune`` takes it.
        share: how many.
    """

    pattern: str
    share: float

    def __str__(self) -> str:
        return f"float32 with {self.share:.0%} zeros {self.pattern}"


@dataclass(frozen=True)
class Panels:
    """A float product divided by stretches of output channels, as something that can be measured.

    Attributes:
        count: stretches.
        kept: how many input channels each needs.
    """

    count: int
    kept: int

    def __str__(self) -> str:
        return f"float32 in {self.count} panels of {self.kept} channels"


@dataclass(frozen=True)
class Training:
    """How weights are trained, see :class:`~burnish.passes.distill.distill.Distill`."""

    steps: int
    rate: float
    batch: int
    rank: int
    precision: str
    seed: int


Distillation = Callable[
    [Sequence[onnx_ir.Value], "set[onnx_ir.Value]", Training],
    tuple[dict[onnx_ir.Value, np.ndarray[Any, Any]], list[float]],
]
"""Trains constants of the graph at hand on the outputs of the model as it came: (which, those of them whose zeros stay,
how) to (their values after it, the loss of each step)."""


@dataclass(frozen=True)
class Coded:
    """A quantized weight as something that learns: ``scales (codes - zero points)``, groups along an axis.

    Attributes:
        value: what its ``DequantizeLinear`` makes.
        codes: uint8, of the shape of the weight.
        scales: float32, one for each group.
        zero_points: uint8, one for each group.
        axis: that a group runs along.
        block: places of a (full) group.
        levels: number of codes.
        original: float32, the weight before it was rounded.
    """

    value: onnx_ir.Value
    codes: np.ndarray[Any, Any]
    scales: np.ndarray[Any, Any]
    zero_points: np.ndarray[Any, Any]
    axis: int
    block: int
    levels: int
    original: np.ndarray[Any, Any]


@dataclass(frozen=True)
class CodeTraining:
    """How they are trained, see :class:`~burnish.passes.quantize.learn_codes.LearnCodes`."""

    steps: int
    batch: int
    rate: float
    scale_rate: float
    float_rate: float
    hidden: float
    pooled: float
    outputs: tuple[str, ...]
    precision: str
    seed: int


LearnedCodes = Callable[
    [Sequence[Coded], Sequence[onnx_ir.Value], Sequence[onnx_ir.Value], CodeTraining],
    tuple[
        list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]],
        dict[onnx_ir.Value, np.ndarray[Any, Any]],
        tuple[float, float],
    ],
]
"""Trains quantized weights, float constants and scales of inputs of the graph at hand on the outputs of the model as it
came: (which, which constants, which scales, how) to (codes and scales of each weight, the other constants after it, the
loss before and after)."""
Influence = Callable[[Sequence["tuple[onnx_ir.Value, int]"]], list[np.ndarray[Any, Any]]]
"""For some axes of constants, the derivative of the loss on each calibration input by a factor on each place of the
axis, at 1: [inputs, places]. The loss is that of a language model, or, for others, the outputs' product with random
numbers."""


@dataclass(frozen=True)
class Change:
    """A change of a constant, such as by rounding.

    Attributes:
        value: the constant.
        axis: that output channels run along; changes of different channels are independent of each other.
        difference: computes it, float32 of the shape of the constant.
    """

    value: onnx_ir.Value
    axis: int
    difference: Callable[[], np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Noise:
    """What products read, rounded to 8 bits: an error that is independent from number to number.

    Attributes:
        nodes: the products.
        block: channels in a row that share a step, which their largest magnitude decides; 0 where all of a token share
            one, by their least and their largest number.
        step: of all numbers, if it is a constant.
    """

    nodes: Sequence[onnx_ir.Node]
    block: int = 0
    step: float | None = None


SecondOrder = Callable[[Sequence[Change], Sequence[Noise]], tuple[list[float], list[float]]]
"""What the model at hand loses by each of some changes, and of some noises, alone, to second order, in the units of
:data:`Trial`."""


class Sequential(Protocol):
    """Inputs of products in the order of the graph, each behind the weights that were replaced before it.

    Values are in rounds: between those of one round there is no other. Asking for a value runs the rounds up to its
    own, so weights are to be replaced in the order of the rounds of what they multiply.
    """

    def rank(self, name: str) -> int:
        """The round of a value."""

    def hessian(self, name: str) -> np.ndarray[Any, Any]:
        """Mean over tokens of ``x xᵀ``: float32 [K, K]."""

    def mean(self, name: str) -> np.ndarray[Any, Any]:
        """Mean over tokens of x: float32 [K]."""

    def cross(self, name: str) -> np.ndarray[Any, Any]:
        """Mean over tokens of ``x fᵀ``, f what x is in the float model: float32 [K, K]."""

    def replace(self, value: onnx_ir.Value, weight: np.ndarray[Any, Any] | Callable[[], np.ndarray[Any, Any]]) -> None:
        """From the next round on, a constant is this array of the same shape (or what is computed when it is used)."""


InOrder = Callable[[Sequence[onnx_ir.Value], bool], Sequential]
"""Second moments of values in order: (which, whether those with the float model's values are wanted, too)."""


def without_data(where: str) -> CalibrationError:
    """The error of a pass that cannot work without calibration inputs."""
    return CalibrationError(
        "calibration inputs are needed and none were given",
        where=where,
        fix="pass calibration=batches, or --calibration FILE on the command line",
    )


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
        observe: computes what :meth:`statistics` returns; None where there is no data.
        observe_made_up: the same on made-up inputs; None where none can be made up.
        observe_together: computes several statistics in one run over the data, for :attr:`observe` to find them; None
            where there is no data.
        sequential: second moments of values in order, behind weights that are replaced on the way; None where there is
            no data. The graph is taken as it is at the call.
        cost: of products on this machine; None where nothing can be measured.
        trial: of a change; None where there is no data.
        trial_held_out: whether its inputs are others than those of :meth:`statistics`.
        decodes: whether the model is a causal language model with a cache.
        distill: trains weights; None where there is no data, or no pass that needs the model as it came.
        influence: derivatives of the loss; None where there is no data.
        second_order: losses by small changes, out of derivatives; None where there is no data.
        latency: of small models on the target; None where nothing can be measured.
        clock: of several ways to compute the same, as the target runs them; None where nobody asked to measure.
        learn_codes: trains quantized weights; None where :attr:`distill` is.
    """

    target: str = "onnxruntime"
    calibration: Iterable[Mapping[str, Any]] | None = None
    progress: Callable[[int, int, str], None] = lambda done, total, what: None
    observe: Observe | None = None
    observe_made_up: Observe | None = None
    observe_together: Callable[[Sequence[Request]], None] | None = None
    sequential: InOrder | None = None
    cost: Cost | None = None
    trial: Trial | None = None
    trial_held_out: bool = False
    decodes: bool = False
    distill: Distillation | None = None
    influence: Influence | None = None
    second_order: SecondOrder | None = None
    latency: Latency | None = None
    learn_codes: LearnedCodes | None = None
    clock: Clock | None = None

    @property
    def has_calibration(self) -> bool:
        """Whether :meth:`statistics` has data to look at."""
        return self.observe is not None

    def statistics(
        self, values: Sequence[onnx_ir.Value], observer: Observer, *, made_up: bool = False
    ) -> dict[str, np.ndarray[Any, Any]]:
        """A statistic of each value over all calibration inputs, computed by the graph as it is now.

        Ask for all values at once: one run over the data serves them all; so it does several statistics, after
        :meth:`prepare`. The arrays may be mapped from files, so that those of a large model need not fit into memory;
        they are read-only.

        Args:
            values: outputs of nodes, or inputs, of the main graph; the size of the last axis must be known.
            observer: the statistic; its class says the shape of the result.
            made_up: do with random inputs where the user gave none.

        Returns:
            The results by the names of the values.

        Raises:
            CalibrationError: there are no calibration inputs, or they give no finite statistics.
        """
        observe = self.observe or (self.observe_made_up if made_up else None)
        if observe is None:
            raise without_data("calibration=")
        return observe(values, observer)

    def prepare(self, *requests: Request) -> None:
        """Compute several statistics in one run over the data, so that :meth:`statistics` finds them.

        Where there is no data nothing is done; it is for :meth:`statistics` to say so.

        Raises:
            CalibrationError: the calibration inputs give no finite statistics.
        """
        if self.observe_together is not None:
            self.observe_together(requests)


@dataclass(frozen=True)
class Pass(abc.ABC):
    """A rewrite of a whole graph, in place. Subclasses are frozen dataclasses; their fields are their options."""

    stage: ClassVar[Stage]
    latest: ClassVar[Stage | None] = None
    """The last stage that it can run in, where it can in more than one."""
    approximate: ClassVar[bool] = False
    """Whether it changes what is computed by design: with calibration inputs, by how much is measured and reported."""
    needs_original: ClassVar[bool] = False
    """Whether it compares with the model as it came, which is kept for it."""
    changes_inputs: ClassVar[bool] = False
    """Whether inputs and outputs of the graph may have other types afterwards."""

    @abc.abstractmethod
    def run(self, graph: Graph, context: Context) -> Outcome:
        """Rewrite ``graph`` in place and say what was done.

        A pass that changes nothing returns an outcome with a remark that says why.
        """
