"""One side of a benchmark that is a PyTorch module, run eagerly: what the compiled model is measured against.

Imported only in the worker of such a side; it offers what :class:`.onnx_side.OnnxSide` does.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

Array = np.ndarray[Any, Any]


class TorchSide:
    """A module.

    Args:
        model: a Hugging Face causal language model included.
        threads: threads of one operator.
    """

    def __init__(self, model: torch.nn.Module, threads: int | None = None) -> None:
        if threads:
            torch.set_num_threads(threads)
        self.model = model.eval()

    @property
    def is_decoder(self) -> bool:
        """Whether this is a Hugging Face causal language model."""
        return hasattr(self.model, "generate") and hasattr(self.model, "config")

    @property
    def vocabulary(self) -> int | None:
        """Number of logits of a language model."""
        size: int | None = getattr(getattr(self.model, "config", None), "vocab_size", None)
        return size

    def signature(self) -> list[dict[str, Any]]:
        """Empty: a module does not say what it takes."""
        return []

    def prepare(self, feeds: Mapping[str, Array]) -> Callable[[], Sequence[Any]]:
        """A function that calls the module once on ``feeds``, by position."""
        tensors = [torch.from_numpy(array) for array in feeds.values()]

        def run() -> Sequence[Any]:
            with torch.inference_mode():
                result = self.model(*tensors)
            return [result] if isinstance(result, torch.Tensor) else list(result)

        return run

    def forward(self, ids: Array, cache: Any, past: int) -> tuple[Any, Any]:
        """Logits and cache after ``ids`` ([batch, sequence]); the cache is extended in place, as transformers does."""
        with torch.inference_mode():
            result = self.model(input_ids=torch.from_numpy(ids), past_key_values=cache, use_cache=True)
        return result.logits, result.past_key_values

    def start(self, ids: Array) -> tuple[Any, Any]:
        """Logits and cache after a first pass over ``ids`` ([batch, sequence])."""
        return self.forward(ids, None, 0)

    def copy_cache(self, cache: Any) -> Any:
        """The cache, safe from being extended in place."""
        return copy.deepcopy(cache)

    def numpy(self, value: Any) -> Array:
        """An output as an array."""
        array: Array = value.detach().numpy()
        return array
