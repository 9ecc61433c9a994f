"""Second moments of the inputs of products, one after the other, as the weights replaced so far make them.

A compressed model does not see the inputs that the float model sees: what comes before a product has errors of its own.
GPTQ, SparseGPT and Wanda go through a model in order, and measure each input behind weights that are rounded or pruned
already. Here a *round* is all observed values that no other observed value lies between: the graph runs on PyTorch from
round to round, and what later rounds need is kept on disk meanwhile, so that the whole is one run over the data.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import onnx_ir
import torch
from torch import Tensor

from ...backends.reference import Reference
from ...backends.reference.registry import dtype_of
from ...ir.graph import Graph
from ...ir.outline import reads
from ...passes.statistics import Array
from ..progress import Progress
from .batches import Batches


class _Sums:
    """Of one observed value: its outer products, those with the same value of the float model, and itself."""

    def __init__(self, channels: int, both: bool) -> None:
        self.count = 0
        self.mean = np.zeros(channels)
        self.square = np.zeros((channels, channels))
        self.cross = np.zeros((channels, channels)) if both else None

    def add(self, x: Tensor, float_x: Tensor | None) -> bool:
        """Add the tokens of a batch, [T, K]; whether they are finite."""
        square = (x.T @ x).numpy()
        self.count += len(x)
        self.mean += x.sum(dim=0).numpy()
        self.square += square
        if self.cross is not None:
            self.cross += square if float_x is None else (x.T @ float_x).numpy()
        return bool(np.isfinite(square.diagonal()).all())


class Sequential:
    """What ``Context.sequential`` gives, see :class:`~burnish.passes.base.Sequential`.

    Args:
        graph: as it is before any weight is replaced; what happens to it later is not seen.
        values: to observe, float32 [..., K] of the main graph, with their number of channels K.
        inputs: calibration inputs.
        both: whether the float model runs beside, for :meth:`cross`.
        folder: to keep what flows from round to round in.
        keep: puts a result where it needs no memory.
        check: called with the name of a value that is not finite, and the number of the input, and raises.
        tell: called with the name, the number of tokens and the channels of each value.
        progress: called during long work.

    Raises:
        UnsupportedError: the reference backend has no rule for an operator.
    """

    def __init__(
        self,
        graph: Graph,
        values: Sequence[tuple[onnx_ir.Value, int]],
        inputs: Batches,
        *,
        both: bool,
        folder: Path,
        keep: Callable[[Array], Array],
        check: Callable[[str, int], None],
        tell: Callable[[str, int, int], None],
        progress: Progress,
    ) -> None:
        self._graph = graph.clone()
        self._model = Reference(self._graph)
        self._inputs, self._both, self._progress = inputs, both, progress
        self._folder = Path(tempfile.mkdtemp(dir=folder))
        self._keep, self._check, self._tell = keep, check, tell
        self._channels = {value.name or "": channels for value, channels in values}
        self._ranks, self._plan, needed = _plan(self._graph, list(self._channels))
        self._model.check(needed)
        self._weights: dict[str, Array | Callable[[], Array] | Tensor] = {}
        self._results: dict[str, tuple[Array, Array, Array | None]] = {}
        self._done = 0
        self._states: dict[bool, Batches | None] = {True: None}
        """What flows on, by whether weights are replaced; the float model has its own once one is."""

    def rank(self, name: str) -> int:
        """The round of a value."""
        return self._ranks[name]

    def hessian(self, name: str) -> Array:
        """Mean of ``x xᵀ``: [K, K]."""
        return self._result(name)[0]

    def mean(self, name: str) -> Array:
        """Mean of x: [K]."""
        return self._result(name)[1]

    def cross(self, name: str) -> Array:
        """Mean of ``x fᵀ``, f what x is in the float model: [K, K]."""
        found = self._result(name)[2]
        assert found is not None, "asked for without both"
        return found

    def replace(self, value: onnx_ir.Value, weight: Array | Callable[[], Array]) -> None:
        """From the next round on, a constant is this, of the same shape."""
        if self._both and False not in self._states:
            self._states[False] = self._copied(self._states[True])
        self._weights[value.name or ""] = weight

    def _copied(self, state: Batches | None) -> Batches | None:
        if state is None:
            return None
        copy = Batches(Path(tempfile.mkdtemp(dir=self._folder)) / "float")
        for batch in state:
            copy.add(batch)
        return copy

    def _result(self, name: str) -> tuple[Array, Array, Array | None]:
        while name not in self._results:
            self._round()
        return self._results[name]

    @torch.no_grad()
    def _round(self) -> None:
        """Go on to the next round: observe its values, and keep what later ones need."""
        plan = self._plan[self._done]
        sums = {name: _Sums(self._channels[name], self._both) for name in plan.observed}
        weights = {name: self._weight(name) for name in self._weights}
        initializers = self._graph.graph.initializers
        constants = {name: tensor for name, tensor in weights.items() if name in initializers}
        made_here = {name: tensor for name, tensor in weights.items() if name not in initializers}
        wanted = list(dict.fromkeys([*plan.observed, *plan.made]))
        following = {kind: Batches(self._folder / f"{self._done}-{kind}") for kind in self._states}
        before = {kind: iter(state) if state is not None else None for kind, state in self._states.items()}
        total = len(self._plan) * len(self._inputs)
        for index, feeds in enumerate(self._inputs):
            self._progress(self._done * len(self._inputs) + index, total, "calibrating in order")
            found: dict[bool, dict[str, Tensor]] = {}
            for kind, states in before.items():
                state = {} if states is None else next(states)
                given = state | made_here if kind else state
                found[kind] = self._model.run(feeds, wanted, constants=constants if kind else None, given=given)
                whole = state | found[kind]
                following[kind].add({name: whole[name] for name in plan.kept})
            for name, total_of in sums.items():
                x = _tokens(found[True][name], self._channels[name])
                twin = _tokens(found[False][name], self._channels[name]) if False in found else None
                if not total_of.add(x, twin):
                    self._check(name, index)
        for name, one in sums.items():
            self._tell(name, one.count, self._channels[name])
            cross = None if one.cross is None else self._keep((one.cross / one.count).astype(np.float32))
            square = self._keep((one.square / one.count).astype(np.float32))
            self._results[name] = square, (one.mean / one.count).astype(np.float32), cross
        for old in self._states.values():
            if old is not None:
                old.close()
        self._states = {**following}
        self._done += 1
        # Constants are read again where they are needed again: only those of one round have to fit into memory.
        self._model.forget()
        self._weights = {name: weight for name, weight in self._weights.items() if name in plan.later}
        if self._done == len(self._plan):
            shutil.rmtree(self._folder, ignore_errors=True)

    def _weight(self, name: str) -> Tensor:
        weight = self._weights[name]
        if not isinstance(weight, Tensor):
            array = np.ascontiguousarray(weight() if callable(weight) else weight)
            value = self._graph.graph.initializers.get(name)
            kind = torch.float32 if value is None or value.dtype is None else dtype_of(value.dtype)
            weight = self._weights[name] = torch.from_numpy(array).to(kind)
        return weight


class _Round:
    """What one round does.

    Attributes:
        observed: names of values.
        made: names of values that it makes and a later round reads.
        kept: names of values that it or an earlier round made and a later round reads.
        later: names of constants that a later round reads.
    """

    def __init__(self, observed: Iterable[str], made: Iterable[str], kept: Iterable[str], later: set[str]) -> None:
        self.observed, self.made, self.kept, self.later = list(observed), list(made), list(kept), later


def _plan(graph: Graph, names: Sequence[str]) -> tuple[dict[str, int], list[_Round], list[onnx_ir.Node]]:
    """The round of each observed value, what each round does, and the nodes of all of them."""
    nodes = list(graph.graph)
    chosen = set(names)
    levels: dict[onnx_ir.Value, int] = {}
    by_name = {value.name: value for value in graph.graph.inputs}
    for node in nodes:
        level = max((levels.get(v, 0) + (v.name in chosen) for v in reads(node) if not v.is_initializer()), default=0)
        for value in node.outputs:
            levels[value] = level
            by_name[value.name] = value
    ranks = {name: levels.get(by_name[name], 0) for name in names}
    # Rounds are numbered without gaps, though a value may lie behind one that nobody observes.
    numbers = {rank: at for at, rank in enumerate(sorted(set(ranks.values())))}
    ranks = {name: numbers[rank] for name, rank in ranks.items()}
    needed: dict[onnx_ir.Node, int] = {}
    for number in range(len(numbers)):
        stack = [by_name[name] for name in names if ranks[name] == number]
        while stack:
            maker = stack.pop().producer()
            if maker is not None and maker not in needed:
                needed[maker] = number
                stack += reads(maker)
    last: dict[onnx_ir.Value, int] = {}
    for node, number in needed.items():
        for value in reads(node):
            last[value] = max(last.get(value, 0), number)
    rounds = []
    for number in range(len(numbers)):
        flowing = [
            value for node in nodes if needed.get(node, len(numbers)) <= number for value in node.outputs
            if last.get(value, 0) > number
        ]  # fmt: skip
        made = [value.name or "" for value in flowing if needed[_maker(value)] == number]
        later = {value.name or "" for value, at in last.items() if at > number}
        observed = [name for name in names if ranks[name] == number]
        rounds.append(_Round(observed, made, [value.name or "" for value in flowing], later))
    return ranks, rounds, list(needed)


def _maker(value: onnx_ir.Value) -> onnx_ir.Node:
    node = value.producer()
    assert node is not None
    return node


def _tokens(value: Tensor, channels: int) -> Tensor:
    return value.reshape(-1, channels).float()
