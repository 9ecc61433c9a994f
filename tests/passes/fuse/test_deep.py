"""Deep-Fusion: four blocks for each layer of BERT, GPT-2 and Llama, and reasons where a layer is none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir
import pytest
import torch
from burnish.frontends.torch_module import import_module
from burnish.ir.infer import infer_graph
from burnish.passes import Canonicalize, Fuse, Recover
from burnish.passes.base import Context
from burnish.passes.fuse.partition import Plan
from burnish.passes.fuse.planner import plan
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

LAYERS, WIDTH, TOKENS = 2, 256, 4


def bert() -> torch.nn.Module:
    sizes = {"num_attention_heads": 4, "intermediate_size": 512, "vocab_size": 64}
    return BertModel(BertConfig(num_hidden_layers=LAYERS, hidden_size=WIDTH, **sizes))


def gpt2() -> torch.nn.Module:
    return GPT2LMHeadModel(GPT2Config(n_layer=LAYERS, n_embd=WIDTH, n_head=4, vocab_size=64, use_cache=False))


def llama() -> torch.nn.Module:
    sizes = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 512, "vocab_size": 64}
    return LlamaForCausalLM(LlamaConfig(num_hidden_layers=LAYERS, hidden_size=WIDTH, use_cache=False, **sizes))


def graph_of(build: Callable[[], torch.nn.Module]) -> onnx_ir.Model:
    torch.manual_seed(0)
    ids = torch.arange(TOKENS).reshape(1, TOKENS)
    graph = import_module(build().eval(), (), {"input_ids": ids}).graph
    Canonicalize().run(graph, Context())
    Recover().run(graph, Context())
    return graph


def layers_of(found: Plan) -> list[list[Counter[str]]]:
    """The operators of the blocks of each layer: those with products around the one with the attention."""
    counts = [Counter(node.op_type for node in block.nodes) for block in found.blocks]
    counts = [block for block in counts if block["MatMul"] or block["Attention"]]
    at = [index for index, block in enumerate(counts) if block["Attention"]]
    return [counts[index - 1 : index + 3] for index in at]


@pytest.mark.parametrize(("build", "projections", "gates"), [(bert, 3, 1), (gpt2, 1, 1), (llama, 3, 2)])
def test_four_blocks_a_layer(build: Callable[[], torch.nn.Module], projections: int, gates: int) -> None:
    graph = graph_of(build)
    found = plan(graph, deep=True)
    assert found.layers == LAYERS and not found.missed
    norms = ("LayerNormalization", "RMSNormalization")
    for first, attention, third, last in layers_of(found):
        assert first["MatMul"] == projections and sum(first[n] for n in norms) == 1
        assert attention["Attention"] == 1 and not attention["MatMul"]
        assert third["MatMul"] == 1 + gates and sum(third[n] for n in norms) == 1
        assert third["Gelu"] + third["Sigmoid"] + third["Tanh"] + third["Swish"] == 1
        assert last["MatMul"] == 1 and last["Add"] >= 1 and not sum(last[n] for n in norms)


def test_the_same_numbers_come_out(outputs: Any) -> None:
    graph = graph_of(bert)
    feeds = {value.name: np.arange(TOKENS, dtype=np.int64).reshape(1, TOKENS) for value in graph.graph.inputs}
    before = outputs(graph, feeds)
    outcome = Fuse(style="deep", machine="gpu").run(graph, Context())
    assert any(remark.values.get("layers") == LAYERS for remark in outcome.remarks)
    for old, new in zip(before, outputs(graph, feeds), strict=True):
        assert np.array_equal(old, new)


def test_without_attention_there_is_a_remark() -> None:
    model = onnx_ir.from_proto(
        onnx.parser.parse_model(
            '<ir_version: 10, opset_import: ["" : 23]> g (float[4] x) => (float[4] y) { a = Exp(x) y = Neg(a) }'
        )
    )
    infer_graph(model)
    outcome = Fuse(style="deep").run(model, Context())
    assert any("looks for attention" in remark.reason for remark in outcome.remarks)


def test_a_layer_without_a_feed_forward_part_is_a_near_miss() -> None:
    text = """<ir_version: 10, opset_import: ["" : 23]>
    g (float[1, 4, 256] x, float[256] s) => (float[1, 4, 256] y) {
    n = LayerNormalization(x, s) y = Attention <q_num_heads = 4, kv_num_heads = 4> (n, n, n) }"""
    model = onnx_ir.from_proto(onnx.parser.parse_model(text))
    infer_graph(model)
    found = plan(model, deep=True)
    assert found.layers == 0
    assert [why for _, why in found.missed] == ["no products with weights make queries, keys and values"]
