"""Lazy tensors over safetensors files: mapped into memory, read (and converted) only when someone asks.

The format is a little-endian 64-bit length, a JSON header of that length, and the raw data
(https://github.com/huggingface/safetensors#format).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir

from ...ir.errors import ModelError
from ...ir.weights import Array

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"

_DTYPES: dict[str, Any] = {
    "BOOL": np.bool_, "U8": np.uint8, "I8": np.int8, "U16": np.uint16, "I16": np.int16, "U32": np.uint32,
    "I32": np.int32, "U64": np.uint64, "I64": np.int64, "F16": np.float16, "BF16": ml_dtypes.bfloat16,
    "F32": np.float32, "F64": np.float64, "F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2,
}  # fmt: skip


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a mapped file.

    Attributes:
        data: a view of the file, in the file's element type; reading it does not use anonymous memory.
        file: where it lies.
    """

    data: Array
    file: Path

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return tuple(self.data.shape)

    @property
    def nbytes(self) -> int:
        """Its size in the file."""
        return self.data.nbytes

    def read(self, dtype: onnx_ir.DataType) -> Array:
        """The values as ``dtype``; a copy only where the file holds another element type."""
        wanted = dtype.numpy()
        if self.data.dtype == wanted:
            return self.data
        if self.data.dtype == ml_dtypes.bfloat16 and wanted == np.float32:  # ten times faster than ml_dtypes' cast
            wide = np.empty(self.shape, dtype=np.uint32)
            np.left_shift(self.data.view(np.uint16), 16, out=wide, dtype=np.uint32)
            return wide.view(np.float32)
        return self.data.astype(wanted)


def open_folder(folder: Path) -> dict[str, StoredTensor]:
    """The tensors of ``model.safetensors``, or of the shards that ``model.safetensors.index.json`` names.

    Raises:
        ModelError: there is no such file, a shard is missing or damaged, or a shard lacks a tensor of the index.
    """
    index = folder / INDEX
    if (folder / SINGLE).is_file():
        return open_file(folder / SINGLE)
    if index.is_file():
        return _open_shards(folder, index)
    pickles = sorted(path.name for path in folder.glob("pytorch_model*.bin*"))
    if pickles:
        raise ModelError(
            f"the weights are pickled ({', '.join(pickles[:3])}); they cannot be read lazily, and unpickling runs code",
            where=str(folder),
            fix="convert them once: AutoModel.from_pretrained(folder).save_pretrained(new_folder)",
        )
    raise ModelError(
        "the folder holds no weights",
        where=str(folder),
        fix=f"put {SINGLE} there, or {INDEX} with the shards it names",
    )


def _open_shards(folder: Path, index: Path) -> dict[str, StoredTensor]:
    try:
        places: Mapping[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards = sorted(set(places.values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(f"{INDEX} is not a safetensors index: {error}", where=str(index)) from error
    missing = [shard for shard in shards if not (folder / shard).is_file()]
    if missing:
        raise ModelError(
            f"{len(missing)} of {len(shards)} shards are missing: {', '.join(missing[:3])}",
            where=str(folder),
            fix="finish the download, or copy the missing files into the folder",
        )
    files = {shard: open_file(folder / shard) for shard in shards}
    for name, shard in places.items():
        if name not in files[shard]:
            raise ModelError(f"{shard} does not hold {name!r}, which {INDEX} places there", where=str(folder / shard))
    return {name: tensor for shard in shards for name, tensor in files[shard].items() if places.get(name) == shard}


def open_file(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one safetensors file, in the order of their data.

    Raises:
        ModelError: the file is damaged, truncated or not a safetensors file.
    """
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= size - 8:
                raise ValueError("the header does not fit into the file")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        entries = sorted(header.items(), key=lambda entry: entry[1]["data_offsets"])
        mapped = (
            np.memmap(path, dtype=np.uint8, mode="r", offset=8 + length) if size > 8 + length else np.empty(0, np.uint8)
        )
        return {name: _stored(name, entry, mapped, path) for name, entry in entries}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"not a whole safetensors file: {error}", where=str(path), fix="download or save the file again"
        ) from error


def _stored(name: str, entry: Mapping[str, Any], mapped: Array, path: Path) -> StoredTensor:
    if entry["dtype"] not in _DTYPES:
        raise ValueError(f"{name!r} has the unknown element type {entry['dtype']}")
    dtype, shape, (start, end) = np.dtype(_DTYPES[entry["dtype"]]), entry["shape"], entry["data_offsets"]
    expected = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if end - start != expected:
        raise ValueError(f"{name!r} of shape {shape} takes {expected} bytes, the header says {end - start}")
    if end > mapped.size:
        raise ValueError(f"{name!r} ends {end - mapped.size} bytes past the end of the file")
    return StoredTensor(np.asarray(mapped[start:end]).view(dtype).reshape(shape), path)
