"""Manifests: written, read back, and refused when they cannot be trusted."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import onnx
import onnx_ir
import pytest
from burnish.compiler import artifact
from burnish.compiler.artifact import FileRecord, Manifest
from burnish.compiler.requirements import oldest_runtime
from burnish.ir.errors import ArtifactError
from burnish.ir.signature import DecoderSpec, TensorSpec

MANIFEST = Manifest(
    passes=("canonicalize", "quantize(bits=4)"),
    target="onnxruntime",
    route="onnx",
    versions={"burnish": "0.1.0"},
    opsets={"": 23},
    runtime="1.23",
    inputs=(TensorSpec("x", "FLOAT", ("batch", 4)), TensorSpec("y", "INT64", None)),
    outputs=(TensorSpec("z", "FLOAT", ("batch", "past + n")),),
    decoder=DecoderSpec(2, 2, 8, 100, 64, (1, 2)),
    data=FileRecord(3, "ab"),
    weights=100,
    weight_bytes=50,
)


def test_round_trip() -> None:
    assert Manifest.from_json(MANIFEST.to_json(), "here") == MANIFEST
    bare = dataclasses.replace(MANIFEST, decoder=None, data=None)
    assert Manifest.from_json(bare.to_json(), "here") == bare
    assert MANIFEST.bits_per_weight == 4.0
    assert dataclasses.replace(bare, weights=0).bits_per_weight == 0.0


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"format": 1}', "null", '{"format": "x"}'])
def test_damaged(text: str) -> None:
    with pytest.raises(ArtifactError, match="damaged"):
        Manifest.from_json(text, "here")


def test_newer_format() -> None:
    raw = json.loads(MANIFEST.to_json()) | {"format": 2}
    with pytest.raises(ArtifactError, match="format 2"):
        Manifest.from_json(json.dumps(raw), "here")


@pytest.mark.parametrize(("installed", "fits"), [("1.22.1", False), ("1.23.0", True), ("1.32.0", True), ("2.0", True)])
def test_runtime(installed: str, fits: bool) -> None:
    if fits:
        artifact.check_runtime(MANIFEST, installed, "model")
        return
    with pytest.raises(ArtifactError, match=r"needs ONNX Runtime 1\.23 or newer, 1\.22\.1 is installed") as error:
        artifact.check_runtime(MANIFEST, installed, "model")
    assert error.value.fix == 'pip install "onnxruntime>=1.23"'


def test_data_file_is_compared(tmp_path: Path) -> None:
    model, data = tmp_path / "m.onnx", tmp_path / "m.onnx.data"
    with pytest.raises(ArtifactError, match=r"m\.onnx\.data is missing"):
        artifact.check_files(model, MANIFEST)
    data.write_bytes(b"abcd")
    with pytest.raises(ArtifactError, match="has 4 bytes, 3 were written"):
        artifact.check_files(model, MANIFEST)
    data.write_bytes(b"abc")
    artifact.check_files(model, MANIFEST)
    with pytest.raises(ArtifactError, match="changed after"):
        artifact.check_files(model, MANIFEST, contents=True)
    right = dataclasses.replace(MANIFEST, data=artifact.record(data))
    artifact.check_files(model, right, contents=True)


def test_foreign_model_is_told_apart(network: Callable) -> None:
    with pytest.raises(ArtifactError, match="not written by Burnish"):
        artifact.read_manifest(network().path)


@pytest.mark.parametrize(
    ("text", "runtime"),
    [
        ('<ir_version: 8, opset_import: ["": 17]> g (float[N] x) => (float[N] y) { y = Relu(x) }', "1.12"),
        ('<ir_version: 10, opset_import: ["": 23]> g (float[N] x) => (float[N] y) { y = Relu(x) }', "1.23"),
        ('<ir_version: 8, opset_import: ["": 9]> g (float[N] x) => (float[N] y) { y = Relu(x) }', "1.10"),
        ('<ir_version: 13, opset_import: ["": 27]> g (float[N] x) => (float[N] y) { y = Relu(x) }', "1.32"),
        (
            '<ir_version: 8, opset_import: ["": 17, "com.microsoft": 1]> g (float[N,64] x, uint8[8,1,64] q, '
            "float[8] s) => (float[N,8] y) { y = com.microsoft.MatMulNBits <K=64,N=8,bits=8,block_size=64> (x, q, s) }",
            "1.22",
        ),
        (
            '<ir_version: 8, opset_import: ["": 17, "com.microsoft": 1]> g (float[N,64] x, uint8[8,1,32] q, '
            "float[8] s) => (float[N,8] y) { y = com.microsoft.MatMulNBits <K=64,N=8,bits=4,block_size=64> (x, q, s) }",
            "1.17",
        ),
    ],
)
def test_oldest_runtime(text: str, runtime: str) -> None:
    graph = onnx_ir.serde.deserialize_model(onnx.parser.parse_model(text))
    assert oldest_runtime(graph, "1.32.0") == runtime
