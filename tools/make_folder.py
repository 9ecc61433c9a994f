"""Makes Hugging Face folders of well-known shapes with random weights, to measure what compiling costs.

``python -m burnish.tools.make_folder SHAPE FOLDER [--layers N]`` writes ``config.json`` and sharded safetensors in
bfloat16, some rows of a tensor in memory at a time.
"""

from __future__ import annotations

import argparse
import json
import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..ir.errors import BurnishError, OptionError, OutputError, nearest

SHARD = 2 << 30
"""Most bytes of a shard."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a Llama: its layers, hidden and inner width, heads, key/value heads, vocabulary and context."""

    layers: int
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    vocabulary: int
    context: int
    tied: bool = False

    def config(self) -> dict[str, Any]:
        """The content of ``config.json``."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "torch_dtype": "bfloat16",
            "bos_token_id": 1,
            "eos_token_id": 2,
            "hidden_act": "silu",
            "hidden_size": self.hidden,
            "intermediate_size": self.inner,
            "max_position_embeddings": self.context,
            "num_attention_heads": self.heads,
            "num_hidden_layers": self.layers,
            "num_key_value_heads": self.kv_heads,
            "rms_norm_eps": 1e-05,
            "rope_theta": 10000.0,
            "tie_word_embeddings": self.tied,
            "vocab_size": self.vocabulary,
        }

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the weights by name, layer by layer."""
        kv = self.hidden // self.heads * self.kv_heads
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocabulary, self.hidden)}
        for layer in range(self.layers):
            shapes |= {
                f"model.layers.{layer}.{name}.weight": shape
                for name, shape in {
                    "input_layernorm": (self.hidden,),
                    "self_attn.q_proj": (self.hidden, self.hidden),
                    "self_attn.k_proj": (kv, self.hidden),
                    "self_attn.v_proj": (kv, self.hidden),
                    "self_attn.o_proj": (self.hidden, self.hidden),
                    "post_attention_layernorm": (self.hidden,),
                    "mlp.gate_proj": (self.inner, self.hidden),
                    "mlp.up_proj": (self.inner, self.hidden),
                    "mlp.down_proj": (self.hidden, self.inner),
                }.items()
            }
        shapes["model.norm.weight"] = (self.hidden,)
        if not self.tied:
            shapes["lm_head.weight"] = (self.vocabulary, self.hidden)
        return shapes


SHAPES = {
    "smollm2-135m": Shape(30, 576, 1536, 9, 3, 49152, 8192, tied=True),
    "tinyllama-1.1b": Shape(22, 2048, 5632, 32, 4, 32000, 2048),
    "llama-2-7b": Shape(32, 4096, 11008, 32, 32, 32000, 4096),
}


def make_folder(shape: Shape, folder: Path, *, seed: int = 0, shard: int = SHARD) -> int:
    """Write a model of this shape with random bfloat16 weights.

    Args:
        shape: its sizes.
        folder: where to; made if it is not there.
        seed: of the random numbers.
        shard: most bytes of a file.

    Returns:
        Bytes of weights.

    Raises:
        OutputError: the folder holds something already.
    """
    if folder.exists() and any(folder.iterdir()):
        raise OutputError("the folder is not empty", where=str(folder), fix="choose another, or delete it")
    folder.mkdir(parents=True, exist_ok=True)
    files: list[dict[str, tuple[int, ...]]] = [{}]
    size = 0
    for name, dims in shape.tensors().items():
        length = _length(dims)
        if files[-1] and size + length > shard:
            files.append({})
            size = 0
        files[-1][name] = dims
        size += length
    random = np.random.default_rng(seed)
    places: dict[str, str] = {}
    for number, tensors in enumerate(files, start=1):
        single = len(files) == 1
        file = "model.safetensors" if single else f"model-{number:05d}-of-{len(files):05d}.safetensors"
        _write(folder / file, tensors, random)
        places |= dict.fromkeys(tensors, file)
    total = sum(_length(dims) for dims in shape.tensors().values())
    if len(files) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": places}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    (folder / "config.json").write_text(json.dumps(shape.config(), indent=2) + "\n")
    return total


def _length(dims: Sequence[int]) -> int:
    return 2 * int(np.prod(dims))


def _write(path: Path, tensors: dict[str, tuple[int, ...]], random: np.random.Generator) -> None:
    header: dict[str, Any] = {}
    at = 0
    for name, dims in tensors.items():
        header[name] = {"dtype": "BF16", "shape": list(dims), "data_offsets": [at, at + _length(dims)]}
        at += _length(dims)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for dims in tensors.values():
            for values in _random(dims, random):
                file.write(values)


def _random(dims: tuple[int, ...], random: np.random.Generator) -> Any:
    """Bytes of normal values of deviation 0.02 (ones for a norm), some rows at a time."""
    if len(dims) == 1:
        yield (np.ones(dims, dtype=np.float32).view(np.uint32) >> 16).astype(np.uint16).tobytes()
        return
    rows = max(1, (16 << 20) // (4 * dims[1]))
    for start in range(0, dims[0], rows):
        values = random.standard_normal((min(rows, dims[0] - start), dims[1]), dtype=np.float32)
        values *= 0.02
        yield (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()


def main(arguments: Sequence[str] | None = None) -> int:
    """Write one folder and say how large it is."""
    parser = argparse.ArgumentParser(prog="python -m burnish.tools.make_folder", description=__doc__.splitlines()[0])
    parser.add_argument("shape", help=f"one of {', '.join(SHAPES)}")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, help="another number of layers")
    options = parser.parse_args(arguments)
    try:
        if options.shape not in SHAPES:
            raise OptionError(f"there is no shape {options.shape!r}", fix=nearest(options.shape, SHAPES))
        shape = SHAPES[options.shape]
        shape = replace(shape, layers=options.layers or shape.layers)
        total = make_folder(shape, options.folder)
    except BurnishError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{options.folder}: {total / 1e9:.2f} GB of weights, {shape.layers} layers")
    return 0


if __name__ == "__main__":
    sys.exit(main())
