"""Graphs to smooth, statistics computed in NumPy, and what a graph computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest
import torch
from burnish.frontends.torch_module import import_module
from burnish.ir.infer import infer_graph
from burnish.passes import Canonicalize, Recover
from burnish.passes.base import Context
from burnish.passes.statistics import (
    HISTOGRAM_BINS,
    HISTOGRAM_LEAST,
    HISTOGRAM_STEPS,
    ZERO_POINTS,
    AbsMax,
    ChannelMoments,
    DirectionHessian,
    Hessian,
    Histogram,
    Magnitudes,
    MinMax,
    Moments,
    Observer,
    TokenSpan,
    TokenSteps,
)
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

Array = np.ndarray[Any, Any]
Feeds = Mapping[str, Array]


def _session(proto: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="session")
def outputs() -> Callable[[onnx_ir.Model, Feeds], list[Array]]:
    """What a graph computes, by ONNX Runtime without its optimizer; the graph must pass the checker."""

    def run(graph: onnx_ir.Model, feeds: Feeds) -> list[Array]:
        proto = onnx_ir.to_proto(graph)
        onnx.checker.check_model(proto, full_check=True)
        return list(_session(proto).run(None, dict(feeds)))

    return run


def _magnitudes(x: Array) -> Array:
    return np.stack([np.abs(x).max(axis=0), np.abs(x).mean(axis=0), np.square(x).mean(axis=0)])


def _histogram(x: Array) -> Array:
    place = np.log2(np.maximum(np.abs(x), 2.0**HISTOGRAM_LEAST)) * HISTOGRAM_STEPS - HISTOGRAM_STEPS * HISTOGRAM_LEAST
    place = np.clip(np.floor(place), 0, HISTOGRAM_BINS - 1).astype(int) + np.where(x < 0, HISTOGRAM_BINS, 0)
    counts = np.bincount(place.reshape(-1), minlength=2 * HISTOGRAM_BINS)
    return np.concatenate([[x.min(), x.max()], counts]).astype(np.float32)


def _token_span(x: Array) -> Array:
    span = np.maximum(x.max(axis=1), 0) - np.minimum(x.min(axis=1), 0)
    return np.square(span).mean(keepdims=True)


def _token_steps(x: Array) -> Array:
    codes, high, low = np.asarray(ZERO_POINTS), x.max(axis=1)[:, None], x.min(axis=1)[:, None]
    return np.square(255 * np.maximum(high / (255 - codes), -low / codes)).mean(axis=0)


def _directions(x: Array) -> Array:
    return x / np.sqrt(np.square(x).mean(axis=1, keepdims=True) + 1e-20)


_OBSERVERS: Mapping[type[Observer], Callable[[Array], Array]] = {
    Magnitudes: _magnitudes,
    AbsMax: lambda x: np.abs(x).max(axis=0),
    Histogram: _histogram,
    TokenSpan: _token_span,
    TokenSteps: _token_steps,
    MinMax: lambda x: np.stack([x.min(axis=0), x.max(axis=0)]),
    Hessian: lambda x: x.T @ x / len(x),
    DirectionHessian: lambda x: _directions(x).T @ _directions(x) / len(x),
    Moments: lambda x: np.stack([x.mean(axis=0), np.square(x).mean(axis=0)]),
    ChannelMoments: lambda x: np.stack([x.mean(axis=0), np.square(x).mean(axis=0)]),
}


@pytest.fixture(scope="session")
def calibrated() -> Callable[[onnx_ir.Model, Feeds], Context]:
    """A context whose statistics are those of one batch."""

    def context(graph: onnx_ir.Model, feeds: Feeds) -> Context:
        def observe(values: Sequence[onnx_ir.Value], observer: Observer) -> dict[str, Array]:
            names = [value.name or "" for value in values]
            proto = onnx_ir.to_proto(graph)
            del proto.graph.output[:]
            for value in values:
                dtype = value.dtype
                assert dtype is not None
                proto.graph.output.append(onnx.helper.make_tensor_value_info(value.name, dtype.value, None))
            found = _session(proto).run(names, dict(feeds))
            compute = _OBSERVERS[type(observer)]
            tokens = [np.moveaxis(x, observer.axis, -1) for x in found]
            return {name: compute(x.reshape(-1, x.shape[-1])) for name, x in zip(names, tokens, strict=True)}

        return Context(observe=observe)

    return context


@pytest.fixture(scope="session")
def parse() -> Callable[..., onnx_ir.Model]:
    """A graph out of text, with random weights of the given shapes, or given ones, as initializers."""

    def build(text: str, *, opset: int = 23, **weights: Any) -> onnx_ir.Model:
        proto = onnx.ModelProto(ir_version=10, graph=onnx.parser.parse_graph(text))
        proto.opset_import.add(domain="", version=opset)
        random = np.random.default_rng(0)
        for name, what in weights.items():
            array = what if isinstance(what, np.ndarray) else random.uniform(-1, 1, what).astype(np.float32)
            proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
        onnx.checker.check_model(proto, full_check=True)
        graph = onnx_ir.from_proto(proto)
        infer_graph(graph)
        return graph

    return build


def _llama(**options: Any) -> torch.nn.Module:
    config = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                         num_attention_heads=4, num_key_value_heads=2, use_cache=False, **options)  # fmt: skip
    return LlamaForCausalLM(config)


def _gpt2() -> torch.nn.Module:
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, use_cache=False, bos_token_id=0, eos_token_id=0)
    )


_MODELS: dict[str, Callable[[], torch.nn.Module]] = {
    "llama": _llama,
    "tied": lambda: _llama(tie_word_embeddings=True),
    "gpt2": _gpt2,
    "bert": lambda: BertModel(
        BertConfig(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
    ),
}


@pytest.fixture(scope="session")
def transformer() -> Callable[[str], tuple[onnx_ir.Model, Feeds]]:
    """A small random transformer of a family, recovered, and inputs; norm weights and biases are no constants."""
    made: dict[str, onnx_ir.Model] = {}

    def build(family: str) -> tuple[onnx_ir.Model, Feeds]:
        ids = torch.randint(0, 64, (2, 7), generator=torch.Generator().manual_seed(1))
        if family not in made:
            torch.manual_seed(0)
            model = _MODELS[family]().eval()
            for parameter in model.parameters():
                if parameter.dim() == 1:
                    torch.nn.init.uniform_(parameter, 0.5, 1.5)
            graph = import_module(model, (), {"input_ids": ids}).graph
            for step in (Canonicalize(), Recover()):
                step.run(graph, Context())
            made[family] = graph
        return made[family].clone(), {"input_ids": ids.numpy()}

    return build
