"""Gradients on calibration inputs: distillation makes pruned models better, influence is what the loss feels."""

from __future__ import annotations

from functools import partial
from typing import Any

import burnish
import numpy as np
import onnx_ir
import pytest
import torch
from burnish.backends.reference import Reference
from burnish.compiler.calibration.learning import Learning
from burnish.compiler.inputs import Calibration
from burnish.compiler.progress import silent
from burnish.frontends.torch_module import import_module
from burnish.ir.errors import CalibrationError, OptionError, UnsupportedError
from burnish.ir.graph import constant
from burnish.passes import Canonicalize, Distill, PruneStructures, Recover
from burnish.passes.base import Change, Context, Noise
from torch import nn

Array = np.ndarray[Any, Any]


class Net(nn.Module):
    """Three layers, wide enough to lose some."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, 16] to [batch, 8]."""
        result: torch.Tensor = self.layers(x)
        return result


def _batches(count: int = 8, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(32, 16, generator=generator) for _ in range(count)]


def _error(model: nn.Module, compiled: Any) -> float:
    x = torch.cat(_batches(4, seed=9))
    with torch.no_grad():
        want = model(x)
    return float((compiled(x) - want).norm() / want.norm())


def _compiled(passes: str) -> Any:
    model = Net().eval()
    x = torch.export.Dim("batch", min=1, max=512)
    return model, burnish.compile(
        model, (_batches()[0],), passes=passes, calibration=_batches(), dynamic_shapes=({0: x},), progress=False
    )


@pytest.mark.parametrize("cut", ["prune(metric=wanda,sparsity=0.6)", "prune_structures(ratio=0.4,multiple=1)"])
def test_distillation_recovers(cut: str) -> None:
    plain = _error(*_compiled(cut))
    model, compiled = _compiled(f"{cut},distill(steps=150,rate=3e-3)")
    assert _error(model, compiled) < 0.8 * plain
    remark = next(r for p in compiled.report.passes if p.spec.startswith("distill") for r in p.remarks)
    assert "the loss went from" in remark.reason


def test_thin_matrices_recover_too_and_zeros_stay() -> None:
    plain = _error(*_compiled("prune(metric=wanda,pattern='2:4')"))
    model, compiled = _compiled("prune(metric=wanda,pattern='2:4'),distill(steps=150,rate=3e-3,rank=4)")
    assert _error(model, compiled) < 0.8 * plain


def _graph() -> tuple[nn.Module, onnx_ir.Model, Calibration]:
    model = Net().eval()
    imported = import_module(model, (_batches()[0],), {}, None)
    for step in (Canonicalize(), Recover()):
        step.run(imported.graph, Context())
    return model, imported.graph, Calibration([(x,) for x in _batches(3)], imported.signature, None)


def test_masks_hold_while_training() -> None:
    _, graph, calibration = _graph()
    original = graph.clone()
    from burnish.passes import Prune

    Prune(sparsity=0.5).run(graph, Context())
    learning = Learning(graph, original, calibration, False, silent)
    outcome = Distill(steps=5).run(graph, Context(calibration=calibration, distill=learning.distill))
    assert outcome.rewrites == {"distill": 3}
    shares = []
    for node in graph.graph:
        if node.op_type in ("MatMul", "Gemm"):
            value = node.inputs[1]
            while value is not None and value.producer() is not None:
                value = value.producer().inputs[0]  # type: ignore[union-attr]
            weights = constant(value)
            assert weights is not None
            shares.append(float((weights == 0).mean()))
    # The outer layers are too small to be pruned.
    assert shares == [0.0, pytest.approx(0.5, abs=0.01), 0.0]


def test_influence_is_the_derivative_by_a_factor() -> None:
    """Against finite differences of the same loss."""
    _, graph, calibration = _graph()
    value = next(v for v in graph.graph.initializers.values() if v.name == "layers.2.weight")
    learning = Learning(graph, None, calibration, False, silent)
    found = learning.influence([(value, 1)])[0]
    assert found.shape == (3, 64)
    weights = constant(value)
    assert weights is not None
    losses = []
    for factor in (0.99, 1.01):
        changed = weights.copy()
        changed[:, 7] *= factor
        copy = graph.clone()
        copy.graph.initializers["layers.2.weight"].const_value = onnx_ir.Tensor(changed)
        x = _batches(3)[0]
        y = next(iter(Reference(copy).run({graph.graph.inputs[0].name or "": x}).values())).flatten()
        direction = torch.randn(y.numel(), generator=torch.Generator().manual_seed(0))
        losses.append(float(y @ direction) / np.sqrt(y.numel()))
    expected = (losses[1] - losses[0]) / 0.02
    assert found[0, 7] == pytest.approx(expected, rel=0.05, abs=2e-3)


class Words(nn.Module):
    """Logits [batch, tokens, 24] of next tokens, each by the tokens before it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.embed, self.mix, self.head = nn.Embedding(24, 32), nn.Linear(32, 32), nn.Linear(32, 24)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Token ids [batch, tokens]."""
        x = self.embed(input_ids)
        # Sums of what came before carry an error of one token on to those after it.
        x = x + 0.4 * torch.tanh(self.mix(x.cumsum(1)))
        result: torch.Tensor = self.head(x)
        return result


@pytest.mark.parametrize("decodes", [True, False])
def test_losses_to_second_order_are_those_of_small_changes(decodes: bool) -> None:
    """Against the mean loss of many such changes, made one by one; layers differ by far more than estimates do."""
    generator = np.random.default_rng(0)
    if decodes:
        model: nn.Module = Words().eval()
        feeds = [torch.randint(0, 24, (4, 16), generator=torch.Generator().manual_seed(i)) for i in range(8)]
    else:
        model, feeds = Net().eval(), _batches(8)
    imported = import_module(model, (feeds[0],), {}, None)
    for step in (Canonicalize(), Recover()):
        step.run(imported.graph, Context())
    graph, name = imported.graph, imported.graph.graph.inputs[0].name or ""
    calibration = Calibration([(x,) for x in feeds], imported.signature, None)
    values = [
        v for v in graph.graph.initializers.values() if v.name and v.name.endswith("weight") and "embed" not in v.name
    ]
    weights = {v.name or "": constant(v) for v in values}

    def run(changes: dict[str, torch.Tensor]) -> torch.Tensor:
        made = [next(iter(Reference(graph).run({name: x}, constants=changes).values())) for x in feeds]
        return torch.stack(made)

    def lost(value: str, difference: Array) -> float:
        got = run({value: torch.from_numpy(weights[value] + difference)})
        if decodes:
            p, q = torch.log_softmax(before.double(), -1), torch.log_softmax(got.double(), -1)
            return float((p.exp() * (p - q)).sum(-1).mean())
        each = (got - before).double().flatten(1).square().sum(1) / before.double().flatten(1).square().sum(1)
        return float(each.mean())

    before, real, changes = run({}), [], []
    for value in values:
        array = weights[value.name or ""]
        assert array is not None
        drawn = [1e-3 * generator.standard_normal(array.shape).astype(np.float32) for _ in range(12)]
        real.append(float(np.mean([lost(value.name or "", one) for one in drawn])))
        changes += [Change(value, 0, partial(np.asarray, one)) for one in drawn]
    learning = Learning(graph, None, calibration, decodes, silent)
    found = np.asarray(learning.second_order(changes, [])[0]).reshape(len(values), -1).mean(1)
    assert max(real) > 3 * min(real)
    assert found == pytest.approx(np.asarray(real), rel=0.35)


@pytest.mark.parametrize(("block", "step"), [(0, None), (8, None), (0, 0.02)])
def test_losses_by_rounded_inputs_are_those_of_such_noise(block: int, step: float | None) -> None:
    """The same net without rounding, with noise of a twelfth of the squared step on what its middle layer reads."""
    model, feeds = Net().eval(), _batches(8)
    _, graph, _ = _graph()
    node = [node for node in graph.graph if node.op_type in ("MatMul", "Gemm")][1]
    calibration = Calibration([(x,) for x in feeds], import_module(model, (feeds[0],), {}, None).signature, None)
    _, (found,) = Learning(graph, None, calibration, False, silent).second_order([], [Noise([node], block, step)])
    before, after, lost = model.layers[:2], model.layers[2:], []
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for x in feeds * 8:
            inside = before(x)
            if step is not None:
                wide = torch.tensor(step)
            elif block:
                wide = inside.reshape(32, -1, block).abs().amax(-1).repeat_interleave(block, -1) / 127
            else:
                wide = (inside.amax(-1, keepdim=True) - inside.amin(-1, keepdim=True)) / 255
            noise = (torch.rand(inside.shape, generator=generator) - 0.5) * wide
            want, got = after(inside), after(inside + noise)
            lost.append(float((got - want).square().sum() / want.square().sum()))
    assert found == pytest.approx(np.mean(lost), rel=0.15)


class Places(Net):
    """Says where the largest number is, which has no derivative."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, 16] to [batch]."""
        return super().forward(x).argmax(-1)


def test_no_second_order_without_numbers() -> None:
    imported = import_module(Places().eval(), (_batches()[0],), {}, None)
    calibration = Calibration([(_batches()[0],)], imported.signature, None)
    with pytest.raises(UnsupportedError, match="no output of floating point numbers"):
        Learning(imported.graph, None, calibration, False, silent).second_order([], [])


@pytest.mark.parametrize("gradients", ["fisher", "taylor"])
def test_gradients_beat_magnitude_where_weights_say_nothing(gradients: str) -> None:
    """Channels that are large and of no effect: what follows them is nearly zero."""
    model = Net().eval()
    with torch.no_grad():
        model.layers[0].weight[:16] *= 20
        model.layers[2].weight[:, :16] *= 0.001
    errors = []
    for metric in ("magnitude", gradients):
        compiled = burnish.compile(
            model, (_batches()[0],), calibration=_batches(), progress=False,
            passes=PruneStructures(ratio=0.15, metric=metric, compensate="off", multiple=1, distribution="uniform"),
            dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=512)},),
        )  # fmt: skip
        errors.append(_error(model, compiled))
    assert errors[1] < 0.8 * errors[0]


def test_refusals() -> None:
    _, graph, _ = _graph()
    with pytest.raises(CalibrationError, match="calibration inputs are needed"):
        Distill().run(graph, Context())
    for options in ({"steps": 0}, {"rate": 0.0}, {"precision": "float16"}, {"rank": -1}):
        with pytest.raises(OptionError):
            Distill(**options)
