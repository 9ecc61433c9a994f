"""Running a graph by the reference backend, as other sessions run theirs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ...ir.errors import InputError, nearest
from ...ir.graph import Graph
from ...ir.signature import TensorSpec, check_input
from .executor import Reference
from .tensors import from_numpy, specification, to_numpy


class Session:
    """A graph that runs node by node with PyTorch.

    Args:
        graph: unchanged.
        device: where it runs.

    Raises:
        UnsupportedError: an operator has no rule, or an input or output is no tensor.
    """

    def __init__(self, graph: Graph, *, device: str | torch.device = "cpu") -> None:
        self._reference = Reference(graph, device=device)
        self._reference.check()
        self.inputs: tuple[TensorSpec, ...] = tuple(specification(v) for v in graph.graph.inputs)
        """What the graph takes."""
        self.outputs: tuple[TensorSpec, ...] = tuple(specification(v) for v in graph.graph.outputs)
        """What the graph gives."""

    def run(self, feeds: Mapping[str, Any]) -> list[Any]:
        """Run the graph.

        Args:
            feeds: NumPy arrays or torch tensors by input name.

        Returns:
            The outputs: torch tensors if any feed is one, else NumPy arrays.

        Raises:
            InputError: an input is missing, unknown, or of another type or shape.
        """
        given = checked(self.inputs, feeds)
        with torch.no_grad():
            results = list(self._reference.run(given).values())
        if any(isinstance(value, torch.Tensor) for value in feeds.values()):
            return results
        return [to_numpy(tensor) for tensor in results]


def checked(inputs: tuple[TensorSpec, ...], feeds: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Feeds as tensors, in the order of the inputs.

    Raises:
        InputError: one is missing, unknown, or of another type or shape.
    """
    names = [spec.name for spec in inputs]
    for name in feeds:
        if name not in names:
            raise InputError(f"the graph has no input {name!r}", fix=nearest(name, names))
    missing = [name for name in names if name not in feeds]
    if missing:
        raise InputError(f"input {', '.join(map(repr, missing))} is missing", fix="pass every input")
    symbols: dict[str, tuple[int, str]] = {}
    found = {}
    for spec in inputs:
        value = feeds[spec.name]
        tensor = value.detach() if isinstance(value, torch.Tensor) else from_numpy(value)
        check_input(spec, tensor, symbols)
        found[spec.name] = tensor
    return found
