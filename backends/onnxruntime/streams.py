"""Rows of a batch side by side, each share on threads of its own."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from ...ir.errors import OptionError, UnsupportedError
from ...ir.signature import TensorSpec
from .session import Session, is_torch, usable_cpus

_BUSY = 0.9
"""Part of the streams' time that must be work: three rows in two streams take as long as four, and all threads together
do them one after the other in less."""
_TOLERANCE = 0.01
"""Relative error that an output may have where rows run apart, or beside other rows, and nothing more is asked."""
_OTHER_KERNELS = 0.2
"""The same where rows alone say that they do not depend on each other: another size may take another kernel, and what
float rounding changes by a hair can change codes of 8 bits (3 % of MiniLM's outputs)."""


class Streams(Session):
    """A session that runs a batch in shares of its rows, side by side.

    All threads on one operator after the other meet at the end of each, and find there what another one left in its
    cache. Streams meet once a call. For that, rows must have nothing to do with each other: the first call of several
    rows runs them together as well, and compares. A call of one row, or of rows that would leave streams idle, runs on
    all threads as in any session. Weights are in memory twice, once for each kind of call.

    Args:
        model: path of an ONNX file, or a serialized ``ModelProto``.
        streams: how many shares run at once.
        threads: of all streams together; as many as the process may use if None.

    Raises:
        OptionError: fewer than two streams, or more than threads.
        UnsupportedError: the model has inputs or outputs without rows.
        BurnishError: see :class:`~.session.Session`.
    """

    def __init__(self, model: str | os.PathLike[str] | bytes, *, streams: int, threads: int | None = None) -> None:
        threads = threads or usable_cpus()
        check_streams(streams, threads)
        # Threads that wait in a loop for the next operator would take the processor from the streams.
        super().__init__(model, threads=threads, spinning=False)
        if not self._by_value:
            raise UnsupportedError(
                "a batch cannot be split: inputs or outputs are not all tensors of numbers", where="streams=",
                fix="leave streams out",
            )  # fmt: skip
        self._split = _with_rows(self.inputs, self.outputs)
        self._share = Session(model, threads=threads // streams)
        self._streams, self._pool = streams, ThreadPoolExecutor(streams - 1, thread_name_prefix="burnish-stream")
        self._compared = False

    def run(self, feeds: Mapping[str, Any]) -> list[Any]:
        """Run the model, see :meth:`Session.run`.

        Raises:
            InputError: an input is missing, unknown or not a tensor.
            UnsupportedError: rows depend on each other.
            BurnishError: the runtime failed.
        """
        rows = self._rows(feeds)
        most = -(-rows // self._streams)
        if rows < 2 or rows < _BUSY * most * self._streams:
            return super().run(feeds)
        ends = [rows * i // self._streams for i in range(self._streams + 1)]
        parts = [
            {name: value[start:stop] if name in self._split else value for name, value in feeds.items()}
            for start, stop in itertools.pairwise(ends)
            if stop > start
        ]
        others = [self._pool.submit(self._share.run, part) for part in parts[1:]]
        try:
            results = [self._share.run(parts[0])]
        finally:
            done = [other.exception() for other in others]  # waits: the shares read the caller's memory
        for error in filter(None, done):
            raise error
        results += [other.result() for other in others]
        joined = [_joined(one) for one in zip(*results, strict=True)]
        if not self._compared:
            self._compare(feeds, joined, ends)
        return joined

    def _rows(self, feeds: Mapping[str, Any]) -> int:
        """Rows of a call; 1 where inputs cannot be split, or do not fit, which the whole session tells."""
        given = [value for name, value in feeds.items() if name in self._split]
        if not given or not all(isinstance(value, np.ndarray) or is_torch(value) for value in given):
            return 1
        found = {tuple(value.shape[:1]) for value in given}
        (rows,) = found.pop() or (1,)
        return 1 if found else int(rows)

    def _compare(self, feeds: Mapping[str, Any], joined: Sequence[Any], ends: Sequence[int]) -> None:
        """Refuse rows that depend on each other: seen from all rows together, or beside others than their own."""
        whole = super().run(feeds)
        name, apart = self._apart(whole, joined)
        depend = apart > _OTHER_KERNELS
        if not depend and apart > _TOLERANCE:
            for start, stop in (ends[:2], ends[-2:]):
                # As many rows, so that the kernels are the same: those of this share, between copies of themselves.
                order = np.resize(np.arange(start, stop), ends[-1])
                order[start:stop] = np.arange(start, stop)
                others = super().run({name: x[order] if name in self._split else x for name, x in feeds.items()})
                rows = [[one[start:stop] for one in outputs] for outputs in (whole, others)]
                depend |= self._apart(*rows)[1] > _TOLERANCE
        if depend:
            raise UnsupportedError(
                f"rows depend on each other: run apart, output {name!r} is another by {apart:.1%}",
                where="streams=", fix="leave streams out",
            )  # fmt: skip
        self._compared = True

    def _apart(self, whole: Sequence[Any], others: Sequence[Any]) -> tuple[str, float]:
        """The output that differs most, and its relative error."""
        pairs = [
            (spec, _numbers(one), _numbers(other)) for spec, one, other in zip(self.outputs, whole, others, strict=True)
        ]
        # Which of two equal numbers is the largest, a step of a code may change: indices say little beside floats.
        floats = [pair for pair in pairs if "FLOAT" in pair[0].dtype or pair[0].dtype == "DOUBLE"]
        found = {}
        for spec, one, other in floats or pairs:
            known = np.isfinite(one) & np.isfinite(other)  # a mask may be infinite
            size = max(float(np.linalg.norm(one[known])), 1e-15)
            found[spec.name] = float(np.linalg.norm(one[known] - other[known])) / size
        most = max(found, key=lambda name: found[name])
        return most, found[most]


def check_streams(streams: int, threads: int) -> None:
    """Refuse a number of streams that cannot be.

    Raises:
        OptionError: it is not from 2 to the number of threads.
    """
    if isinstance(streams, bool) or not isinstance(streams, int) or not 2 <= streams <= threads:
        raise OptionError(
            f"streams={streams!r} with {threads} threads", where="streams=",
            fix=f"use 2 to {threads}" if threads > 1 else "leave streams out: they need two threads or more",
        )  # fmt: skip


def check_rows(outputs: Sequence[TensorSpec], *, known: bool = True) -> str | None:
    """Refuse outputs that do not all have one first axis of a size that varies, the batch.

    Args:
        outputs: what a model gives.
        known: whether names of sizes are final; else only outputs without a first axis or of a fixed size are refused.

    Returns:
        The name of the batch's size.

    Raises:
        UnsupportedError: there is no such axis, or its size is fixed.
    """
    firsts = {spec.name: spec.shape[0] if spec.shape else None for spec in outputs if known or spec.shape is not None}
    axis = next(iter(firsts.values()), None)
    for name, first in firsts.items():
        if not isinstance(first, str) or (known and first != axis):
            size = f"has {first} on its first axis" if first is not None else "has no first axis"
            raise UnsupportedError(
                f"a batch cannot be split: output {name!r} {size}, not a size that varies and that all outputs share",
                where="streams=", fix="leave streams out, or compile with dynamic_shapes for the first axis",
            )  # fmt: skip
    return axis if isinstance(axis, str) else None


def _with_rows(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> frozenset[str]:
    """Names of the inputs whose first axis is that of all outputs, the batch.

    Raises:
        UnsupportedError: there is no such axis, or its size is fixed.
    """
    axis = check_rows(outputs)
    found = frozenset(spec.name for spec in inputs if spec.shape and spec.shape[0] == axis)
    if not found:
        raise UnsupportedError(
            f"a batch cannot be split: no input has the rows ({axis}) of the outputs",
            where="streams=", fix="leave streams out",
        )  # fmt: skip
    return found


def _joined(parts: Sequence[Any]) -> Any:
    if is_torch(parts[0]):
        import torch

        return torch.cat(list(parts))
    return np.concatenate(parts)


def _numbers(value: Any) -> Any:
    return value.double().numpy() if is_torch(value) else np.asarray(value, np.float64)
