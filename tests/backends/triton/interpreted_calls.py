"""Run by ``test_calls.py`` in a process of its own with the interpreter: generated files that call templates.

Arguments are names of checks, or nothing for all of them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

from burnish.backends.reference import Reference
from burnish.backends.triton.session import Session
from burnish.ir.infer import infer_graph
from burnish.ir.outline import Outliner
from burnish.passes import Fuse, MergeProducts, Prune, Quantize
from burnish.passes.base import Context, Pass
from interpreted_blocks import halved

HALF = {torch.float16: onnx_ir.DataType.FLOAT16, torch.bfloat16: onnx_ir.DataType.BFLOAT16}
TOLERANCE = {torch.float32: 1e-5, torch.float16: 6e-3, torch.bfloat16: 4e-2}
"""Of the largest output: sums in another order, and a few roundings more or fewer than the reference makes."""
CODES = 2e-2
"""The same where activations are rounded to 8 bits on the way: one that lies between two codes may take either."""

DECODER = """<ir_version: 10, opset_import: ["" : 23]>
g (float[batch, tokens, 128] x, bool[batch, 1, tokens, total] mask, float[batch, tokens, 16] cos,
   float[batch, tokens, 16] sin, float[batch, 2, past, 32] past_k, float[batch, 2, past, 32] past_v,
   float[128] norm, float[128, 128] w_q, float[128, 64] w_k, float[128, 64] w_v, float[128, 128] w_o,
   float[128, 256] w_gate, float[128, 256] w_up, float[256, 128] w_down)
  => (float[batch, tokens, 128] y, float[batch, 2, total, 32] present_k, float[batch, 2, total, 32] present_v)
  <int64[4] heads = {0, 0, 4, 32}, int64[4] shared = {0, 0, 2, 32}, int64[3] flat = {0, 0, 128}>
{
    n = RMSNormalization<epsilon = 0.00001>(x, norm)
    q = MatMul(n, w_q)
    k = MatMul(n, w_k)
    v = MatMul(n, w_v)
    q4 = Reshape(q, heads)
    k4 = Reshape(k, shared)
    v4 = Reshape(v, shared)
    qt = Transpose<perm = [0, 2, 1, 3]>(q4)
    kt = Transpose<perm = [0, 2, 1, 3]>(k4)
    vt = Transpose<perm = [0, 2, 1, 3]>(v4)
    qr = RotaryEmbedding(qt, cos, sin)
    kr = RotaryEmbedding(kt, cos, sin)
    present_k = Concat<axis = 2>(past_k, kr)
    present_v = Concat<axis = 2>(past_v, vt)
    a = Attention<scale = 0.25>(qr, present_k, present_v, mask)
    at = Transpose<perm = [0, 2, 1, 3]>(a)
    a3 = Reshape(at, flat)
    o = MatMul(a3, w_o)
    r = Add(x, o)
    m = RMSNormalization<epsilon = 0.00001>(r, norm)
    g = MatMul(m, w_gate)
    u = MatMul(m, w_up)
    s = Sigmoid(g)
    sg = Mul(g, s)
    f = Mul(sg, u)
    d = MatMul(f, w_down)
    y = Add(r, d)
}"""

FEED_FORWARD = """<ir_version: 10, opset_import: ["" : 23]>
g (float[batch, 256] x, float[256, 256] w_1, float[256] bias, float[256, 256] w_2) => (float[batch, 256] y)
{
    a = MatMul(x, w_1)
    b = Add(a, bias)
    c = Gelu(b)
    d = MatMul(c, w_2)
    y = Add(x, d)
}"""


def filled(text: str, dtype: torch.dtype = torch.float32) -> onnx_ir.Model:
    """A graph whose inputs named like weights are constants, random ones."""
    graph = onnx_ir.from_onnx_text(text)
    for value in (*graph.graph.inputs, *graph.graph.outputs):
        if value.shape is not None:
            value.shape = onnx_ir.Shape(["past + tokens" if d == "total" else d for d in value.shape])
    random = np.random.default_rng(0)
    for value in list(graph.graph.inputs):
        if value.name in ("norm", "shift", "bias") or (value.name or "").startswith("w_"):
            shape = [int(n) for n in value.shape or ()]  # type: ignore[arg-type]
            numbers = random.standard_normal(shape).astype(np.float32) / (shape[0] ** 0.5 if len(shape) > 1 else 1)
            constant(graph, value, onnx_ir.Tensor(numbers, name=value.name))
    return graph if dtype == torch.float32 else halved(graph, HALF[dtype])


def constant(graph: onnx_ir.Model, value: onnx_ir.Value, tensor: onnx_ir.Tensor) -> None:
    """Make an input a constant."""
    graph.graph.inputs.remove(value)
    value.const_value = tensor
    graph.graph.register_initializer(value)


def compiled(
    graph: onnx_ir.Model, passes: Sequence[Pass], dtype: torch.dtype, calls: Sequence[str], *, late: bool = False
) -> tuple[Session, Reference]:
    """A session whose file has the calls, and the reference for the same graph.

    Args:
        graph: changed.
        passes: before ``fuse``.
        dtype: of the session.
        calls: texts that the file has.
        late: whether the graph, in float32, gets the type after the passes.
    """
    for item in passes:
        assert item.run(graph, Context(target="triton")).changed, item
    if late and dtype != torch.float32:
        graph = halved(graph, HALF[dtype])
    reference = Reference(graph.clone())
    infer_graph(graph)
    Fuse().run(graph, Context(target="triton"))
    session = Session(graph)
    body = session.source[session.source.index("def call(") :]
    for text in calls:
        assert text in body, f"no {text} in\n{session.source}\n{[r.reason for r in session.remarks]}"
    return session, reference


def compare(
    session: Session, reference: Reference, feeds: Mapping[str, torch.Tensor], limit: float
) -> list[torch.Tensor]:
    """The outputs, after comparing them with the reference's."""
    with torch.no_grad():
        want = reference.run(feeds)
    got = session.run(feeds)
    for (name, b), a in zip(want.items(), got, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype, (name, a.shape, b.shape, a.dtype, b.dtype)
        error = float((a.double() - b.double()).abs().max()) / max(float(b.double().abs().max()), 1e-6)
        assert error <= limit, f"{name}: {error:.2e} in {a.dtype}"
    return got


def _feeds(dtype: torch.dtype, tokens: int, past: Sequence[torch.Tensor], start: int) -> dict[str, torch.Tensor]:
    batch, before = past[0].shape[0], past[0].shape[2]
    angles = torch.arange(start, start + tokens)[:, None] * 0.5 ** torch.arange(16)
    tables = (t.expand(batch, tokens, 16).to(dtype) for t in (angles.cos(), angles.sin()))
    seen = torch.ones(tokens, before + tokens, dtype=torch.bool).tril(before)
    mask = seen.expand(batch, 1, -1, -1).clone()
    mask[-1, :, 1:, 0] = False  # a token that pads
    values = (torch.randn(batch, tokens, 128).to(dtype), mask, *tables, *past)
    return dict(zip(("x", "mask", "cos", "sin", "past_k", "past_v"), values, strict=True))


def decode(session: Session, reference: Reference, dtype: torch.dtype, limit: float) -> None:
    """A prompt, tokens one by one and several at a time: right, and the cache is written in place."""
    torch.manual_seed(0)
    past = [torch.zeros(2, 2, 0, 32, dtype=dtype) for _ in range(2)]
    at, first = 0, past
    for tokens in (5, 1, 1, 3):
        _, *present = compare(session, reference, _feeds(dtype, tokens, past, at), limit)
        if at:
            assert [a.data_ptr() for a in past] == [a.data_ptr() for a in present], "the cache was copied"
        else:
            first = present
        past, at = present, at + tokens
    # What was continued once is copied the second time, and nobody's tensors change.
    kept = [t.clone() for t in past]
    compare(session, reference, _feeds(dtype, 1, first, 5), limit)
    assert all(torch.equal(a, b) for a, b in zip(past, kept, strict=True))


def decoder() -> None:
    """Grouped heads, rotary positions and a cache; the gate of the feed-forward part."""
    both = ["rotate_and_append(", "attend(", "gated=True, paired=True"]
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        calls = both[:1] if dtype == torch.float32 else both
        session, reference = compiled(filled(DECODER, dtype), [MergeProducts()], dtype, calls)
        decode(session, reference, dtype, TOLERANCE[dtype])
    said = [r.reason for r in session.remarks]
    assert any("PyTorch's kernels are the better choice in float32" in reason for reason in said), said
    # Products that nobody merged: keys and values are appended, and the report says what would be better.
    session, reference = compiled(filled(DECODER), [], torch.float32, ["append("])
    decode(session, reference, torch.float32, TOLERANCE[torch.float32])
    said = [r.reason for r in session.remarks if r.kind == "missed"]
    assert any("merge_products" in reason for reason in said), said


def decoder_in_codes() -> None:
    """The same with weights in 4 and in 8 bits."""
    for dtype, scheme, name in (
        (torch.float32, "w4a16", "w4a16("), (torch.bfloat16, "w4a16", "w4a16("), (torch.float16, "w8a16", "w8a16("),
        (torch.float16, "fp8", "w8a16("),
    ):  # fmt: skip
        merged = [] if scheme == "fp8" else [MergeProducts()]
        calls = [name, *(["gated=True"] if merged else [])]
        passes = [Quantize(scheme=scheme), *merged]
        session, reference = compiled(filled(DECODER), passes, dtype, calls, late=True)
        decode(session, reference, dtype, TOLERANCE[dtype])


def eight_by_eight() -> None:
    """W8A8: rows with a scale and a zero point; float8 and static int8 with one scale for all."""
    for dtype in (torch.float32, torch.bfloat16):
        graph = filled(FEED_FORWARD)
        session, reference = compiled(graph, [Quantize(scheme="w8a8")], dtype, ["w8a8("], late=True)
        compare(session, reference, {"x": torch.randn(5, 256).to(dtype)}, max(CODES, TOLERANCE[dtype]))
    for kind, codes in (("int8", torch.int8), ("float8e4m3fn", torch.float8_e4m3fn)):
        zero = ", zero" if kind == "int8" else ""
        text = f"""<ir_version: 10, opset_import: ["" : 23]>
        g ({kind}[rows, 64] codes, {kind}[32, 64] w, float[32] scales) => (float[rows, 32] y)
          <float scale = {{0.5}}, int8 zero = {{7}}>
        {{
            x = DequantizeLinear(codes, scale{zero})
            d = DequantizeLinear<axis = 0>(w, scales)
            t = Transpose<perm = [1, 0]>(d)
            p = MatMul(x, t)
            y = Relu(p)
        }}"""
        graph = onnx_ir.from_onnx_text(text)
        torch.manual_seed(0)
        w, given = ((torch.randn(*shape) * 20).to(codes) for shape in ((32, 64), (3, 64)))
        stored = w.view(torch.uint8).numpy().view(onnx_ir.DataType[kind.upper()].numpy())
        scales = np.linspace(0.01, 0.02, 32, dtype=np.float32)
        _, second, third = graph.graph.inputs
        constant(graph, second, onnx_ir.Tensor(stored, name="w"))
        constant(graph, third, onnx_ir.Tensor(scales, name="scales"))
        session, reference = compiled(graph, [], torch.float32, ["w8a8("])
        compare(session, reference, {"codes": given}, TOLERANCE[torch.float32])


def two_of_four() -> None:
    """Weights with the pattern 2:4, as values and in 4-bit codes."""
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for more in ([], [Quantize(bits=4, group_size=64, symmetric=True)]):
            passes = [Prune(pattern="2:4"), *more]
            session, reference = compiled(filled(FEED_FORWARD), passes, dtype, ["sparse24("], late=True)
            assert session.source.count("= sparse24(") == 2
            compare(session, reference, {"x": torch.randn(3, 256).to(dtype)}, TOLERANCE[dtype])
    passes = [Prune(pattern="2:4"), Quantize(bits=4, group_size=64, symmetric=False)]
    session, reference = compiled(filled(FEED_FORWARD), passes, torch.float32, ["w4a16("])
    compare(session, reference, {"x": torch.randn(3, 256)}, TOLERANCE[torch.float32])


def encoder() -> None:
    """An encoder with a mask of tokens: attention by the template in 16 bits."""
    from burnish.tools.coverage_pruning import prepared

    for dtype in (torch.bfloat16, torch.float16):
        graph, made = prepared("BERT")
        feeds = {key: torch.as_tensor(value) for key, value in made.items()}
        session, reference = compiled(graph, [], dtype, ["attend(", "bias="], late=True)
        for value in feeds.values():
            if value.dtype == torch.int64 and bool((value == 1).all()):
                value[-1, -2:] = 0
        compare(session, reference, feeds, TOLERANCE[dtype])


def attention() -> None:
    """What decides who computes an attention."""
    for options, mask, called in (
        ("is_causal = 1, softcap = 3.0", "", True), ("scale = 0.5", "float", True), ("", "", False),
        ("is_causal = 1", "bool", True), ("is_causal = 1", "", False),
    ):  # fmt: skip
        given = f", {mask}[1, 1, tokens, tokens] mask" if mask else ""
        text = f"""<ir_version: 10, opset_import: ["" : 23]>
        g (float[2, 4, tokens, 24] q, float[2, 2, tokens, 24] k, float[2, 2, tokens, 24] v{given})
          => (float[2, 4, tokens, 24] y)
        {{ y = Attention<{options}>(q, k, v{", mask" if mask else ""}) }}""".replace("<>", "")
        graph = halved(onnx_ir.from_onnx_text(text), onnx_ir.DataType.FLOAT16)
        session, reference = compiled(graph, [], torch.float16, ["attend("] if called else ["scaled_dot_product"])
        feeds = {key: torch.randn(2, n, 9, 24).half() for key, n in (("q", 4), ("k", 2), ("v", 2))}
        if mask:
            feeds["mask"] = torch.randn(1, 1, 9, 9).half() if mask == "float" else torch.ones(1, 1, 9, 9).tril(2) > 0
        compare(session, reference, feeds, TOLERANCE[torch.float16])


def normalized() -> None:
    """A normalization before a product in the same block, which the product computes."""
    for operator, more in (("RMSNormalization", ""), ("LayerNormalization", ", shift")):
        text = f"""<ir_version: 10, opset_import: ["" : 23]>
        g (float[rows, 64] x, float[64] norm, float[64] shift, float[64, 40] w_1, float[40] bias)
          => (float[rows, 40] y)
        {{
            n = {operator}<epsilon = 0.00001>(x, norm{more})
            p = MatMul(n, w_1)
            y = Add(p, bias)
        }}"""
        for dtype in (torch.float16, torch.bfloat16):
            graph = filled(text, dtype)
            infer_graph(graph)
            Outliner(graph, "test").outline(list(graph.graph), "block", {})
            reference = Reference(graph.clone())
            session = Session(graph)
            assert "prologue=" in session.source, session.source
            for rows in (1, 19):
                compare(session, reference, {"x": torch.randn(rows, 64).to(dtype)}, TOLERANCE[dtype])


CHECKS: dict[str, Callable[[], None]] = {
    check.__name__: check
    for check in (decoder, decoder_in_codes, eight_by_eight, two_of_four, encoder, attention, normalized)
}  # fmt: skip


def main(names: list[str]) -> None:
    for name, check in CHECKS.items():
        if not names or name in names:
            check()
            print(f"{name} right", flush=True)
    print("all right")


if __name__ == "__main__":
    main(sys.argv[1:])
