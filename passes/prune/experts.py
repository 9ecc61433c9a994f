"""``PruneExperts``: experts that the router hardly chooses go, or are merged into others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir

from ...ir.errors import OptionError
from ...ir.graph import Graph, attribute, constant, dims, is_op, module_path, sizes_of, tensor_of
from ...ir.rewrite import Editor
from ...ir.weights import lazy
from .. import selectors
from ..base import Context, Outcome, Pass, Stage
from ..statistics import Moments
from . import merging

Array = np.ndarray[Any, Any]
RULE = "prune experts"


@dataclass(frozen=True)
class Layer:
    """A layer of experts.

    Attributes:
        logits: of the router, [..., experts].
        shares: what the experts are chosen by, [..., experts].
        chosen: how many of them each token gets.
        count: experts.
        stacks: weights of all experts, [experts, ...].
        reads: for each stack its ``Gather`` nodes, one for each expert it reads.
    """

    logits: onnx_ir.Value
    shares: onnx_ir.Value
    chosen: int
    count: int
    stacks: list[onnx_ir.Value]
    reads: list[list[onnx_ir.Node]]


@dataclass(frozen=True)
class PruneExperts(Pass):
    """Remove the experts of a mixture that the router chooses least (survey, section 7.2.1).

    The router never chooses them again, and their weights leave the model; a token that would have gone to one of them
    goes to the next best. Or groups of experts are merged: the router stays, and all of a group read the mean of their
    weights by usage (M-SMoE, Li et al. 2024). That is for experts that have weights in common, as those that were made
    of one dense layer do: neurons are taken in the order that they have. Experts are found by data flow: weights of
    which single matrices are read by number, behind a router that takes the best few of as many.

    Attributes:
        ratio: share of the experts of each layer that go; as many stay as each token is sent to.
        merge: merge experts whose weights differ least for what they are used, instead of removing some.
        include: selectors of the routers' products or experts; all if empty.

    Raises:
        OptionError: a ratio that makes no sense.
        CalibrationError: (when run) there are no calibration inputs.
        SelectorError: a malformed selector, or (when run) one that matches nothing.
    """

    stage = Stage.PRUNE
    approximate = True

    ratio: float = 0.25
    merge: bool = False
    include: str | Sequence[str] = ()

    def __post_init__(self) -> None:
        if not 0 < self.ratio < 1:
            raise OptionError(f"ratio={self.ratio!r} must be between 0 and 1", where="PruneExperts", fix="use 0.25")
        value = self.include
        object.__setattr__(self, "include", (value,) if isinstance(value, str) else tuple(value))
        selectors.parse_all(self.include)

    def run(self, graph: Graph, context: Context) -> Outcome:
        """Remove what is used least; say of all else why it stays."""
        outcome, edit = Outcome(), Editor(graph, RULE)
        layers = find(graph, outcome)
        include = selectors.parse_all(self.include)
        selectors.require_matches(include, [n for layer in layers for n in _nodes(layer)], "routers and experts")
        layers = [x for x in layers if not include or any(selectors.first(include, n) is not None for n in _nodes(x))]
        if not layers:
            outcome.missed("", "no experts are removed: there is no mixture of experts that is understood")
            return outcome
        used = context.statistics([layer.shares for layer in layers], Moments())
        for layer in layers:
            where = module_path(layer.logits.producer() or layer.reads[0][0])
            usage = used[layer.shares.name or ""][0]
            gone = min(round(self.ratio * layer.count), layer.count - layer.chosen)
            if gone < 1:
                outcome.skipped(where, f"all {layer.count} experts stay: each token needs {layer.chosen}")
                continue
            outcome.count(RULE, gone)
            if self.merge:
                _merge(edit, layer, np.maximum(usage, 1e-12), layer.count - gone, where, outcome)
                continue
            least = np.sort(np.argsort(usage, kind="stable")[:gone])
            _remove(edit, layer, least)
            share = float(usage[least].sum() / usage.sum())
            outcome.applied(
                where, f"{gone} of {layer.count} experts removed, which had {share:.1%} of the routing",
                removed=[int(e) for e in least], usage=share,
            )  # fmt: skip
        return outcome


def _nodes(layer: Layer) -> list[onnx_ir.Node]:
    maker = layer.logits.producer()
    return [*([] if maker is None else [maker]), *(node for reads in layer.reads for node in reads)]


def find(graph: Graph, outcome: Outcome) -> list[Layer]:
    """Layers of experts in graph order; remarks for stacks that no router is found for."""
    layers: dict[onnx_ir.Value, Layer] = {}
    for value in list(graph.graph.initializers.values()):
        tensor = tensor_of(value)
        if tensor is None or len(tensor.shape) != 3:
            continue
        reads = _gathers(value)
        if not reads:
            continue
        found = _router(reads[0], sizes_of(tensor)[0])
        if found is None:
            outcome.missed(module_path(reads[0]), f"no router of {tensor.shape[0]} experts is found for {value.name!r}")
            continue
        logits, shares, chosen = found
        layer = layers.setdefault(shares, Layer(logits, shares, chosen, sizes_of(tensor)[0], [], []))
        layer.stacks.append(value)
        layer.reads.append(reads)
    return list(layers.values())


def _gathers(stack: onnx_ir.Value) -> list[onnx_ir.Node]:
    """The nodes that read single matrices of a stack; empty if anything else reads it."""
    found: list[onnx_ir.Node] = []
    for use in stack.uses():
        node = use.node
        if is_op(node, "Transpose") and attribute(node, "perm", [2, 1, 0])[0] == 0:
            inner = _gathers(node.outputs[0])
            if not inner:
                return []
            found += inner
        elif is_op(node, "Gather") and use.idx == 0 and attribute(node, "axis", 0) == 0:
            number = constant(node.inputs[1], limit=1)
            if number is None or number.ndim:
                return []
            found.append(node)
        else:
            return []
    return found


def _router(gather: onnx_ir.Node, experts: int) -> tuple[onnx_ir.Value, onnx_ir.Value, int] | None:
    """Logits, what the best are taken of, and how many: of the nearest router before the product by an expert."""
    stack = [v for use in gather.outputs[0].uses() for v in use.node.inputs if v is not None]
    seen: set[onnx_ir.Value] = set()
    while stack:
        value = stack.pop(0)
        node = value.producer()
        if node is None or value in seen:
            continue
        seen.add(value)
        size = dims(node.inputs[0]) if is_op(node, "TopK") else None
        if size is not None and size[-1] == experts and len(size) > 1:
            shares, count = node.inputs[0], constant(node.inputs[1], limit=1)
            if shares is None or count is None:
                return None
            maker = shares.producer()
            logits = maker.inputs[0] if is_op(maker, "Softmax", "Sigmoid") and maker is not None else shares
            return None if logits is None else (logits, shares, int(count.reshape(-1)[0]))
        stack += [v for v in node.inputs if v is not None]
    return None


def _remove(edit: Editor, layer: Layer, least: Array) -> None:
    """Close the router's way to some experts, and take their weights out."""
    count = layer.count
    keep = np.setdiff1d(np.arange(count), least)
    place = np.zeros(count, np.int64)
    place[keep] = np.arange(len(keep))
    dtype = layer.logits.dtype
    assert dtype is not None
    closed = np.zeros(count, dtype.numpy())
    closed[least] = np.finfo(dtype.numpy()).min / 2
    readers = [(use.node, use.idx) for use in layer.logits.uses()]
    order = {node: i for i, node in enumerate(edit.graph.graph)}
    first = min((node for node, _ in readers), key=order.__getitem__)
    made = edit.at(first).op("Add", [layer.logits, edit.initializer(onnx_ir.Tensor(closed, dtype=dtype), "closed")])
    for node, index in readers:
        node.replace_input_with(index, made)
    # The product by an expert that is gone has no rows: whose weights it names does not matter.
    _renumber(edit, layer, place)
    for stack in layer.stacks:
        _shrink(edit, stack, np.eye(count)[keep])


def _merge(edit: Editor, layer: Layer, usage: Array, left: int, where: str, outcome: Outcome) -> None:
    """Let all experts of a group read the mean of their weights."""
    products = merging.gram(tensor.numpy() for stack in layer.stacks if (tensor := tensor_of(stack)) is not None)
    groups = merging.groups(products, usage, left)
    shares = merging.mixture(groups, usage)
    changed = merging.change(products, shares, usage)
    _renumber(edit, layer, np.asarray([int(shares[:, expert].argmax()) for expert in range(layer.count)]))
    for stack in layer.stacks:
        _shrink(edit, stack, shares)
    text = f"{layer.count} experts became {left}: their weights changed by {changed:.1%} of their squares"
    values = {"groups": groups, "change": float(f"{changed:.3g}")}
    outcome.applied(where, text, **values)
    if changed > merging.STRANGERS:
        outcome.missed(where, "the experts that were merged have little in common: merge=False may lose less", **values)


def _renumber(edit: Editor, layer: Layer, place: Array) -> None:
    """Let each expert read the matrix at another place of the stacks."""
    for node in (node for reads in layer.reads for node in reads):
        number = constant(node.inputs[1])
        assert number is not None
        node.replace_input_with(1, edit.at(node).ints(int(place[int(number) % layer.count]), "expert"))


def _shrink(edit: Editor, stack: onnx_ir.Value, mix: Array) -> None:
    """Replace a stack of matrices by sums of them, ``mix`` being ``[stay, experts]``."""
    tensor = tensor_of(stack)
    assert tensor is not None
    shape = [len(mix), *sizes_of(tensor)[1:]]
    name = f"{stack.name}.pruned"

    def compute() -> Array:
        old = tensor.numpy()
        new = np.empty(shape, old.dtype)
        for at, row in enumerate(mix):
            members = np.flatnonzero(row)
            parts = [old[e] if row[e] == 1 else row[e] * old[e].astype(np.float32) for e in members]
            new[at] = parts[0] if len(parts) == 1 else np.sum(parts, axis=0)
        return new

    new = edit.initializer(lazy(compute, tensor.dtype, shape, name), name)
    for use in tuple(stack.uses()):
        use.node.replace_input_with(use.idx, new)
        if is_op(use.node, "Transpose"):
            perm = attribute(use.node, "perm", [2, 1, 0])
            use.node.outputs[0].shape = onnx_ir.Shape([shape[axis] for axis in perm])
    edit.drop_initializer(stack)
