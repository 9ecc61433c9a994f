"""Sparse and linear attention against what their rules say, computed in PyTorch."""

from __future__ import annotations

from typing import Any

import burnish
import numpy as np
import pytest
import torch
from burnish.ir.errors import OptionError, SelectorError
from burnish.passes import LinearizeAttention, SparseAttention
from burnish.passes.attention.patterns import Pattern
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.export import Dim

HEADS, SIZE = 4, 8


class Layer(nn.Module):
    """Self-attention, fewer heads of keys and values perhaps."""

    def __init__(self, causal: bool, kv_heads: int = HEADS, masked: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.causal, self.kv_heads, self.masked = causal, kv_heads, masked
        self.query = nn.Linear(16, HEADS * SIZE)
        self.key = nn.Linear(16, kv_heads * SIZE)
        self.value = nn.Linear(16, kv_heads * SIZE)

    def parts(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Queries, keys and values, [batch, heads, length, size]."""
        return [
            made(x).unflatten(-1, (-1, SIZE)).transpose(1, 2) for made in (self.query, self.key, self.value)
        ]  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.parts(x)
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril() if self.masked else None
        gqa = self.kv_heads != HEADS
        out = nn.functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=self.causal and not self.masked, enable_gqa=gqa
        )
        return out.transpose(1, 2).flatten(2)


def compiled(layer: Layer, item: Any, **options: Any) -> Any:
    dynamic = ({0: Dim("batch", min=1, max=16), 1: Dim("length", min=2, max=4096)},)
    example = torch.randn(2, 37, 16)
    return burnish.compile(layer.eval(), (example,), dynamic_shapes=dynamic, passes=[item], cache=False, **options)


def reference(layer: Layer, x: torch.Tensor, rule: Pattern) -> torch.Tensor:
    q, k, v = layer.parts(x)
    k, v = (part.repeat_interleave(HEADS // layer.kv_heads, dim=1) for part in (k, v))
    at = np.arange(x.shape[1])
    allowed = torch.from_numpy(rule.allows(at[:, None], at[None]))
    if layer.causal or layer.masked:
        allowed &= torch.ones_like(allowed).tril()
    out = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
    return out.transpose(1, 2).flatten(2)


CASES: list[dict[str, Any]] = [
    {"pattern": "window", "window": 5},
    {"pattern": "window", "window": 40},
    {"pattern": "window", "window": 5, "global_tokens": 3},
    {"pattern": "dilated", "window": 6, "dilation": 3},
    {"pattern": "block_local", "window": 16},
    {"pattern": "block_local", "window": 7, "global_tokens": 2},
    {"pattern": "strided", "window": 6},
    {"pattern": "fixed", "window": 8, "summary": 2},
    {"pattern": "fixed", "window": 8, "summary": 2, "global_tokens": 3},
]


@pytest.mark.parametrize("options", CASES, ids=str)
@pytest.mark.parametrize("causal", [False, True])
def test_it_computes_what_the_pattern_says(options: dict[str, Any], causal: bool) -> None:
    layer = Layer(causal)
    model = compiled(layer, SparseAttention(**options))
    rule = Pattern(options["pattern"], **{name: value for name, value in options.items() if name != "pattern"})
    bounded = options["pattern"] in ("window", "dilated", "block_local")
    rewrites = model.report.passes[-1].rewrites
    assert rewrites == {f"attention => attention {'by blocks' if bounded else 'with a sparse mask'}": 1}
    for batch, length in ((2, 37), (1, 5), (3, 64), (1, 150)):
        x = torch.randn(batch, length, 16)
        with torch.no_grad():
            wanted = reference(layer, x, rule)
        torch.testing.assert_close(model(x), wanted, rtol=1e-4, atol=1e-5)


@settings(max_examples=15, deadline=None)
@given(
    kind=st.sampled_from(["window", "dilated", "block_local"]), window=st.integers(1, 40), causal=st.booleans(),
    dilation=st.integers(1, 4), global_tokens=st.integers(0, 9), length=st.integers(2, 120),
    kv_heads=st.sampled_from([1, 2, 4]),
)  # fmt: skip
def test_any_numbers(
    kind: Any, window: int, causal: bool, dilation: int, global_tokens: int, length: int, kv_heads: int
) -> None:
    options = {"window": window, "dilation": dilation if kind == "dilated" else 1, "global_tokens": global_tokens}
    layer = Layer(causal, kv_heads)
    x = torch.randn(2, length, 16)
    with torch.no_grad():
        wanted = reference(layer, x, Pattern(kind, **options))
    torch.testing.assert_close(compiled(layer, SparseAttention(kind, **options))(x), wanted, rtol=1e-4, atol=1e-5)


def test_a_mask_of_its_own_is_kept(caplog: pytest.LogCaptureFixture) -> None:
    layer = Layer(True, masked=True)
    model = compiled(layer, SparseAttention(window=4))
    x = torch.randn(2, 20, 16)
    with torch.no_grad():
        torch.testing.assert_close(model(x), reference(layer, x, Pattern("window", 4)), rtol=1e-4, atol=1e-5)
    record = model.report.passes[-1]
    assert record.rewrites == {"attention => attention with a sparse mask": 1}
    assert any("saves no time" in remark.reason for remark in record.remarks)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("causal", [False, True])
def test_linear_attention(causal: bool, kv_heads: int) -> None:
    layer = Layer(causal, kv_heads)
    model = compiled(layer, LinearizeAttention())
    assert model.report.passes[-1].rewrites == {"softmax attention => linear attention": 1}
    assert "Softmax" not in model.report.operators and "Attention" not in model.report.operators
    for batch, length in ((2, 37), (1, 5), (3, 64), (1, 300)):
        x = torch.randn(batch, length, 16)
        with torch.no_grad():
            q, k, v = layer.parts(x)
            k, v = (part.repeat_interleave(HEADS // kv_heads, dim=1) for part in (k, v))
            scores = (nn.functional.elu(q) + 1) @ (nn.functional.elu(k) + 1).transpose(2, 3)
            scores = scores.tril() if causal else scores
            wanted = (scores @ v / scores.sum(-1, keepdim=True)).transpose(1, 2).flatten(2)
        torch.testing.assert_close(model(x), wanted, rtol=1e-4, atol=1e-5)


def test_the_error_on_the_users_data_is_reported() -> None:
    layer = Layer(True)
    rows = [torch.randn(1, 50, 16) for _ in range(3)]
    errors = []
    for item in (SparseAttention(window=40), SparseAttention(window=4), LinearizeAttention()):
        report = compiled(layer, item, calibration=rows).report
        assert report.error is not None
        errors.append(report.error)
    assert 0 < errors[0] < errors[1] < 2 and 0.01 < errors[2] < 2
    report = compiled(layer, SparseAttention(window=4)).report
    assert report.error is None and any("was not measured" in remark.reason for remark in report.backend)


def test_what_is_left_alone_is_told() -> None:
    layer = Layer(True, masked=True)
    report = compiled(layer, LinearizeAttention()).report
    assert any("a mask of its own" in r.reason for r in report.passes[-1].remarks)
    none = burnish.compile(nn.Linear(4, 4).eval(), torch.ones(1, 4), passes="sparse_attention", cache=False).report
    assert any("there is no attention" in r.reason for r in none.passes[-1].remarks)
    with pytest.raises(SelectorError):
        compiled(layer, SparseAttention(include=("nowhere.*",)))


def test_a_decoder_with_a_cache_is_masked(tmp_path: Any) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.3, eos_token_id=None,
    )  # fmt: skip
    LlamaForCausalLM(config).eval().save_pretrained(tmp_path)
    exact = burnish.compile(tmp_path, cache=False)
    model = burnish.compile(tmp_path, passes="default,sparse_attention(window=8)", cache=False)
    prompt = list(range(5, 35))
    # One layer looks back at eight tokens: what stood before them changes nothing.
    tail = model.generate(prompt, max_new_tokens=1)[-1]
    assert tail == model.generate([9, 9, 9, *prompt[3:]], max_new_tokens=1)[-1]
    assert any("over a window of 8 tokens" in remark.reason for remark in model.report.backend)
    assert exact.generate(prompt, max_new_tokens=1)[:30] == prompt


@pytest.mark.parametrize(
    "options",
    [{"pattern": "star"}, {"window": 0}, {"dilation": 2}, {"pattern": "dilated", "dilation": 0},
     {"pattern": "fixed", "window": 4, "summary": 5}, {"global_tokens": -1}],
)  # fmt: skip
def test_options_that_make_no_sense(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        SparseAttention(**options)
