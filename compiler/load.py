"""Opens a saved model with NumPy and ONNX Runtime alone: neither torch nor transformers nor onnx is imported."""

from __future__ import annotations

import os
from pathlib import Path

from ..ir.errors import ArtifactError
from .artifact import MANIFEST_FILE, REPORT_KEY, check_files, check_runtime, model_path, read_manifest
from .model import CompiledModel, check_streams
from .report import Report


def load(
    path: str | os.PathLike[str], *, threads: int | None = None, streams: int | None = None, check: bool = False
) -> CompiledModel:
    """Open a model that was saved by :meth:`CompiledModel.save`, :func:`burnish.export` or the command line.

    Args:
        path: a folder, or an ``.onnx`` file.
        threads: threads of the session; ONNX Runtime's own choice if not given.
        streams: shares of a batch that run side by side, see :func:`burnish.compile`.
        check: compare the weights with their checksum, which reads them all; sizes are always compared.

    Raises:
        ArtifactError: nothing is there, it is damaged, not from Burnish, or needs a newer ONNX Runtime.
        OptionError: a number of streams that cannot be.
        UnsupportedError: streams of a model without a batch.
    """
    import onnxruntime

    path = Path(path)
    model = model_path(path)
    manifest, header = read_manifest(model)
    check_runtime(manifest, onnxruntime.__version__, str(path))
    check_files(model, manifest, contents=check)
    if streams is not None:
        check_streams(streams, threads, manifest.target)
    if path.is_dir():
        _check_folder(path, model)
    text = header.metadata.get(REPORT_KEY)
    report = Report.from_json(text, str(model)) if text else Report(path.name, manifest.route, manifest.target)
    compiled = CompiledModel(model, manifest, report, threads=threads, streams=streams)
    compiled.open()  # damage shows here, not at the first call
    return compiled


def _check_folder(folder: Path, model: Path) -> None:
    import json

    try:
        size = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))["model"]["size"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"the manifest is damaged ({error})", where=str(folder / MANIFEST_FILE), fix="compile the model again"
        ) from error
    if model.stat().st_size != size:
        raise ArtifactError(
            f"{model.name} has {model.stat().st_size} bytes, {size} were written",
            where=str(model),
            fix="copy or compile the model again",
        )
