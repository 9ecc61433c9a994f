"""The yardsticks: SmolLM2 with a KV cache, and MiniLM, out of ``torch.onnx.export(dynamo=True, opset_version=23)``.

``python -m burnish.tools.baseline`` exports both once (some minutes) into the cache of :mod:`.fetch` and prints where.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .fetch import cache_folder, locked, model_path

OPSET = 23


class DecoderWithCache(torch.nn.Module):
    """A Hugging Face causal language model with its KV cache as plain inputs and outputs.

    Args:
        model: the model, in evaluation mode.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor,
        past_key_values: list[list[torch.Tensor]],
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Logits of every position ([batch, sequence, vocabulary]) and keys and values, layer by layer."""
        from transformers import DynamicCache

        cache = DynamicCache([(key, value) for key, value in past_key_values])
        result = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
        )
        present = [tensor for layer in result.past_key_values.layers for tensor in (layer.keys, layer.values)]
        return result.logits, present


def eager_smollm2() -> torch.nn.Module:
    """SmolLM2-135M-Instruct in float32 as transformers builds it from the GGUF file."""
    from transformers import AutoModelForCausalLM

    path = model_path("smollm2")
    model: torch.nn.Module = AutoModelForCausalLM.from_pretrained(
        str(path.parent), gguf_file=path.name, dtype=torch.float32
    )
    return model.eval()


def example(config: Any, batch: int = 2, sequence: int = 3, past: int = 5) -> tuple[Any, ...]:
    """Inputs of :class:`DecoderWithCache` of the given sizes."""
    heads = config.num_key_value_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    ids = torch.randint(0, config.vocab_size, (batch, sequence))
    mask = torch.ones(batch, past + sequence, dtype=torch.int64)
    positions = torch.arange(past, past + sequence).expand(batch, -1).contiguous()
    cache = [[torch.randn(batch, heads, past, size) for _ in range(2)] for _ in range(config.num_hidden_layers)]
    return ids, mask, positions, cache


def export_decoder(model: torch.nn.Module, path: Path) -> dict[str, float]:
    """Write ``model`` with its cache by ``torch.onnx.export`` and say how many seconds it took.

    Args:
        model: a Hugging Face causal language model in evaluation mode.
        path: the file to write; weights go beside it.
    """
    config: Any = model.config
    layers = range(config.num_hidden_layers)
    names = [f"{layer}.{part}" for layer in layers for part in ("key", "value")]
    batch, sequence = torch.export.Dim("batch"), torch.export.Dim("sequence")
    past, total = torch.export.Dim("past"), torch.export.Dim.DYNAMIC
    started = time.perf_counter()
    with torch.no_grad():
        torch.onnx.export(
            DecoderWithCache(model).eval(),
            example(config),
            str(path),
            dynamo=True,
            opset_version=OPSET,
            external_data=True,
            input_names=["input_ids", "attention_mask", "position_ids", *(f"past_key_values.{name}" for name in names)],
            output_names=["logits", *(f"present.{name}" for name in names)],
            dynamic_shapes=(
                {0: batch, 1: sequence},
                {0: batch, 1: total},
                {0: batch, 1: sequence},
                [[{0: batch, 2: past}, {0: batch, 2: past}] for _ in layers],
            ),
            verbose=False,
        )
    return {"export_seconds": time.perf_counter() - started}


def baseline_path() -> Path:
    """SmolLM2 with a cache in float32, exported if it is not there yet."""
    return _once(f"baseline_smollm2_opset{OPSET}", lambda path: export_decoder(eager_smollm2(), path))


def minilm_path(opset: int = OPSET) -> Path:
    """The MiniLM encoder (last hidden state) in float32, exported if it is not there yet."""
    return _once(f"baseline_minilm_opset{opset}", lambda path: _export_minilm(path, opset))


def _export_minilm(path: Path, opset: int) -> dict[str, float]:
    from transformers import AutoModel

    model = AutoModel.from_pretrained(model_path("minilm"), dtype=torch.float32).eval()
    batch, sequence = torch.export.Dim("batch"), torch.export.Dim("sequence")
    names = ["input_ids", "attention_mask", "token_type_ids"]
    started = time.perf_counter()
    with torch.no_grad():
        torch.onnx.export(
            model,
            kwargs={name: torch.ones(2, 8, dtype=torch.int64) for name in names},
            f=str(path),
            dynamo=True,
            opset_version=opset,
            input_names=names,
            dynamic_shapes={name: {0: batch, 1: sequence} for name in names},
            verbose=False,
        )
    return {"export_seconds": time.perf_counter() - started}


def _once(name: str, export: Callable[[Path], dict[str, float]]) -> Path:
    """The file in the folder ``name`` of the model cache, made by ``export`` the first time."""
    folder = cache_folder() / name
    if not folder.is_dir():
        with locked(cache_folder() / f".{name}.lock"):
            if not folder.is_dir():
                scratch = folder.with_name(f".{name}.partial")
                shutil.rmtree(scratch, ignore_errors=True)
                scratch.mkdir(parents=True)
                facts: dict[str, Any] = export(scratch / "model.onnx")
                facts["torch"] = torch.__version__
                (scratch / "made.json").write_text(json.dumps(facts, indent=2) + "\n")
                scratch.rename(folder)
    return folder / "model.onnx"


if __name__ == "__main__":
    for baseline in (baseline_path, minilm_path):
        print(baseline(), flush=True)
