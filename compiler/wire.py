"""Metadata of an ONNX file without reading the model: the top level of its protobuf, weights skipped.

Also appends metadata: protobuf merges repeated fields, so a file with one more entry at its end is a valid file.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from ..ir.errors import ArtifactError

# Field numbers of onnx.ModelProto, OperatorSetIdProto and StringStringEntryProto (onnx/onnx.proto).
_IR_VERSION, _PRODUCER, _GRAPH, _OPSET, _METADATA = 1, 2, 7, 8, 14
_KNOWN_FIELDS = {1, 2, 3, 4, 5, 6, 7, 8, 14, 20, 25, 26}
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass
class Header:
    """What the top level of an ONNX file says.

    Attributes:
        ir_version: version of the file format.
        producer: name of the program that wrote it.
        opsets: version by domain (``""`` is ONNX itself).
        metadata: key to text.
        has_graph: whether there is a graph.
    """

    ir_version: int = 0
    producer: str = ""
    opsets: dict[str, int] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    has_graph: bool = False


class _Broken(Exception):
    pass


def read_header(path: Path) -> Header:
    """Read the header of an ONNX file; the graph is skipped, whatever its size.

    Raises:
        ArtifactError: the file cannot be read, is truncated, or is not an ONNX file.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            header = _parse(file, size)
    except OSError as error:
        raise ArtifactError(
            f"the file cannot be read: {error.strerror}", where=str(path), fix="check the path and its permissions"
        ) from error
    except (_Broken, UnicodeDecodeError) as error:
        raise ArtifactError(
            f"this is not a whole ONNX file ({error})", where=str(path), fix="copy or compile it again"
        ) from error
    if not header.has_graph:
        raise ArtifactError("the file holds no ONNX graph", where=str(path), fix="copy or compile it again")
    return header


def append_metadata(path: Path, metadata: Mapping[str, str]) -> None:
    """Add metadata entries to an ONNX file in place; none may be there already (``onnx.checker`` refuses two)."""
    with path.open("ab") as file:
        for key, value in metadata.items():
            entry = _field(1, key.encode()) + _field(2, value.encode())
            file.write(_field(_METADATA, entry))


def _field(number: int, data: bytes) -> bytes:
    return _encode(number << 3 | _BYTES) + _encode(len(data)) + data


def _encode(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _varint(file: IO[bytes]) -> int:
    value = shift = 0
    while True:
        byte = file.read(1)
        if not byte:
            raise _Broken("it ends in the middle of a field")
        value |= (byte[0] & 0x7F) << shift
        if not byte[0] & 0x80:
            return value
        shift += 7
        if shift > 63:
            raise _Broken("a number is malformed")


def _parse(file: IO[bytes], end: int) -> Header:
    header = Header()
    while file.tell() < end:
        tag = _varint(file)
        number, wire = tag >> 3, tag & 7
        if number not in _KNOWN_FIELDS:
            raise _Broken(f"field {number} is not part of the format")
        if wire == _VARINT:
            value = _varint(file)
            if number == _IR_VERSION:
                header.ir_version = value
        elif wire == _BYTES:
            length = _varint(file)
            if file.tell() + length > end:
                raise _Broken("it is truncated")
            if number == _GRAPH:
                header.has_graph = True
                file.seek(length, os.SEEK_CUR)
            elif number in (_OPSET, _METADATA, _PRODUCER):
                _take(header, number, file.read(length))
            else:
                file.seek(length, os.SEEK_CUR)
        elif wire in (_FIXED64, _FIXED32):
            file.seek(8 if wire == _FIXED64 else 4, os.SEEK_CUR)
        else:
            raise _Broken("a field has an unknown type")
    return header


def _take(header: Header, number: int, data: bytes) -> None:
    if number == _PRODUCER:
        header.producer = data.decode()
        return
    first: bytes = b""
    second: bytes = b""
    version = 0
    at = 0
    while at < len(data):
        tag, at = _varint_in(data, at)
        if tag & 7 == _VARINT:
            version, at = _varint_in(data, at)
            continue
        if tag & 7 != _BYTES:
            raise _Broken("a field has an unknown type")
        length, at = _varint_in(data, at)
        if at + length > len(data):
            raise _Broken("it is truncated")
        if tag >> 3 == 1:
            first = data[at : at + length]
        else:
            second = data[at : at + length]
        at += length
    if number == _OPSET:
        header.opsets[first.decode()] = version
    else:
        header.metadata[first.decode()] = second.decode()


def _varint_in(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if not byte & 0x80:
            return value, at
        shift += 7
    raise _Broken("it is truncated")
