"""Calibration data on disk: arrays, or text that becomes tokens through the tokenizer that came with the model."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...frontends.imported import Imported
from ...ir.errors import CalibrationError, InputError, UnsupportedError
from ..inputs import as_numpy, fill_tokens


def load_arrays(path: Path) -> dict[str, Any]:
    """Arrays by input name out of an ``.npz`` file.

    Raises:
        InputError: it cannot be read.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise InputError(
            f"the inputs cannot be read: {error}", where=str(path), fix="write them with numpy.savez(path, name=array)"
        ) from error


def digest_inputs(given: Iterable[Any] | DataFile) -> str | None:
    """A digest of calibration inputs that are there as a whole; None for an iterator, or what has no fixed content."""
    digest = hashlib.sha256()
    if isinstance(given, DataFile):
        try:
            with given.path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError:
            return None  # reading it for good says what is wrong
        return f"{content} {given.length} {given.most}"
    if not isinstance(given, list | tuple):
        return None
    return digest.hexdigest() if all(_add(digest, item) for item in given) else None


def _add(digest: Any, item: Any) -> bool:
    """Add one input, whatever nests in it; whether its content is all known."""
    if isinstance(item, Mapping):
        digest.update(b"{")
        return all(_add(digest, part) for pair in item.items() for part in pair)
    if isinstance(item, list | tuple):
        digest.update(b"[")
        return all(_add(digest, part) for part in item)
    if isinstance(item, str | bool | int | float) or item is None:
        digest.update(repr(item).encode())
        return True
    if isinstance(item, np.ndarray) or hasattr(item, "detach"):
        array = as_numpy(item)
        if array.dtype.hasobject:
            return False
        digest.update(f"{array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
        return True
    return False


@dataclass(frozen=True)
class DataFile:
    """A file to calibrate on.

    Attributes:
        path: UTF-8 text, or an ``.npz`` file with an array by input name.
        length: tokens a sequence.
        most: sequences at most.
    """

    path: Path
    length: int = 512
    most: int = 32

    def inputs(self, imported: Imported) -> list[dict[str, Any]]:
        """The file as inputs of ``imported``, one sequence each.

        Raises:
            InputError: the file cannot be read.
            CalibrationError: it holds less than two tokens.
            UnsupportedError: the model brings no tokenizer, or takes something else than tokens.
        """
        if self.path.suffix.lower() == ".npz":
            return [load_arrays(self.path)]
        try:
            text = self.path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"the calibration text cannot be read: {error}", where=str(self.path), fix="pass a UTF-8 text file"
            ) from error
        ids = self._tokens(imported, text)
        if len(ids) < 2:
            raise CalibrationError(
                "the calibration text holds less than two tokens", where=str(self.path), fix="pass more text"
            )
        pieces = [ids[at : at + self.length] for at in range(0, len(ids), self.length)][: self.most]
        return [self._feeds(imported, piece) for piece in pieces if len(piece) > 1]

    def _tokens(self, imported: Imported, text: str) -> list[int]:
        content = imported.companions.get("tokenizer.json")
        if content is None:
            raise UnsupportedError(
                "the model brings no tokenizer.json, so text cannot become tokens",
                where=str(self.path),
                fix="pass calibration inputs in Python: burnish.compile(..., calibration=batches)",
            )
        from tokenizers import Tokenizer

        raw = content if isinstance(content, bytes) else Path(content).read_bytes()
        tokenizer = Tokenizer.from_str(raw.decode("utf-8"))
        tokenizer.no_truncation()  # some files cut every text to the length that an encoder was trained on
        tokenizer.no_padding()
        tokens: list[int] = tokenizer.encode(text).ids
        return tokens

    def _feeds(self, imported: Imported, ids: list[int]) -> dict[str, Any]:
        feeds = fill_tokens(imported.signature.inputs, {"input_ids": ids})
        for spec in imported.signature.inputs:
            if spec.name not in feeds:
                raise UnsupportedError(
                    f"text cannot fill the input {spec.name!r}",
                    where=str(self.path),
                    fix="pass calibration inputs in Python: burnish.compile(..., calibration=batches)",
                )
        return feeds
