"""Puts a compiled model where the user wants it, whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ..ir.errors import ArtifactError, OutputError
from .artifact import MANIFEST_FILE, MODEL_FILE, Manifest, check_files, data_file, record

if TYPE_CHECKING:
    import onnx


@contextlib.contextmanager
def writing(target: Path) -> Iterator[None]:
    """Turn errors of the file system into :class:`OutputError`.

    Raises:
        OutputError: the disk is full, the folder is missing, or it cannot be written to.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        fix = "free some space, or choose another disk" if _is_full(error) else "choose a place you can write to"
        raise OutputError(f"the model cannot be written: {reason}", where=str(target), fix=fix) from error


def _is_full(error: OSError) -> bool:
    import errno

    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def is_file_target(path: Path) -> bool:
    """Whether a path asks for a single ONNX file (``.onnx``) and not for a folder."""
    return path.suffix.lower() == ".onnx"


def check_target(path: Path, overwrite: bool) -> None:
    """Refuse a place that is taken or cannot be written to, before any work is done.

    Raises:
        OutputError: it exists and ``overwrite`` is not set, is something else than a compiled model, or the folder that
            is to hold it does not exist or cannot be written to.
    """
    parent = path.absolute().parent
    if not parent.is_dir():
        raise OutputError("the folder does not exist", where=str(parent), fix="create it first")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError("the folder cannot be written to", where=str(parent), fix="choose another place")
    if is_file_target(path):
        if path.is_dir():
            raise OutputError("there is a folder of this name", where=str(path), fix="choose another name")
        taken = [item for item in (path, data_file(path)) if item.exists()]
        if taken and not overwrite:
            raise OutputError(
                f"{taken[0].name} exists",
                where=str(taken[0]),
                fix="choose another name, or overwrite it (overwrite=True, --overwrite)",
            )
        return
    if not path.exists():
        return
    if not path.is_dir():
        raise OutputError(
            "there is a file of this name", where=str(path), fix="choose another name, or end it in .onnx"
        )
    if not any(path.iterdir()):
        return
    if not overwrite:
        raise OutputError(
            "the folder exists",
            where=str(path),
            fix="choose another name, or overwrite it (overwrite=True, --overwrite)",
        )
    if not (path / MANIFEST_FILE).exists():
        raise OutputError(
            "the folder is not a compiled model, so it is not overwritten", where=str(path), fix="choose another name"
        )


def publish(source: Path, manifest: Manifest, target: Path, *, overwrite: bool = False, move: bool = False) -> None:
    """Bring the compiled model ``source`` (its ONNX file; companions lie beside it) to ``target``.

    Args:
        source: ONNX file with manifest.
        manifest: what that file says of itself.
        target: a name that ends in ``.onnx``, or a folder to make.
        overwrite: replace a model that is there.
        move: the source is not needed any more.

    Raises:
        OutputError: see :func:`check_target`; or the disk is full.
        ArtifactError: the compiled files are gone.
    """
    check_target(target, overwrite)
    if not source.exists():
        raise ArtifactError("the compiled files are gone", where=str(source), fix="compile the model again")
    check_files(source, manifest)
    if is_file_target(target):
        _publish_file(source, manifest, target, move)
    else:
        _publish_folder(source, manifest, target, move)


def _bring(source: Path, target: Path, move: bool) -> None:
    if move:
        try:
            source.replace(target)
            return
        except OSError:
            pass  # another file system
    shutil.copyfile(source, target)


def _temporary(target: Path) -> Path:
    return target.absolute().parent / f".{target.name}.{secrets.token_hex(4)}.tmp"


def _publish_file(source: Path, manifest: Manifest, target: Path, move: bool) -> None:
    model, data = _temporary(target), None
    try:
        with writing(target):
            if manifest.data is not None:
                data = _temporary(data_file(target))
                _bring(data_file(source), data, move)
            if manifest.data is None or source.name == target.name:
                _bring(source, model, move)
            else:
                relocate(source, model, data_file(target).name)
            # The data first: a reader never sees a model without it.
            if data is not None:
                data.replace(data_file(target))
            else:
                data_file(target).unlink(missing_ok=True)
            model.replace(target)
    finally:
        for item in filter(None, (model, data)):
            item.unlink(missing_ok=True)


def relocate(source: Path, target: Path, name: str) -> None:
    """Copy an ONNX file whose data is to have another name."""
    import onnx

    proto = onnx.load(source, load_external_data=False)
    for tensor in _tensors(proto):
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = name
    target.write_bytes(proto.SerializeToString())


def _tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    from onnx.external_data_helper import _get_all_tensors

    yield from _get_all_tensors(proto)


def _publish_folder(source: Path, manifest: Manifest, target: Path, move: bool) -> None:
    folder = _temporary(target)
    try:
        with writing(target):
            folder.mkdir()
            model = folder / MODEL_FILE
            if manifest.data is not None:
                _bring(data_file(source), data_file(model), move)
            if manifest.data is None or source.name == MODEL_FILE:
                _bring(source, model, move)
            else:
                relocate(source, model, data_file(model).name)
            for name in manifest.companions:
                if (source.parent / name).exists():
                    _bring(source.parent / name, folder / name, move)
            write_manifest(folder, manifest)
            _swap(folder, target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write ``burnish.json``: the manifest, and size and checksum of the ONNX file."""
    entry = record(folder / MODEL_FILE)
    content = json.loads(manifest.to_json()) | {"model": {"size": entry.size, "sha256": entry.sha256}}
    (folder / MANIFEST_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _swap(folder: Path, target: Path) -> None:
    if not target.exists():
        folder.replace(target)
        return
    old = _temporary(target)
    target.replace(old)
    try:
        folder.replace(target)
    except OSError:
        old.replace(target)
        raise
    shutil.rmtree(old, ignore_errors=True)
