"""Graphs of ``torch.compile``: what TorchDynamo captured, imported by the same rules as an exported program.

A captured graph takes parameters as inputs like any other, and the sizes of its inputs as numbers. It is traced with
``aot_export_module``, which takes writes into inputs out of the graph and keeps operators such as ``linear`` whole.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch.export.graph_signature import InputKind, InputSpec, TensorArgument
from torch.fx.experimental.symbolic_shapes import free_symbols

from ...ir.errors import UnsupportedError
from ...ir.graph import Graph
from .decompose import Apart, Table, decompositions, untranslated
from .importer import Importer, unknown_operators


@dataclass(frozen=True)
class Captured:
    """A captured graph, imported.

    Attributes:
        graph: inputs are the tensors that are no constants; outputs first what is written back, then the results.
        inputs: position among the arguments of each input of the graph.
        constants: positions of the arguments that are constants of the graph.
        written: positions of the arguments that the first outputs are written into.
        results: for each result of the call the index of its output, or the constant that it is.
        numbers: indices of outputs that are numbers, not tensors.
    """

    graph: Graph
    inputs: tuple[int, ...]
    constants: tuple[int, ...]
    written: tuple[int, ...]
    results: tuple[tuple[int | None, Any], ...]
    numbers: frozenset[int]


class _Importer(Importer):
    """Sizes come in as numbers, and are read off the shapes of tensors."""

    def _placeholder(self, node: torch.fx.Node, spec: InputSpec, names: Any) -> None:
        if isinstance(node.meta.get("val"), torch.SymInt | int):
            self.assign(node, node.meta["val"])
        else:
            super()._placeholder(node, spec, names)


@dataclass(frozen=True)
class Traced:
    """A captured graph in ATen operators, without the values of its constants.

    Attributes:
        module: takes ``held`` before the arguments of the call; gives what is written back, then the results.
        held: tensors that the graph itself holds.
        static: positions of parameters and buffers among the arguments.
        written: positions of the arguments that the first outputs are written into.
        apart: operators without a rule that PyTorch's decompositions were taken for.
    """

    module: torch.fx.GraphModule
    held: tuple[torch.Tensor, ...]
    static: tuple[int, ...]
    written: tuple[int, ...]
    apart: tuple[str, ...]


def trace_captured(module: torch.fx.GraphModule, inputs: Sequence[Any]) -> Traced:
    """Trace a graph that TorchDynamo captured, in its backend: sizes are symbolic only there.

    Args:
        module: the graph.
        inputs: its arguments: tensors and sizes.

    Raises:
        UnsupportedError: no rule translates one of its operators.
    """
    static = tuple(_static(module, inputs))
    traced, signature = _trace(module, inputs)
    if signature.parameters or signature.buffers:
        raise UnsupportedError("the captured graph holds parameters of its own", where=type(module).__name__)
    user = [node for node in traced.graph.nodes if node.op == "placeholder"]
    place = {node.name: index for index, node in enumerate(user)}
    written = tuple(place[name] for name in signature.user_inputs_to_mutate.values())
    traced, held, apart = _translatable(traced, inputs)
    return Traced(traced, tuple(held), static, written, apart)


def import_traced(graph: Traced, inputs: Sequence[Any], varying: Collection[int] = ()) -> Captured:
    """Import a graph with the constants as they are now.

    Args:
        graph: the graph.
        inputs: arguments of the call; only the constants among them matter.
        varying: positions of parameters and buffers that are inputs all the same.

    Raises:
        UnsupportedError: a case that a rule does not cover.
    """
    traced, held, written = graph.module, graph.held, graph.written
    constants = tuple(i for i in graph.static if i not in written and i not in varying)
    placeholders = [node for node in traced.graph.nodes if node.op == "placeholder"]
    user = placeholders[len(held) :]
    fixed = {node.name: tensor for node, tensor in zip(placeholders, held, strict=False)}
    fixed |= {user[i].name: inputs[i] for i in constants}
    specs = [
        InputSpec(
            InputKind.CONSTANT_TENSOR if node.name in fixed else InputKind.USER_INPUT,
            TensorArgument(name=node.name),
            node.name if node.name in fixed else None,
        )
        for node in placeholders
    ]
    (last,) = [node for node in traced.graph.nodes if node.op == "output"]
    outputs = list(last.args[0])
    program: Any = SimpleNamespace(
        graph=traced.graph,
        graph_module=traced,
        graph_signature=SimpleNamespace(
            input_specs=specs, output_specs=[SimpleNamespace(kind=SimpleNamespace(name="USER_OUTPUT"))] * len(outputs)
        ),
        state_dict={},
        constants=fixed,
    )
    if unknown := unknown_operators(program):
        raise UnsupportedError(f"no rule translates {', '.join(unknown)}", where="torch.compile")
    fed = tuple(i for i, value in enumerate(inputs) if isinstance(value, torch.Tensor) and i not in constants)
    symbols = {symbol: str(symbol) for node in user for symbol in _symbols(node)}
    made = [index for index, node in enumerate(outputs) if _is_output(node)]
    result = _Importer(program, symbols).run([f"input_{i}" for i in fed], [f"output_{i}" for i in made])
    order = {index: at for at, index in enumerate(made)}
    results = tuple(
        (order[index], None) if index in order else (None, node)
        for index, node in enumerate(outputs)
        if index >= len(written)
    )
    numbers = frozenset(order[i] for i in made if not isinstance(outputs[i].meta["val"], torch.Tensor))
    return Captured(result, fed, constants, written, results, numbers)


def _trace(module: torch.nn.Module, inputs: Sequence[Any]) -> tuple[torch.fx.GraphModule, Any]:
    """A graph of ATen operators without writes, and what it was to write."""
    from torch._functorch.aot_autograd import aot_export_module

    with torch.no_grad():
        traced, signature = aot_export_module(
            module, list(inputs), trace_joint=False, pre_dispatch=True, decompositions={}
        )
    assert isinstance(traced, torch.fx.GraphModule)
    return traced, signature


def _translatable(
    traced: torch.fx.GraphModule, inputs: Sequence[Any]
) -> tuple[torch.fx.GraphModule, list[torch.Tensor], tuple[str, ...]]:
    """The graph with operators that no rule translates taken apart, constants that it takes before its inputs, and
    the names of these operators."""
    held = _lift(traced)
    first = untranslated(traced)
    tried: Table = {}
    while table := decompositions(untranslated(traced)):
        if again := table.keys() & tried.keys():
            # What it is computed with is computed with it.
            names = [str(operator) for operator in first if operator in again] or sorted(map(str, again))
            raise UnsupportedError(f"no rule translates {', '.join(names)}", where="torch.compile")
        tried |= table
        traced, _ = _trace(Apart(traced, table), [*held, *inputs])
        held = [*_lift(traced), *held]
    return traced, held, tuple(map(str, first))


def _static(module: torch.fx.GraphModule, inputs: Sequence[Any]) -> list[int]:
    """Positions of parameters and buffers among the arguments."""
    nodes = [node for node in module.graph.nodes if node.op == "placeholder"]
    found = []
    for index, (node, value) in enumerate(zip(nodes, inputs, strict=True)):
        marked = (node.meta.get("tensor_dict") or {}).get("_dynamo_static_input_type") is not None
        if isinstance(value, torch.Tensor) and (marked or isinstance(value, torch.nn.Parameter)):
            found.append(index)
    return found


def _lift(traced: torch.fx.GraphModule) -> list[torch.Tensor]:
    """Turn tensors that are attributes of the graph into placeholders before all others; the tensors in order."""
    found: list[torch.Tensor] = []
    lifted: dict[str, torch.fx.Node] = {}
    first = next(iter(traced.graph.nodes))
    for node in [node for node in traced.graph.nodes if node.op == "get_attr"]:
        name = str(node.target)
        value: Any = traced
        for part in name.split("."):
            value = getattr(value, part)
        if not isinstance(value, torch.Tensor):
            raise UnsupportedError("the captured graph holds a graph", where=name)
        if name not in lifted:
            with traced.graph.inserting_before(first):
                lifted[name] = traced.graph.placeholder(f"constant_{len(found)}")
            lifted[name].meta["val"] = value
            found.append(value)
        node.replace_all_uses_with(lifted[name])
        traced.graph.erase_node(node)
    traced.recompile()
    return found


def _symbols(node: torch.fx.Node) -> list[Any]:
    value = node.meta.get("val")
    if isinstance(value, torch.Tensor):
        return [symbol for size in value.shape for symbol in free_symbols(size)]
    return list(free_symbols(value)) if isinstance(value, torch.SymInt) else []


def _is_output(node: Any) -> bool:
    kinds = (torch.Tensor, torch.SymInt, torch.SymFloat, torch.SymBool)
    return isinstance(node, torch.fx.Node) and isinstance(node.meta.get("val"), kinds)
