"""Exact, sparse and linear attention at 1,024, 4,096 and 8,192 tokens: time, memory, and the difference they make.

One causal self-attention of the shape of SmolLM2's (9 heads, 3 of keys and values, size 64) between its projections,
with the weights and normalized inputs of a layer of SmolLM2, so that the difference is that of a real model. Writes
``attention.json``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..compiler.api import compile as compile_model
from ..compiler.benchmark import Scenario, Side, benchmark
from ..compiler.progress import terminal_progress
from ..passes import LinearizeAttention, SparseAttention
from ..passes.base import Pass
from .baseline import eager_smollm2
from .bench_results import Check, write_results
from .fetch import model_path
from .text import held_out_text, load_tokenizer, windows

LENGTHS = (1024, 4096, 8192)
LAYER = 10
EXACT = "exact"
WIDTH, HEADS, KV_HEADS, SIZE = 576, 9, 3, 64


class Layer(nn.Module):
    """Rotary embeddings and attention between projections."""

    def __init__(self, source: Any, config: Any) -> None:
        super().__init__()
        self.into = nn.ModuleList([source.q_proj, source.k_proj, source.v_proj])
        self.out: nn.Module = source.o_proj
        self.angles: torch.Tensor
        angles = 1.0 / config.rope_parameters["rope_theta"] ** (torch.arange(0, SIZE, 2) / SIZE)
        self.register_buffer("angles", angles)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Hidden states [batch, length, width] to the same."""
        q, k, v = (made(x).unflatten(-1, (-1, SIZE)).transpose(1, 2) for made in self.into)
        turn = torch.arange(x.shape[1])[:, None] * self.angles
        turn = torch.cat([turn, turn], dim=-1)
        q, k = (part * turn.cos() + _half(part) * turn.sin() for part in (q, k))
        out = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        result: torch.Tensor = self.out(out.transpose(1, 2).flatten(2))
        return result


def _half(x: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat([-second, first], dim=-1)


def sparsity_window(length: int, kept: float = 0.25) -> int:
    """The window, in whole blocks of 128, that keeps this part of the blocks that causal attention computes."""
    blocks = length // 128
    total = blocks * (blocks + 1) // 2
    for width in range(1, blocks + 1):
        if sum(min(row + 1, width) for row in range(blocks)) > kept * total:
            return max(width - 2, 1) * 128 + 1  # the first token of a window reaches into one block more
    return length


def variants(length: int) -> dict[str, list[Pass]]:
    """Passes by name; the window keeps a quarter of the blocks."""
    window = sparsity_window(length)
    return {
        EXACT: [],
        "window": [SparseAttention("window", window)],
        "window and 64 global tokens": [SparseAttention("window", window, global_tokens=64)],
        "dilated by 2": [SparseAttention("dilated", window // 2, 2)],
        "block-local": [SparseAttention("block_local", window - 1)],
        "strided": [SparseAttention("strided", 128)],
        "fixed": [SparseAttention("fixed", 128, summary=16)],
        "linear": [LinearizeAttention()],
    }


def layer_and_inputs() -> tuple[Layer, Callable[[int], torch.Tensor]]:
    """The layer, and a function from a length to what it reads in the model, [1, length, width]."""
    model: Any = eager_smollm2()
    ids = windows(load_tokenizer(model_path("smollm2")), held_out_text(), 1, max(LENGTHS))

    def inputs(length: int) -> torch.Tensor:
        with torch.inference_mode():
            states = model.model(input_ids=torch.from_numpy(ids[:, :length]), output_hidden_states=True).hidden_states
            normalized: torch.Tensor = model.model.layers[LAYER].input_layernorm(states[LAYER])
        return normalized.clone()

    return Layer(model.model.layers[LAYER].self_attn, model.config).eval(), inputs


def measure(work: Path, rounds: int) -> dict[str, Any]:
    """Everything; what is returned goes into ``attention.json``."""
    layer, inputs = layer_and_inputs()
    work.mkdir(parents=True, exist_ok=True)
    lengths: dict[str, Any] = {}
    report: dict[str, Any] = {}
    batch = torch.export.Dim("length", min=2, max=16384)
    for length in LENGTHS:
        x, sides, errors = inputs(length), [], {}
        with torch.inference_mode():
            wanted = layer(x).numpy()
        for name, passes in variants(length).items():
            model = compile_model(
                layer, (x[:, :256].clone(),), dynamic_shapes=({1: batch},), cache=False, progress=False,
                passes=["default", *passes],
            )  # fmt: skip
            path = work / f"attention-{name.replace(' ', '-')}-{length}.onnx"
            model.save(path, overwrite=True)
            got = np.asarray(model(x))
            errors[name] = float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))
            sides.append(Side(name, str(path)))
        with terminal_progress() as progress:
            result = benchmark(
                *sides, scenarios=[Scenario("attention", "run")], inputs={"x": x.numpy()}, rounds=rounds,
                progress=progress,
            )  # fmt: skip
        print(length, result, errors, flush=True)
        report = result.to_json()
        times = {name: figure["median_ms"] for name, figure in report["scenarios"]["attention"].items()}
        lengths[str(length)] = {"ms": times, "peak_memory_bytes": report["peak_memory_bytes"], "error": errors}
    last = lengths[str(LENGTHS[-1])]["ms"]
    linear = [lengths[str(length)]["ms"]["linear"] for length in LENGTHS]
    slope, start = np.polyfit(LENGTHS, linear, 1)
    fit = 1 - np.var(np.array(linear) - (slope * np.array(LENGTHS) + start)) / np.var(linear)
    checks = [
        Check(
            "window at 8,192 tokens, a quarter of the blocks: time against exact",
            last["window"] / last[EXACT],
            1 / 3,
            "×",
        ),
        Check("linear attention: what a straight line leaves unexplained of its times", 1 - float(fit), 0.02, ""),
    ]
    return {
        "machine": report["machine"],
        "threads": report["threads"],
        "lengths": lengths,
        "linear_fit": {"ms_per_1000_tokens": float(slope * 1000), "ms": float(start), "r2": float(fit)},
        "checks": [check.to_json() for check in checks],
    }


def main(arguments: list[str] | None = None) -> int:
    """Measure and write ``attention.json``."""
    parser = argparse.ArgumentParser(prog="python -m burnish.tools.bench_attention", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--work", type=Path, default=Path("build/bench"), help="where compiled models go")
    parser.add_argument("--out", type=Path, default=Path("benchmarks"), help="where attention.json goes")
    options = parser.parse_args(arguments)
    return write_results(options.out / "attention.json", measure(options.work, options.rounds))


if __name__ == "__main__":
    sys.exit(main())
