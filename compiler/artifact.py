"""The manifest of a saved model: how it was made, what it takes and gives, and what it needs to run.

It lives in the metadata of the ONNX file, and in a folder also as ``burnish.json``. Nothing here imports torch or onnx.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..ir.errors import ArtifactError
from ..ir.signature import DecoderSpec, NamedSignature, Signature, TensorSpec
from .wire import Header, append_metadata, read_header

MANIFEST_KEY = "burnish.manifest"
REPORT_KEY = "burnish.report"
MANIFEST_FILE = "burnish.json"
MODEL_FILE = "model.onnx"
GENERATION_FILE = "generate.onnx"
"""In a folder: the decoder with its cache in place, on the weights of the model file."""
GENAI_FILE = "genai_config.json"
"""In a folder: what ``onnxruntime-genai`` wants to know of the generation graph."""
PREFILL_FILE = "prefill.onnx"
"""In a folder: the same for prompts, with weights of its own."""
FORMAT = 1


@dataclass(frozen=True)
class FileRecord:
    """Size in bytes and SHA-256 of one file."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a saved model says of itself.

    Attributes:
        passes: the recipe: pass specifications in the order they ran.
        target: ``onnxruntime`` or ``onnx``.
        route: the way the model came in.
        versions: of the packages that made it.
        opsets: version by domain.
        runtime: the oldest ONNX Runtime that runs it, such as ``1.23``.
        inputs: what the graph takes.
        outputs: what it gives.
        decoder: set for a causal language model with a KV cache.
        data: the external data file, if there is one.
        weights: number of weights.
        weight_bytes: bytes of weight tensors, with scales, zero points and padding.
        companions: names of the files beside the model that belong to it.
    """

    passes: tuple[str, ...]
    target: str
    route: str
    versions: Mapping[str, str]
    opsets: Mapping[str, int]
    runtime: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    decoder: DecoderSpec | None = None
    data: FileRecord | None = None
    weights: int = 0
    weight_bytes: int = 0
    companions: tuple[str, ...] = ()
    format: int = field(default=FORMAT)

    @property
    def bits_per_weight(self) -> float:
        """Bytes of weight tensors × 8 / weights."""
        return 8 * self.weight_bytes / self.weights if self.weights else 0.0

    def signature(self) -> Signature:
        """A signature by input names."""
        return NamedSignature(self.inputs, self.outputs)

    def to_json(self) -> str:
        """The manifest as one line of JSON."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str, where: str) -> Manifest:
        """Read a manifest back.

        Raises:
            ArtifactError: it is damaged, or of a format this version does not know.
        """
        try:
            raw = json.loads(text)
            if raw["format"] > FORMAT:
                raise ArtifactError(
                    f"the model has artifact format {raw['format']}, this Burnish reads up to {FORMAT}",
                    where=where,
                    fix="update burnish",
                )
            decoder = raw["decoder"]
            return cls(
                **{
                    **raw,
                    "passes": tuple(raw["passes"]),
                    "inputs": tuple(_spec(item) for item in raw["inputs"]),
                    "outputs": tuple(_spec(item) for item in raw["outputs"]),
                    "decoder": decoder and _decoder(decoder),
                    "data": raw["data"] and FileRecord(**raw["data"]),
                    "companions": tuple(raw["companions"]),
                }
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ArtifactError(
                f"the manifest is damaged ({error})", where=where, fix="compile the model again"
            ) from error


def _spec(raw: Mapping[str, Any]) -> TensorSpec:
    shape = raw["shape"]
    return TensorSpec(raw["name"], raw["dtype"], None if shape is None else tuple(shape))


def _decoder(raw: Mapping[str, Any]) -> DecoderSpec:
    return DecoderSpec(**{**raw, "end_tokens": tuple(raw["end_tokens"])})


def data_file(model: Path) -> Path:
    """Where the external data of an ONNX file lies."""
    return model.with_name(model.name + ".data")


def record(path: Path) -> FileRecord:
    """Size and checksum of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return FileRecord(path.stat().st_size, digest)


def stamp(model: Path, manifest: Manifest, report: str) -> None:
    """Write manifest and report into the metadata of an ONNX file, in place."""
    append_metadata(model, {MANIFEST_KEY: manifest.to_json(), REPORT_KEY: report})


def read_manifest(model: Path) -> tuple[Manifest, Header]:
    """The manifest of an ONNX file that Burnish wrote.

    Raises:
        ArtifactError: not an ONNX file, not from Burnish, or damaged.
    """
    header = read_header(model)
    text = header.metadata.get(MANIFEST_KEY)
    if text is None:
        made_by = f" (made by {header.producer})" if header.producer else ""
        raise ArtifactError(
            f"this ONNX file was not written by Burnish{made_by}",
            where=str(model),
            fix="compile it first: burnish.compile(path)",
        )
    return Manifest.from_json(text, str(model)), header


def model_path(path: Path) -> Path:
    """The ONNX file of a saved model, given as a folder or as the file itself.

    Raises:
        ArtifactError: there is nothing, or nothing of Burnish's.
    """
    if not path.exists():
        raise ArtifactError("there is no such file or folder", where=str(path), fix="check the path")
    if not path.is_dir():
        return path
    if not (path / MANIFEST_FILE).exists():
        raise ArtifactError(
            f"the folder holds no compiled model ({MANIFEST_FILE} is missing)",
            where=str(path),
            fix="compile it first: burnish.compile(path)",
        )
    model = path / MODEL_FILE
    if not model.exists():
        raise ArtifactError(f"{MODEL_FILE} is missing", where=str(path), fix="copy or compile the model again")
    return model


def check_files(model: Path, manifest: Manifest, *, contents: bool = False) -> None:
    """Compare what lies on disk with the manifest: sizes, and checksums if ``contents`` is set.

    Raises:
        ArtifactError: a file is missing, too short or too long, or differs.
    """
    if manifest.data is None:
        return
    data = data_file(model)
    fix = "copy or compile the model again; the .onnx file and its .data file belong together"
    if not data.exists():
        raise ArtifactError(f"the weights file {data.name} is missing", where=str(data), fix=fix)
    size = data.stat().st_size
    if size != manifest.data.size:
        raise ArtifactError(
            f"the weights file has {size} bytes, {manifest.data.size} were written", where=str(data), fix=fix
        )
    if contents and record(data) != manifest.data:
        raise ArtifactError("the weights file was changed after it was written", where=str(data), fix=fix)


def check_runtime(manifest: Manifest, installed: str, where: str) -> None:
    """Refuse a model that the installed ONNX Runtime is too old for.

    Raises:
        ArtifactError: it is too old.
    """
    if _version(installed) < _version(manifest.runtime):
        raise ArtifactError(
            f"the model needs ONNX Runtime {manifest.runtime} or newer, {installed} is installed",
            where=where,
            fix=f'pip install "onnxruntime>={manifest.runtime}"',
        )


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:2])
