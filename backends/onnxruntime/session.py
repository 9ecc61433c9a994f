"""Running a model with ONNX Runtime on the caller's own tensors.

Nothing here imports torch, onnx or onnx_ir: this is all that a saved model needs.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as build

from ...ir.errors import ArtifactError, BurnishError, InputError, ModelError, OptionError, UnsupportedError, nearest
from ...ir.signature import TensorSpec
from .saturation import products_overflow

OrtValue: TypeAlias = onnxruntime.OrtValue
"""ONNX Runtime's own tensor; fed back without a copy (a KV cache, for one)."""

_FATAL = 4
_NAMES = {
    "float": "FLOAT",
    "double": "DOUBLE",
}


_UNTILED = "ORT_GQA_DISABLE_FLASH_ATTENTION"
"""ONNX Runtime has no other switch for it."""


class Session:
    """A loaded model.

    Args:
        model: path of an ONNX file, or a serialized ``ModelProto``.
        threads: threads of one operator; as many as the process may use if None.
        optimize: whether the runtime rewrites the graph when it loads it.
        optimized_path: where the runtime writes the graph that it really runs.
        spinning: whether threads still wait for work in a loop when a run has ended; off for a session that runs now
            and then beside another.
        tiled: whether ``GroupQueryAttention`` computes its scores tile by tile; without, a few hundred queries at a
            time are faster (128 tokens of SmolLM2: 8 ms instead of 15), and scores take queries × keys of memory.

    Raises:
        ArtifactError: the file is missing, damaged, or made for a newer ONNX Runtime.
        UnsupportedError: the runtime has no kernel for a node.
        ModelError: the runtime refuses the model.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | bytes,
        *,
        threads: int | None = None,
        optimize: bool = True,
        optimized_path: str | os.PathLike[str] | None = None,
        spinning: bool = True,
        tiled: bool = True,
    ) -> None:
        if threads is not None and threads < 1:
            raise OptionError(f"threads={threads} is not a number of threads", where="threads", fix="use 1 or more")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _FATAL
        options.intra_op_num_threads = threads or usable_cpus()
        options.inter_op_num_threads = 1
        # Portable files: products by dequantized weights compute in int8, as MatMulNBits does where we write it.
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "4")
        if products_overflow():
            options.add_session_config_entry("session.x64quantprecision", "1")
        if not spinning:
            options.add_session_config_entry("session.force_spinning_stop", "1")
        if not optimize:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        if optimized_path is not None:
            options.optimized_model_filepath = str(optimized_path)
            data = f"{Path(optimized_path).name}.data"
            options.add_session_config_entry("session.optimized_model_external_initializers_file_name", data)
        where = "model bytes" if isinstance(model, bytes) else str(model)
        if not isinstance(model, bytes):
            model = str(model)
            if not Path(model).is_file():
                raise ArtifactError("there is no such model file", where=where, fix="check the path")
        try:
            with _environment({} if tiled else {_UNTILED: "1"}):
                self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise _load_error(error, where) from error
        self._run_options = onnxruntime.RunOptions()
        self._run_options.log_severity_level = _FATAL
        self._core = self._session._sess
        self.inputs: tuple[TensorSpec, ...] = tuple(_spec(item) for item in self._session.get_inputs())
        """What the model takes."""
        self.outputs: tuple[TensorSpec, ...] = tuple(_spec(item) for item in self._session.get_outputs())
        """What the model gives."""
        self._output_names = [spec.name for spec in self.outputs]
        optional = [item.name for item in self._session.get_overridable_initializers()]
        self._input_names = frozenset([*(spec.name for spec in self.inputs), *optional])
        ends = (*self._session.get_inputs(), *self._session.get_outputs())
        plain = all(item.type.startswith("tensor(") for item in ends)
        self._by_value = plain and all(spec.dtype != "STRING" for spec in self.inputs)

    def run(self, feeds: Mapping[str, Any]) -> list[Any]:
        """Run the model.

        Args:
            feeds: NumPy arrays, torch tensors on the CPU or OrtValues, by input name; shared with the runtime where
                they are contiguous. Optional inputs may be absent.

        Returns:
            The outputs: torch tensors if any feed is one, else NumPy arrays; they own the runtime's memory, uncopied.

        Raises:
            InputError: an input is missing, unknown or not a tensor.
            BurnishError: the runtime failed.
        """
        if not self._by_value:
            return self._run_plain(feeds)
        as_torch = any(is_torch(value) for value in feeds.values())
        values = self._run(feeds)
        return [_to_torch(value) if as_torch else to_numpy(value) for value in values]

    def run_values(self, feeds: Mapping[str, Any]) -> list[OrtValue]:
        """Like :meth:`run`, with the outputs as OrtValues that can be fed to the next call."""
        return [OrtValue(value) for value in self._run(feeds)]

    @property
    def metadata(self) -> Mapping[str, str]:
        """What the file says of itself, by key."""
        found: Mapping[str, str] = self._session.get_modelmeta().custom_metadata_map
        return found

    @property
    def inference(self) -> onnxruntime.InferenceSession:
        """ONNX Runtime's own session."""
        return self._session

    def binding(self) -> Any:
        """ONNX Runtime's own binding of inputs and outputs to memory, for :meth:`run_bound`."""
        return self._session.io_binding()

    def run_bound(self, binding: Any, feeds: Mapping[str, Any]) -> None:
        """Run on what is bound; ``feeds`` are the inputs that an error message may speak of.

        Raises:
            InputError: an input does not fit.
            BurnishError: the runtime failed.
        """
        try:
            self._session.run_with_iobinding(binding, self._run_options)
        except Exception as error:
            raise self._run_error(error, feeds) from error

    def _run(self, feeds: Mapping[str, Any]) -> Sequence[Any]:
        # Both stay alive until the call returns: the runtime reads the caller's memory.
        kept = {name: _native(name, value) for name, value in feeds.items()}
        values = {name: native[0] for name, native in kept.items()}
        try:
            result: Sequence[Any] = self._core.run_with_ort_values(values, self._output_names, self._run_options)
            return result
        except Exception as error:
            raise self._run_error(error, feeds) from error

    def _run_plain(self, feeds: Mapping[str, Any]) -> list[Any]:
        """For strings and sequences, which have no shared form."""
        arrays = {name: _plain(value) for name, value in feeds.items()}
        try:
            return list(self._session.run(None, arrays))
        except Exception as error:
            raise self._run_error(error, feeds) from error

    def _run_error(self, error: Exception, feeds: Mapping[str, Any]) -> BurnishError:
        unknown = [name for name in feeds if name not in self._input_names]
        if unknown:
            return InputError(f"the model has no input {unknown[0]!r}", fix=nearest(unknown[0], self._input_names))
        missing = [spec.name for spec in self.inputs if spec.name not in feeds]
        text = _first_line(error)
        if missing and "missing" in text.lower():
            return InputError(f"input {', '.join(map(repr, missing))} is missing", fix="pass every input")
        if "INVALID_ARGUMENT" in str(error) or isinstance(error, build.InvalidArgument):
            return InputError(f"the inputs do not fit the model: {text}", fix="check types and sizes of the inputs")
        return BurnishError(f"ONNX Runtime failed while running the model: {text}", fix="check the sizes of the inputs")


@contextlib.contextmanager
def _environment(wanted: Mapping[str, str]) -> Iterator[None]:
    """Variables that kernels read while they are made; what the user has set stays as it is."""
    added = [name for name in wanted if name not in os.environ]
    for name in added:
        os.environ[name] = wanted[name]
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def usable_cpus() -> int:
    """Processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _spec(item: Any) -> TensorSpec:
    text = item.type
    inner = text[text.rfind("(") + 1 :].rstrip(")") if "(" in text else text
    name = _NAMES.get(inner, inner.upper())
    shape = item.shape
    if shape is None or not text.startswith("tensor("):
        return TensorSpec(item.name, name if text.startswith("tensor(") else text, None)
    named = tuple(d if isinstance(d, int) else (d or f"{item.name}_{i}") for i, d in enumerate(shape))
    return TensorSpec(item.name, name, named)


def is_torch(value: Any) -> bool:
    """Whether something is a torch tensor, told without importing torch."""
    return type(value).__module__.partition(".")[0] == "torch" or hasattr(value, "requires_grad")


def _native(name: str, value: Any) -> tuple[Any, Any]:
    """The runtime's value that shares the memory of ``value``, and what must stay alive meanwhile."""
    if isinstance(value, onnxruntime.OrtValue):
        return value._get_c_value(), value
    if is_torch(value):
        if str(value.device.type) != "cpu":
            raise InputError(f"input {name!r} is on device {str(value.device)!r}", fix="pass value.cpu()")
        tensor = value.detach().contiguous()
        return build.OrtValue.from_dlpack(tensor.__dlpack__()), tensor
    if not isinstance(value, np.ndarray):
        value = np.asarray(value)
    array = np.ascontiguousarray(value) if value.ndim else np.array(value)
    if array.dtype.name == "bfloat16":
        bits = array.view(np.uint16)
        return OrtValue.ortvalue_from_numpy_with_onnx_type(bits, 16)._get_c_value(), bits
    try:
        return OrtValue.ortvalue_from_numpy(array)._get_c_value(), array
    except Exception as error:
        raise InputError(
            f"input {name!r} of type {array.dtype} is no tensor", fix="pass a NumPy array or torch tensor"
        ) from error


def _plain(value: Any) -> Any:
    if isinstance(value, onnxruntime.OrtValue):
        return value.numpy()
    return value.detach().numpy() if is_torch(value) else value


class _Memory:
    """An output's memory as NumPy sees it: the array keeps this object, and this object the output."""

    __slots__ = ("__array_interface__", "value")

    def __init__(self, value: Any, typestr: str) -> None:
        self.value = value
        self.__array_interface__ = {
            "version": 3,
            "data": (value.data_ptr(), False),
            "typestr": typestr,
            "shape": tuple(value.shape()),
        }


_TYPESTR = {
    "tensor(float)": "<f4", "tensor(double)": "<f8", "tensor(float16)": "<f2", "tensor(bool)": "|b1",
    "tensor(int8)": "|i1", "tensor(int16)": "<i2", "tensor(int32)": "<i4", "tensor(int64)": "<i8",
    "tensor(uint8)": "|u1", "tensor(uint16)": "<u2", "tensor(uint32)": "<u4", "tensor(uint64)": "<u8",
    "tensor(bfloat16)": "<u2",
}  # fmt: skip


def to_numpy(value: Any) -> Any:
    """An output as an array over the runtime's memory; bfloat16 as ``ml_dtypes.bfloat16``."""
    if isinstance(value, onnxruntime.OrtValue):
        value = value._get_c_value()
    kind = value.data_type()
    typestr = _TYPESTR.get(kind)
    if typestr is None or not value.has_value():
        return value.numpy() if kind.startswith("tensor(") else OrtValue(value)
    shape = tuple(value.shape())
    if 0 in shape:
        empty: Any = np.empty(shape, np.dtype(typestr))
    else:
        empty = np.asarray(_Memory(value, typestr))
    if kind == "tensor(bfloat16)":
        import ml_dtypes

        return empty.view(ml_dtypes.bfloat16)
    return empty


def _to_torch(value: Any) -> Any:
    import torch

    if value.data_type() == "tensor(string)" or not value.data_type().startswith("tensor("):
        return to_numpy(value)
    return torch.utils.dlpack.from_dlpack(value)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _load_error(error: Exception, where: str) -> BurnishError:
    text = _first_line(error)
    low = str(error).lower()
    here = f"ONNX Runtime {onnxruntime.__version__}"
    if any(mark in low for mark in ("unsupported model ir version", "is under development", "opset", "max supported")):
        return ArtifactError(
            f"the model was made for a newer runtime than {here}: {text}",
            where=where,
            fix="upgrade onnxruntime, or export the model with an older opset",
        )
    if isinstance(error, build.NotImplemented) or "not_implemented" in low or "could not find an implementation" in low:
        return UnsupportedError(
            f"{here} has no kernel for a node: {text}", where=where, fix="upgrade onnxruntime, or compile in float32"
        )
    if "is not a registered function/op" in low or "no op registered" in low:
        return UnsupportedError(
            f"{here} does not know an operator: {text}", where=where, fix="upgrade onnxruntime or register the operator"
        )
    if any(mark in low for mark in ("protobuf parsing failed", "invalidprotobuf", "external data", "no such file")):
        return ArtifactError(
            f"the model file is damaged or incomplete: {text}",
            where=where,
            fix="make it again; a .onnx.data file must lie beside its .onnx file",
        )
    return ModelError(f"{here} refuses the model: {text}", where=where, fix="run onnx.checker on it")
