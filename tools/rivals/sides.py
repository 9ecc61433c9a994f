"""Other tools' models as sides of a benchmark: each class offers what ``compiler.benchmark.onnx_side.OnnxSide`` does.

Factories are named in :class:`~burnish.compiler.benchmark.Side`; each runs in a worker of its own. Threads are those
that the benchmark gives the worker (``OMP_NUM_THREADS``).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import models

Array = np.ndarray[Any, Any]


def _threads() -> int:
    return int(os.environ.get("OMP_NUM_THREADS", "2"))


class _Rival:
    """What all have in common."""

    is_decoder = True
    vocabulary: int | None = 49152
    model_bytes = 0

    def signature(self) -> list[dict[str, Any]]:
        """Empty: a rival is driven by position or by name."""
        return []

    def copy_cache(self, cache: Any) -> Any:
        """What tells the tool to go back to where the cache was; the cache itself is the tool's."""
        return cache

    def numpy(self, value: Any) -> Array:
        """An output as an array."""
        return np.asarray(value)


class LlamaCpp(_Rival):
    """llama.cpp through ``llama-cpp-python``; only the last position has logits, unless ``every`` is asked for."""

    def __init__(self, path: Path, every: bool = False) -> None:
        from llama_cpp import Llama

        threads = _threads()
        self._model = Llama(
            str(path),
            n_ctx=4096,
            n_batch=512,
            n_threads=threads,
            n_threads_batch=threads,
            logits_all=every,
            verbose=False,
        )
        self._every = every
        self.model_bytes = path.stat().st_size

    def forward(self, ids: Array, cache: Any, past: int) -> tuple[Array, Any]:
        """Logits after ``ids`` [1, sequence] behind ``past`` tokens."""
        import llama_cpp

        self._model.n_tokens = past
        self._model.eval(ids[0].tolist())
        if self._every:
            return np.asarray(self._model.scores[None, past : past + ids.shape[1]]), None
        context = self._model._ctx.ctx  # the package has no public way to the logits without copying all
        logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits(context), shape=(1, 1, self._model.n_vocab()))
        return logits, None

    def start(self, ids: Array) -> tuple[Array, Any]:
        """Logits after a first pass."""
        return self.forward(ids, None, 0)


class Genai(_Rival):
    """``onnxruntime-genai``, token by token through its generator with its own buffers."""

    def __init__(self, folder: Path) -> None:
        import onnxruntime_genai as og

        self._og = og
        config = og.Config(str(folder))
        self._model = og.Model(config)
        self._generator: Any = None
        self.model_bytes = models.size(folder)

    def forward(self, ids: Array, cache: Any, past: int) -> tuple[Array, Any]:
        """Logits after ``ids`` [1, sequence] behind ``past`` tokens."""
        if self._generator.token_count() != past:
            self._generator.rewind_to(past)
        self._generator.append_tokens(ids.astype(np.int32))
        return self._generator.get_output("logits"), None

    def start(self, ids: Array) -> tuple[Array, Any]:
        """Logits after a first pass, in a generator of its own."""
        options = self._og.GeneratorParams(self._model)
        options.set_search_options(max_length=2048, do_sample=False)
        self._generator = self._og.Generator(self._model, options)
        return self.forward(ids, None, 0)


class OpenVino(_Rival):
    """OpenVINO on the CPU, latency hint; a decoder keeps its cache as the model's state."""

    def __init__(self, path: Path, decoder: bool, precision: str | None = None) -> None:
        import openvino as ov

        options: dict[str, Any] = {"INFERENCE_NUM_THREADS": _threads(), "PERFORMANCE_HINT": "LATENCY"}
        if precision:
            options["INFERENCE_PRECISION_HINT"] = precision
        compiled = ov.Core().compile_model(str(path), "CPU", options)
        self._request = compiled.create_infer_request()
        self._names = {value.any_name for value in compiled.inputs}
        self.is_decoder = decoder
        self.vocabulary = 49152 if decoder else None
        self.model_bytes = models.size(path.parent)
        self._saved: list[Array] = []

    def forward(self, ids: Array, cache: Any, past: int) -> tuple[Array, Any]:
        """Logits after ``ids`` [1, sequence] behind ``past`` tokens."""
        feeds = {
            "input_ids": ids,
            "attention_mask": np.ones((1, past + ids.shape[1]), np.int64),
            "position_ids": np.arange(past, past + ids.shape[1])[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        results = self._request.infer({k: v for k, v in feeds.items() if k in self._names}, share_inputs=True)
        return results[0], None

    def start(self, ids: Array) -> tuple[Array, Any]:
        """Logits after a first pass."""
        self._request.reset_state()
        return self.forward(ids, None, 0)

    def copy_cache(self, cache: Any) -> Any:
        """Put the state back to what it was at the first call."""
        import openvino as ov

        states = self._request.query_state()
        if not self._saved:
            self._saved = [np.array(state.state.data) for state in states]
        for state, array in zip(states, self._saved, strict=True):
            state.state = ov.Tensor(array)
        return cache

    def prepare(self, feeds: Mapping[str, Array]) -> Callable[[], Sequence[Any]]:
        """A function that runs the model once."""
        taken = {name: array for name, array in feeds.items() if name in self._names}

        def run() -> Sequence[Any]:
            return [np.asarray(value) for value in self._request.infer(taken, share_inputs=True).values()]

        return run


# Factories, named as `burnish.tools.rivals.sides:NAME:ARGUMENT`.


def llama(name: str) -> LlamaCpp:
    """llama.cpp on the type ``name``."""
    return LlamaCpp(models.llama(name))


def llama_every(name: str) -> LlamaCpp:
    """The same with the logits of every position, for perplexity."""
    return LlamaCpp(models.llama(name), every=True)


def genai(precision: str) -> Genai:
    """onnxruntime-genai's builder at ``precision``."""
    return Genai(models.genai(precision))


def openvino(kind: str) -> OpenVino:
    """The decoder under OpenVINO with its default inference precision."""
    return OpenVino(models.openvino(kind), decoder=True)


def minilm_openvino(kind: str) -> OpenVino:
    """MiniLM under OpenVINO with its default inference precision."""
    return OpenVino(models.minilm_openvino(kind), decoder=False)
