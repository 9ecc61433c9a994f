"""Writing a model: atomically, one weight in memory at a time, equal bytes once."""

from __future__ import annotations

import contextlib
import errno
import os
import uuid
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx_ir

from ...ir.errors import OutputError
from ...ir.graph import Graph
from ...ir.weights import View

Progress = Callable[[int, int, str], None]
"""Called with (bytes done, bytes in all, name of the weight)."""

EXTERNAL_FROM = 64 << 20
"""Models with more bytes of weights than this get a data file, which the runtime maps instead of copying."""
_REPEATED = 1 << 20
"""So do models that would repeat more bytes than this in one file."""
_INLINE_LIMIT = 1024
"""Tensors below this size stay in the model file even so: shape inference reads them there."""
_PROTOBUF_LIMIT = (2 << 30) - (64 << 20)
_PAGE, _LINE = 4096, 64


@dataclass
class _Placed:
    offset: int
    length: int


def write(
    graph: Graph,
    path: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    external: bool | None = None,
    progress: Progress | None = None,
) -> int:
    """Write ``graph`` to ``path``, and its weights to ``path`` + ``.data`` if there are many.

    Lazy weights are computed one after the other and dropped once written. Both files appear under their names only
    when they are complete; after a failure nothing is left and nothing was overwritten.

    Args:
        graph: unchanged afterwards.
        path: of the ``.onnx`` file.
        overwrite: replace files that exist.
        external: whether to use a data file; by size if None.
        progress: called after each weight.

    Returns:
        Bytes written.

    Raises:
        OutputError: a file exists, the folder does not or cannot be written, the disk is full, or a single file
            would exceed what protobuf holds (2 GiB).
    """
    path = Path(path)
    data_path = path.with_name(path.name + ".data")
    total = stored_bytes(graph)
    if external is None:
        # Inside the model file each initializer has bytes of its own; two can share them in a data file only.
        repeated = sum(int(tensor.nbytes) for _, tensor in _tensors(graph)) - total
        external = total > EXTERNAL_FROM or repeated > _REPEATED
    if not external and total > _PROTOBUF_LIMIT:
        raise OutputError(
            f"{total / 2**30:.1f} GiB of weights do not fit into one file of at most 2 GiB",
            where=str(path),
            fix="allow a data file (external=None or True)",
        )
    _check_target(path, data_path, overwrite, external)
    mark = uuid.uuid4().hex[:8]
    parts = [path.with_name(f".{path.name}.{mark}.part"), path.with_name(f".{data_path.name}.{mark}.part")]
    try:
        with contextlib.ExitStack() as stack:
            data = stack.enter_context(parts[1].open("wb")) if external else None
            proto = _serialize(graph, data, data_path.name, total, progress)
        parts[0].write_bytes(proto)
        size = len(proto) + (parts[1].stat().st_size if external else 0)
        if external:
            parts[1].replace(data_path)
        elif overwrite:
            data_path.unlink(missing_ok=True)
        parts[0].replace(path)
    except OSError as error:
        raise OutputError(_what(error), where=str(path), fix=_fix(error)) from error
    finally:
        for part in parts:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
    return size


def write_beside(graph: Graph, path: str | os.PathLike[str]) -> int:
    """Write a graph whose large weights lie in the data file of another model in the same folder.

    Args:
        graph: loaded from that model, and changed; new weights go into the file itself.
        path: of the file to write.

    Returns:
        Bytes written.

    Raises:
        OutputError: the disk is full, or the folder cannot be written to.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    message: bytes = onnx_ir.to_proto(graph).SerializeToString()
    try:
        part.write_bytes(message)
        part.replace(path)
    except OSError as error:
        raise OutputError(_what(error), where=str(path), fix=_fix(error)) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
    return len(message)


def to_bytes(graph: Graph) -> bytes:
    """The model as one serialized ``ModelProto`` with its weights.

    Raises:
        OutputError: the weights exceed what protobuf holds.
    """
    total = sum(int(tensor.nbytes) for _, tensor in _tensors(graph))
    if total > _PROTOBUF_LIMIT:
        raise OutputError(
            f"{total / 2**30:.1f} GiB of weights do not fit into one message of at most 2 GiB",
            fix="write it to a file",
        )
    return _serialize(graph, None, "", total, None)


def stored_bytes(graph: Graph) -> int:
    """Bytes of the weights of ``graph``, equal ones counted once; nothing is read."""
    return sum({_key(tensor): int(tensor.nbytes) for _, tensor in _tensors(graph)}.values())


def _check_target(path: Path, data_path: Path, overwrite: bool, external: bool) -> None:
    if path.is_dir():
        raise OutputError("the path of the model is a folder", where=str(path), fix="give a file name, such as m.onnx")
    if not path.parent.is_dir():
        raise OutputError("the folder does not exist", where=str(path.parent), fix="create it first")
    for file in [path, *([data_path] if external else [])]:
        if file.exists() and not overwrite:
            raise OutputError("the file exists", where=str(file), fix="choose another name, or pass overwrite=True")


def _what(error: OSError) -> str:
    return f"the model could not be written: {error.strerror or error}"


def _fix(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return "free space on the disk, or choose another folder; nothing was left behind"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "choose a folder you may write to"
    return "choose another folder; nothing was left behind"


def _tensors(graph: Graph) -> Iterator[tuple[onnx_ir.Value, onnx_ir.TensorProtocol]]:
    """Initializers of the graph and its subgraphs, in the order they were registered."""
    for owner in graph.graphs():
        for value in owner.initializers.values():
            if value.const_value is not None:
                yield value, value.const_value


def _key(tensor: onnx_ir.TensorProtocol) -> Hashable:
    """Equal for tensors that are known, without reading them, to hold the same bytes."""
    if isinstance(tensor, View):
        return _key(tensor.base)
    if isinstance(tensor, onnx_ir.ExternalTensor):
        return ("file", str(tensor.path), tensor.offset, tensor.nbytes)
    raw = getattr(tensor, "raw", None) if isinstance(tensor, onnx_ir.Tensor) else None
    if isinstance(raw, np.ndarray) and raw.flags.c_contiguous and raw.nbytes:
        # Both arrays are alive, so equal addresses are equal bytes.
        return ("memory", raw.ctypes.data, raw.nbytes, tensor.dtype)
    pointer = getattr(raw, "data_ptr", None)
    if pointer is not None and raw is not None and raw.is_contiguous() and tensor.nbytes:
        return ("memory", pointer(), tensor.nbytes, tensor.dtype)
    return ("object", id(tensor))


def _read(tensor: onnx_ir.TensorProtocol) -> Any:
    """The little-endian bytes of ``tensor`` as a buffer, without a copy where possible."""
    if isinstance(tensor, View):
        return _read(tensor.base)
    if isinstance(tensor, onnx_ir.LazyTensor):
        return _read(tensor._evaluate())
    if isinstance(tensor, onnx_ir.PackedTensor):
        return np.ascontiguousarray(tensor.numpy_packed()).reshape(-1).data
    if tensor.dtype.bitwidth >= 8 and isinstance(tensor, onnx_ir.Tensor | onnx_ir.ExternalTensor):
        array = np.ascontiguousarray(tensor.numpy())
        return array.reshape(-1).view(np.uint8).data
    return tensor.tobytes()


def _serialize(graph: Graph, data: BinaryIO | None, location: str, total: int, progress: Progress | None) -> bytes:
    """The model message; weights go to ``data`` if there is one."""
    placed: dict[Hashable, _Placed] = {}
    originals: list[tuple[onnx_ir.Value, onnx_ir.TensorProtocol]] = []
    done = 0
    try:
        for value, tensor in list(_tensors(graph)):
            name = value.name or ""
            if isinstance(tensor, onnx_ir.StringTensor) or tensor.dtype == onnx_ir.DataType.STRING:
                continue
            if data is not None and tensor.nbytes >= _INLINE_LIMIT:
                key = _key(tensor)
                if key not in placed:
                    placed[key] = _append(data, tensor)
                    done += placed[key].length
                new: onnx_ir.TensorProtocol = onnx_ir.ExternalTensor(
                    location,
                    placed[key].offset,
                    int(tensor.nbytes),
                    tensor.dtype,
                    shape=onnx_ir.Shape(tensor.shape.numpy()),
                    name=name,
                )
            else:
                done += int(tensor.nbytes)
                if not isinstance(tensor, onnx_ir.LazyTensor | onnx_ir.ExternalTensor) and tensor.name == name:
                    continue
                new = _inline(tensor, name)
            originals.append((value, tensor))
            value.const_value = new
            if progress is not None:
                progress(min(done, total), total, name)
        message: bytes = onnx_ir.to_proto(graph).SerializeToString()
        return message
    finally:
        for value, tensor in originals:
            value.const_value = tensor


def _inline(tensor: onnx_ir.TensorProtocol, name: str) -> onnx_ir.TensorProtocol:
    raw = np.frombuffer(_read(tensor), np.uint8)
    if tensor.dtype.bitwidth < 8:
        return onnx_ir.PackedTensor(raw, tensor.dtype, shape=onnx_ir.Shape(tensor.shape.numpy()), name=name)
    array = raw.view(tensor.dtype.numpy()).reshape(tensor.shape.numpy())
    return onnx_ir.Tensor(array, dtype=tensor.dtype, name=name)


def _append(data: BinaryIO, tensor: onnx_ir.TensorProtocol) -> _Placed:
    align = _PAGE if tensor.nbytes >= 16 * _PAGE else _LINE
    position = data.tell()
    offset = -(-position // align) * align
    data.write(b"\0" * (offset - position))
    buffer = _read(tensor)
    data.write(buffer)
    length = len(buffer)
    if length != tensor.nbytes:
        raise ValueError(f"tensor {tensor.name!r} has {length} bytes, declared {tensor.nbytes}")
    return _Placed(offset, length)
