"""One side of a benchmark that is a decoder Burnish compiled, run the way ``generate`` runs it.

Nothing here imports torch or onnx: the memory measured is what running the decoder costs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..generation.decoding import Decoding
from ..load import load
from ..model import CompiledModel
from .onnx_side import OnnxSide

Array = np.ndarray[Any, Any]
_ROOM = 1024


class DecodingSide:
    """A compiled decoder with its cache in place; of a prompt, the logits of the last position are computed.

    Args:
        model: a compiled decoder that has a generation graph.
        threads: threads of one operator.
    """

    is_decoder = True

    def __init__(self, model: CompiledModel, threads: int | None = None) -> None:
        self._model, self._threads = model, threads
        self._decoding = Decoding(model, 1, _ROOM)
        self._general: OnnxSide | None = None

    @classmethod
    def of(cls, path: str | Path, threads: int | None = None) -> DecodingSide | None:
        """The side of a saved folder; None where that is no decoder with a generation graph."""
        from ..artifact import GENERATION_FILE, MANIFEST_FILE

        folder = Path(path)
        if not (folder / GENERATION_FILE).is_file() or not (folder / MANIFEST_FILE).is_file():
            return None
        return cls(load(folder, threads=threads), threads)

    @property
    def vocabulary(self) -> int | None:
        """Number of logits."""
        return None if self._model.decoder is None else self._model.decoder.vocabulary

    @property
    def _side(self) -> OnnxSide:
        if self._general is None:
            self._general = OnnxSide(self._model.path, self._threads)
        return self._general

    def signature(self) -> list[dict[str, Any]]:
        """Name, type (ONNX Runtime's spelling) and shape of each input of the general graph, which stays unread."""
        return [
            {"name": spec.name, "type": f"tensor({spec.dtype.lower()})", "shape": list(spec.shape or ())}
            for spec in self._model.inputs
        ]

    def prepare(self, feeds: Mapping[str, Array]) -> Callable[[], Sequence[Any]]:
        """A function that runs the general graph once on ``feeds``."""
        return self._side.prepare(feeds)

    def forward(self, ids: Array, cache: Any, past: int) -> tuple[Array, Any]:
        """Logits of the last position after ``ids`` [1, sequence] behind ``past`` tokens."""
        if self._decoding.length != past:
            self._decoding.rewind(past)
        return self._decoding.step(ids, np.ones((1, past + ids.shape[1]), np.int64)), cache

    def start(self, ids: Array) -> tuple[Array, Any]:
        """Logits after a first pass."""
        self._decoding.reset()
        return self.forward(ids, None, 0)

    def copy_cache(self, cache: Any) -> Any:
        """Nothing: the cache is the side's own, and goes back to where a step begins."""
        return cache

    def numpy(self, value: Any) -> Array:
        """An output as an array."""
        array: Array = value if isinstance(value, np.ndarray) else value.numpy()
        return array
