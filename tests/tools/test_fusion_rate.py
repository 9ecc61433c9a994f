"""Counting rules of the fusion rate; its models, decomposed and rewritten, compute the same as before."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest
from burnish.ir.errors import OptionError
from burnish.ir.graph import WORKING_OPSET
from burnish.ir.infer import infer_graph
from burnish.passes import Canonicalize, SimplifyAlgebra
from burnish.passes.base import Context
from burnish.passes.fuse.planner import plan
from burnish.tools.fusion_models import MODELS, graph_of
from burnish.tools.fusion_rate import BLOCK, count_blocks, counted, main, measure, table

PAPER = {"efficientnet_b0", "vgg16", "mobilenet_ssd", "yolov4", "unet", "tinybert", "distilbert", "albert", "bert_base",
         "mobilebert", "gpt2"}  # fmt: skip


def run(graph, feeds):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    proto = onnx_ir.to_proto(graph)
    return onnxruntime.InferenceSession(proto.SerializeToString(), options).run(None, feeds)


def text(graph):
    proto = onnx.ModelProto(ir_version=8, graph=onnx.parser.parse_graph(graph))
    proto.opset_import.add(domain="", version=13)
    result = onnx_ir.from_proto(proto)
    infer_graph(result)
    return result


def test_what_counts() -> None:
    graph = text(
        "g (float[4] x) => (float[4] y) <float[4] w = {1, 2, 3, 4}> "
        "{ c = Constant<value_floats=[1.0]>() d = Add(w, c) e = Exp(d) z = Mul(x, e) y = Neg(z) }"
    )
    assert [node.op_type for node in counted(graph.graph)] == ["Mul", "Neg"]
    assert count_blocks(graph, plan(graph)) == 1


def test_every_row_of_the_paper_has_its_model() -> None:
    assert {name for name, model in MODELS.items() if model.published is not None} == PAPER
    assert (MODELS["gpt2"].published.operators, MODELS["gpt2"].published.blocks) == (2533, 254)
    with pytest.raises(OptionError, match="did you mean 'gpt2'"):
        graph_of("gpt")


@pytest.mark.parametrize("name", ["tinybert", "gpt2", "mobilenet_ssd"])
def test_decomposed_and_rewritten_models_compute_the_same(name: str) -> None:
    layers = 1
    whole = MODELS[name].build(layers)
    graph = graph_of(name, layers)
    assert graph.opset_imports[""] == 13 < WORKING_OPSET
    random = np.random.default_rng(0)
    feeds = {
        value.name: random.integers(0, 100, value.shape.numpy())
        if value.dtype == onnx_ir.DataType.INT64
        else random.standard_normal(value.shape.numpy()).astype(np.float32)
        for value in whole.graph.inputs
    }
    if "attention_mask" in feeds:
        feeds["attention_mask"] = np.ones_like(feeds["attention_mask"])
        feeds["attention_mask"][:, 100:] = 0
    before = run(whole, feeds)
    after = run(graph, feeds)
    Canonicalize().run(graph, Context())
    assert SimplifyAlgebra(reassociate=True).run(graph, Context()).changed
    for old, new, simplified in zip(before, after, run(graph, feeds), strict=True):
        # float32 in another order of operations, over the layers of one small model.
        scale = float(np.abs(old).max())
        np.testing.assert_allclose(new, old, rtol=1e-3, atol=1e-4 * scale)
        np.testing.assert_allclose(simplified, old, rtol=1e-3, atol=1e-4 * scale)


def test_one_layer_of_an_encoder() -> None:
    row = measure("tinybert", 1)
    assert row["blocks"] <= row["without_rewriting"] < row["operators"] / 3
    assert row["published"] == {"operators": 366, "blocks": 74, "fixed_patterns": 304}
    assert "| TinyBERT |" in table({"tinybert": row}) and "366 → 74" in table({"tinybert": row})


def test_command_line(tmp_path, capsys) -> None:
    document, output = tmp_path / "fusion.md", tmp_path / "fusion.json"
    document.write_text(f"# Fusion\n<!-- {BLOCK} -->\n<!-- end {BLOCK} -->\n", "utf-8")
    with pytest.raises(SystemExit) as ended:
        main(["tinybert", "--layers", "1", "-o", str(output), "--document", str(document)])
    assert ended.value.code == 0
    assert "| TinyBERT |" in document.read_text("utf-8")
    found = json.loads(output.read_text("utf-8"))
    assert found["checks"][0]["passed"] and found["models"]["tinybert"]["rewrites"]
    assert "| TinyBERT |" in capsys.readouterr().out
