"""Arrays of batch after batch, on disk."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


class Batches:
    """Arrays by name, batch after batch, on disk.

    Args:
        folder: to keep them in; made here.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder, self.count = folder, 0

    def __len__(self) -> int:
        return self.count

    def add(self, batch: Mapping[str, Any]) -> None:
        """Append a batch."""
        with (self.folder / f"{self.count}.pickle").open("wb") as file:
            pickle.dump(dict(batch), file, protocol=5)
        self.count += 1

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for number in range(self.count):
            with (self.folder / f"{number}.pickle").open("rb") as file:
                yield pickle.load(file)

    def close(self) -> None:
        """Remove them."""
        shutil.rmtree(self.folder, ignore_errors=True)
