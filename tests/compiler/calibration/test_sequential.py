"""Inputs in order: what weights replaced before make of them, and what compressing by them is worth."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any

import burnish
import numpy as np
import onnx_ir
import pytest
import torch
from burnish.backends.reference.registry import RULES
from burnish.compiler.calibration.statistics import Statistics
from burnish.compiler.inputs import Calibration
from burnish.frontends.torch_module import import_module
from burnish.ir.errors import CalibrationError, OptionError, UnsupportedError
from burnish.ir.graph import is_op
from burnish.passes import Canonicalize, Prune, Quantize, Recover
from burnish.passes.base import Context
from burnish.passes.statistics import Hessian
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

Array = np.ndarray[Any, Any]
WIDTH = 24


class Net(nn.Module):
    """Products behind each other and beside each other, residuals, and one weight that is used twice."""

    def __init__(self, depth: int = 3, branch: bool = True, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.left = nn.ModuleList([nn.Linear(WIDTH, WIDTH) for _ in range(depth)])
        self.right = nn.ModuleList([nn.Linear(WIDTH, WIDTH) for _ in range(depth)])
        self.again = nn.Linear(WIDTH, WIDTH)
        self.norm, self.branch = nn.LayerNorm(WIDTH), branch

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, WIDTH] to the same."""
        for left, right in zip(self.left, self.right, strict=True):
            h = self.norm(x)
            y = nn.functional.gelu(left(h))
            if self.branch:
                y = y * right(h)
            x = x + self.again(y)
        return x


def _inputs(count: int = 3, rows: int = 40) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(rows, WIDTH, generator=generator) for _ in range(count)]


def _graph(model: nn.Module) -> tuple[onnx_ir.Model, Any]:
    imported = import_module(model.eval(), (_inputs()[0],), {}, None)
    for step in (Canonicalize(), Recover()):
        step.run(imported.graph, Context())
    return imported.graph, imported.signature


def _products(graph: onnx_ir.Model) -> list[onnx_ir.Node]:
    return [node for node in graph.graph if is_op(node, "MatMul", "Gemm")]


def _read(graph: onnx_ir.Model) -> list[onnx_ir.Value]:
    return list(dict.fromkeys(node.inputs[0] for node in _products(graph) if node.inputs[0] is not None))


def _weight(node: onnx_ir.Node) -> onnx_ir.Value:
    assert node.inputs[1] is not None
    return node.inputs[1]


@settings(max_examples=8, deadline=None)
@given(depth=st.integers(1, 4), branch=st.booleans(), seed=st.integers(0, 9))
def test_with_nothing_replaced_they_are_those_of_one_run(depth: int, branch: bool, seed: int) -> None:
    graph, signature = _graph(Net(depth, branch, seed))
    values = _read(graph)
    with (
        tempfile.TemporaryDirectory() as folder,
        Statistics(graph, Calibration([(x,) for x in _inputs()], signature), Path(folder)) as stats,
    ):
        want = stats(values, Hessian())
        walk = stats.sequential(values, True)
        ranks = [walk.rank(value.name or "") for value in values]
        assert ranks == sorted(ranks) and max(ranks) == 2 * depth - 1
        for value in values:
            name = value.name or ""
            scale = np.abs(want[name]).max()
            assert np.abs(walk.hessian(name) - want[name]).max() <= 1e-5 * scale
            assert np.array_equal(walk.cross(name), walk.hessian(name))


def test_what_is_replaced_shows_behind_it(tmp_path: Path) -> None:
    """Against the module with the same weight exchanged: its inputs, and their products with those it had."""
    model = Net(2)
    graph, signature = _graph(model)
    values = _read(graph)
    first = _products(graph)[0]
    generator = np.random.default_rng(0)
    new = generator.standard_normal((WIDTH, WIDTH)).astype(np.float32)

    def watched(net: nn.Module) -> dict[str, Array]:
        found: dict[str, list[Array]] = {}
        hooks = [
            part.register_forward_pre_hook(lambda _, x, name=name: found.setdefault(name, []).append(x[0].numpy()))
            for name, part in net.named_modules()
            if isinstance(part, nn.Linear)
        ]
        with torch.no_grad():
            for x in _inputs():
                net(x)
        for hook in hooks:
            hook.remove()
        return {name: np.concatenate(parts) for name, parts in found.items()}

    before, changed = watched(model)["left.1"], copy.deepcopy(model)
    with torch.no_grad():
        turned = is_op(first, "Gemm") and first.attributes.get("transB") is not None
        changed.left[0].weight.copy_(torch.from_numpy(new if turned else new.T))
    after = watched(changed)["left.1"]
    with Statistics(graph, Calibration([(x,) for x in _inputs()], signature), tmp_path) as stats:
        walk = stats.sequential(values, True)
        walk.hessian(values[0].name or "")
        walk.replace(_weight(first), lambda: new)
        third = values[2].name or ""  # values: normalized, gated, normalized, gated
        assert np.abs(walk.hessian(third) - after.T @ after / len(after)).max() < 1e-4
        assert np.abs(walk.cross(third) - after.T @ before / len(after)).max() < 1e-4
        assert np.abs(walk.mean(third) - after.mean(axis=0)).max() < 1e-5
        assert not np.allclose(walk.cross(third), walk.hessian(third), atol=1e-2)
    assert not list(tmp_path.iterdir())


def test_inputs_that_are_no_numbers(tmp_path: Path) -> None:
    graph, signature = _graph(Net(1))
    bad = _inputs(1)[0].clone()
    with Statistics(graph, Calibration([(bad,)], signature), tmp_path) as stats:
        walk = stats.sequential(_read(graph), False)
        weight = _weight(_products(graph)[0])
        walk.hessian(_read(graph)[0].name or "")
        walk.replace(weight, np.full((WIDTH, WIDTH), np.inf, np.float32))
        with pytest.raises(CalibrationError, match="NaN or infinite"):
            walk.hessian(_read(graph)[1].name or "")


class Deep(nn.Module):
    """Errors add up: a chain of layers without anything beside."""

    def __init__(self, depth: int = 5, width: int = 64) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(*[m for _ in range(depth) for m in (nn.Linear(width, width), nn.GELU())])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, 64] to the same."""
        result: torch.Tensor = self.layers(x)
        return result


def _error(passes: str) -> float:
    """Relative error on inputs that nothing was calibrated on; channels of inputs hang together."""
    model, generator = Deep().eval(), torch.Generator().manual_seed(0)
    mix = torch.randn(64, 64, generator=generator) / 8
    batches = [torch.randn(256, 64, generator=generator) @ mix for _ in range(12)]
    compiled = burnish.compile(
        model, (batches[0],), passes=passes, calibration=batches[:8], progress=False, cache=False
    )
    x = batches[9]
    with torch.no_grad():
        want = model(x)
    return float((compiled(x) - want).norm() / want.norm())


@pytest.mark.parametrize(
    ("passes", "least"),
    [
        ("quantize(group_size=32,bits=3{})", 0.9),
        ("quantize(group_size=32,bits=3,method=clip{})", 0.9),
        ("prune(metric=sparsegpt{})", 0.9),
        ("prune(metric=wanda{})", 0.9),
    ],
)
def test_making_up_for_errors_before(passes: str, least: float) -> None:
    plain = _error(passes.format(""))
    assert _error(passes.format(",propagate=errors")) < least * plain
    assert _error(passes.format(",propagate=inputs")) < 1.1 * plain


def test_a_decoder_with_its_table_and_shares_of_layers(tmp_path: Path) -> None:
    """A table that the head shares is rounded last; shares of layers are found before anything is pruned."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=96, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
                    num_key_value_heads=1, max_position_embeddings=64, tie_word_embeddings=True)
    ).eval()  # fmt: skip
    model.save_pretrained(tmp_path / "model")
    generator = np.random.default_rng(0)
    data = [{"input_ids": generator.integers(0, 96, (2, 24))} for _ in range(3)]
    for passes in (
        "rotate,quantize(group_size=32,propagate=errors)",
        "quantize(scheme=w8a8,propagate=inputs)",
        "prune(layer_ratios=owl,propagate=errors)",
        "prune(pattern='2:4',metric=ria,refine_mask=true,propagate=inputs)",
    ):
        report = burnish.export(tmp_path / "model", tmp_path / "out", passes=passes, calibration=data, cache=False,
                                overwrite=True)  # fmt: skip
        assert report.accuracy is not None and report.accuracy.cosine > 0.5


def test_the_same_every_time(tmp_path: Path) -> None:
    import onnx

    generator = torch.Generator().manual_seed(0)
    data, made = [torch.randn(96, 64, generator=generator) for _ in range(2)], []
    for name in ("a.onnx", "b.onnx"):
        burnish.export(
            Deep(2).eval(), tmp_path / name, (data[0],), calibration=data,
            passes="quantize(group_size=32,propagate=errors)", cache=False,
        )  # fmt: skip
        proto = onnx.load(tmp_path / name)
        del proto.metadata_props[:]
        made.append(proto.SerializeToString(deterministic=True))
    assert made[0] == made[1]


def test_refusals() -> None:
    for build in (Quantize, Prune):
        with pytest.raises(OptionError, match="propagate='on' does not exist"):
            build(propagate="on")
    with pytest.raises(OptionError, match="looks at inputs"):
        Quantize(method="rtn", propagate="inputs")
    with pytest.raises(OptionError, match="looks at inputs"):
        Prune(metric="magnitude", propagate="inputs")
    for pass_ in (Quantize(propagate="errors"), Prune(propagate="errors")):
        with pytest.raises(CalibrationError, match="calibration inputs are needed"):
            burnish.compile(Deep(1).eval(), (torch.ones(2, 64),), passes=[pass_], cache=False, progress=False)


def test_a_model_that_the_reference_backend_does_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for by name that is an error; ``auto`` says so and does without."""
    monkeypatch.delitem(RULES, ("", "Gelu"))
    data = [torch.randn(96, 64, generator=torch.Generator().manual_seed(0))]

    def compiled(passes: str) -> Any:
        return burnish.compile(Deep(2).eval(), (data[0],), passes=passes, calibration=data, cache=False, progress=False)

    with pytest.raises(UnsupportedError, match="no rule for Gelu"):
        compiled("quantize(propagate=errors)")
    for passes in ("quantize(propagate=auto)", "prune(propagate=auto)"):
        reasons = [remark.reason for _, remark in compiled(passes).report.remark_rows()]
        assert any("errors before a product are not made up for: the reference backend" in r for r in reasons)
    burnish.compile(Deep(1).eval(), (data[0],), passes="quantize(propagate=auto)", cache=False, progress=False)
