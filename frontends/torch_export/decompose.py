"""PyTorch's own decompositions, for operators that no rule translates.

Only these are taken apart, one level at a time, until rules translate what is left: everything else stays whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch._C import DispatchKey
from torch._ops import OpOverload

from .importer import needs_no_rule
from .registry import find

_KEPT = frozenset(
    f"aten.{name}.default"
    for name in "as_strided as_strided_copy as_strided_scatter empty_strided native_dropout bernoulli".split()
)
"""Operators whose decompositions speak of memory or chance, which a graph of values cannot."""

Table = dict[OpOverload, Callable[..., Any]]


def decompositions(operators: Iterable[OpOverload]) -> Table:
    """What PyTorch computes each of these operators with; those it has nothing for are left out."""
    import torch._refs  # registers most of the decompositions

    found: Table = {}
    for operator in operators:
        if str(operator) in _KEPT:
            continue
        # The operator's own kernel first: the arguments of a decomposition in Python may be named and typed otherwise.
        if operator.has_kernel_for_dispatch_key(DispatchKey.CompositeImplicitAutograd):
            found[operator] = partial(_own_kernel, operator)
            continue
        function = torch._decomp.decomposition_table.get(operator) or getattr(operator, "impl_aten", None)
        if function is not None:
            found[operator] = function
    return found


def _own_kernel(operator: OpOverload, *args: Any, **kwargs: Any) -> Any:
    # A mode of torch functions, such as the one that traces, would call the whole operator instead.
    with torch._C.DisableTorchFunction():
        return operator.decompose(*args, **kwargs)


def untranslated(module: torch.fx.GraphModule) -> list[OpOverload]:
    """The overloads in a graph that no rule translates, in order of appearance."""
    calls = [node for node in module.graph.nodes if node.op == "call_function" and not needs_no_rule(node)]
    targets = dict.fromkeys(node.target for node in calls)
    return [target for target in targets if isinstance(target, OpOverload) and find(target) is None]


class Apart(torch.nn.Module):
    """A graph that computes some of its operators with others when it is traced.

    Args:
        module: the graph.
        table: what to call instead of an operator.
    """

    def __init__(self, module: torch.fx.GraphModule, table: Table) -> None:
        super().__init__()
        self._interpreter = _Interpreter(module, table)

    def forward(self, *args: Any) -> Any:
        """Results of the graph, node by node."""
        return self._interpreter.run(*args, enable_io_processing=False)


class _Interpreter(torch.fx.Interpreter):
    def __init__(self, module: torch.fx.GraphModule, table: Table) -> None:
        super().__init__(module, garbage_collect_values=True)
        self._table = table

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        return super().call_function(self._table.get(target, target), args, kwargs)
