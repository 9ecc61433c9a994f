"""``DropLayers``: residual branches that hardly change their stream go as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir

from ...ir.errors import OptionError, nearest
from ...ir.graph import Graph, dims, is_op, module_path, tensor_of
from ...ir.rewrite import Editor
from ...ir.symbolic import same
from .. import selectors
from ..base import Context, Outcome, Pass, Stage, without_data
from ..statistics import Moments

RULE = "drop layers"
METRICS = ("similarity", "loss")


@dataclass(frozen=True)
class Branch:
    """A sum of a stream and of what is computed from it.

    Attributes:
        add: the addition.
        stream: what goes past the branch.
        result: what the branch adds.
        weights: constants of products that only the branch reads.
    """

    add: onnx_ir.Node
    stream: onnx_ir.Value
    result: onnx_ir.Value
    weights: int


@dataclass(frozen=True)
class DropLayers(Pass):
    """Remove residual branches: whole attentions and feed-forward layers (survey, section 4.2.2, layer pruning).

    Branches are found by data flow: an addition of a value and of something computed from it. Which go is a question of
    the calibration inputs. A branch that writes a cache stays: the cache is part of the model's interface.

    Attributes:
        count: how many branches go.
        metric: ``"similarity"``: those whose sum is most like the stream before it, by the cosine of the two
            (ShortGPT, Men
            et al. 2024, equation 1); ``"loss"``: one after the other, the one without which the outputs change least,
            measured each time.
        include: selectors of the branches' additions or products; all if empty.
        exclude: selectors of what stays.

    Raises:
        OptionError: a value that does not exist.
        CalibrationError: (when run) there are no calibration inputs.
        SelectorError: a malformed selector, or (when run) one that matches nothing.
    """

    stage = Stage.PRUNE
    approximate = True

    count: int = 1
    metric: str = "similarity"
    include: str | Sequence[str] = ()
    exclude: str | Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.count < 1:
            raise OptionError(f"count={self.count!r} is no number of layers", where="DropLayers", fix="use 1 or more")
        if self.metric not in METRICS:
            fix = nearest(str(self.metric), METRICS)
            raise OptionError(f"metric={self.metric!r} does not exist", where="DropLayers", fix=fix)
        for name in ("include", "exclude"):
            value = getattr(self, name)
            object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(value))
        selectors.parse_all((*self.include, *self.exclude))

    def run(self, graph: Graph, context: Context) -> Outcome:
        """Remove the branches that matter least."""
        outcome = Outcome()
        found = branches(graph, outcome)
        include, exclude = selectors.parse_all(self.include), selectors.parse_all(self.exclude)
        nodes = {id(b): inside(b) for b in found}
        selectors.require_matches([*include, *exclude], [n for some in nodes.values() for n in some], "branches")
        left = [
            b for b in found
            if (not include or any(selectors.first(include, n) is not None for n in nodes[id(b)]))
            and not any(selectors.first(exclude, n) is not None for n in nodes[id(b)])
        ]  # fmt: skip
        if not left:
            outcome.missed("", "no layer is dropped: there is no residual branch that can go")
            return outcome
        if not context.has_calibration or (self.metric == "loss" and context.trial is None):
            raise without_data("DropLayers")
        edit = Editor(graph, RULE)
        scores = similarities(left, context) if self.metric == "similarity" else []
        for number in range(min(self.count, len(left))):
            context.progress(number, self.count, "dropping layers")
            if self.metric == "loss":
                scores = [_loss(branch, context) for branch in left]
            at = int(np.argmin(scores))
            branch, score = left.pop(at), scores.pop(at)
            where = module_path(branch.result.producer() or branch.add)
            edit.at(branch.add).replace(branch.add.outputs[0], branch.stream)
            edit.sweep([branch.add])
            outcome.count(RULE)
            what = "1 - cosine of the stream before and after it" if self.metric == "similarity" else "loss without it"
            outcome.applied(where, f"dropped with {branch.weights} weights: {what} is {score:.3g}", score=float(score),
                            weights=branch.weights)  # fmt: skip
        if self.count > outcome.rewrites[RULE]:
            outcome.missed("", f"{self.count} layers were to go, there are {outcome.rewrites[RULE]} that can")
        return outcome


def branches(graph: Graph, outcome: Outcome) -> list[Branch]:
    """Residual branches in graph order; remarks for those that cannot go."""
    order = {node: i for i, node in enumerate(graph.graph)}
    found = []
    for node in graph.graph:
        if not is_op(node, "Add") or any(value is None or tensor_of(value) is not None for value in node.inputs):
            continue
        a, b = node.inputs[0], node.inputs[1]
        assert a is not None and b is not None
        for stream, result in ((a, b), (b, a)):
            if not _depends(result, stream, order) or not _alike(stream, node.outputs[0]):
                continue
            branch = Branch(node, stream, result, 0)
            mine = inside(branch)
            weights = sum(_weights(each) for each in mine)
            if not weights:
                continue
            if any(value.is_graph_output() for each in mine for value in each.outputs):
                outcome.skipped(module_path(result.producer() or node), "the branch stays: it computes an output, too")
            else:
                found.append(Branch(node, stream, result, weights))
            break
    return found


def inside(branch: Branch) -> list[onnx_ir.Node]:
    """The nodes that only the branch needs, those that compute outputs of the model included."""
    seen: dict[onnx_ir.Node, None] = {}
    stack = [branch.result.producer()]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        # What others read as well is not the branch's own; its outputs' other readers are outputs of the model at most.
        if any(use.node not in seen and use.node is not branch.add for value in node.outputs for use in value.uses()):
            continue
        seen[node] = None
        stack += [value.producer() for value in node.inputs if value is not None and value is not branch.stream]
    return list(seen)


def _depends(value: onnx_ir.Value, on: onnx_ir.Value, order: dict[onnx_ir.Node, int]) -> bool:
    first = on.producer()
    least = -1 if first is None else order.get(first, -1)
    seen: set[onnx_ir.Value] = set()
    stack = [value]
    while stack:
        now = stack.pop()
        if now is on:
            return True
        node = now.producer()
        if now in seen or node is None or order.get(node, -1) <= least:
            continue
        seen.add(now)
        stack += [v for v in node.inputs if v is not None]
    return False


def _alike(one: onnx_ir.Value, other: onnx_ir.Value) -> bool:
    a, b = dims(one), dims(other)
    return a is not None and b is not None and len(a) == len(b) and all(map(same, a, b))


def _weights(node: onnx_ir.Node) -> int:
    tensors = [tensor_of(value) for value in node.inputs]
    return sum(int(tensor.size) for tensor in tensors if tensor is not None and len(tensor.shape) > 1)


def similarities(found: Sequence[Branch], context: Context) -> list[float]:
    """1 - cosine of each branch's stream before and after it, over all tokens, out of squares alone."""
    values = list(dict.fromkeys(v for b in found for v in (b.stream, b.result, b.add.outputs[0])))
    squares = {name: float(array[1].sum()) for name, array in context.statistics(values, Moments()).items()}
    scores = []
    for branch in found:
        x, f, y = (squares[v.name or ""] for v in (branch.stream, branch.result, branch.add.outputs[0]))
        # x · (x + f) = (|x + f|² + |x|² - |f|²) / 2
        scores.append(1 - (y + x - f) / (2 * np.sqrt(max(x * y, 1e-30))))
    return scores


def _loss(branch: Branch, context: Context) -> float:
    """What the model loses without a branch, measured on a copy."""
    name = branch.add.outputs[0].name
    stream = branch.stream.name

    def without(copy: Graph) -> None:
        values = {value.name: value for node in copy.graph for value in node.outputs}
        values |= {value.name: value for value in copy.graph.inputs}
        edit = Editor(copy, RULE)
        old = values[name]
        add = old.producer()
        edit.at(add).replace(old, values[stream])

    assert context.trial is not None
    return context.trial(without)
