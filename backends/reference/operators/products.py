"""Products, convolutions and attention."""

from __future__ import annotations

import torch
from torch.nn import functional

from ..registry import Call, Result, Tensor, rule
from .reduction import padded, pads_of


@rule("MatMul")
def _matmul(call: Call) -> Result:
    return torch.matmul(call[0], call[1])


@rule("Gemm")
def _gemm(call: Call) -> Result:
    a = call[0].T if call.attr("transA", 0) else call[0]
    b = call[1].T if call.attr("transB", 0) else call[1]
    y = torch.matmul(a, b)
    if call.attr("alpha", 1.0) != 1.0:
        y = y * call.attr("alpha")
    c = call.get(2)
    return y if c is None else y + (c if call.attr("beta", 1.0) == 1.0 else c * call.attr("beta"))


@rule("Det")
def _determinant(call: Call) -> Result:
    result: Tensor = torch.linalg.det(call[0])
    return result


@rule("GridSample")
def _grid_sample(call: Call) -> Result:
    modes = {
        "linear": "bilinear",
        "bilinear": "bilinear",
        "nearest": "nearest",
        "cubic": "bicubic",
        "bicubic": "bicubic",
    }
    return functional.grid_sample(
        call[0], call[1], modes[call.attr("mode", "linear")], call.attr("padding_mode", "zeros"),
        bool(call.attr("align_corners", 0)),
    )  # fmt: skip


@rule("Einsum")
def _einsum(call: Call) -> Result:
    return torch.einsum(call.attr("equation"), *[x for x in call.x if x is not None])


@rule("MatMulInteger")
def _matmul_integer(call: Call) -> Result:
    a, b = call[0].int(), call[1].int()
    zero_a, zero_b = call.get(2), call.get(3)
    if zero_a is not None:
        a = a - (zero_a.int().unsqueeze(-1) if zero_a.dim() else zero_a.int())
    if zero_b is not None:
        b = b - zero_b.int()
    return torch.matmul(a.double(), b.double()).to(torch.int32)


@rule("Conv")
def _conv(call: Call) -> Result:
    x, w = call[0], call[1]
    count = x.dim() - 2
    strides, dilations = call.attr("strides", [1] * count), call.attr("dilations", [1] * count)
    pads = pads_of(call, list(x.shape[2:]), list(w.shape[2:]), strides, dilations)
    function = (functional.conv1d, functional.conv2d, functional.conv3d)[count - 1]
    same = pads[:count] == pads[count:]
    if not same:
        x = padded(x, pads, 0.0)
    return function(x, w, call.get(2), strides, pads[:count] if same else 0, dilations, call.attr("group", 1))


@rule("ConvTranspose")
def _conv_transpose(call: Call) -> Result:
    x, w = call[0], call[1]
    count = x.dim() - 2
    strides, dilations = call.attr("strides", [1] * count), call.attr("dilations", [1] * count)
    extra = call.attr("output_padding", [0] * count)
    pads: list[int] = call.attr("pads", [0] * (2 * count))
    wanted = call.attr("output_shape")
    function = (functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d)[count - 1]
    y = function(x, w, call.get(2), strides, 0, extra, call.attr("group", 1), dilations)
    if wanted is not None or call.attr("auto_pad", "NOTSET").startswith("SAME"):
        sizes = wanted or [n * s for n, s in zip(x.shape[2:], strides, strict=True)]
        upper = call.attr("auto_pad", "NOTSET") != "SAME_LOWER"
        pads = [0] * (2 * count)
        for axis, size in enumerate(sizes):
            total = max(y.shape[2 + axis] - size, 0)
            pads[axis] = total // 2 if upper else total - total // 2
            pads[axis + count] = total - pads[axis]
    for axis in range(count):
        y = y.narrow(2 + axis, pads[axis], y.shape[2 + axis] - pads[axis] - pads[axis + count])
    return y


def _apart(x: Tensor, heads: int | None) -> Tensor:
    """[batch, tokens, heads x width] as [batch, heads, tokens, width]."""
    return x.reshape(*x.shape[:-1], heads, -1).transpose(1, 2) if x.dim() == 3 and heads else x


@rule("Attention")
def _attention(call: Call) -> Result:
    flat = call[0].dim() == 3
    q = _apart(call[0], call.attr("q_num_heads"))
    k, v = (_apart(call[i], call.attr("kv_num_heads")) for i in (1, 2))
    past_k, past_v = call.get(4), call.get(5)
    if past_k is not None and past_v is not None:
        k, v = torch.cat([past_k, k], 2), torch.cat([past_v, v], 2)
    present_k, present_v = k, v
    times = q.shape[1] // k.shape[1]
    if times > 1:
        k, v = k.repeat_interleave(times, 1), v.repeat_interleave(times, 1)
    scale = call.attr("scale") or q.shape[-1] ** -0.5
    mask = call.get(3)
    bias: Tensor | None = None
    if mask is not None:
        if mask.shape[-1] < k.shape[2]:
            fill = 0 if mask.dtype == torch.bool else float("-inf")
            mask = functional.pad(mask, (0, k.shape[2] - mask.shape[-1]), value=fill)
        bias = torch.zeros(mask.shape, dtype=q.dtype, device=q.device)
        bias = bias.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else mask.to(q.dtype)
    if call.attr("is_causal", 0):
        offset = k.shape[2] - q.shape[2] if past_k is not None else 0
        allowed = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril(offset)
        causal = torch.zeros(allowed.shape, dtype=q.dtype, device=q.device).masked_fill(~allowed, float("-inf"))
        bias = causal if bias is None else bias + causal
    cap = call.attr("softcap", 0.0)
    if len(call.node.outputs) < 4 and not cap:
        y = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)
        scores: Tensor | None = None
    else:
        scores = torch.matmul(q, k.transpose(-1, -2)) * scale
        mode = call.attr("qk_matmul_output_mode", 0)
        shown = [scores]
        masked = scores if bias is None else scores + bias
        shown.append(masked)
        if cap:
            masked = torch.tanh(scores / cap) * cap if bias is None else torch.tanh(scores / cap) * cap + bias
        shown.append(masked)
        weights = torch.softmax(masked, -1)
        shown.append(weights)
        y = torch.matmul(weights, v)
        scores = shown[mode]
    return [y.transpose(1, 2).flatten(-2) if flat else y, present_k, present_v, scores]


def _gates(x: Tensor, h: Tensor, w: Tensor, r: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor]:
    gates, recurrent = x @ w.T, h @ r.T
    if b is not None:
        half = b.shape[0] // 2
        gates, recurrent = gates + b[:half], recurrent + b[half:]
    return gates, recurrent


@rule("LSTM")
def _lstm(call: Call) -> Result:
    x, w, r, b = call[0], call[1], call[2], call.get(3)
    if call.attr("layout", 0):
        x = x.transpose(0, 1)
    directions, hidden = w.shape[0], r.shape[-1]
    first_h, first_c = call.get(5), call.get(6)
    zeros = torch.zeros(directions, x.shape[1], hidden, dtype=x.dtype, device=x.device)
    h0, c0 = (zeros if v is None else v for v in (first_h, first_c))
    outputs: list[Tensor] = []
    last_h, last_c = [], []
    reverse_only = call.attr("direction", "forward") == "reverse"
    for d in range(directions):
        h, c = h0[d], c0[d]
        steps: list[Tensor] = []
        backwards = reverse_only or d == 1
        for t in range(x.shape[0])[:: -1 if backwards else 1]:
            gates, recurrent = _gates(x[t], h, w[d], r[d], None if b is None else b[d])
            i, o, f, g = (gates + recurrent).chunk(4, -1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            steps.append(h)
        outputs.append(torch.stack(steps[::-1] if backwards else steps))
        last_h.append(h)
        last_c.append(c)
    return [torch.stack(outputs, 1), torch.stack(last_h), torch.stack(last_c)]


@rule("GRU")
def _gru(call: Call) -> Result:
    x, w, r, b, first = call[0], call[1], call[2], call.get(3), call.get(5)
    directions, hidden = w.shape[0], r.shape[-1]
    before = call.attr("linear_before_reset", 0)
    outputs, last = [], []
    for d in range(directions):
        h = torch.zeros(x.shape[1], hidden, dtype=x.dtype, device=x.device) if first is None else first[d]
        steps: list[Tensor] = []
        backwards = call.attr("direction", "forward") == "reverse" or d == 1
        for t in range(x.shape[0])[:: -1 if backwards else 1]:
            gates, recurrent = _gates(x[t], h, w[d], r[d], None if b is None else b[d])
            z, reset, n = gates.chunk(3, -1)
            rz, rr, rn = recurrent.chunk(3, -1)
            z, reset = torch.sigmoid(z + rz), torch.sigmoid(reset + rr)
            if before:
                n = torch.tanh(n + reset * rn)
            else:
                inner = (reset * h) @ r[d][2 * hidden :].T
                n = torch.tanh(n + inner + (0 if b is None else b[d][-hidden:]))
            h = (1 - z) * n + z * h
            steps.append(h)
        outputs.append(torch.stack(steps[::-1] if backwards else steps))
        last.append(h)
    return [torch.stack(outputs, 1), torch.stack(last)]
