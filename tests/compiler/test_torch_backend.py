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


def test_recompiling_with_symbolic_sizes_keeps_them() -> None:
    model = Net().eval()
    run = compiled(model, dynamic=True)
    for rows in (3, 4, 7, 2):
        x = torch.randn(rows, 32)
        torch.testing.assert_close(run(x), model(x))
        model.up.weight.mul_(1.1)
    assert only().compilations == 3  # the second change makes it an input
    assert only().eager is None and only().calls == 4


def test_a_weight_that_changes_at_each_call_becomes_an_input() -> None:
    model = Net().eval()
    run = compiled(model, options={"max_compilations": 3})
    for _ in range(8):
        torch.testing.assert_close(run(X), model(X))
        model.down.bias.add_(0.5)
    assert only().compilations == 3 and only().eager is None


@pytest.mark.parametrize("train", [False, True])
def test_batch_normalization(train: bool) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)).requires_grad_(False).train(train)
    other, x = copy.deepcopy(model), torch.randn(2, 3, 8, 8)
    run = compiled(model)
    for _ in range(2):
        torch.testing.assert_close(run(x), other(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.state_dict(), other.state_dict())
    assert only().eager is None


def _after(function: Any, writing: bool, *args: torch.Tensor) -> Any:
    """Results, after each was written into, and arguments."""
    args = tuple(arg.clone() for arg in args)
    results = torch.utils._pytree.tree_leaves(function(*args))
    if writing:
        for result in results:
            result.add_(1)
    return results, args


@pytest.mark.parametrize(
    "call",
    [
        lambda x: x.T,
        lambda x: (x[0], x * 2, x.view(-1)),
        lambda x: (x * 2).chunk(2, dim=1),
        lambda x: (lambda y: (y, y.view(-1)))(x * 2),
        lambda x: x.add_(1),
        lambda x: x[0].mul_(3),
        lambda x: torch.nn.functional.elu(x, inplace=True),
        lambda x: (x.view(-1), x.mul_(2).sum()),
        lambda x: (lambda y: (y[0], y.add_(1)))(x * 2),
        lambda x: (x.float(), x.double(), x.contiguous()),
        lambda x: (x.clone(), x.clone(), torch.ones(3)),
    ],
)
@pytest.mark.parametrize("dynamic", [False, True])
def test_memory_is_shared_as_in_eager(call: Any, dynamic: bool) -> None:
    run = torch.compile(call, backend=backend, dynamic=dynamic)
    for x in (X, X[:3]):
        torch.testing.assert_close(_after(run, True, x), _after(call, True, x))
    assert all(report.eager is None for report in burnish.torch_report())


def test_arguments_that_overlap_and_are_written_to() -> None:
    def call(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        x.add_(1)
        return x + y

    run, memory = torch.compile(call, backend=backend), torch.arange(10.0)
    run(torch.ones(5), torch.ones(5))
    copied = memory.clone()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.testing.assert_close(run(memory[:5], memory[3:8]), call(copied[:5], copied[3:8]))
    assert torch.equal(memory, copied)


@pytest.mark.parametrize(
    "call",
    [
        lambda x: torch.nn.functional.dropout(x, 0.5, True),
        lambda x: x + torch.rand_like(x),
        lambda x: torch.bernoulli(x.sigmoid()),
        lambda x: x.clone().uniform_(),
        lambda x: torch.nn.functional.rrelu(x, training=True),
        lambda x: torch.nn.functional.scaled_dot_product_attention(x[None], x[None], x[None], dropout_p=0.5),
    ],
)
def test_chance_is_left_to_torch(call: Any) -> None:
    with pytest.warns(UserWarning, match="runs eagerly"):
        torch.compile(call, backend=backend)(X)
    assert only().eager


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.complex64])
def test_other_element_types_are_right_or_eager(dtype: torch.dtype) -> None:
    def call(x: torch.Tensor) -> torch.Tensor:
        return (x @ x.T) * 2

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        y = torch.compile(call, backend=backend)(X.to(dtype))
    assert y.dtype == dtype
    torch.testing.assert_close(y, call(X.to(dtype)), rtol=1e-2, atol=1e-2)
    assert (only().eager is None) == (dtype in (torch.float64, torch.float16))


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda x: torch.logaddexp(x, x.flip(0)), "logaddexp"),
        (lambda x: torch.nn.functional.bilinear(x, x[:, :3].contiguous(), torch.ones(2, 32, 3)), "bilinear"),
        (lambda x: torch.nn.functional.cross_entropy(x, torch.tensor([1, 0, 31, 7, 7])), "cross_entropy_loss"),
        (lambda x: torch.nanmean(x.sqrt(), 1), "nanmean"),
    ],
)
def test_an_operator_without_a_rule_is_taken_apart(call: Any, name: str) -> None:
    torch.testing.assert_close(torch.compile(call, backend=backend)(X), call(X), rtol=1e-4, atol=1e-5)
    assert only().apart == (f"aten.{name}.default",) and "taken apart" in str(only())


def test_without_fallback() -> None:
    with pytest.raises(Exception, match=r"cannot be compiled: no rule translates aten\.lgamma"):
        torch.compile(lambda x: torch.lgamma(x), backend=backend, options={"fallback": False})(X)


def test_inference_mode_has_no_versions() -> None:
    with torch.inference_mode():
        model = Net().eval()
        torch.testing.assert_close(compiled(model)(X), model(X))
    assert only().eager is None


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
        ({"options": {"threads": 0}}, "threads=0"),
        ({"options": {"fallback": "no"}}, "fallback='no'"),
        ({"options": {"backend": "tritton"}}, "there is no backend 'tritton'"),
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


class Normed(Net):
    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.LayerNorm(32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x + super().forward(x))


@pytest.mark.parametrize(
    ("how", "measures"),
    [
        ({}, True),
        ({"options": {"measure": 0}}, False),
        ({"mode": "max-autotune"}, True),
        ({"options": {"passes": []}}, False),
    ],
)
def test_kernels_are_chosen_by_measurement(how: dict[str, Any], measures: bool) -> None:
    model = Normed().eval()
    torch.testing.assert_close(compiled(model, **how)(X), model(X), rtol=1e-5, atol=1e-6)
    said = [remark.reason for remark in only().remarks]
    assert any("SkipLayerNormalization" in reason and "times the time" in reason for reason in said) == measures


def test_a_list_that_says_what_is_joined_is_left_as_it_is() -> None:
    model = Normed().eval()
    run = compiled(model, mode="w8a16")
    assert torch.allclose(run(X), model(X), atol=0.1) and only().eager is None
    said = [remark.reason for remark in only().remarks]
    assert not any("were not timed" in reason or "nothing can be timed" in reason for reason in said)
    assert any("SkipLayerNormalization" in reason and "times the time" in reason for reason in said)


def test_measuring_takes_a_number_of_seconds() -> None:
    assert torch_backend._settings("max-autotune", {}).measure > torch_backend._settings(None, {}).measure
    with pytest.raises(burnish.BurnishError, match="not a number of seconds"):
        torch_backend._settings(None, {"measure": -1})


def test_a_constant_made_in_inference_mode_is_watched_too() -> None:
    from burnish.compiler.torch_constants import Constants

    with torch.inference_mode():
        frozen = torch.ones(3)
    free = torch.ones(3)
    constants = Constants(0)
    constants.remember((0, 1), [frozen, free])
    assert constants.changed([frozen, free], 1) is None
    free.add_(1)
    assert constants.changed([frozen, free], 2) == "a parameter or buffer was changed" and constants.varying == set()
    constants.remember((0, 1), [frozen, free])
    free.add_(1)
    assert constants.changed([frozen, free], 3) and constants.varying == {1}
    constants.remember((0, 1), [frozen, free])
    assert constants.changed([frozen, frozen], 4)  # one without a version in the place of one with
