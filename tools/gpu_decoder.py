"""Decoding with a model of Llama-7B's shape and random weights, batch 1: 4 bits by our kernels beside bfloat16."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..backends.triton import attention, codes, fused, quantized, rope
from .gpu_timings import GROUP, median_seconds, product_tiled4, tiled4


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder."""

    layers: int = 32
    hidden: int = 4096
    inner: int = 11008
    heads: int = 32
    vocabulary: int = 32000
    capacity: int = 1024
    past: int = 512

    @property
    def head(self) -> int:
        """Numbers of a head."""
        return self.hidden // self.heads


def _linears(shape: Shape) -> list[tuple[int, int]]:
    """Output and input channels of a layer's products: queries with keys and values, out, gate with up, down."""
    return [(3 * shape.hidden, shape.hidden), (shape.hidden, shape.hidden), (2 * shape.inner, shape.hidden),
            (shape.hidden, shape.inner)]  # fmt: skip


def _random(n: int, k: int, device: str) -> Tensor:
    return torch.randn(n, k, device=device, dtype=torch.bfloat16).div_(k**0.5)


class Places:
    """The token's place, angles and norms that all sides share."""

    def __init__(self, shape: Shape, device: str) -> None:
        half = shape.head // 2
        angles = torch.arange(shape.capacity)[:, None] / 10000 ** (torch.arange(half) / half)
        self.cos, self.sin = angles.cos().to(device), angles.sin().to(device)
        self.position = torch.full((1, 1), shape.past, device=device)
        self.length = torch.full((1,), shape.past + 1, dtype=torch.int32, device=device)
        self.norm = torch.ones(shape.hidden, dtype=torch.bfloat16, device=device)
        self.seen = (torch.arange(shape.capacity, device=device) <= shape.past)[None, None, None]


def layer_ours(
    x: Tensor, weights: Sequence[codes.Codes4], cache: rope.Cache, places: Places, shape: Shape
) -> Tensor:  # fmt: skip
    """A layer in 4 bits: x [1, 1, hidden]."""
    qkv = quantized.w4a16(F.rms_norm(x, x.shape[-1:], places.norm), weights[0])
    q = rope.rope_to_cache(qkv, places.cos, places.sin, places.position, cache, heads=shape.heads)
    seen = attention.decode(q, cache.k, cache.v, lengths=places.length)
    x = quantized.w4a16(seen.reshape(1, 1, -1), weights[1], epilogue=fused.residual(x))
    gate = fused.Epilogue("silu", gated=True)
    inner = quantized.w4a16(F.rms_norm(x, x.shape[-1:], places.norm), weights[2], epilogue=gate)
    return quantized.w4a16(inner, weights[3], epilogue=fused.residual(x))


def layer_torch(
    x: Tensor, weights: Sequence[Callable[[Tensor], Tensor]], k: Tensor, v: Tensor, places: Places, shape: Shape
) -> Tensor:  # fmt: skip
    """The same by PyTorch's operators; a weight is a function."""
    qkv = weights[0](F.rms_norm(x, x.shape[-1:], places.norm)).view(1, 1, 3, shape.heads, shape.head)
    q, key, value = (t.transpose(1, 2) for t in qkv.unbind(2))
    at = places.position[0]
    cos, sin = (t[at].repeat(1, 2).to(x.dtype) for t in (places.cos, places.sin))
    q, key = (t * cos + torch.cat([-t[..., shape.head // 2 :], t[..., : shape.head // 2]], -1) * sin for t in (q, key))
    k.index_copy_(2, at, key)
    v.index_copy_(2, at, value)
    seen = F.scaled_dot_product_attention(q, k, v, attn_mask=places.seen)
    x = x + weights[1](seen.transpose(1, 2).reshape(1, 1, -1))
    gate, up = weights[2](F.rms_norm(x, x.shape[-1:], places.norm)).chunk(2, -1)
    return x + weights[3](F.silu(gate) * up)


def right(device: str, shape: Shape) -> float:
    """Largest difference of the two layers on the same codes, relative to the largest output."""
    places = Places(shape, device)
    packed = [codes.quantize4(_random(n, k, device), 32) for n, k in _linears(shape)]
    wide = [codes.dequantize4(p) for p in packed]
    cache = rope.new_cache(1, shape.heads, shape.capacity, shape.head, dtype=torch.bfloat16, device=device)
    cache.k.normal_()
    cache.v.normal_()
    k, v = cache.k.clone(), cache.v.clone()
    x = torch.randn(1, 1, shape.hidden, device=device, dtype=torch.bfloat16)
    got = layer_ours(x, packed, cache, places, shape)
    want = layer_torch(x, [_linear(w) for w in wide], k, v, places, shape)
    return float((got.double() - want.double()).abs().max() / want.double().abs().max())


def _linear(w: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x: F.linear(x, w)


def _linear4(w: tuple[Tensor, Tensor]) -> Callable[[Tensor], Tensor]:
    # The operator takes two axes only.
    return lambda x: product_tiled4(x.flatten(0, -2), *w).reshape(*x.shape[:-1], -1)


def tokens_a_second(deadline: float, shape: Shape | None = None) -> list[dict[str, Any]]:
    """Tokens a second of each side, as CUDA graphs: ours, eager, Inductor, Inductor with PyTorch's int4."""
    shape = shape or Shape()
    device = "cuda"
    places = Places(shape, device)
    x = torch.randn(1, 1, shape.hidden, device=device, dtype=torch.bfloat16)
    head = _random(shape.vocabulary, shape.hidden, device)
    caches = [rope.new_cache(1, shape.heads, shape.capacity, shape.head, dtype=torch.bfloat16, device=device)
              for _ in range(shape.layers)]  # fmt: skip
    dense = [[_random(n, k, device) for n, k in _linears(shape)] for _ in range(shape.layers)]
    packed = [[codes.quantize4(w, GROUP) for w in layer] for layer in dense]
    packed_head = codes.quantize4(head, GROUP)

    def ours() -> Tensor:
        y = x
        for weights, cache in zip(packed, caches, strict=True):
            y = layer_ours(y, weights, cache, places, shape)
        return quantized.w4a16(F.rms_norm(y, y.shape[-1:], places.norm), packed_head)

    def by_torch(layer: Callable[..., Tensor], layers: Sequence[Any], last: Callable[[Tensor], Tensor]) -> Any:
        def run() -> Tensor:
            y = x
            for weights, cache in zip(layers, caches, strict=True):
                y = layer(y, weights, cache.k, cache.v, places, shape)
            return last(F.rms_norm(y, y.shape[-1:], places.norm))

        return run

    plain = [[_linear(w) for w in layer] for layer in dense]

    def inductor(layers: Sequence[Any], last: Callable[[Tensor], Tensor]) -> Any:
        # One layer is compiled, and serves all: the weights are arguments.
        def whole(y: Tensor, weights: Sequence[Tensor], k: Tensor, v: Tensor) -> Tensor:
            return layer_torch(y, [_linear(w) for w in weights], k, v, places, shape)

        fast = torch.compile(whole, mode="max-autotune-no-cudagraphs", dynamic=False)

        def layer(y: Tensor, weights: Sequence[Tensor], k: Tensor, v: Tensor, _: Places, __: Shape) -> Tensor:
            result: Tensor = fast(y, weights, k, v)
            return result

        return by_torch(layer, layers, last)

    def inductor4() -> Any:
        # The same layer with PyTorch's own product in 4 bits, whose operands are two tensors to a weight.
        def whole(y: Tensor, weights: Sequence[tuple[Tensor, Tensor]], k: Tensor, v: Tensor) -> Tensor:
            return layer_torch(y, [_linear4(w) for w in weights], k, v, places, shape)

        fast = torch.compile(whole, mode="max-autotune-no-cudagraphs", dynamic=False)
        small = [[tiled4(w) for w in layer] for layer in dense]
        return by_torch(lambda y, w, k, v, _, __: fast(y, w, k, v), small, _linear4(tiled4(head)))

    sides: dict[str, Callable[[], Any]] = {
        "ours, 4 bits": lambda: ours,
        "eager bf16": lambda: by_torch(layer_torch, plain, _linear(head)),
        "Inductor bf16": lambda: inductor(dense, _linear(head)),
        "Inductor, PyTorch's int4": inductor4,
    }
    found: list[dict[str, Any]] = []
    with torch.no_grad():
        for name, make in sides.items():
            if time.monotonic() > deadline:
                found.append({"side": name, "left_out": "the time is over"})
                continue
            try:
                seconds, spread = median_seconds([make()], rounds=9)
            except Exception as error:
                found.append({"side": name, "left_out": f"{type(error).__name__}: {str(error).strip()[:200]}"})
                continue
            found.append({"side": name, "milliseconds": seconds * 1e3, "spread": spread * 1e3, "tokens": 1 / seconds})
    base = next((row["milliseconds"] for row in found if row["side"] == "eager bf16" and "milliseconds" in row), None)
    for row in found:
        if base is not None and "milliseconds" in row:
            row["times_eager"] = base / row["milliseconds"]
    return found
