"""Transformer families, exported by PyTorch and taken apart by our tool: everything is found again."""

from __future__ import annotations

import io
import warnings
from collections import Counter

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest
import torch
import transformers
from burnish.frontends.onnx_file import import_onnx
from burnish.passes.base import Context
from burnish.passes.canonicalize import Canonicalize
from burnish.passes.recover import Recover
from burnish.tools.decompose import decompose

LAYERS, VOCABULARY = 2, 99
# The bound for float32 of another summation order; what is measured is below 1e-6.
TOLERANCE = 1e-4
SIZES = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64, "num_hidden_layers": LAYERS}
TEXT = {**SIZES, "vocab_size": VOCABULARY}
GPT = {"n_embd": 32, "n_head": 4, "n_layer": LAYERS, "n_positions": 64, "vocab_size": VOCABULARY}
TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}

LN, RMS, ROPE = "LayerNormalization", "RMSNormalization", "RotaryEmbedding"
FAMILIES = {
    "bert": (lambda: transformers.BertModel(transformers.BertConfig(**TEXT)), {LN: 5, "Gelu": 2, "Attention": 2}),
    "gpt2": (
        lambda: transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT, **TOKENS)),
        {LN: 5, "Gelu": 2, "Attention": 2},
    ),
    "llama": (
        lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**TEXT, num_key_value_heads=2)),
        {RMS: 5, ROPE: 4, "Attention": 2},
    ),
    "t5": (
        lambda: transformers.T5EncoderModel(
            transformers.T5Config(d_model=32, d_kv=8, d_ff=64, num_layers=LAYERS, num_heads=4, vocab_size=VOCABULARY)
        ),
        {RMS: 5, "Attention": 2},
    ),
    "vit": (
        lambda: transformers.ViTModel(transformers.ViTConfig(**SIZES, image_size=32, patch_size=8)),
        {LN: 5, "Gelu": 2, "Attention": 2},
    ),
    "gemma": (
        lambda: transformers.GemmaForCausalLM(transformers.GemmaConfig(**TEXT, num_key_value_heads=1, head_dim=8)),
        {RMS: 5, "Gelu": 2, ROPE: 4, "Attention": 2},
    ),
    "qwen3": (
        lambda: transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**TEXT, num_key_value_heads=2, head_dim=8)),
        {RMS: 9, ROPE: 4, "Attention": 2},
    ),
    "phi": (
        lambda: transformers.PhiForCausalLM(transformers.PhiConfig(**TEXT)),
        {LN: 3, "Gelu": 2, ROPE: 4, "Attention": 2},
    ),
    "gptj": (
        lambda: transformers.GPTJForCausalLM(transformers.GPTJConfig(**GPT, **TOKENS, rotary_dim=4)),
        {LN: 3, "Gelu": 2, ROPE: 4, "Attention": 2},
    ),
    "neox": (
        lambda: transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**TEXT, rotary_pct=0.5)),
        {LN: 5, "Gelu": 2, ROPE: 4, "Attention": 2},
    ),
}


class First(torch.nn.Module):
    """The first output of a model, called by position."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.options = {"use_cache": False} if hasattr(model.config, "use_cache") else {}

    def forward(self, inputs, mask=None):
        options = self.options if mask is None else {**self.options, "attention_mask": mask}
        return self.model(inputs, **options)[0]


def _model(family, implementation):
    torch.manual_seed(0)
    model = FAMILIES[family][0]().eval()
    model.set_attn_implementation(implementation)
    with torch.no_grad():
        # Scales of one and biases of zero would fold away.
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return First(model).eval()


def _inputs(family, batch, length):
    rng = np.random.default_rng(batch)
    if family == "vit":
        return (rng.standard_normal((batch, 3, 32, 32)).astype(np.float32),)
    mask = np.ones((batch, length), np.int64)
    mask[0, length - 3 :] = 0  # padding right, and left where there is a second row: rows that see nothing
    mask[-1, :2] = 0
    return rng.integers(0, VOCABULARY, (batch, length)), mask


def _exported(family, implementation, **options):
    model, inputs = _model(family, implementation), _inputs(family, 2, 12)
    buffer = io.BytesIO()
    names = ["inputs", "mask"][: len(inputs)]
    axes = {name: {0: "batch", 1: "sequence"} if family != "vit" else {0: "batch"} for name in names}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        tensors = tuple(torch.from_numpy(a) for a in inputs)
        torch.onnx.export(model, tensors, buffer, dynamo=False, input_names=names, dynamic_axes=axes, **options)
    return onnx.load_from_string(buffer.getvalue())


def _run(model, inputs):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {spec.name: a for spec, a in zip(session.get_inputs(), inputs, strict=True)})


def _recovered(source):
    graph = import_onnx(source).graph
    Canonicalize().run(graph, Context())
    return graph, Recover().run(graph, Context())


def _same(family, source, graph):
    for batch, length in ((1, 7), (3, 20)):
        inputs = _inputs(family, batch, length)
        (before,), (after,) = _run(source, inputs), _run(onnx_ir.to_proto(graph), inputs)
        assert np.abs(before - after).max() <= TOLERANCE * np.abs(before).max()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("implementation", "opset"), [("sdpa", 14), ("eager", 17)])
def test_exported_by_torchscript(family, implementation, opset):
    source = _exported(family, implementation, opset_version=opset)
    graph, outcome = _recovered(source)
    expected = FAMILIES[family][1]
    # Opset 17 has LayerNormalization already: there is nothing to recover.
    found = {op: n for op, n in expected.items() if op != LN or opset < 17}
    assert outcome.rewrites == found
    assert not [r for r in outcome.remarks if r.kind == "missed"]
    counts = Counter(node.op_type for node in graph.graph)
    assert {op: counts[op] for op in expected} == expected
    _same(family, source, graph)


@pytest.mark.parametrize("family", FAMILIES)
def test_taken_apart_by_our_tool(family):
    """What was recovered is taken apart to opset 13 and recovered again: the same counts, the same outputs."""
    source = _exported(family, "sdpa", opset_version=17)
    graph, _ = _recovered(source)
    expected = FAMILIES[family][1]
    assert decompose(graph) == expected
    old = onnx_ir.to_proto(graph)
    onnx.checker.check_model(old)
    assert not set(expected) & {node.op_type for node in old.graph.node}
    again, outcome = _recovered(old)
    assert outcome.rewrites == expected
    _same(family, source, again)


def test_a_graph_without_matches_costs_little(least_seconds):
    """3000 nodes of the kinds that patterns start from, none of which match: under a second."""
    nodes, last = [], "x"
    operators = ["Add", "Mul", "Softmax", "Tanh", "Erf", "Concat", "ReduceMean", "Div", "Clip", "Sub"]
    for i in range(3000):
        operator = operators[i % len(operators)]
        operands = [last, "x"] if operator in ("Add", "Mul", "Div", "Sub", "Concat") else [last]
        attributes = {"axis": -1} if operator == "Concat" else {}
        nodes.append(onnx.helper.make_node(operator, operands, [f"v{i}"], **attributes))
        last = f"v{i}" if operator not in ("Concat", "ReduceMean") else "x"
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes, "long", [value("x", 1, ["N", 8])], [value(f"v{i}", 1, None) for i in range(2990, 3000)]
    )
    model = onnx_ir.from_proto(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 23)]))
    outcomes = []
    assert least_seconds(lambda: outcomes.append(Recover().run(model, Context()))) < 1.0
    assert not any(outcome.changed for outcome in outcomes)
