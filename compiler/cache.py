"""The compile cache: compiled models by what they were made from, least recently used out first."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import os
import pickle
import secrets
import shutil
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import onnx_ir

from ..ir.errors import ArtifactError, OptionError
from ..ir.graph import Graph
from ..ir.signature import Signature
from ..passes.base import Pass
from ..passes.registry import PASSES
from ..passes.spec import format_pass
from .artifact import MODEL_FILE, Manifest, check_files, read_manifest

VARIABLE = "BURNISH_CACHE"
"""Environment variable with the folder of the cache; ``off`` turns it off where nobody asked for it."""
LIMIT = 10_000_000_000
"""Bytes the cache may hold."""

_SIGNATURE = "signature.pickle"
_USED = "used"
_STALE = 3600.0  # seconds after which an unfinished entry counts as left behind


def default_folder() -> Path:
    """The cache folder of this platform, or what ``BURNISH_CACHE`` names."""
    if chosen := os.environ.get(VARIABLE):
        return Path(chosen)
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "burnish"


def open_cache(choice: bool | str | os.PathLike[str] | None, *, from_disk: bool) -> Cache | None:
    """The cache that a ``cache=`` argument asks for.

    Args:
        choice: a folder; True or False; None means on for models that come from disk.
        from_disk: whether the model does.

    Raises:
        OptionError: it is none of these, or the folder cannot be made.
    """
    if choice is False or (choice is None and (not from_disk or os.environ.get(VARIABLE, "").lower() == "off")):
        return None
    if choice is not None and not isinstance(choice, bool | str | os.PathLike):
        raise OptionError(f"cache={choice!r} is not a folder", where="cache=", fix="pass a path, True or False")
    folder = Path(choice) if isinstance(choice, str | os.PathLike) else default_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if choice is None:
            return None  # a home that cannot be written to is no reason not to compile
        raise OptionError(
            f"the cache folder cannot be made: {error.strerror}",
            where=str(folder),
            fix="choose another, or cache=False",
        ) from error
    return Cache(folder) if os.access(folder, os.W_OK) or choice is not None else None


class Cache:
    """Compiled models in a folder, one folder an entry.

    Args:
        folder: of the cache.
        limit: bytes it may hold; what was used longest ago goes first.
    """

    def __init__(self, folder: Path, limit: int = LIMIT) -> None:
        self.folder, self.limit = folder, limit

    def find(self, key: str) -> tuple[Path, Manifest, Signature, str] | None:
        """The ONNX file, manifest, signature and report of an entry; None if there is none.

        Raises:
            ArtifactError: the entry is damaged; it is gone after that.
        """
        entry = self.folder / key
        if not entry.is_dir():
            return None
        try:
            manifest, header = read_manifest(entry / MODEL_FILE)
            check_files(entry / MODEL_FILE, manifest, contents=True)
            with (entry / _SIGNATURE).open("rb") as file:
                signature: Signature = pickle.load(file)
            report = header.metadata["burnish.report"]
            (entry / _USED).touch()
        except (ArtifactError, OSError, pickle.PickleError, EOFError, AttributeError, ImportError, KeyError) as error:
            shutil.rmtree(entry, ignore_errors=True)
            what = error.what if isinstance(error, ArtifactError) else str(error)
            raise ArtifactError(f"an entry of the compile cache was damaged: {what}", where=str(entry)) from error
        return entry / MODEL_FILE, manifest, signature, report

    def results(self, key: str) -> Path | None:
        """The folder of an entry that holds results instead of a model, made where needed; None if it cannot be."""
        entry = self.folder / key
        try:
            entry.mkdir(exist_ok=True)
            (entry / _USED).touch()
        except OSError:
            return None
        self.trim(keep=key)
        return entry

    def workspace(self) -> Path:
        """A fresh folder on the disk of the cache, to compile into."""
        folder = self.folder / f".{secrets.token_hex(8)}.tmp"
        folder.mkdir()
        return folder

    def store(self, key: str, workspace: Path, signature: Signature) -> Path:
        """Make a workspace an entry; a writer that came first wins.

        Returns:
            The ONNX file of the entry.

        Raises:
            ArtifactError: the signature cannot be kept; the workspace is untouched.
        """
        try:
            kept = pickle.dumps(signature)
            pickle.loads(kept)
        except Exception as error:  # a signature may hold any object of the user's
            raise ArtifactError(f"the signature cannot be kept ({type(error).__name__}: {error})") from error
        (workspace / _SIGNATURE).write_bytes(kept)
        (workspace / _USED).touch()
        entry = self.folder / key
        try:
            workspace.replace(entry)
        except OSError:
            if not (entry / MODEL_FILE).exists():
                raise
            shutil.rmtree(workspace, ignore_errors=True)
        self.trim(keep=key)
        return entry / MODEL_FILE

    def trim(self, keep: str = "") -> None:
        """Remove what was used longest ago until the limit holds, and what unfinished writers left behind."""
        entries: list[tuple[float, int, Path]] = []
        for entry in self.folder.iterdir():
            if not entry.is_dir():
                continue
            try:
                if entry.name.startswith("."):
                    if entry.name.endswith(".tmp") and time.time() - _newest(entry) > _STALE:
                        shutil.rmtree(entry, ignore_errors=True)
                    continue
                used = (entry / _USED).stat().st_mtime
                entries.append((used, sum(item.stat().st_size for item in entry.iterdir()), entry))
            except OSError:
                continue  # another process removes it at this moment
        total = sum(size for _, size, _ in entries)
        for _, size, entry in sorted(entries):
            if total <= self.limit:
                break
            if entry.name != keep:
                shutil.rmtree(entry, ignore_errors=True)
                total -= size


def _newest(folder: Path) -> float:
    return max([folder.stat().st_mtime, *(item.stat().st_mtime for item in folder.iterdir())])


def cacheable(passes: Sequence[Pass]) -> bool:
    """Whether the passes are all Burnish's own: the source of others is not part of the key."""
    known = {entry.name for entry in PASSES.values()}
    return all(type(item).__module__.startswith("burnish.passes") and type(item).__name__ in known for item in passes)


def key_of(model: str, passes: Sequence[Pass], options: Sequence[object]) -> str:
    """The name of an entry.

    Args:
        model: digest of the model.
        passes: that run over it.
        options: whatever else decides over the result.
    """
    parts = [model, *map(format_pass, passes), *map(repr, options), json.dumps(_versions(), sort_keys=True)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


@functools.cache
def _versions() -> dict[str, str]:
    found = {"python": sys.version.split()[0], "source": _source_digest()}
    for package in ("burnish", "torch", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "transformers", "numpy"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _source_digest() -> str:
    """Digest of Burnish's own source, so that a changed checkout does not find what another made."""
    root = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for folder in ("backends", "compiler", "frontends", "ir", "passes"):
        for file in sorted((root / folder).rglob("*.py")):
            digest.update(str(file.relative_to(root)).encode() + file.read_bytes())
    return digest.hexdigest()


def digest_path(path: Path) -> str:
    """Digest of a model on disk: names, sizes and times of its files, and the contents of the small ones."""
    if path.is_file():
        files: Iterable[Path] = [path, *sorted(path.parent.glob(path.name + "*")), *_external(path)]
    else:
        files = sorted(item for item in path.iterdir() if item.is_file())
    digest = hashlib.sha256(str(path.resolve()).encode())
    for file in dict.fromkeys(files):
        if not file.exists():
            continue
        state = file.stat()
        digest.update(f"\n{file.name} {state.st_size} {state.st_mtime_ns}".encode())
        if state.st_size < 10_000_000:
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _external(path: Path) -> list[Path]:
    """Data files that an ONNX file names."""
    if path.suffix.lower() != ".onnx":
        return []
    import onnx
    from onnx.external_data_helper import _get_all_tensors, uses_external_data

    try:
        proto = onnx.load(path, load_external_data=False)
    except Exception:  # the importer says what is wrong with the file
        return []
    names = {
        entry.value
        for tensor in _get_all_tensors(proto)
        if uses_external_data(tensor)
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return [path.parent / name for name in sorted(names)]


def digest_graph(graph: Graph, signature: Signature) -> str:
    """Digest of an imported graph: its nodes, its weights, and how it is called."""
    digest = hashlib.sha256(repr((list(signature.inputs), list(signature.outputs))).encode())
    for scope in graph.graphs():
        for value in scope.initializers.values():
            tensor = value.const_value
            if tensor is not None:
                digest.update(f"{value.name} {tensor.dtype} {list(tensor.shape)}".encode())
                digest.update(_bytes(tensor))
    saved = {}
    for scope in graph.graphs():
        for value in scope.initializers.values():
            saved[value], value.const_value = value.const_value, None
    try:
        for scope in graph.graphs():
            digest.update(_text(scope).encode())
    finally:
        for value, tensor in saved.items():
            value.const_value = tensor
    return digest.hexdigest()


def _bytes(tensor: onnx_ir.TensorProtocol) -> Any:
    try:
        return tensor.tobytes()
    except (TypeError, NotImplementedError):  # strings
        return repr(tensor.numpy().tolist()).encode()


def _text(scope: onnx_ir.Graph | onnx_ir.Function | onnx_ir.GraphView) -> str:
    lines = [f"{value.name}: {value.type} {value.shape}" for value in (*scope.inputs, *scope.outputs)]
    for node in scope:
        inputs = [value.name if value is not None else "" for value in node.inputs]
        outputs = [value.name for value in node.outputs]
        attributes = {
            name: _bytes(attr.value) if attr.type == onnx_ir.AttributeType.TENSOR else str(attr.value)
            for name, attr in sorted(node.attributes.items())
            if attr.type not in (onnx_ir.AttributeType.GRAPH, onnx_ir.AttributeType.GRAPHS)
        }
        lines.append(f"{outputs} = {node.domain}.{node.op_type}{inputs} {attributes}")
    return "\n".join(lines)
