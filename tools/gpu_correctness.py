"""Cases for every Triton kernel in a template, against PyTorch in float64; for a GPU, or tiny for the interpreter."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..backends.triton import attention, codes, fused, gemm, pattern24, quantized, rope, sparse

TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""Largest error, relative to the largest output: a few roundings of the type, and sums in another order."""
FLOAT8 = 5e-4
"""Hopper's tensor cores add products of float8 in 14 bits: what is left of float32, 2e-4 of the largest on an H100."""
INTEGER_CACHE = 1e-2
"""What rounding a cache to 8 bits, 1 / 254 of the largest number of a head, adds to that."""


@dataclass(frozen=True)
class Case:
    """A call of a kernel.

    Attributes:
        name: of the kernel, the form and the type.
        run: gives what the kernel says and what is right.
        limit: of the error.
    """

    name: str
    run: Callable[[], tuple[Tensor, Tensor]]
    limit: float

    def error(self) -> float:
        """The error as a part of what is allowed; no number in the result is infinitely wrong."""
        got, want = self.run()
        if got.shape != want.shape:
            return math.inf
        if not want.numel():
            return 0.0
        scale = float(want.abs().max()) or 1.0
        error = float((got.double() - want).abs().max()) / scale / self.limit
        return error if math.isfinite(error) else math.inf


def cases(device: str, *, large: bool) -> Iterator[Case]:
    """All cases, at sizes of models or tiny ones, odd sizes among them."""
    for dtype in TOLERANCE:
        yield from _dense(device, dtype, large)
        yield from _codes(device, dtype, large)
        yield from _sparse(device, dtype, large)
        yield from _attention(device, dtype, large)
        yield from _rope(device, dtype)


def _named(kernel: str, dtype: torch.dtype) -> str:
    return f"{kernel} {str(dtype).removeprefix('torch.')}"


def _dense(device: str, dtype: torch.dtype, large: bool) -> Iterator[Case]:
    limit = TOLERANCE[dtype]
    for rows, n, k in ((1, 1024, 4096), (16, 1000, 1024), (300, 1032, 1096)) if large else ((1, 36, 70), (20, 40, 33)):
        x, w, bias, more, norm = (torch.randn(*size, device=device).to(dtype)
                                  for size in ((rows, k), (2 * n, k), (2 * n,), (rows, 2 * n), (k,)))  # fmt: skip

        def right(x: Tensor = x, w: Tensor = w, bias: Tensor = bias) -> Tensor:
            return x.double() @ w.double().T + bias.double()

        def gated(x: Tensor = x, w: Tensor = w, bias: Tensor = bias, n: int = n) -> Tensor:
            both = x.double() @ w.double().T + bias.double()
            return F.silu(both[:, :n]) * both[:, n:]

        def normed(x: Tensor = x, w: Tensor = w, bias: Tensor = bias, norm: Tensor = norm) -> Tensor:
            inner = F.rms_norm(x.double(), x.shape[-1:], norm.double(), 1e-5).to(x.dtype)
            return inner.double() @ w.double().T + bias.double()

        gate = fused.Epilogue("silu", gated=True)
        size = f"{rows}x{n}x{k}"
        yield Case(_named(f"gemm {size}", dtype), lambda x=x, w=w, b=bias, right=right: (gemm.gemm(x, w, b), right()),
                   limit)  # fmt: skip
        yield Case(_named(f"gemm kn {size}", dtype),
                   lambda x=x, w=w, b=bias, right=right: (
                       gemm.gemm(x, w.T.contiguous(), b, transposed=False), right()), limit)  # fmt: skip
        yield Case(_named(f"gemm gelu residual {size}", dtype),
                   lambda x=x, w=w, b=bias, m=more, right=right: (
                       gemm.gemm(x, w, b, epilogue=fused.residual(m, "gelu")), F.gelu(right()) + m.double()),
                   limit)  # fmt: skip
        yield Case(_named(f"gemm gated {size}", dtype),
                   lambda x=x, w=w, b=bias, gate=gate, gated=gated: (gemm.gemm(x, w, b, epilogue=gate), gated()),
                   limit)  # fmt: skip
        yield Case(_named(f"gemm normed {size}", dtype),
                   lambda x=x, w=w, b=bias, norm=norm, normed=normed: (
                       gemm.gemm(x, w, b, prologue=fused.rms_norm(x, norm, 1e-5)), normed()), limit)  # fmt: skip
    batched = torch.randn(3, 20, 24, device=device).to(dtype), torch.randn(3, 24, 33, device=device).to(dtype)
    yield Case(_named("gemm batched", dtype),
               lambda: (gemm.gemm(*batched, transposed=False), batched[0].double() @ batched[1].double()),
               limit)  # fmt: skip
    nothing = torch.zeros(0, 24, device=device, dtype=dtype)
    yield Case(_named("gemm of no rows", dtype),
               lambda: (gemm.gemm(nothing, batched[1][0], transposed=False), torch.zeros(0, 33).double()),
               limit)  # fmt: skip


def _codes(device: str, dtype: torch.dtype, large: bool) -> Iterator[Case]:
    limit = TOLERANCE[dtype]
    for rows, n, k in (
        ((1, 1024, 4096), (16, 1000, 1024), (200, 1032, 1024)) if large else ((1, 34, 192), (20, 34, 192))
    ):
        w, bias = torch.randn(2 * n, k, device=device).to(dtype), torch.randn(2 * n, device=device).to(dtype)
        x = torch.randn(rows, k, device=device).to(dtype)
        gate = fused.Epilogue("silu", gated=True)
        rising = tuple((i - 8) ** 3 / 512 for i in range(16))
        four = {
            "w4 g32": codes.quantize4(w, 32), "w4 zeros g64": codes.quantize4(w, 64, symmetric=False),
            "nf4 g64": codes.tabulate4(w, 64), "table4 g64": codes.tabulate4(w, 64, rising),
        }  # fmt: skip
        for name, packed in four.items():
            want = x.double() @ _wide4(packed).T + bias.double()
            yield Case(_named(f"{name} {rows} rows", dtype),
                       lambda x=x, p=packed, b=bias, want=want: (quantized.w4a16(x, p, b), want), limit)  # fmt: skip
            if name == "w4 g32":
                yield Case(_named(f"{name} gated {rows} rows", dtype),
                           lambda x=x, p=packed, b=bias, want=want, gate=gate, n=n: (
                               quantized.w4a16(x, p, b, epilogue=gate), F.silu(want[:, :n]) * want[:, n:]),
                           limit)  # fmt: skip
        places = torch.randint(0, 256, (2 * n, k), device=device, dtype=torch.uint8)
        table = torch.randn(256, device=device).to(dtype)
        eight = {
            "w8": codes.quantize8(w), "w8 zeros g64": codes.quantize8(w, 64, symmetric=False),
            "w e4m3": codes.float8(w),
            "table8": codes.tabulate8(places, torch.rand(2 * n, 1, device=device).to(dtype), table),
        }  # fmt: skip
        more = torch.randn(rows, 2 * n, device=device).to(dtype)
        for name, coded in eight.items():
            want = x.double() @ _wide8(coded).T + bias.double() + more.double()
            yield Case(_named(f"{name} {rows} rows", dtype),
                       lambda x=x, p=coded, b=bias, want=want, m=more: (
                           quantized.w8a16(x, p, b, epilogue=fused.residual(m)), want), limit)  # fmt: skip
            if name == "w8":
                plain = x.double() @ _wide8(coded).T + bias.double()
                yield Case(_named(f"{name} gated {rows} rows", dtype),
                           lambda x=x, p=coded, b=bias, want=plain, gate=gate, n=n: (
                               quantized.w8a16(x, p, b, epilogue=gate), F.silu(want[:, :n]) * want[:, n:]),
                           2 * limit)  # fmt: skip
        yield Case(_named(f"w8a8 zeros {rows} rows", dtype),
                   lambda x=x, w=w, b=bias, dtype=dtype: _with_zeros(x, w, b, dtype), limit)  # fmt: skip
        for kind in ("integer", "float"):
            yield Case(_named(f"w8a8 {kind} {rows} rows", dtype),
                       lambda x=x, w=w, b=bias, kind=kind, dtype=dtype: _scaled(x, w, b, kind, dtype),
                       max(limit, FLOAT8 if kind == "float" else 0))  # fmt: skip


def _scaled(x: Tensor, w: Tensor, bias: Tensor, kind: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    (a, a_scales), (b, b_scales) = quantized.quantize_rows(x, kind), quantized.quantize_rows(w, kind)
    # The codes themselves: within half a step of an integer, an eighth of a float8's last place otherwise.
    step = 0.501 * a_scales[:, None] if kind == "integer" else x.float().abs() / 15 + a_scales[:, None] * 2**-9
    assert bool(((a.float() * a_scales[:, None] - x.float()).abs() <= step).all()), f"codes of kind {kind}"
    got = quantized.scaled(a, a_scales, b, b_scales, bias, dtype=dtype)
    left, right = a.double() * a_scales.double()[:, None], b.double() * b_scales.double()[:, None]
    return got, left @ right.T + bias.double()


def _with_zeros(x: Tensor, w: Tensor, bias: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    b, b_scales = quantized.quantize_rows(w)
    a = torch.randint(-128, 128, x.shape, dtype=torch.int8, device=x.device)
    zeros = torch.randint(-128, 128, (len(x), 1), dtype=torch.int8, device=x.device)
    scales = torch.rand(len(x), 1, device=x.device) / 64
    sums = b.sum(1, dtype=torch.int32)
    gate = fused.Epilogue("silu", gated=True)
    got = quantized.scaled(a, scales, b, b_scales, bias, zeros=(zeros, sums), dtype=dtype, epilogue=gate)
    left = (a.double() - zeros.double()) * scales.double()
    want = left @ (b.double() * b_scales.double()[:, None]).T + bias.double()
    return got, F.silu(want[:, : len(w) // 2]) * want[:, len(w) // 2 :]


def _wide4(packed: codes.Codes4) -> Tensor:
    exact = codes.Codes4(packed.codes, packed.scales.double(), packed.group, packed.zeros, packed.table)
    return codes.dequantize4(exact)


def _wide8(packed: codes.Codes8) -> Tensor:
    exact = codes.Codes8(packed.codes, packed.scales.double(), packed.group, packed.kind, packed.zeros, packed.table)
    return codes.dequantize8(exact)


def pruned(n: int, k: int, dtype: torch.dtype, device: str) -> Tensor:
    """Random weights [n, k] with the pattern 2:4."""
    quads = torch.randn(n, k // 4, 4, device=device)
    keep = torch.zeros_like(quads).scatter(-1, quads.abs().topk(2, -1).indices, 1)
    return (quads * keep).reshape(n, k).to(dtype)


def _sparse(device: str, dtype: torch.dtype, large: bool) -> Iterator[Case]:
    n, k = (1024, 4096) if large else (40, 128)
    for rows in (1, 17, 80):
        weights, x = pruned(n, k, dtype, device), torch.randn(rows, k, device=device).to(dtype)
        packed, coded = pattern24.pack24(weights), pattern24.quantize24(weights, 64)
        yield Case(_named(f"sparse24 {rows} rows", dtype),
                   lambda x=x, w=weights, p=packed: (sparse.sparse24(x, p), x.double() @ w.double().T),
                   TOLERANCE[dtype])  # fmt: skip
        yield Case(_named(f"sparse24_w4 {rows} rows", dtype),
                   lambda x=x, p=coded: (sparse.sparse24(x, p), x.double() @ pattern24.dequantize24(p).double().T),
                   TOLERANCE[dtype])  # fmt: skip


def reference_attention(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False, window: int | None = None, bias: Tensor | None = None,
    lengths_q: Tensor | None = None, lengths_k: Tensor | None = None, soft_cap: float | None = None,
    allowed: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Attention by its definition, in float64; see ``backends/triton/attention.py: attention``."""
    batch, heads, queries, d = q.shape
    group = heads // k.shape[1]
    result = torch.zeros(batch, heads, queries, v.shape[3], dtype=torch.float64, device=q.device)
    for b in range(batch):
        used_q = queries if lengths_q is None else int(lengths_q[b])
        used_k = k.shape[2] if lengths_k is None else int(lengths_k[b])
        keys, values = (t[b, :, :used_k].double().repeat_interleave(group, 0) for t in (k, v))
        scores = q[b, :, :used_q].double() @ keys.transpose(-1, -2) / math.sqrt(d)
        if soft_cap is not None:
            scores = soft_cap * torch.tanh(scores / soft_cap)
        if bias is not None and bias.dtype == torch.bool:
            bias = torch.zeros(bias.shape, device=q.device).masked_fill(~bias, -math.inf)
        if bias is not None:
            scores = scores + bias.expand(batch, heads, queries, k.shape[2])[b, :, :used_q, :used_k].double()
        at_q = torch.arange(used_q, device=q.device)[:, None] + used_k - used_q
        at_k = torch.arange(used_k, device=q.device)[None, :]
        seen = torch.ones(used_q, used_k, dtype=torch.bool, device=q.device)
        if causal:
            seen = seen & (at_k <= at_q)
        if window is not None:
            seen = seen & (at_k > at_q - window)
        if allowed is not None:
            seen = seen & allowed[:used_q, :used_k]
        weights = torch.softmax(scores.masked_fill(~seen, -math.inf), -1).nan_to_num(0)
        result[b, :, :used_q] = weights @ values
    return result


def _attention(device: str, dtype: torch.dtype, large: bool) -> Iterator[Case]:
    limit = TOLERANCE[dtype]
    widths = ((64, 64), (128, 128), (80, 80), (256, 256)) if large else ((24, 40),)
    for d, d_v in widths:
        queries, keys = (300, 555) if large else (37, 53)
        blocks = None if large else attention.Blocks(16, 16, 4, 2)
        q, k, v, bias = (torch.randn(*size, device=device).to(dtype) for size in (
            (2, 4, queries, d), (2, 2, keys, d), (2, 2, keys, d_v), (1, 4, queries, keys)))  # fmt: skip
        lengths = {"lengths_q": torch.tensor([queries // 2, queries], device=device),
                   "lengths_k": torch.tensor([keys - 20, keys], device=device)}  # fmt: skip
        forms: dict[str, dict[str, object]] = {
            "full": {}, "causal": {"causal": True}, "window": {"causal": True, "window": 9}, "bias": {"bias": bias},
            "lengths": {"causal": True, **lengths}, "soft cap": {"causal": True, "soft_cap": 5.0},
            "mask": {"bias": bias > 0},
        }  # fmt: skip
        for form, options in forms.items():
            yield Case(_named(f"attention {form} d{d}", dtype),
                       lambda q=q, k=k, v=v, o=options, b=blocks: (
                           attention.attention(q, k, v, blocks=b, **o), reference_attention(q, k, v, **o)),
                       limit)  # fmt: skip
        size = 64 if large else 16
        mask = torch.rand(-(-queries // size), -(-keys // size), device=device) > 0.4
        mask[0] = False
        allowed = mask.repeat_interleave(size, 0).repeat_interleave(size, 1)
        yield Case(_named(f"attention blocks d{d}", dtype),
                   lambda q=q, k=k, v=v, m=mask, a=allowed, s=size: (
                       attention.attention(q, k, v, block_mask=attention.BlockMask(m, s, s)),
                       reference_attention(q, k, v, allowed=a)), limit)  # fmt: skip
        few = torch.randn(2, 6, 2, d, device=device).to(dtype)
        decodings: dict[str, dict[str, Any]] = {
            "": {}, "window": {"window": 9}, "lengths": {"lengths": lengths["lengths_k"]},
            "split": {"lengths": lengths["lengths_k"], "splits": 4}, "bias": {"bias": bias[:, :1, :2]},
            "mask": {"bias": bias[:, :1, :2] > 0},
        }  # fmt: skip
        for form, options in decodings.items():
            right: dict[str, Any] = {key: value for key, value in options.items() if key in ("window", "bias")}
            if "lengths" in options:
                right |= {"lengths_k": options["lengths"], "lengths_q": torch.tensor([2, 2])}
            yield Case(_named(f"decoding {form} d{d}", dtype),
                       lambda q=few, k=k, v=v, o=options, r=right, b=blocks: (
                           attention.decode(q, k, v, blocks=b, **o), reference_attention(q, k, v, causal=True, **r)),
                       limit)  # fmt: skip
        ints = [torch.randint(-127, 128, t.shape, device=device, dtype=torch.int8) for t in (k, v)]
        scales = [torch.rand(t.shape[:3], device=device) * 0.02 for t in (k, v)]
        wide = [i * s[..., None] for i, s in zip(ints, scales, strict=True)]
        yield Case(_named(f"decoding int8 d{d}", dtype),
                   lambda q=few, i=ints, s=scales, w=wide, b=blocks: (
                       attention.decode(q, *i, k_scales=s[0], v_scales=s[1], blocks=b),
                       reference_attention(q, *w, causal=True)), limit)  # fmt: skip


def _rope(device: str, dtype: torch.dtype) -> Iterator[Case]:
    for (rotary, pairs), integers in itertools.product(((24, False), (24, True), (16, False)), (False, True)):
        name = f"rope cache {'pairs ' if pairs else ''}{'int8 ' if integers else ''}{rotary} of 24"
        yield Case(_named(name, dtype),
                   lambda r=rotary, p=pairs, i=integers, dtype=dtype: _rope_case(device, dtype, r, p, i),
                   TOLERANCE[dtype] + integers * INTEGER_CACHE)  # fmt: skip
    yield Case(_named("rope cache in order", dtype),
               lambda: _rope_case(device, dtype, 24, False, False, in_order=True), TOLERANCE[dtype])  # fmt: skip


def _rope_case(
    device: str, dtype: torch.dtype, rotary: int, pairs: bool, integers: bool, *, in_order: bool = False
) -> tuple[Tensor, Tensor]:
    batch, length, heads, shared, d, capacity = 2, 3, 4, 2, 24, 11
    qkv = torch.randn(batch, length, (heads + 2 * shared) * d, device=device).to(dtype)
    angles = torch.randn(capacity, rotary // 2, device=device)
    positions = torch.tensor([[2, 5, 7], [1, 3, 10]], device=device)
    cache = rope.new_cache(batch, shared, capacity, d, dtype=torch.int8 if integers else dtype, device=device)
    if in_order:
        positions = torch.tensor([[5, 6, 7]], device=device).expand(batch, -1)
        own = angles[positions].reshape(-1, rotary // 2)
        q = rope.rope_to_cache(qkv, own.cos(), own.sin(), None, cache, heads=heads, first_slot=5, pairs=pairs)
    else:
        q = rope.rope_to_cache(qkv, angles.cos(), angles.sin(), positions, cache, heads=heads, pairs=pairs)
    given = qkv.reshape(batch, length, heads + 2 * shared, d).transpose(1, 2).double()
    cos, sin = (t[positions][:, None].double() for t in (angles.cos(), angles.sin()))
    want = given.clone()
    half = rotary // 2
    first, second = (slice(0, rotary, 2), slice(1, rotary, 2)) if pairs else (slice(0, half), slice(half, rotary))
    want[..., first] = given[..., first] * cos - given[..., second] * sin
    want[..., second] = given[..., second] * cos + given[..., first] * sin
    want[:, heads + shared :] = given[:, heads + shared :]
    k, v = cache.k.double(), cache.v.double()
    if cache.k_scales is not None and cache.v_scales is not None:
        k, v = k * cache.k_scales.double()[..., None], v * cache.v_scales.double()[..., None]
    places = positions[:, None, :, None].expand(batch, shared, length, d)
    return torch.cat([q.double(), k.gather(2, places), v.gather(2, places)], 1), want
