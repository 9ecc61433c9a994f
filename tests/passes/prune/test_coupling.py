"""Dependency analysis: what is found in graphs, what stands in the way, and that removal equals masking."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir
import pytest
from burnish.ir.rewrite import Editor
from burnish.ir.verify import verify
from burnish.passes.base import Context
from burnish.passes.prune.analyse import analyse
from burnish.passes.prune.remove import gone, remove
from burnish.passes.prune.savings import Savings
from burnish.passes.prune.units import find
from burnish.tools.coverage_pruning import TOLERANCE, masked, measure, prepared, removal_error
from hypothesis import given, settings
from hypothesis import strategies as st

Parse = Callable[..., onnx_ir.Model]
Outputs = Callable[..., list[np.ndarray[Any, Any]]]


@pytest.mark.parametrize(
    ("name", "heads", "channels"),
    [("BERT", 2, 2), ("Llama", 2, 2), ("GPT-2", 2, 2), ("ALBERT", 1, 1), ("ResNet", 0, 5), ("UNet", 1, 3), ("T5", 3, 4),
     ("Falcon", 2, 2), ("Swin", 4, 4), ("MobileNetV1", 0, 13), ("DeBERTa-v2", 2, 2), ("Bloom", 1, 2),
     ("Mixtral", 2, 0)],
)  # fmt: skip
def test_families(name: str, heads: int, channels: int) -> None:
    row = measure(*prepared(name))
    assert (row.heads, row.channels) == (heads, channels)
    assert row.error <= TOLERANCE


def test_a_chain_of_products(parse: Parse) -> None:
    graph = parse("g (float[T, 8] x) => (float[T, 6] y) { a = MatMul(x, w1) b = Relu(a) y = MatMul(b, w2) }",
                  w1=(8, 10), w2=(10, 6))  # fmt: skip
    coupling = analyse(graph)
    found = find(coupling)
    assert [len(group) for group in found.groups] == [10]
    assert any("output of the model" in reason and count == 6 for _, reason, count in found.misses)
    savings = Savings(coupling, "parameters", Context())
    assert savings.parameters(np.zeros(len(coupling.parents), bool)) == 140
    assert savings.unit(found.groups[0]) == 14


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a = MatMul(x, w1) s = Softmax(a) y = MatMul(s, w2)", "Softmax computes over all of it"),
        ("a = MatMul(x, w1) c = Add(a, x10) y = MatMul(c, w2)", "whose channels cannot go"),
        ("a = MatMul(x, w1) c, i = TopK(a, k) y = MatMul(c, w2)", "TopK reads it"),
        ("a = MatMul(x, w1) b = MatMul(a, w2) t = MatMul(a, w3) y = Add(b, t) z = Identity(a)", None),
    ],
)
def test_what_stands_in_the_way(parse: Parse, text: str, reason: str | None) -> None:
    weights: dict[str, Any] = {"w1": (8, 10), "w2": (10, 6)}
    if "w3" in text:
        weights["w3"] = (10, 6)
    if "TopK" in text:
        weights["k"] = np.asarray([10])
    inputs = "float[T, 8] x, float[T, 10] x10" if "x10" in text else "float[T, 8] x"
    extra = ", float[T, 10] z" if "z =" in text else ""
    found = find(analyse(parse(f"g ({inputs}) => (float[T, 6] y{extra}) {{ {text} }}", **weights)))
    assert not found.groups
    assert any((reason or "output of the model") in why for _, why, _ in found.misses)


def test_a_bias_made_of_constants_loses_its_heads(parse: Parse) -> None:
    """One plane a head, merged with the batch on the way (ALiBi); none where an input of the model makes it."""
    text = """g (float[B, T, 8] x, float[B, 4, T] given) => (float[B, T, 6] y) {{
        a = MatMul(x, w1) b = Reshape(a, s1) c = Transpose<perm=[0, 2, 1, 3]>(b) d = Reshape(c, s2)
        e = ReduceMean<keepdims=1>(d, last) {bias} f = Reshape(m, s3) g = Add(e, f) h = Mul(d, g)
        i = Reshape(h, s4) j = Transpose<perm=[0, 2, 1, 3]>(i) k = Reshape(j, s5) y = MatMul(k, w2)
    }}"""
    weights: dict[str, Any] = {
        "w1": (8, 12), "w2": (12, 6), "slopes": (4, 1), "s1": np.asarray([0, 0, 4, 3]), "s2": np.asarray([-1, 5, 3]),
        "last": np.asarray([2]), "s3": np.asarray([-1, 5, 1]), "s4": np.asarray([-1, 4, 5, 3]),
        "s5": np.asarray([0, 0, 12]),
    }  # fmt: skip
    generator = np.random.default_rng(0)
    feeds = {"x": generator.standard_normal((2, 5, 8)), "given": generator.standard_normal((2, 4, 5))}
    feeds = {name: value.astype(np.float32) for name, value in feeds.items()}
    made = (
        text.replace("T,", "5,")
        .replace("T]", "5]")
        .format(bias="u = ReduceSum<keepdims=1>(given, s6) m = Mul(u, slopes)")
    )
    graph = parse(made, **weights, s6=np.asarray([1]))
    groups = find(analyse(graph)).groups
    assert [len(group) for group in groups] == [4]
    assert removal_error(graph, 0, feeds) <= TOLERANCE
    graph = parse(text.replace("T,", "5,").replace("T]", "5]").format(bias="m = Mul(given, slopes)"), **weights)
    found = find(analyse(graph))
    assert not found.groups and any("whose channels cannot go" in why for _, why, _ in found.misses)


def test_a_weight_that_something_else_reads_stays(parse: Parse) -> None:
    graph = parse(
        "g (float[T, 8] x) => (float[T, 6] y, float[10] s) { a = MatMul(x, w1) y = MatMul(a, w2) "
        "s = ReduceSum<keepdims=0>(w1, axis) }",
        w1=(8, 10), w2=(10, 6), axis=np.asarray([0]),
    )  # fmt: skip
    found = find(analyse(graph))
    assert not found.groups and any("reads the weight, too" in why for _, why, _ in found.misses)


def test_a_shared_constant_is_cut_for_its_reader_only(parse: Parse, outputs: Outputs) -> None:
    """One bias for two places: what goes in one must not go in the other."""
    graph = parse(
        "g (float[T, 8] x) => (float[T, 6] y) { a = MatMul(x, w1) b = Add(a, bias) r = Relu(b) c = MatMul(r, w2) "
        "d = Add(c, bias) e = Tanh(d) y = MatMul(e, w3) }",
        w1=(8, 10), w2=(10, 10), w3=(10, 6), bias=(10,),
    )  # fmt: skip
    coupling = analyse(graph)
    groups = find(coupling).groups
    assert [len(group) for group in groups] == [10, 10]
    feeds = {"x": np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)}
    want = outputs(masked(graph, groups[0], [2, 5]), feeds)
    remove(Editor(graph, "x"), coupling, gone(coupling, [groups[0].roots[2][0], groups[0].roots[5][0]]))
    verify(graph)
    assert np.allclose(outputs(graph, feeds)[0], want[0], atol=1e-6)
    shapes = sorted(tuple(value.shape.numpy()) for value in graph.graph.initializers.values())
    assert (8,) in shapes and (10,) in shapes


_STEPS = {
    "relu": "v{n} = Relu({v})",
    "scale": "v{n} = Mul({v}, c{n})",
    "shift": "v{n} = Add({v}, c{n})",
    "gate": "p{n} = MatMul(x, g{n}) q{n} = Sigmoid(p{n}) v{n} = Mul({v}, q{n})",
    "split": "p{n}, q{n} = Split<axis=-1, num_outputs=2>({v}) v{n} = Concat<axis=-1>(q{n}, p{n})",
    "product": "v{n} = MatMul({v}, w{n})",
    "twice": "p{n} = MatMul({v}, w{n}) v{n} = Add(p{n}, {v})",
    "heads": "p{n} = Reshape({v}, s{n}) q{n} = Transpose<perm=[0, 2, 1]>(p{n}) t{n} = Transpose<perm=[0, 2, 1]>(q{n}) "
             "v{n} = Reshape(t{n}, f{n})",
}  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(sorted(_STEPS)), min_size=1, max_size=6), st.integers(0, 1000))
def test_random_graphs(parse: Parse, outputs: Outputs, steps: list[str], seed: int) -> None:
    """Removing units of any group of a random chain gives what masking gives."""
    lines, value, weights = ["v0 = MatMul(x, first)"], "v0", {"first": (8, 12), "last": (12, 5)}
    for n, step in enumerate(steps, 1):
        lines.append(_STEPS[step].format(n=n, v=value))
        value = f"v{n}"
        if step in ("scale", "shift"):
            weights[f"c{n}"] = (12,)
        elif step == "gate":
            weights[f"g{n}"] = (8, 12)
        elif step in ("product", "twice"):
            weights[f"w{n}"] = (12, 12)
        elif step == "heads":
            weights |= {f"s{n}": np.asarray([0, 3, 4]), f"f{n}": np.asarray([0, 12])}  # type: ignore[dict-item]
    lines.append(f"y = MatMul({value}, last)")
    graph = parse(f"g (float[T, 8] x) => (float[T, 5] y) {{ {' '.join(lines)} }}", **weights)
    feeds = {"x": np.random.default_rng(seed).standard_normal((4, 8)).astype(np.float32)}
    for number in range(len(find(analyse(graph.clone())).groups)):
        assert removal_error(graph, number, feeds) < 1e-4  # float32 sums over six products in another order
