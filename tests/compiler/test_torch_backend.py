"""``torch.compile(model, backend="burnish")``."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from importlib.metadata import entry_points
from typing import Any

import burnish
import psutil
import pytest
import torch
from burnish.compiler import torch_backend
from burnish.compiler.torch_backend import GraphReport, backend
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM


@pytest.fixture(autouse=True)
def _afresh() -> Iterator[None]:
    """Reports and TorchDynamo's cache of one test."""
    torch._dynamo.reset()
    burnish.torch_report().clear()
    with torch.inference_mode(False), torch.no_grad():
        yield
    torch._dynamo.reset()


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down = torch.nn.Linear(32, 64), torch.nn.Linear(64, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(torch.nn.functional.gelu(self.up(x)))


class Counting(Net):
    """Writes into a buffer, and returns what is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(32))

    def forward(self, x: torch.Tensor) -> Any:
        self.count.add_(1)
        return super().forward(x) + self.count, x.shape[0], None, {"x": x.sum()}


def compiled(model: torch.nn.Module, **options: Any) -> Any:
    return torch.compile(model, backend=backend, **options)


def only() -> GraphReport:
    (report,) = burnish.torch_report()
    return report


X = torch.randn(5, 32, generator=torch.Generator().manual_seed(1))


def test_the_entry_point_names_the_backend() -> None:
    (found,) = entry_points(group="torch_dynamo_backends", name="burnish")
    assert found.load() is backend
    assert torch.allclose(torch.compile(Net().eval(), backend="burnish")(X), Net().eval()(X), atol=1e-6)


def test_it_runs_on_the_runtime_and_is_right() -> None:
    model = Net().eval()
    torch.testing.assert_close(compiled(model)(X), model(X), rtol=1e-5, atol=1e-6)
    report = only()
    assert report.eager is None and report.operators > 0 and report.calls == report.compilations == 1
    assert "nodes on ONNX Runtime" in str(burnish.torch_report())


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_a_transformer_at_twenty_sizes(family: str) -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    model: torch.nn.Module
    if family == "llama":
        model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2)).eval()
    else:
        model = BertModel(BertConfig(**sizes, num_attention_heads=4)).eval()
    run = compiled(model)
    process, memory = psutil.Process(), 0
    for step in range(20):
        ids = torch.randint(0, 64, (1 + step % 3, 4 + step))
        torch.testing.assert_close(run(input_ids=ids)[0], model(input_ids=ids)[0], rtol=1e-4, atol=1e-5)
        if step == 9:
            memory = process.memory_info().rss
    assert process.memory_info().rss - memory < 30e6
    reports = burnish.torch_report()
    assert all(report.eager is None for report in reports)
    assert sum(report.compilations for report in reports) <= 8


def test_writes_into_inputs_and_results_that_are_no_tensors() -> None:
    model, expected = Counting().eval(), Counting().eval()
    run = compiled(model)
    for _ in range(3):
        y, rows, nothing, more = run(X)
        z, *_ = expected(X)
        torch.testing.assert_close(y, z)
        assert (rows, nothing) == (5, None)
        torch.testing.assert_close(more["x"], X.sum())
    assert torch.equal(model.count, torch.full((32,), 3.0))


def test_a_graph_break_makes_two_graphs() -> None:
    model = Net().eval()

    def call(x: torch.Tensor) -> torch.Tensor:
        y = model.up(x)
        torch._dynamo.graph_break()
        return model.down(y)

    run = torch.compile(call, backend=backend)
    torch.testing.assert_close(run(X), model.down(model.up(X)))
    assert len(burnish.torch_report()) == 2 and not any(r.eager for r in burnish.torch_report())


def test_changed_weights_are_seen() -> None:
    model = Net().eval()
    run = compiled(model)
    run(X)
    model.up.weight.mul_(2)
    torch.testing.assert_close(run(X), model(X))
    assert only().recompiled == ["a parameter or buffer was changed"]
    model.up.weight = torch.nn.Parameter(model.up.weight * 2)
    torch.testing.assert_close(run(X), model(X))


def test_a_write_through_data_is_seen_after_refresh() -> None:
    model = Net().eval()
    run = compiled(model)
    before = run(X)
    model.up.weight.data.mul_(2)
    assert torch.equal(run(X), before)  # neither version nor address changed
    burnish.refresh()
    torch.testing.assert_close(run(X), model(X))
    assert only().recompiled == ["refresh() was called"]


def test_a_write_through_data_is_found_by_the_fingerprint() -> None:
    model = Net().eval()
    run = compiled(model, options={"fingerprint_every": 4})
    run(X)
    model.up.weight.data.mul_(2)
    for _ in range(4):
        y = run(X)
    torch.testing.assert_close(y, model(X))
    assert only().recompiled == ["a parameter or buffer was written to through .data"]


def test_an_operator_without_a_rule_runs_eagerly_with_one_warning() -> None:
    def call(x: torch.Tensor) -> torch.Tensor:
        return torch.linalg.matrix_exp(x @ x.T)

    run = torch.compile(call, backend=backend)
    with pytest.warns(UserWarning, match="runs eagerly: no rule translates aten.linalg_matrix_exp"):
        torch.testing.assert_close(run(X), call(X))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(X)
    assert only().calls == 2


def test_recorded_gradients_are_left_to_torch() -> None:
    model = Net()
    with torch.enable_grad(), pytest.warns(UserWarning, match=r"torch\.inference_mode"):
        compiled(model)(X).sum().backward()
    assert model.up.weight.grad is not None


def test_compilations_are_bounded() -> None:
    model = Net().eval()
    run = compiled(model, options={"max_compilations": 2})
    with pytest.warns(UserWarning, match="max_compilations"):
        for _ in range(4):
            model.up.weight.mul_(1.1)
            torch.testing.assert_close(run(X), model(X))
    assert only().compilations == 2 and only().eager is not None


def test_passes_and_modes() -> None:
    class Wide(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.line = torch.nn.Linear(128, 256)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.line(x)

    model, x = Wide().eval(), torch.randn(4, 128)
    for options in ({"mode": "w8a16"}, {"options": {"passes": "quantize(bits=8)"}}):
        torch._dynamo.reset()
        y = torch.compile(model, backend=backend, **options)(x)
        error = float((y - model(x)).norm() / model(x).norm())
        assert 1e-4 < error < 0.02
    torch._dynamo.reset()
    torch.testing.assert_close(compiled(model, mode="max-autotune")(x), model(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "w8a17"}, "there is no mode 'w8a17'"),
        ({"options": {"pases": "w8a16"}}, "there is no option 'pases'"),
        ({"options": {"passes": "quantise"}}, "there is no pass or preset"),
        ({"options": {"max_compilations": 0}}, "max_compilations=0"),
        ({"options": {"fingerprint_every": -1}}, "fingerprint_every=-1"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(Exception, match=message):
        compiled(Net().eval(), **options)(X)


def test_empty_and_single_numbers() -> None:
    def call(x: torch.Tensor) -> Any:
        return x.sum(), (x > 0).any(), x.argmax(), x * 2

    run = torch.compile(call, backend=backend, dynamic=True)
    for x in (X, X[:1]):
        for a, b in zip(run(x), call(x), strict=True):
            assert a.dtype == b.dtype and a.shape == b.shape
            torch.testing.assert_close(a, b)
    empty = torch.zeros(0, 32)
    torch.testing.assert_close(torch.compile(lambda x: x * 2, backend=backend)(empty), empty)


def test_results_are_tensors_of_their_own() -> None:
    run = compiled(Net().eval())
    first = run(X)
    kept = copy.deepcopy(first)
    run(X + 1)
    assert torch.equal(first, kept)


def test_nothing_compiled_says_so() -> None:
    assert str(burnish.torch_report()) == "nothing was compiled"
    assert torch_backend.torch_report() is burnish.torch_report()


@pytest.mark.parametrize(
    "call",
    [
        lambda x: torch.addbmm(torch.ones(5, 5), x.view(1, 5, 32).repeat(3, 1, 1), x.T.repeat(3, 1, 1), alpha=0.5),
        lambda x: torch.nn.functional.softplus(x, beta=3, threshold=0.2),
        lambda x: torch.std(x, False),
        lambda x: torch.var(x, True),
        lambda x: torch.ops.aten._safe_softmax(torch.where(x[:, :1] > 0, x, -torch.inf), 1),
    ],
    ids=["addbmm", "softplus", "std", "var", "safe_softmax"],
)
def test_operators_that_once_were_wrong(call: Any) -> None:
    torch.testing.assert_close(torch.compile(call, backend=backend)(X), call(X), rtol=1e-4, atol=1e-5)
    assert only().eager is None
