"""Statistics of a graph's values on the user's inputs: streamed, in bounded memory, each computed once."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx_ir

from ...backends.onnxruntime.session import Session
from ...frontends.imported import Imported
from ...ir.errors import CalibrationError
from ...ir.graph import Graph, all_nodes, module_path
from ...ir.remarks import Remark
from ...passes.base import Observe, Request
from ...passes.base import Sequential as InOrder
from ...passes.statistics import Array, Hessian, Observer, combine
from ..cache import Cache, digest_graph, key_of
from ..inputs import Calibration, as_numpy
from ..progress import Progress, silent
from ..verification import node_state
from .batches import Batches
from .segments import split, write_base, write_segment

MEMORY = 1 << 30
"""Bytes that statistics and weights of one segment may take."""

_FLOATS = (onnx_ir.DataType.FLOAT, onnx_ir.DataType.FLOAT16, onnx_ir.DataType.BFLOAT16, onnx_ir.DataType.DOUBLE)


_COUNT, _LENGTH = 8, 256
"""Sequences of random tokens, and tokens of each."""


def on_random_tokens(
    stack: contextlib.ExitStack, imported: Imported, graph: Graph, workspace: Path, progress: Progress
) -> Observe | None:
    """Statistics of a decoder on sequences of random tokens, for passes that can do with them; None for other models.

    Args:
        stack: the results live as long as it is open.
        imported: the decoder.
        graph: that the passes rewrite in place.
        workspace: folder to make temporary folders in.
        progress: called during long work.
    """
    spec = imported.decoder
    if spec is None:
        return None

    def observe(values: Sequence[onnx_ir.Value], observer: Observer) -> dict[str, Array]:
        generator = np.random.default_rng(0)
        length = min(_LENGTH, spec.context or _LENGTH)
        items = [{"input_ids": generator.integers(0, spec.vocabulary, (1, length))} for _ in range(_COUNT)]
        inputs = Calibration(items, imported.signature, spec)
        return stack.enter_context(Statistics(graph, inputs, workspace, progress))(values, observer)

    return observe


class Statistics:
    """What ``Context.statistics`` calls: runs the graph as it is on the calibration inputs.

    Use it in a ``with`` statement: results are mapped from files of a temporary folder that goes at its end.

    Args:
        graph: that the passes rewrite in place.
        calibration: the user's inputs; read once, at the first question.
        workspace: folder to make the temporary folder in.
        progress: called during long work.
        cache: keeps results on disk, by graph, data and observer.
        memory: bytes that statistics and weights of one segment may take; activations come on top.

    Attributes:
        remarks: what the user should know of the data.
        runs: number of runs over all inputs.
        segments: number of segments run.
    """

    def __init__(
        self,
        graph: Graph,
        calibration: Calibration,
        workspace: Path,
        progress: Progress = silent,
        *,
        cache: Cache | None = None,
        memory: int = MEMORY,
    ) -> None:
        self._graph, self._calibration, self._workspace = graph, calibration, workspace
        self._progress, self._cache, self._memory = progress, cache, memory
        self.remarks: list[Remark] = []
        self.runs = self.segments = 0
        self._folder: Path | None = None
        self._inputs: Batches | None = None
        self._data_digest = self._graph_digest = ""
        self._state: tuple[Any, ...] = ()
        self._held: list[Any] = []
        self._results: dict[tuple[Observer, str], Array] = {}
        self._files = 0

    def __enter__(self) -> Statistics:
        return self

    def __exit__(self, *_: object) -> None:
        if self._folder is not None:
            self._results.clear()
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def __call__(self, values: Sequence[onnx_ir.Value], observer: Observer) -> dict[str, Array]:
        """The statistic of each value, by name.

        Raises:
            CalibrationError: the inputs are unusable, or a value cannot be observed.
            InputError: an input does not fit the model.
        """
        self.together([(values, observer)])
        return {value.name or "": self._results[observer, value.name or ""] for value in values}

    def together(self, requests: Sequence[Request]) -> None:
        """Compute what is not known yet of several statistics, in one run over the inputs.

        Raises:
            CalibrationError: the inputs are unusable, or a value cannot be observed.
            InputError: an input does not fit the model.
        """
        channels = {
            (observer, value.name or ""): _channels(value, self._graph, observer)
            for values, observer in requests
            for value in values
        }
        self._refresh()
        inputs = self._read()
        entries = {observer: self._entry(observer) for _, observer in requests}
        for observer, name in channels:
            kept = entries[observer]
            if (observer, name) not in self._results and kept is not None:
                found = _load(kept / _file(name))
                if found is not None:
                    self._results[observer, name] = found
        missing = {key: size for key, size in channels.items() if key not in self._results}
        if missing:
            self._run(missing, inputs, entries)

    def sequential(self, values: Sequence[onnx_ir.Value], both: bool) -> InOrder:
        """What ``Context.sequential`` calls, see there.

        Raises:
            CalibrationError: the inputs are unusable, or a value cannot be observed.
            InputError: an input does not fit the model.
        """
        from .sequential import Sequential  # PyTorch is loaded when it is needed

        observer = Hessian()
        channels = [(value, _channels(value, self._graph, observer)) for value in values]
        inputs = self._read()
        assert self._folder is not None
        return Sequential(
            self._graph, channels, inputs, both=both, folder=self._folder,
            keep=lambda result: self._keep(result, "", None), check=self._check,
            tell=lambda name, count, size: self._tell(name, count, size, observer), progress=self._progress,
        )  # fmt: skip

    def _refresh(self) -> None:
        """Forget the results of a graph that has changed since."""
        nodes = list(all_nodes(self._graph))
        tensors = [value.const_value for scope in self._graph.graphs() for value in scope.initializers.values()]
        state = (*map(node_state, nodes), *map(id, tensors))
        if state != self._state:
            # Held, so that no id is used again.
            self._state, self._held = state, [nodes, [list(node.attributes.values()) for node in nodes], tensors]
            self._results.clear()
            self._graph_digest = ""

    def _entry(self, observer: Observer) -> Path | None:
        """The folder in the cache for results of the graph as it is."""
        if self._cache is None:
            return None
        if not self._graph_digest:
            self._graph_digest = digest_graph(self._graph, self._calibration.signature)
        return self._cache.results(key_of(self._graph_digest, [], [self._data_digest, observer]))

    def _read(self) -> Batches:
        if self._inputs is None:
            self._folder = Path(tempfile.mkdtemp(prefix=".statistics-", suffix=".tmp", dir=self._workspace))
            inputs, digest = Batches(self._folder / "inputs"), hashlib.sha256()
            for feeds in self._calibration:
                batch = {name: as_numpy(value) for name, value in feeds.items()}
                for name, array in sorted(batch.items()):
                    digest.update(f"{name} {array.dtype} {array.shape}".encode())
                    digest.update(np.ascontiguousarray(array).tobytes())
                inputs.add(batch)
            self._inputs, self._data_digest = inputs, digest.hexdigest()
        return self._inputs

    def _run(
        self, channels: Mapping[tuple[Observer, str], int], inputs: Batches, entries: Mapping[Observer, Path | None]
    ) -> None:
        assert self._folder is not None
        work = Path(tempfile.mkdtemp(dir=self._folder))
        self._progress(0, 0, "preparing calibration")
        wanted: dict[str, list[Observer]] = {}
        sizes: dict[str, int] = {}
        for (observer, name), size in channels.items():
            wanted.setdefault(name, []).append(observer)
            sizes[name] = sizes.get(name, 0) + observer.size(size)
        base = write_base(self._graph, list(wanted), work)
        segments = split(onnx_ir.load(base), sizes, self._memory)
        carried: Batches | None = None
        before: tuple[str, ...] = ()
        for number, segment in enumerate(segments):
            path = work / f"segment{number}.onnx"
            given = write_segment(base, segment, before, wanted, path)
            following = Batches(work / f"carried{number}") if segment.carried else None
            totals = _Totals([(observer, name) for name in segment.observed for observer in wanted[name]], len(given))
            session = Session(path)
            names = [spec.name for spec in session.inputs]
            for index, batch in enumerate(_both(inputs, carried)):
                self._progress(number * len(inputs) + index, len(segments) * len(inputs), "calibrating")
                outputs = session.run({name: batch[name] for name in names})
                self._check(totals.add(outputs), index)
                if following is not None:
                    made = dict(zip(given, outputs, strict=False))
                    following.add({name: made[name] if name in made else batch[name] for name in segment.carried})
            del session
            for observer, name, count, result in totals.finish():
                self._tell(name, count, channels[observer, name], observer)
                self._results[observer, name] = self._keep(result, name, entries[observer])
            if carried is not None:
                carried.close()
            carried, before = following, segment.carried
            self.segments += 1
        self.runs += 1
        self._progress(1, 1, "calibrating")
        shutil.rmtree(work, ignore_errors=True)

    def _check(self, broken: str | None, index: int) -> None:
        if broken is not None:
            raise CalibrationError(
                f"{self._describe(broken)} is NaN or infinite on a calibration input",
                where=f"calibration input {index}",
                fix="leave this input out, or compile the model in float32",
            )

    def _maker(self, name: str) -> str:
        """Where a value comes from."""
        for node in self._graph.graph:
            if any(value.name == name for value in node.outputs):
                return module_path(node)
        return ""

    def _describe(self, name: str) -> str:
        maker = self._maker(name)
        return f"value {name!r} of {maker}" if maker else f"input {name!r}"

    def _tell(self, name: str, count: int, channels: int, observer: Observer) -> None:
        if count == 0:
            raise CalibrationError(
                f"{self._describe(name)} got no token of the calibration inputs",
                where="calibration=",
                fix="pass more inputs",
            )
        if isinstance(observer, Hessian) and count < channels:
            reason = f"the Hessian of {channels} channels is singular: it was measured on {count} tokens only"
            self.remarks.append(Remark("missed", self._maker(name), reason, {"channels": channels, "tokens": count}))

    def _keep(self, result: Array, name: str, kept: Path | None) -> Array:
        """The result, mapped from a file."""
        assert self._folder is not None
        if kept is not None:
            with contextlib.suppress(OSError):  # a full or vanished cache is no reason not to go on
                return _save(result, kept / _file(name))
        self._files += 1
        return _save(result, self._folder / f"{self._files}.npy")


class _Totals:
    """The parts of each statistic of each observed value, added batch by batch."""

    def __init__(self, keys: Sequence[tuple[Observer, str]], skip: int) -> None:
        self._skip = skip
        self._parts: dict[tuple[Observer, str], list[Array | None]] = {key: [None] * len(key[0].parts) for key in keys}
        self._counts = dict.fromkeys(keys, 0)

    def add(self, outputs: Sequence[Array]) -> str | None:
        """Add a batch; the name of a value that is not finite in it."""
        at = self._skip
        for (observer, name), totals in self._parts.items():
            parts, shape = outputs[at : at + len(observer.parts)], outputs[at + len(observer.parts)]
            at += len(parts) + 1
            if shape[0] == 0:
                continue
            for index, (how, part) in enumerate(zip(observer.parts, parts, strict=True)):
                # A channel that is not finite shows on the diagonal of a Hessian.
                if how == "sum" and not np.isfinite(part.diagonal() if part.ndim == 2 else part).all():
                    return name
                totals[index] = combine(how, totals[index], part)
            self._counts[observer, name] += int(shape[0])
        return None

    def finish(self) -> Iterator[tuple[Observer, str, int, Array]]:
        """Observer, name, number of tokens and statistic of each; memory is given back on the way."""
        for (observer, name), count in self._counts.items():
            whole = [part for part in self._parts.pop((observer, name)) if part is not None]
            yield observer, name, count, observer.finish(whole, count) if count else np.empty(0, np.float32)


def _both(inputs: Batches, carried: Batches | None) -> Iterator[dict[str, Array]]:
    if carried is None:
        yield from inputs
    else:
        for one, other in zip(inputs, carried, strict=True):
            yield one | other


def _channels(value: onnx_ir.Value, graph: Graph, observer: Observer) -> int:
    """The channels of a value that can be observed; 1 if all of it is one channel."""
    node = value.producer()
    where = value.name if node is None else f"value {value.name!r} of {module_path(node)}"
    reason = None
    single, shape = observer.per_tensor, value.shape
    size = 1 if single else shape[observer.axis] if shape is not None and len(shape) > observer.axis else None
    if value.is_initializer():
        reason = "it is constant"
    elif not (value.is_graph_input() if node is None else node.graph is graph.graph):
        reason = "it is not a value of the main graph"
    elif value.dtype not in _FLOATS:
        reason = f"its element type is {value.dtype}"
    elif not isinstance(size, int) or size == 0:
        reason = "the size of its channel axis is not known"
    if reason is not None:
        raise CalibrationError(f"a value cannot be observed: {reason}", where=where, fix="leave its node out")
    assert isinstance(size, int)
    return size


def _file(name: str) -> str:
    return f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.npy"


def _save(array: Array, path: Path) -> Array:
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        np.save(file, array)
    part.replace(path)
    return cast(Array, np.load(path, mmap_mode="r"))


def _load(path: Path) -> Array | None:
    try:
        return cast(Array, np.load(path, mmap_mode="r"))
    except (OSError, ValueError, EOFError):
        return None
