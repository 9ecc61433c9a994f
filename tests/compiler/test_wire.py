"""Headers of ONNX files, read without the model."""

from collections.abc import Callable
from pathlib import Path

import onnx
import onnxruntime
import pytest
from burnish.compiler.wire import append_metadata, read_header
from burnish.ir.errors import ArtifactError


def test_header_says_what_onnx_says(network: Callable) -> None:
    path = network().path
    proto = onnx.load(path)
    header = read_header(path)
    assert header.ir_version == proto.ir_version
    assert header.opsets == {item.domain: item.version for item in proto.opset_import}
    assert header.metadata == {}
    assert header.has_graph


def test_appended_metadata_is_read_by_everyone(network: Callable) -> None:
    path = network().path
    append_metadata(path, {"key": "value", "other": "ä" * 300})
    assert read_header(path).metadata == {"key": "value", "other": "ä" * 300}
    onnx.checker.check_model(str(path))
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert session.get_modelmeta().custom_metadata_map == {"key": "value", "other": "ä" * 300}


def test_every_truncation_is_noticed(network: Callable, tmp_path: Path) -> None:
    whole = network().path.read_bytes()
    cut = tmp_path / "cut.onnx"
    for size in [0, 1, 2, 10, len(whole) // 2, len(whole) - 1]:
        cut.write_bytes(whole[:size])
        with pytest.raises(ArtifactError):
            read_header(cut)


@pytest.mark.parametrize("content", [b"hello world\n", b"\x00" * 64, b"\xff" * 64, b"GGUF\x03\x00\x00\x00", b"{}"])
def test_foreign_files(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "foreign.onnx"
    path.write_bytes(content)
    with pytest.raises(ArtifactError):
        read_header(path)
