"""Reading GGUF files: metadata, and tensors that are dequantized when someone asks.

The format is https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The reader of the ``gguf`` package makes an
array of every string of the vocabulary, which takes seconds; only its arithmetic of quantization types is used here.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir

from ..ir.errors import ModelError, UnsupportedError
from ..ir.weights import Array

_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_ALIGNMENT = 32


@dataclass(frozen=True)
class GgufTensor:
    """A tensor in a mapped file.

    Attributes:
        name: its name in the file.
        data: its bytes, a view of the file.
        kind: its quantization type, by the gguf package's enumeration.
        shape: its shape, outermost dimension first.
        restore: undoes what the conversion to GGUF did to the values.
    """

    name: str
    data: Array
    kind: Any
    shape: tuple[int, ...]
    restore: Callable[[Array], Array] | None = None

    @property
    def nbytes(self) -> int:
        """Its size in the file."""
        return self.data.nbytes

    def read(self, dtype: onnx_ir.DataType) -> Array:
        """The values, dequantized, as ``dtype``."""
        from gguf.quants import dequantize

        values = dequantize(self.data, self.kind).reshape(self.shape)
        restored = values if self.restore is None else self.restore(values)
        return np.ascontiguousarray(restored.astype(dtype.numpy(), copy=False))


@dataclass(frozen=True)
class GgufFile:
    """A GGUF file.

    Attributes:
        path: where it lies.
        metadata: its fields; arrays of strings as their length, for a vocabulary is long and not needed here.
        tensors: by their names in the file, in its order.
    """

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]


def open_gguf(path: Path) -> GgufFile:
    """Read the metadata and the places of the tensors.

    Raises:
        ModelError: there is no such file, or it is damaged, truncated or no GGUF file.
        UnsupportedError: the gguf package is not installed, or does not know a quantization type.
    """
    if not path.is_file():
        raise ModelError("there is no such file", where=str(path), fix="check the path")
    with path.open("rb") as file:
        magic = file.read(4)
    if magic != b"GGUF":
        raise ModelError("not a GGUF file (it does not begin with GGUF)", where=str(path), fix="download it again")
    mapped = np.memmap(path, dtype=np.uint8, mode="r")
    try:
        return _Reader(mapped, path).read()
    except (struct.error, ValueError, IndexError, KeyError, OverflowError, MemoryError) as error:
        raise ModelError(
            f"not a whole GGUF file: {error}", where=str(path), fix="download or convert the file again"
        ) from error


class _Reader:
    """A cursor over the header of a file."""

    def __init__(self, mapped: Array, path: Path) -> None:
        self._mapped, self._bytes, self._path, self._at = mapped, mapped.data, path, 4

    def read(self) -> GgufFile:
        version, tensors, fields = self._take("IQQ")
        if version not in (2, 3):
            raise ValueError(f"version {version} is unknown")
        metadata: dict[str, Any] = {}
        for _ in range(fields):
            key = self._string()
            metadata[key] = self._value(*self._take("I"))
        entries = []
        for _ in range(tensors):
            name = self._string()
            (rank,) = self._take("I")
            shape = tuple(reversed(self._take(f"{rank}Q")))
            entries.append((name, shape, *self._take("IQ")))
        alignment = metadata.get("general.alignment", _ALIGNMENT)
        start = -(-self._at // alignment) * alignment
        found = {name: self._tensor(name, shape, kind, start + offset) for name, shape, kind, offset in entries}
        return GgufFile(self._path, metadata, found)

    def _take(self, form: str) -> tuple[Any, ...]:
        values = struct.unpack_from("<" + form, self._bytes, self._at)
        self._at += struct.calcsize("<" + form)
        return values

    def _string(self) -> str:
        (length,) = self._take("Q")
        if self._at + length > len(self._bytes):
            raise ValueError("a string ends past the end of the file")
        text = bytes(self._bytes[self._at : self._at + length]).decode("utf-8", errors="replace")
        self._at += length
        return text

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            return self._take(_SCALARS[kind])[0]
        element, count = self._take("IQ")
        if element == _STRING:
            for _ in range(count):
                (length,) = self._take("Q")
                self._at += length
            return count
        return (
            [self._value(element) for _ in range(count)]
            if element == _ARRAY
            else list(self._take(f"{count}{_SCALARS[element]}"))
        )

    def _tensor(self, name: str, shape: tuple[int, ...], number: int, start: int) -> GgufTensor:
        try:
            from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
        except ImportError as error:
            raise UnsupportedError(
                "reading GGUF files needs gguf", fix="pip install 'burnish[transformers]'"
            ) from error
        try:
            kind = GGMLQuantizationType(number)
            block, size = GGML_QUANT_SIZES[kind]
        except (ValueError, KeyError) as error:
            raise UnsupportedError(
                f"{name!r} has the unknown quantization type {number}", where=str(self._path)
            ) from error
        length = int(np.prod(shape, dtype=np.int64)) // block * size
        if start + length > self._mapped.size:
            raise ValueError(
                f"tensor {name!r} ends {start + length - self._mapped.size} bytes past the end of the file"
            )
        rows = (*shape[:-1], shape[-1] // block * size)
        return GgufTensor(name, np.asarray(self._mapped[start : start + length]).reshape(rows), kind, shape)
