"""Fused operators taken apart compute what the runtime's kernels compute."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest
from burnish.ir.errors import UnsupportedError
from burnish.ir.infer import infer_graph
from burnish.tools.decompose import decompose
from burnish.tools.decompose_exporter import decompose_as_exported

RNG = np.random.default_rng(0)
# Kernel against decomposition in float32: other order of sums, other approximation of erf.
TOLERANCE = 5e-6


def _array(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def _model(text, opset=23):
    model = onnx.ModelProto(ir_version=10, graph=onnx.parser.parse_graph(text))
    model.opset_import.add(domain="", version=opset)
    return model


def _run(model, feeds):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(model.SerializeToString(), options).run(None, feeds)


def _compare(text, feeds):
    model = _model(text)
    graph = onnx_ir.from_proto(model)
    infer_graph(graph)
    counts = decompose(graph)
    old = onnx_ir.to_proto(graph)
    onnx.checker.check_model(old, full_check=True)
    assert old.opset_import[0].version == 13
    assert not {node.op_type for node in old.graph.node} & set(counts)
    for before, after in zip(_run(model, feeds), _run(old, feeds), strict=True):
        np.testing.assert_allclose(after, before, rtol=0, atol=TOLERANCE * np.abs(before).max())
    return counts


NORM = {"x": _array(2, 3, 4, 8), "w": _array(8), "b": _array(8), "w2": _array(4, 8)}
SIGNATURE = "g (float[B,3,4,8] x, float[8] w, float[8] b, float[4,8] w2) => (float[B,3,4,8] y)"


@pytest.mark.parametrize(
    ("body", "operator"),
    [
        ("y = LayerNormalization<axis=-1, epsilon=0.001>(x, w, b)", "LayerNormalization"),
        ("y = LayerNormalization<axis=2>(x, w2)", "LayerNormalization"),
        ("y = RMSNormalization<axis=-1, epsilon=0.001>(x, w)", "RMSNormalization"),
        ("y = RMSNormalization<axis=-2>(x, w2)", "RMSNormalization"),
        ("y = Gelu(x)", "Gelu"),
        ('y = Gelu<approximate="tanh">(x)', "Gelu"),
        ("y = HardSwish(x)", "HardSwish"),
    ],
)
def test_norms_and_activations(body, operator):
    assert _compare(f"{SIGNATURE} {{ {body} }}", NORM) == {operator: 1}


@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("width", [8, 4])
@pytest.mark.parametrize("rank", [3, 4])
def test_rotary(interleaved, width, rank):
    options = f"interleaved={interleaved}, rotary_embedding_dim={width if width < 8 else 0}"
    shape, options = ((2, 5, 24), f"{options}, num_heads=3") if rank == 3 else ((2, 3, 5, 8), options)
    dims = "B,S,24" if rank == 3 else "B,3,S,8"
    half = width // 2
    text = f"g (float[{dims}] x, float[B,S,{half}] c, float[B,S,{half}] s) => (float[{dims}] y)"
    text += f" {{ y = RotaryEmbedding<{options}>(x, c, s) }}"
    assert _compare(text, {"x": _array(*shape), "c": _array(2, 5, half), "s": _array(2, 5, half)})


QKV = {"q": _array(2, 6, 4, 8), "k": _array(2, 3, 4, 8), "v": _array(2, 3, 4, 8)}
HEADS = "g (float[B,6,S,8] q, float[B,3,S,8] k, float[B,3,S,8] v"


@pytest.mark.parametrize("options", ["", "<scale=0.5>", "<is_causal=1>", "<softcap=2.0>"])
def test_attention(options):
    assert _compare(f"{HEADS}) => (float[B,6,S,8] y) {{ y = Attention{options}(q, k, v) }}", QKV) == {"Attention": 1}


@pytest.mark.parametrize("kind", ["bool", "float"])
def test_attention_with_a_mask(kind):
    mask = RNG.random((2, 1, 4, 4)) < 0.7
    mask[..., 0] = True
    mask[0, 0, 2] = False  # nothing to see: zero
    values = mask if kind == "bool" else np.where(mask, 0, -np.inf).astype(np.float32)
    text = f"{HEADS}, {kind}[B,1,S,S] m) => (float[B,6,S,8] y) {{ y = Attention(q, k, v, m) }}"
    _compare(text, {**QKV, "m": values})


def test_attention_with_a_cache():
    text = f"{HEADS}, float[B,3,P,8] pk, float[B,3,P,8] pv) => (float[B,6,S,8] y, float[B,3,T,8] nk, float[B,3,T,8] nv)"
    text += " { y, nk, nv = Attention<is_causal=1>(q, k, v, , pk, pv) }"
    _compare(text, {**QKV, "pk": _array(2, 3, 5, 8), "pv": _array(2, 3, 5, 8)})


def test_attention_of_joined_heads():
    text = "g (float[B,S,48] q, float[B,S,24] k, float[B,S,24] v) => (float[B,S,48] y)"
    text += " { y = Attention<q_num_heads=6, kv_num_heads=3>(q, k, v) }"
    _compare(text, {"q": _array(2, 4, 48), "k": _array(2, 4, 24), "v": _array(2, 4, 24)})


def test_an_operator_without_decomposition_is_an_error():
    graph = onnx_ir.from_proto(_model("g (float[2] x) => (float[2] y) { y = Mish(x) }"))
    with pytest.raises(UnsupportedError, match="Mish does not exist in opset 13"):
        decompose(graph)


def test_command_line(tmp_path):
    source, target = tmp_path / "in.onnx", tmp_path / "out.onnx"
    onnx.save(_model("g (float[2] x) => (float[2] y) { z = Gelu(x) y = Gelu(z) }"), source)
    command = [sys.executable, "-m", "burnish.tools.decompose", str(source), str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2", "Gelu"]
    assert {node.op_type for node in onnx.load(target).graph.node} == {"Div", "Erf", "Add", "Mul"}


def _exported(text, feeds, **weights):
    """Operators of the graph as exporters of 2021 wrote it, after checking that it computes the same."""
    model = _model(text)
    model.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in weights.items())
    graph = onnx_ir.from_proto(model)
    infer_graph(graph)
    decompose_as_exported(graph)
    old = onnx_ir.to_proto(graph)
    onnx.checker.check_model(old, full_check=True)
    for before, after in zip(_run(model, feeds), _run(old, feeds), strict=True):
        np.testing.assert_allclose(after, before, rtol=0, atol=TOLERANCE * np.abs(before).max())
    return sorted(node.op_type for node in graph.graph)


def test_exporters_transposed_weights_and_added_biases():
    text = "g (float[3,8] x) => (float[3,4] y, float[3,4] z)"
    text += " { y = Gemm<transB=1>(x, w, b) t = Transpose(w) z = MatMul(x, t) }"
    weights = {"w": _array(4, 8), "b": _array(4)}
    assert _exported(text, {"x": _array(3, 8)}, **weights) == ["Add", "MatMul", "MatMul"]
    scaled = text.replace("transB=1", "transB=1, alpha=0.5")
    assert "Gemm" in _exported(scaled, {"x": _array(3, 8)}, **weights)


def test_exporters_wrote_relu6_as_clip():
    text = "g (float[3,8] x) => (float[3,8] y) { m = Max(x, low) y = Min(m, high) }"
    numbers = {"low": np.array(0, np.float32), "high": np.array(6, np.float32)}
    assert _exported(text, {"x": 9 * _array(3, 8)}, **numbers) == ["Clip"]
    numbers["low"] = _array(8)
    assert _exported(text, {"x": 9 * _array(3, 8)}, **numbers) == ["Max", "Min"]


def test_exporters_added_masks_and_shared_them():
    text = "g (float[2,3,4,8] q, bool[2,1,4,4] m) => (float[2,3,4,8] y)"
    text += " { t = Attention(q, q, q, m) y = Attention(t, q, q, m) }"
    mask = RNG.random((2, 1, 4, 4)) < 0.6
    mask[..., 0] = True
    found = _exported(text, {"q": _array(2, 3, 4, 8), "m": mask})
    assert found.count("Sub") == 1 and found.count("Softmax") == 2 and "IsNaN" not in found and "Where" not in found


def test_exporters_asked_for_sizes():
    text = "g (float[2,5,24] x) => (float[2,5,3,8] y) { y = Reshape(x, s) }"
    found = _exported(text, {"x": _array(2, 5, 24)}, s=np.array([2, 5, 3, 8]))
    assert found == ["Concat", *["Gather"] * 2, "Reshape", *["Shape"] * 2, *["Unsqueeze"] * 2]
    rows = "g (float[2,5,24] x) => (float[2,5,4] y) { r = Reshape(x, s) m = MatMul(r, w) y = Reshape(m, t) }"
    constants = {"s": np.array([-1, 24]), "w": _array(24, 4), "t": np.array([2, 5, 4])}
    found = _exported(rows, {"x": _array(2, 5, 24)}, **constants)
    assert found.count("Shape") == 3 and found.count("Reshape") == 2
    # Nothing of the source comes back: nothing is asked.
    flat = "g (float[2,5,24] x) => (float[240] y) { y = Reshape(x, s) }"
    assert _exported(flat, {"x": _array(2, 5, 24)}, s=np.array([240])) == ["Reshape"]
