"""A session whose cache is one memory for input and output, bound once.

Imports neither torch nor onnx.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .session import OrtValue, Session, to_numpy

Array = np.ndarray[Any, Any]

LOGITS_FROM = "logits_from"
"""Optional input: the first position whose logits are computed, counted from the end if negative; 0 if not given."""
WINDOW = "burnish.window"
"""Metadata of the graph: how many tokens a token looks back, itself among them; -1 for all."""


class CacheBinding:
    """Runs a generation graph (:mod:`.generation`) on buffers that it reads and writes.

    Args:
        session: of the graph.
        cache: arrays by the name of the ``past_key_values`` input, [batch, kv_heads, capacity, head_dim]; kept and
            written to.
    """

    def __init__(self, session: Session, cache: Mapping[str, Array]) -> None:
        self._session = session
        self._binding = session.binding()
        self._arrays = dict(cache)
        self._values = {name: OrtValue.ortvalue_from_numpy(array) for name, array in cache.items()}
        self._binding.bind_output("logits", "cpu")  # outputs come back in this order: the logits first
        for name, value in self._values.items():
            self._binding.bind_ortvalue_input(name, value)
            self._binding.bind_ortvalue_output("present." + name.split(".", 1)[1], value)

    def run(self, feeds: Mapping[str, Array]) -> Array:
        """Logits [batch, positions, vocabulary], valid until the next run."""
        for name, array in feeds.items():
            self._binding.bind_ortvalue_input(name, OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array)))
        self._binding.bind_output("logits", "cpu")  # anew: their number of positions may differ
        self._session.run_bound(self._binding, feeds)
        logits: Array = to_numpy(self._binding._iobinding.get_outputs()[0])
        return logits
