"""One side of a benchmark that is an ONNX file: a live ONNX Runtime session, fed without needless copies.

Nothing here imports torch or onnx: the memory measured is what running the file costs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...ir.errors import InputError, ModelError, OptionError

Array = np.ndarray[Any, Any]

_NUMPY = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(int16)": np.int16,
    "tensor(int8)": np.int8,
    "tensor(uint64)": np.uint64,
    "tensor(uint32)": np.uint32,
    "tensor(uint16)": np.uint16,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
}
_PAST = re.compile(r"past_key_values\.(\d+)\.(key|value)")


def find_model(path: str | Path) -> Path:
    """The ONNX file that ``path`` is, or that the saved folder ``path`` holds.

    Raises:
        ModelError: there is none, or more than one.
    """
    path = Path(path)
    if path.is_dir():
        files = [path / "model.onnx"] if (path / "model.onnx").is_file() else sorted(path.glob("*.onnx"))
        if len(files) != 1:
            raise ModelError(f"the folder holds {len(files)} ONNX files, not one", where=str(path))
        return files[0]
    if not path.is_file():
        raise ModelError("there is no such model", where=str(path), fix="give an ONNX file or a saved folder")
    return path


def model_bytes(path: str | Path) -> int:
    """Bytes of a model on disk: graph and weights, without tokenizer and manifest.

    For a lone file this counts data files that start with its name.
    """
    path = Path(path)
    file = find_model(path)
    if path.is_dir():
        companions = {".json", ".txt", ".jinja", ".model", ".md"}
        return sum(f.stat().st_size for f in path.iterdir() if f.is_file() and f.suffix not in companions)
    return sum(f.stat().st_size for f in file.parent.iterdir() if f.is_file() and f.name.startswith(file.name))


class OnnxSide:
    """A session over one file.

    Args:
        path: an ONNX file or a saved folder.
        threads: threads of one operator.

    Raises:
        ModelError: the file is missing, or ONNX Runtime cannot load it.
    """

    def __init__(self, path: str | Path, threads: int | None = None) -> None:
        import onnxruntime as ort

        from ...backends.onnxruntime.saturation import products_overflow

        self._ort = ort
        file = find_model(path)
        options = ort.SessionOptions()
        options.log_severity_level = 3
        if threads:
            options.intra_op_num_threads = threads
        # As Burnish runs a model: 8-bit products do not overflow.
        if products_overflow():
            options.add_session_config_entry("session.x64quantprecision", "1")
        try:
            self.session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime raises classes of its own that share no base
            raise ModelError(f"ONNX Runtime cannot load the model: {error}", where=str(file)) from error
        self._describe()

    def _describe(self) -> None:
        self.inputs = {spec.name: spec for spec in self.session.get_inputs()}
        self.outputs = [spec.name for spec in self.session.get_outputs()]
        self.past = [name for name in self.inputs if _PAST.fullmatch(name)]

    @property
    def is_decoder(self) -> bool:
        """Whether the model has a KV cache under the names that :mod:`burnish` and the README use."""
        return bool(self.past) and "input_ids" in self.inputs

    @property
    def vocabulary(self) -> int | None:
        """Number of logits, where the file says it."""
        for spec in self.session.get_outputs():
            if spec.name == "logits" and spec.shape and isinstance(spec.shape[-1], int):
                return int(spec.shape[-1])
        return None

    def signature(self) -> list[dict[str, Any]]:
        """Name, type (ONNX Runtime's spelling) and shape of each input."""
        return [{"name": s.name, "type": s.type, "shape": list(s.shape)} for s in self.session.get_inputs()]

    def prepare(self, feeds: Mapping[str, Array]) -> Callable[[], Sequence[Any]]:
        """A function that runs the model once on ``feeds``, which are bound here once, and returns OrtValues.

        Raises:
            InputError: an input has no array.
        """
        missing = [name for name in self.inputs if name not in feeds]
        if missing:
            raise InputError(f"no array for input {', '.join(missing)}", fix="give all inputs of the model")
        binding = self.session.io_binding()
        for name in self.inputs:
            binding.bind_ortvalue_input(name, self._value(feeds[name]))
        for name in self.outputs:
            binding.bind_output(name, "cpu")

        def run() -> Sequence[Any]:
            self.session.run_with_iobinding(binding)
            values: Sequence[Any] = binding.get_outputs()
            return values

        return run

    def _value(self, array: Array) -> Any:
        return self._ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))

    # Decoders: every side is driven in the same way, with the cache handed from output to input as OrtValues.

    def empty_cache(self, batch: int = 1) -> list[Any]:
        """A cache of no tokens, one OrtValue per past input."""
        cache = []
        for name in self.past:
            spec = self.inputs[name]
            shape = [batch, spec.shape[1], 0, spec.shape[3]]
            if not all(isinstance(size, int) for size in shape):
                raise ModelError(f"input {name!r} says no number of heads or head size: {spec.shape}")
            cache.append(self._value(np.zeros(shape, _NUMPY[spec.type])))
        return cache

    def forward(self, ids: Array, cache: Sequence[Any], past: int) -> tuple[Any, list[Any]]:
        """Logits and new cache after ``ids`` ([batch, sequence], int64) behind a cache of ``past`` tokens."""
        batch, sequence = ids.shape
        feeds = {
            "input_ids": ids,
            "attention_mask": np.ones((batch, past + sequence), np.int64),
            "position_ids": np.tile(np.arange(past, past + sequence, dtype=np.int64), (batch, 1)),
        }
        binding = self.session.io_binding()
        for name in self.inputs.keys() - set(self.past):
            if name not in feeds:
                raise ModelError(f"the decoder has an input {name!r} that the benchmark cannot fill")
            binding.bind_ortvalue_input(name, self._value(feeds[name]))
        for name, value in zip(self.past, cache, strict=True):
            binding.bind_ortvalue_input(name, value)
        for name in self.outputs:
            binding.bind_output(name, "cpu")
        self.session.run_with_iobinding(binding)
        values = dict(zip(self.outputs, binding.get_outputs(), strict=True))
        present = [values[name.replace("past_key_values", "present")] for name in self.past]
        return values["logits"], present

    def start(self, ids: Array) -> tuple[Any, Any]:
        """Logits and cache after a first pass over ``ids`` ([batch, sequence])."""
        return self.forward(ids, self.empty_cache(ids.shape[0]), 0)

    def copy_cache(self, cache: Any) -> Any:
        """The cache itself: the session never writes into it."""
        return cache

    def numpy(self, value: Any) -> Array:
        """An output as an array."""
        array: Array = value.numpy()
        return array


class StreamsSide(OnnxSide):
    """A file whose batch runs in shares side by side, as :class:`burnish.CompiledModel` runs it.

    Args:
        path: an ONNX file or a saved folder.
        streams: shares.
        threads: of all of them.

    Raises:
        BurnishError: see :class:`burnish.backends.onnxruntime.streams.Streams`.
    """

    def __init__(self, path: str | Path, streams: int, threads: int | None = None) -> None:
        from ...backends.onnxruntime.streams import Streams

        self._streams = Streams(find_model(path), streams=streams, threads=threads)
        self.session = self._streams.inference
        self._describe()

    @property
    def is_decoder(self) -> bool:
        """Never: streams are for calls, not for tokens one by one."""
        return False

    def prepare(self, feeds: Mapping[str, Array]) -> Callable[[], Sequence[Any]]:
        """A function that runs the model once on ``feeds`` and returns arrays."""
        given = {name: np.ascontiguousarray(feeds[name]) for name in self.inputs if name in feeds}
        return lambda: self._streams.run(given)

    def numpy(self, value: Any) -> Array:
        """An output as an array."""
        array: Array = value
        return array


def make_inputs(signature: Sequence[Mapping[str, Any]], dims: Mapping[str, int], seed: int = 0) -> dict[str, Array]:
    """Inputs that fit a signature: floats from N(0, 1), masks of ones, positions counted, other integers 0 or 1.

    Args:
        signature: what :meth:`OnnxSide.signature` returns.
        dims: size of each symbolic dimension by its name, or by ``input:axis`` where it has none.
        seed: of the random numbers.

    Raises:
        OptionError: a symbolic dimension has no size, or ``dims`` names one that is not there.
        ModelError: an input has a type that no values are made for.
    """
    generator = np.random.default_rng(seed)
    used: set[str] = set()
    arrays: dict[str, Array] = {}
    unknown: list[str] = []
    for spec in signature:
        shape: list[int] = []
        for axis, size in enumerate(spec["shape"]):
            if isinstance(size, int):
                shape.append(size)
                continue
            keys = [key for key in (size, f"{spec['name']}:{axis}") if key in dims]
            if keys:
                used.update(keys)
                shape.append(dims[keys[-1]])
            else:
                unknown.append(str(size or f"{spec['name']}:{axis}"))
        if unknown:
            continue
        if spec["type"] not in _NUMPY:
            raise ModelError(f"input {spec['name']!r} is a {spec['type']}", fix="give the inputs as arrays")
        arrays[spec["name"]] = _values(spec["name"], np.dtype(_NUMPY[spec["type"]]), shape, generator)
    if unknown:
        names = list(dict.fromkeys(unknown))
        raise OptionError(
            f"the model has dimensions without a size: {', '.join(names)}",
            fix="give each one: " + " ".join(f"--dim {name}=1" for name in names),
        )
    if extra := dims.keys() - used:
        raise OptionError(f"no input has a symbolic dimension {', '.join(sorted(extra))}")
    return arrays


def _values(name: str, dtype: np.dtype[Any], shape: Sequence[int], generator: np.random.Generator) -> Array:
    if dtype.kind == "f":
        return generator.standard_normal(shape, np.float32).astype(dtype)
    if "mask" in name or dtype.kind == "b":
        return np.ones(shape, dtype)
    if "position" in name and shape:
        return np.broadcast_to(np.arange(shape[-1], dtype=dtype), shape).copy()
    return generator.integers(0, 2, shape).astype(dtype)
