"""Generating for long: memory stays, and the time of a token does not grow beyond the cache it reads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import burnish
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

# A process of its own, so that what is measured is what generating holds.
SCRIPT = """
import gc, resource, sys
import burnish
from burnish.compiler.generation.generate import tokens

def resident():
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()

model, count, times = burnish.load(sys.argv[1], threads=1), int(sys.argv[2]), int(sys.argv[3])
cache, marks, made = model.decoding(), [], 0
for round in range(times):
    cache.reset()
    for place, step in enumerate(tokens(model, [[5, 6, 7]], max_new_tokens=count, end_tokens=(), cache=cache)):
        made += 1
        if times == 1 and place == count // 4:
            marks.append(resident())
    marks.append(resident())
print(marks[-1] - marks[0], made)
"""


def grown(folder: Path, count: int, times: int) -> tuple[int, int]:
    """Bytes that a process grew by after the first quarter of its tokens, and how many tokens there were."""
    command = [sys.executable, "-c", SCRIPT, str(folder), str(count), str(times)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=True)
    first, second = done.stdout.split()
    return int(first), int(second)


def saved(folder: Path, context: int, window: int | None) -> Path:
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 97, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": context, "eos_token_id": None,
    }  # fmt: skip
    if window is None:
        model: Any = LlamaForCausalLM(LlamaConfig(**sizes))
    else:
        model = MistralForCausalLM(MistralConfig(**sizes, sliding_window=window))
    model.eval().save_pretrained(folder / "source")
    burnish.export(folder / "source", folder / "saved", cache=False)
    return folder / "saved"


# What the interpreter's and the runtime's heaps breathe; a leak of 200 bytes a token would show.
SLACK = 1_500_000


@pytest.mark.parametrize(("window", "count", "times"), [(None, 2_500, 4), (64, 10_000, 1)])
def test_memory_stays_over_ten_thousand_tokens(tmp_path: Path, window: int | None, count: int, times: int) -> None:
    growth, made = grown(saved(tmp_path, 12_000, window), count, times)
    assert made == 10_000 and growth < SLACK, growth
