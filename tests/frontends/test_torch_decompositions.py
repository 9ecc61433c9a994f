"""Operators without a rule in captured graphs, and results that share memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from burnish.frontends.torch_export.decompose import decompositions
from burnish.frontends.torch_export.dynamo import trace_captured
from burnish.frontends.torch_export.registry import overload_name
from burnish.frontends.torch_export.sharing import Plan, divide
from burnish.ir.errors import UnsupportedError

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


def captured(function: Callable[..., Any], *args: Any, then: Callable[[Any, Any], Any]) -> Any:
    """What ``then`` makes of the graph that TorchDynamo captures of a function, within the backend."""
    found: list[Any] = []

    def backend(module: torch.fx.GraphModule, inputs: Any) -> Any:
        found.append(then(module, inputs))
        return module

    torch._dynamo.reset()
    with torch.no_grad():
        torch.compile(function, backend=backend)(*args)
    return found[0]


def operators(function: Callable[..., Any], *args: Any) -> list[str]:
    traced = captured(function, *args, then=trace_captured)
    return [overload_name(node.target) for node in traced.module.graph.nodes if node.op == "call_function"]


def test_only_what_has_no_rule_is_taken_apart() -> None:
    weight = torch.randn(4, 4)
    names = operators(lambda x: torch.logaddexp(torch.nn.functional.linear(x, weight), x), X)
    assert "aten.linear.default" in names and "aten.logaddexp.default" not in names and len(names) > 5


def test_a_decomposition_that_writes_is_made_pure() -> None:
    assert all(not name.split(".")[1].endswith("_") for name in operators(lambda x: torch.isclose(x, x + 1e-9), X))


def test_what_is_computed_with_itself_is_named() -> None:
    with pytest.raises(Exception, match=r"no rule translates aten\.lgamma\.default"):
        captured(lambda x: torch.lgamma(x), X, then=trace_captured)


def test_an_operator_with_its_own_kernel_uses_that() -> None:
    operator = torch.ops.aten.margin_ranking_loss.default  # its decomposition in Python takes the reduction's name
    assert decompositions([operator]).keys() == {operator}
    assert decompositions([torch.ops.aten.as_strided.default, torch.ops.aten.bernoulli.default]) == {}


def plan(function: Callable[..., Any], *args: Any) -> Plan:
    found = captured(function, *args, then=lambda module, _: divide(module))
    assert isinstance(found, Plan)
    return found


@pytest.mark.parametrize(
    ("function", "computed", "rebuilt"),
    [
        (lambda x: x * 2, 1, False),
        (lambda x: x.transpose(0, 1), 0, True),
        (lambda x: (x[0], x * 2, x.view(-1)), 1, True),
        (lambda x: x.add_(1), 0, True),
        (lambda x: (x * 2).chunk(2), 1, True),
        (lambda x: (lambda y: (y, y[0]))(x + 1), 1, True),
    ],
)
def test_views_are_left_to_torch(function: Callable[..., Any], computed: int, rebuilt: bool) -> None:
    found = plan(function, X.clone())
    (last,) = [node for node in found.module.graph.nodes if node.op == "output"]
    assert len(last.args[0]) == computed
    assert (found.rebuild is not None) == rebuilt


def test_a_view_is_made_of_the_caller_s_tensor() -> None:
    found = plan(lambda x: (x.T[1], x + 1), X)
    assert found.rebuild is not None
    view, rest = found.rebuild([X], [X + 1])
    assert view.untyped_storage().data_ptr() == X.untyped_storage().data_ptr() and torch.equal(view, X.T[1])
    assert torch.equal(rest, X + 1)


def test_changed_shapes_are_refused() -> None:
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    graph.output((graph.call_method("t_", (x,)),))
    with pytest.raises(UnsupportedError, match="t_ changes the shape"):
        divide(torch.fx.GraphModule({}, graph))
