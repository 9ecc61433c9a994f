"""Checks between passes: the structure of the graph, and the numbers it computes."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir

from ..ir.errors import BurnishError, InputError, VerificationError
from ..ir.graph import Graph, all_nodes
from ..ir.signature import TensorSpec, numpy_dtype
from ..ir.verify import touched, verify
from ..passes.base import Pass, Stage
from .pipeline import PassRecord

LOSSLESS = {"FLOAT16": 2e-2, "BFLOAT16": 5e-2}
"""Relative error that a pass which promises to change nothing may cause, by the type of an output."""
LOSSLESS_DEFAULT = 1e-3


class StructureCheck:
    """Verifies what each pass touched, and the whole graph before the first pass and after the last."""

    def __init__(self) -> None:
        self._seen: dict[int, tuple[Any, ...]] = {}
        self._nodes: list[onnx_ir.Node] = []

    def begin(self, graph: Graph) -> None:
        """Verify the whole graph."""
        verify(graph)
        self._remember(graph)

    def after(self, item: Pass, graph: Graph, record: PassRecord) -> None:
        """Verify the nodes that are new or read something else than before."""
        changed = [node for node in all_nodes(graph) if self._seen.get(id(node)) != node_state(node)]
        verify(graph, touched(changed))
        self._remember(graph)

    def end(self, graph: Graph) -> None:
        """Verify the whole graph."""
        verify(graph)

    def _remember(self, graph: Graph) -> None:
        self._nodes = list(all_nodes(graph))  # held, so that no id is used again
        self._seen = {id(node): node_state(node) for node in self._nodes}


def node_state(node: onnx_ir.Node) -> tuple[Any, ...]:
    """What a node is and reads, to tell whether it was changed; holds ids, so keep the node alive."""
    return (
        node.op_type,
        node.domain,
        *map(id, node.inputs),
        *map(id, node.outputs),
        *map(id, node.attributes.values()),
    )


class NumericsCheck:
    """Runs the graph before and after each pass on the same inputs and notes the relative error of its outputs.

    Args:
        feeds: graph inputs by name; one mapping a run.
        target: where the result is to run.
        made_up: whether the inputs are random ones that the model may not take.
    """

    def __init__(self, feeds: Sequence[Mapping[str, Any]], target: str, *, made_up: bool = False) -> None:
        self._feeds, self._target, self._made_up = feeds, target, made_up
        self._before: list[list[np.ndarray[Any, Any]]] = []
        self.first: list[list[np.ndarray[Any, Any]]] = []

    def begin(self, graph: Graph) -> None:
        """Run the graph as it came in.

        Raises:
            InputError: it does not run on inputs that were made up.
        """
        try:
            self.first = self._before = self._run(graph)
        except BurnishError as error:
            if not self._made_up:
                raise
            raise InputError(
                f"the model does not run on random inputs, so its numbers cannot be compared: {error.what}",
                where=", ".join(f"{name} {list(value.shape)}" for name, value in self._feeds[0].items()),
                fix="pass example_inputs= or calibration= (--calibration FILE.npz on the command line)",
            ) from error

    def after(self, item: Pass, graph: Graph, record: PassRecord) -> None:
        """Run the graph again if the pass changed it, and note the error.

        Raises:
            VerificationError: a pass that promises to change nothing changed the outputs.
        """
        if not record.outcome.changed and record.nodes_before == record.nodes_after:
            record.error = 0.0
            return
        now = self._run(graph)
        record.error = relative_error(self._before, now)
        names = [value.dtype.name if value.dtype is not None else "FLOAT" for value in graph.graph.outputs]
        limit = max((LOSSLESS.get(name, LOSSLESS_DEFAULT) for name in names), default=LOSSLESS_DEFAULT)
        if item.stage <= Stage.RECOVER and not record.error <= limit:
            raise VerificationError(
                f"the outputs changed by {record.error:.1e} of their size, and a lossless pass may change {limit:.0e}"
            )
        self._before = now

    def end(self, graph: Graph) -> None:
        """Nothing: the compiled file itself is compared next."""

    def compare(self, path: Path) -> float:
        """Relative error of a compiled file against the graph as it came in."""
        return relative_error(self.first, self._run_file(path))

    def _run(self, graph: Graph) -> list[list[np.ndarray[Any, Any]]]:
        from ..backends.onnxruntime.lower import lower
        from ..backends.onnxruntime.writer import write

        copy = graph.clone()
        lower(copy, target=self._target)
        with tempfile.TemporaryDirectory(prefix="burnish-verify-") as folder:
            path = Path(folder) / "model.onnx"
            write(copy, path)
            return self._run_file(path)

    def _run_file(self, path: Path) -> list[list[np.ndarray[Any, Any]]]:
        from ..backends.onnxruntime.session import Session

        session = Session(path)
        wanted = {spec.name: spec for spec in session.inputs}
        feeds = [{n: _as_asked(v, wanted[n]) if n in wanted else v for n, v in item.items()} for item in self._feeds]
        return [[_array(output) for output in session.run(item)] for item in feeds]


def _as_asked(value: Any, spec: TensorSpec) -> Any:
    """A cache that a pass turned into integers; it holds nothing, or zeros."""
    if spec.dtype not in ("INT8", "UINT8") or not isinstance(value, np.ndarray) or value.dtype.kind != "f":
        return value
    assert spec.shape is not None
    # Four bits count from 8.
    return np.full((*value.shape[:3], spec.shape[3]), 0 if spec.dtype == "INT8" else 0x88, numpy_dtype(spec.dtype))


def _array(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_array(item) for item in value]
    if hasattr(value, "detach"):
        value = value.detach()
        value = value.float() if value.is_floating_point() else value
        return value.numpy()
    return np.asarray(value)


def relative_error(expected: Sequence[Sequence[Any]], given: Sequence[Sequence[Any]]) -> float:
    """Largest over runs and outputs of ‖given − expected‖ / ‖expected‖; infinite where shapes or infinities differ."""
    worst = 0.0
    for one, other in zip(expected, given, strict=True):
        for a, b in zip(one, other, strict=True):
            worst = max(worst, _error(a, b))
    return worst


def _error(expected: Any, given: Any) -> float:
    if isinstance(expected, list):
        pairs = zip(expected, given, strict=False)
        return max((_error(a, b) for a, b in pairs), default=0.0) if len(expected) == len(given) else np.inf
    if expected.dtype.kind == "f" and given.dtype.kind in "iu" and expected.ndim == 4:
        return 0.0  # a cache that a pass turned into integers; what it is good for shows in the other outputs
    if expected.shape != given.shape:
        return float("inf")
    if expected.dtype.kind in "OUSb":
        return 0.0 if np.array_equal(expected, given) else float("inf")
    if expected.size == 0:
        return 0.0
    kind = np.complex128 if expected.dtype.kind == "c" else np.float64
    a, b = expected.astype(kind), given.astype(kind)
    finite = np.isfinite(a)
    if not np.array_equal(finite, np.isfinite(b)) or not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return float("inf")
    scale = float(np.linalg.norm(a[finite]))
    difference = float(np.linalg.norm(a[finite] - b[finite]))
    return difference / scale if scale else difference
