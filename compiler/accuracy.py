"""How far a compiled model is from the model it was made of, on real inputs: end to end, and layer by layer."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..backends.onnxruntime.lower import lower
from ..backends.onnxruntime.session import Session
from ..backends.onnxruntime.writer import write
from ..ir.graph import Graph
from ..ir.noise import decibels
from ..ir.signature import DecoderSpec
from .calibration.batches import Batches
from .figures import Accuracy
from .inputs import Array, as_numpy

MOST = 8
"""Inputs that are compared."""
_ROWS = 16  # rows of logits that are in float64 at a time: they should stay in the processor's cache


class AccuracyCheck:
    """Runs the graph as it came, keeps what it gave on disk, and compares a compiled file with it.

    Args:
        inputs: graph inputs by name; as many as ``most`` are used.
        held_out: see :class:`Accuracy`.
        decoder: set for a causal language model.
        workspace: folder to make the temporary folder in.
        most: inputs that are used.
    """

    def __init__(
        self,
        inputs: Iterable[Mapping[str, Any]],
        held_out: bool,
        decoder: DecoderSpec | None,
        workspace: Path,
        most: int = MOST,
    ) -> None:
        self._most = most
        self._inputs, self._held_out, self._decoder = inputs, held_out, decoder
        self._folder = tempfile.TemporaryDirectory(prefix=".accuracy-", suffix=".tmp", dir=workspace)
        self._kept: Batches | None = None

    def begin(self, graph: Graph) -> None:
        """Run the graph as it is."""
        folder = Path(self._folder.name)
        kept = Batches(folder / "outputs")
        copy = graph.clone()
        lower(copy)
        path = folder / "model.onnx"
        write(copy, path)
        session = Session(path)
        for _, feeds in zip(range(self._most), self._inputs, strict=False):
            batch = {name: as_numpy(value) for name, value in feeds.items()}
            kept.add(batch | {"": np.asarray(session.run(batch)[0])})
        self._kept = kept
        del session
        path.unlink()
        path.with_name(f"{path.name}.data").unlink(missing_ok=True)

    def compare(self, path: Path) -> Accuracy:
        """Run a compiled file on the same inputs."""
        assert self._kept is not None
        session, total = Session(path), Comparison(self._decoder is not None)
        wanted = {spec.name for spec in session.inputs}
        for batch in self._kept:
            expected = batch.pop("")
            given = np.asarray(session.run({name: value for name, value in batch.items() if name in wanted})[0])
            total.add(expected, given, batch.get("input_ids"))
        return total.result(self._held_out)

    def close(self) -> None:
        """Remove what was kept."""
        self._folder.cleanup()


class Trials:
    """Makes changes to copies of a graph and says how far their outputs are from those of the graph.

    Args:
        graph: as it is at the first trial.
        inputs: graph inputs by name; the first four are used.
        decoder: set for a causal language model.
        workspace: folder to make temporary folders in.
    """

    def __init__(
        self, graph: Graph, inputs: Iterable[Mapping[str, Any]], decoder: DecoderSpec | None, workspace: Path
    ) -> None:
        self._graph, self._check = graph, AccuracyCheck(inputs, False, decoder, workspace, most=4)
        self._begun = False
        self._workspace = workspace

    def __call__(self, change: Callable[[Graph], None]) -> float:
        """Divergence of next-token distributions in nats, or the relative squared error of the first output."""
        if not self._begun:
            self._check.begin(self._graph)
            self._begun = True
        copy = self._graph.clone()
        change(copy)
        lower(copy)
        with tempfile.TemporaryDirectory(prefix=".trial-", suffix=".tmp", dir=self._workspace) as folder:
            path = Path(folder) / "model.onnx"
            write(copy, path)
            found = self._check.compare(path)
        if found.divergence is not None:
            return max(found.divergence, 0.0)
        return float(10 ** (-found.signal_to_noise / 10))

    def close(self) -> None:
        """Remove what was kept."""
        self._check.close()


class Comparison:
    """Figures of :class:`Accuracy`, added up input by input.

    Args:
        decoder: whether the outputs are logits of a causal language model, ``[batch, tokens, vocabulary]``.
    """

    def __init__(self, decoder: bool) -> None:
        self._decoder = decoder
        self._count = 0
        self._power = self._lost = self._cosine = 0.0
        self._least, self._vectors = 1.0, 0
        self._divergence = self._agree = self._before = self._after = 0.0
        self._positions = self._targets = 0

    def add(self, expected: Array, given: Array, ids: Array | None = None) -> None:
        """Add the outputs of one input; of a decoder its tokens, too."""
        self._count += 1
        width = expected.shape[-1] if expected.ndim else 1
        rows, others = expected.reshape(-1, width), given.reshape(-1, width)
        targets = None
        if self._decoder and ids is not None:
            targets = np.full(ids.shape, -1, np.int64)
            targets[:, :-1] = ids[:, 1:]
            targets = targets.reshape(-1)
        for start in range(0, len(rows), _ROWS):
            part = slice(start, start + _ROWS)
            a, b = rows[part].astype(np.float64), others[part].astype(np.float64)
            powers, lost = _dots(a, a), a - b
            self._power += float(powers.sum())
            self._lost += float(_dots(lost, lost).sum())
            norms = np.sqrt(powers) * np.sqrt(_dots(b, b))
            cosine = np.where(norms > 0, _dots(a, b) / np.maximum(norms, 1e-300), 1.0)
            self._cosine += float(cosine.sum())
            self._least = min(self._least, float(cosine.min(initial=1.0)))
            self._vectors += len(a)
            if targets is not None:
                self._tokens(a, b, lost, targets[part])

    def _tokens(self, a: Array, b: Array, lost: Array, targets: Array) -> None:
        """Add the divergence of rows of logits, and the likelihoods of the tokens that follow; ``lost`` is ``a − b``.

        The exponentials are what takes time here, so each is computed once: the divergence is the mean of ``a − b`` by
        the first distribution, less the difference of the logarithms of both sums.
        """
        powers, sums, first = _exponentials(a)
        _, _, second = _exponentials(b)
        self._divergence += float((_dots(powers, lost) / sums - first + second).sum())
        self._agree += float((a.argmax(axis=1) == b.argmax(axis=1)).sum())
        self._positions += len(a)
        known = np.flatnonzero(targets >= 0)
        self._before += float((first[known] - a[known, targets[known]]).sum())
        self._after += float((second[known] - b[known, targets[known]]).sum())
        self._targets += len(known)

    def result(self, held_out: bool) -> Accuracy:
        """The figures so far."""
        vectors = max(self._vectors, 1)
        figures: dict[str, Any] = {}
        if self._positions:
            figures = {
                "divergence": self._divergence / self._positions,
                "agreement": self._agree / self._positions,
                "perplexity": math.exp(self._after / max(self._targets, 1)),
                "perplexity_before": math.exp(self._before / max(self._targets, 1)),
            }
        return Accuracy(
            self._count, held_out, decibels(self._power, self._lost), self._cosine / vectors, self._least, **figures
        )


def _dots(a: Array, b: Array) -> Array:
    """Inner products of rows, ``[rows]``."""
    result: Array = np.einsum("ij,ij->i", a, b)
    return result


def _exponentials(rows: Array) -> tuple[Array, Array, Array]:
    """The softmax of each row times its sums, these ``[rows]``, and the logarithms of the sums of exponentials."""
    most = rows.max(axis=1)
    powers = rows - most[:, None]
    np.exp(powers, out=powers)
    sums = powers.sum(axis=1)
    return powers, sums, most + np.log(sums)


def log_softmax(rows: Array) -> Array:
    """Logarithms of the softmax of each row, in the type of ``rows``."""
    shifted = rows - rows.max(axis=-1, keepdims=True)
    result: Array = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result
