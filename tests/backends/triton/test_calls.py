"""Generated files that call templates: attention, caches that grow, products by codes and patterns; and why not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import onnx_ir
import pytest
import torch
from burnish.backends.triton import caches
from burnish.backends.triton.codegen import attention, templates
from burnish.backends.triton.codegen.program import generate
from burnish.backends.triton.codes import Rows8
from burnish.backends.triton.pattern24 import dequantize24, pack24_codes
from burnish.backends.triton.session import MOST_GRAPHS, Session
from burnish.ir.errors import ModelError
from burnish.ir.infer import infer_graph

HERE = Path(__file__).resolve().parent


def _right(monkeypatch: pytest.MonkeyPatch, cache: Path, file: str, *checks: str) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    monkeypatch.setenv("BURNISH_CACHE", str(cache))
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-W", "ignore", str(HERE / file), *checks]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=1200)
    assert done.returncode == 0 and "all right" in done.stdout, done.stdout[-3000:] + done.stderr[-2000:]


def test_models_call_templates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoder with a cache, W8A8, and what decides about attention; the others in the slow test."""
    _right(monkeypatch, tmp_path, "interpreted_calls.py", "decoder", "eight_by_eight", "attention", "normalized")


def test_a_decoder_in_four_bits_is_compiled_saved_and_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _right(monkeypatch, tmp_path, "interpreted_decoder.py")


@pytest.mark.slow
def test_more_models_call_templates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _right(monkeypatch, tmp_path, "interpreted_calls.py", "decoder_in_codes", "two_of_four", "encoder")


def test_a_cache_grows_in_place_and_is_copied_when_it_is_continued_twice() -> None:
    new = torch.arange(24.0).reshape(1, 2, 3, 4)
    first = caches.append(torch.zeros(1, 2, 0, 4), new)
    second = caches.append(first.detach(), new[:, :, :1])
    assert second.data_ptr() == first.data_ptr() and torch.equal(second, torch.cat([new, new[:, :, :1]], 2))
    kept = second.clone()
    other = caches.append(first, new[:, :, 1:])
    assert other.data_ptr() != first.data_ptr() and torch.equal(second, kept)
    assert torch.equal(other, torch.cat([new, new[:, :, 1:]], 2))
    # Room is used up: the next one moves.
    whole = second
    while whole.data_ptr() == first.data_ptr():
        whole = caches.append(whole, new)
    assert torch.equal(whole[:, :, :4], kept) and torch.equal(whole[:, :, -3:], new)


def test_a_cache_from_elsewhere_is_copied_without_room() -> None:
    past, new = torch.randn(2, 2, 5, 4), torch.randn(2, 2, 1, 4)
    got = caches.append(past, new)
    assert torch.equal(got, torch.cat([past, new], 2)) and got.is_contiguous()
    turned = torch.randn(2, 5, 2, 4).transpose(1, 2)
    assert torch.equal(caches.append(turned, new), torch.cat([turned, new], 2))


def test_few_sets_of_shapes_are_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    replaced = Session.__new__(Session)
    replaced._graphs, replaced.remarks = {n: n for n in range(MOST_GRAPHS)}, ()  # type: ignore[misc]
    monkeypatch.setattr(Session, "call", lambda self, given: list(given))
    for _ in range(2):
        assert replaced._replayed([torch.zeros(3)])[0].shape == (3,)
    (remark,) = replaced.remarks
    assert remark.kind == "skipped" and "no more" in remark.reason and len(replaced._graphs) == MOST_GRAPHS


def test_memory_of_caches_is_given_back() -> None:
    for _ in range(3):
        caches.append(torch.zeros(1, 1, 0, 4), torch.zeros(1, 1, 2, 4))
    caches.append(torch.zeros(1, 1, 0, 4), torch.zeros(1, 1, 2, 4))
    alive = [buffer for buffer in caches._BUFFERS.values() if not buffer.storage.expired()]
    assert len(caches._BUFFERS) <= len(alive) + 1


def test_codes_with_the_pattern_are_packed() -> None:
    places = torch.full((3, 128), 8, dtype=torch.uint8)
    places[:, ::4], places[:, 3::4] = 3, 15
    scales = torch.rand(3, 2)
    packed = pack24_codes(places, scales, 64)
    want = (places.float() - 8) * scales.repeat_interleave(64, 1)
    assert torch.allclose(dequantize24(packed), want)
    places[1, 1] = 9
    with pytest.raises(ModelError, match="row 1"):
        pack24_codes(places, scales, 64)
    assert Rows8(torch.zeros(1, 2, dtype=torch.int8), torch.ones(1)).sums is None


def _graph(text: str) -> onnx_ir.Model:
    graph = onnx_ir.from_onnx_text(text)
    infer_graph(graph)
    return graph


@pytest.mark.parametrize(
    ("more", "options", "reason"),
    [
        ("", "", "is as good"),
        (", bool[1, 1, n, 5] mask", "", "shorter than the keys"),
        (", bool[1, 1, n, m] mask", "is_causal = 1", "counts from the first key"),
    ],
)
def test_attention_that_is_left_says_why(more: str, options: str, reason: str) -> None:
    mask = ", mask" if more else ""
    graph = _graph(
        f"""<ir_version: 10, opset_import: ["" : 23]>
        g (float16[1, 4, n, 24] q, float16[1, 2, m, 24] k, float16[1, 2, m, 24] v{more}) => (float16[1, 4, n, 24] y)
        {{ y = Attention<{options or "is_causal = 0"}>(q, k, v{mask}) }}"""
    )
    (node,) = graph.graph
    found = attention.find(node)
    assert isinstance(found, str) and reason in found
    assert any(r.kind == "skipped" and reason in r.reason for r in generate(graph).remarks)


def test_products_without_a_template_say_why() -> None:
    (node,) = _graph(
        """<ir_version: 10, opset_import: ["" : 23]>
        g (float[n, 32] x, float[32, 8] w) => (float[n, 8] y) { y = MatMul(x, w) }"""
    ).graph
    assert templates.find(node, {}, {}) == "products in float32 are a vendor's"
    graph = _graph(
        f"""<ir_version: 10, opset_import: ["" : 23]>
        g (float[n, 32] x) => (float[n, 2] y)
          <int8[32, 2] w = {{{", ".join(["1"] * 64)}}}, float[2, 2] s = {{1, 1, 1, 1}}>
        {{
            d = DequantizeLinear<axis = 0, block_size = 16>(w, s)
            y = MatMul(x, d)
        }}"""
    )
    found = templates.find(list(graph.graph)[-1], {}, {})
    assert isinstance(found, str) and "groups of 32, 64, 128 and 256" in found
