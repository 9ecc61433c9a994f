"""Permutation of input channels for patterns of groups, with what makes these channels permuted alike."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir

from ...ir.graph import Graph, module_path, tensor_of
from ...ir.rewrite import Editor
from ..base import Outcome
from ..prune.analyse import analyse
from ..prune.coupling import Coupling
from ..prune.grids import Array
from ..prune.units import Group, find
from ..quantize.targets import Weight
from .pattern import Pattern
from .permute import permutation, retained

RULE = "permute channels"


def reorder(
    graph: Graph, edit: Editor, ranked: Sequence[tuple[Weight, Array]], pattern: Pattern, outcome: Outcome
) -> None:
    """Permute channels that are free to change places, so that the pattern keeps more; nothing is added to the graph.

    Free are those that could also be removed: what makes them and all that reads them is permuted alike.

    Args:
        graph: to change.
        edit: of the graph.
        ranked: the weights to be pruned, each with the scores of its weights.
        pattern: N:M.
        outcome: gets the remarks.
    """
    coupling = analyse(graph)
    scores = {id(weight.value): (weight, score) for weight, score in ranked}
    done: set[int] = set()
    for group in find(coupling).groups:
        reads = [place for place in group.reads if id(place[0]) in scores]
        free = all(places.shape[1] == 1 for places in group.axes.values()) and _whole(coupling, group)
        if not reads or not free or group.balance is not None:
            continue
        stacked = np.concatenate([scores[id(base)][1][:, group.axes[base, axis][:, 0]] for base, axis in reads])
        order = permutation(stacked, pattern)
        before, after = retained(stacked, pattern), retained(stacked[:, order], pattern)
        done.update(id(base) for base, _ in reads)
        if after <= before:
            outcome.skipped(group.where, "its channels stay in their order: no better one was found")
            continue
        _permute(edit, coupling, group, order)
        outcome.count(RULE)
        gain = after / before - 1
        outcome.applied(group.where, f"{len(group)} channels permuted: the pattern keeps {gain:.2%} more", gain=gain)
    for weight, _ in ranked:
        if id(weight.value) not in done:
            where = module_path(weight.products[0])
            outcome.skipped(
                where, "its channels stay in their order: they are a stream's or a head's, which others read"
            )


def _whole(coupling: Coupling, group: Group) -> bool:
    """Whether the units are all places of their axes, so that any order of them is possible."""
    return all(
        np.array_equal(np.sort(places[:, 0]), np.arange(len(coupling.weights[base][axis].atoms)))
        for (base, axis), places in group.axes.items()
    )


def _permute(edit: Editor, coupling: Coupling, group: Group, order: Array) -> None:
    """Let unit ``order[i]`` take the i-th place everywhere."""
    roots = {roots[0] for roots in group.roots}
    rank_of = {group.roots[unit][0]: at for at, unit in enumerate(order)}
    for cut in coupling.cuts:
        labels = coupling.parents[cut.grid.labels]
        if labels.ndim == 1 and labels.size and int(labels[0]) in roots and len(cut.axes) == 1:
            old = cut.node.inputs[cut.index]
            if old is not None:
                new = _taken(edit.at(cut.node), old, cut.axes[0][0], _moved(labels, rank_of))
                cut.node.replace_input_with(cut.index, new)
                edit.drop_initializer(old)
    for base, axes in coupling.weights.items():
        chosen = {
            number: _moved(labels, rank_of)
            for number, axis in axes.items()
            if len(labels := coupling.parents[axis.atoms]) and int(labels[0]) in roots
        }
        for number, places in chosen.items():
            tensor = tensor_of(base)
            assert tensor is not None
            array = np.take(tensor.numpy(), places, axis=number)
            # In place: the same value stays the weight of whoever prunes it next.
            base.const_value = onnx_ir.Tensor(np.ascontiguousarray(array), dtype=tensor.dtype, name=base.name)


def _moved(labels: Array, rank_of: dict[int, int]) -> Array:
    """Where each place of a permuted axis comes from."""
    order: Array = np.argsort([rank_of[int(label)] for label in labels], kind="stable")
    return order


def _taken(edit: Editor, old: onnx_ir.Value, axis: int, places: Array) -> onnx_ir.Value:
    tensor = tensor_of(old)
    assert tensor is not None
    array = np.take(tensor.numpy(), places, axis=axis)
    return edit.initializer(onnx_ir.Tensor(np.ascontiguousarray(array), dtype=tensor.dtype), old.name or "constant")
