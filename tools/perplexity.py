"""Perplexity of a decoder on text it was not calibrated with.

``python -m burnish.tools.perplexity MODEL...`` where a model is a saved folder, an ONNX file of a decoder with a cache,
or ``eager`` (SmolLM2 as transformers runs it).
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..compiler.benchmark.onnx_side import OnnxSide
from ..ir.errors import BurnishError, ModelError
from .fetch import model_path
from .text import CORPORA, load_tokenizer, windows

Array = np.ndarray[Any, Any]
Logits = Callable[[Array], Array]

_ROWS = 64  # rows of logits that are in float64 at a time


def negative_log_likelihood(logits: Array, targets: Array) -> float:
    """Sum of −log p(target) in nats, by a float64 log-softmax over a few rows at a time.

    Args:
        logits: [positions, vocabulary].
        targets: [positions], the token that follows each position.
    """
    total = 0.0
    for start in range(0, len(targets), _ROWS):
        rows = logits[start : start + _ROWS].astype(np.float64)
        rows -= rows.max(axis=-1, keepdims=True)
        picked = rows[np.arange(len(rows)), targets[start : start + _ROWS]]
        total += float((np.log(np.exp(rows).sum(axis=-1)) - picked).sum())
    return total


def perplexity(forward: Logits, ids: Array, progress: Callable[[int, int, str], None] | None = None) -> float:
    """exp of the mean −log p of every token of every window but its first.

    Args:
        forward: from token ids [1, length] to logits [1, length, vocabulary].
        ids: windows, int64 [count, length].
        progress: called with (done, total, what).
    """
    total, count = 0.0, 0
    for index, window in enumerate(ids):
        if progress:
            progress(index, len(ids), "perplexity")
        logits = forward(window[None])[0]
        total += negative_log_likelihood(logits[:-1], window[1:])
        count += len(window) - 1
    return math.exp(total / count)


def file_logits(path: str | Path, threads: int | None = None) -> Logits:
    """What a decoder with a cache in an ONNX file or saved folder computes.

    Raises:
        ModelError: the file is no such decoder.
    """
    side = OnnxSide(path, threads)
    if not side.is_decoder:
        raise ModelError("the model is no decoder with a KV cache", where=str(path))
    return lambda ids: side.numpy(side.start(ids)[0])


def generation_logits(path: str | Path, threads: int | None = None) -> Logits:
    """What a compiled decoder computes as ``generate`` runs it: the graph for prompts, and a quantized cache, included.

    Raises:
        ModelError: the folder is no such decoder.
    """
    from ..compiler.generation.decoding import Decoding
    from ..compiler.load import load

    model = load(path, threads=threads)
    if model.decoder is None:
        raise ModelError("the model is no decoder with a KV cache", where=str(path))
    decoding = Decoding(model, 1)

    def forward(ids: Array) -> Array:
        decoding.reset()
        return decoding.step(ids, np.ones(ids.shape, np.int64), every=True)

    return forward


def compiled_logits(compiled: Any) -> Logits:
    """What a :class:`burnish.CompiledModel` of a decoder computes."""
    spec = compiled.decoder
    if spec is None:
        raise ModelError("the compiled model is no decoder with a KV cache")

    def forward(ids: Array) -> Array:
        feeds: dict[str, Array] = {}
        for tensor in compiled.inputs:
            name = tensor.name
            if name == "input_ids":
                feeds[name] = ids
            elif name == "attention_mask":
                feeds[name] = np.ones_like(ids)
            elif name == "position_ids":
                feeds[name] = np.arange(ids.shape[1], dtype=np.int64)[None]
            else:
                feeds[name] = np.zeros((1, spec.kv_heads, 0, spec.head_dim), np.float32)
        return np.asarray(compiled(**feeds)[0])

    return forward


def eager_logits(model: Any) -> Logits:
    """What a Hugging Face causal language model computes."""
    import torch

    def forward(ids: Array) -> Array:
        with torch.inference_mode():
            logits: Array = model(input_ids=torch.from_numpy(ids)).logits.float().numpy()
        return logits

    return forward


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the perplexity of each model."""
    parser = argparse.ArgumentParser(prog="python -m burnish.tools.perplexity", description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", metavar="MODEL", help="saved folder, ONNX file, or `eager`")
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--text", default="held-out", choices=list(CORPORA), help="what it is measured on")
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--tokenizer", help="tokenizer.json, its folder or a GGUF file (default: SmolLM2's)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    try:
        encode = load_tokenizer(options.tokenizer or model_path("smollm2"))
        ids = windows(encode, CORPORA[options.text](), options.windows, options.length)
        figures: dict[str, float] = {}
        for name in options.models:
            if name == "eager":
                from .baseline import eager_smollm2

                forward = eager_logits(eager_smollm2())
            else:
                forward = file_logits(name)
            figures[name] = perplexity(forward, ids)
            if not options.json:
                print(f"{name}: {figures[name]:.3f}", flush=True)
    except (BurnishError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if options.json:
        print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
