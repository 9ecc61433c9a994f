"""Launching generated kernels: block sizes, grids, and the choice between few candidates by measurement."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
import triton.language as tl

from ...ir.errors import InputError

BUDGET = 6
"""Candidates that are timed for a kernel and a size, at most."""
FAR = 2**31
"""Bytes of a tensor from which on places in it are counted in 64 bits."""
_PLACES = 1024
_TILE = 4096
_LOOP = 1024
_WARPS_OF = 512
"""Elements of a tile for which a program gets one more warp."""


@dataclass(frozen=True)
class Blocks:
    """Block sizes of a launch.

    Attributes:
        rows: elements, or rows, of a program.
        columns: places of a row that a program takes at a time; 0 where there are no rows.
        warps: of a program.
    """

    rows: int
    columns: int
    warps: int


def _power(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()


def blocks_for(form: str, rows: int, columns: int, outer: bool) -> Blocks:
    """Block sizes by rule of thumb, where nothing was measured."""
    return candidates(form, rows, columns, outer)[0]


def candidates(form: str, rows: int, columns: int, outer: bool) -> list[Blocks]:
    """Block sizes worth trying, the likeliest first."""
    if form == "places":
        sizes = [min(size, max(16, _power(rows))) for size in (_PLACES, 512, 2048)]
        return list(dict.fromkeys(Blocks(size, 0, max(1, min(8, size // 256))) for size in sizes))
    found = []
    if form == "rows":
        width = _power(max(columns, 1))
        if outer:
            heights = [max(1, min(64, _TILE // width)), max(1, min(32, _TILE // width))]
        else:
            heights = [max(1, min(_power(rows), 1024 // width)), 1, max(1, min(_power(rows), 2048 // width))]
        found = [(height, width) for height in heights]
    elif outer:
        found = [(64, 32), (128, 16), (32, 64)]
    else:
        width = min(_power(max(columns, 1)), 2048)
        found = [(1, width), (1, min(width, _LOOP)), (2, min(width, _LOOP))]
    return list(dict.fromkeys(Blocks(r, c, max(1, min(16, r * c // _WARPS_OF))) for r, c in found))


def is_interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


class Launcher:
    """A kernel that chooses its grid.

    Attributes:
        function: of Triton.
        form: ``places``, ``rows`` or ``loop``.
        types: Triton's types of its tensors, in order.
        outer: whether rows lie side by side in memory.
        columns: length of a row where it is always the same.
    """

    def __init__(self, function: Any, form: str, types: str, outer: bool, columns: int | None) -> None:
        self.function, self.form, self.types, self.outer = function, form, tuple(types.split()), outer
        self.columns = columns
        self.name: str = function.__name__
        self.__doc__ = function.__doc__
        self._chosen: dict[tuple[int, int], Blocks] = {}
        self._key = ""

    def __call__(self, *arguments: Any, rows: int, columns: int | None = None) -> None:
        """Run the kernel.

        Args:
            arguments: tensors, then sizes.
            rows: number of elements or of rows; with none nothing is launched.
            columns: length of a row.

        Raises:
            InputError: a tensor is not on the device of the others.
        """
        if rows == 0:
            return
        tensors = [a for a in arguments if isinstance(a, torch.Tensor)]
        device = tensors[-1].device
        index = tl.int32
        for tensor in tensors:
            if tensor.device != device:
                raise InputError(
                    f"a tensor is on {tensor.device}, another on {device}",
                    where=self.name,
                    fix="move both to one device",
                )
            if tensor.numel() * tensor.element_size() >= FAR:
                index = tl.int64
        given = [a.contiguous() if isinstance(a, torch.Tensor) else a for a in arguments]
        if columns is not None:
            given += [rows, columns]
        else:
            given.append(rows)
        chosen = self._blocks(given, rows, columns or 0, index, device)
        self._launch(chosen, given, rows, columns, index)

    def _launch(self, chosen: Blocks, given: Sequence[Any], rows: int, columns: int | None, index: Any) -> None:
        sizes = {"ROWS": chosen.rows, "INDEX": index}
        if columns is not None:
            sizes["COLUMNS"] = chosen.columns
        self.function[(-(-rows // chosen.rows),)](*given, **sizes, num_warps=chosen.warps)

    def _blocks(self, given: Sequence[Any], rows: int, columns: int, index: Any, device: torch.device) -> Blocks:
        key = (_power(rows), columns)
        if key in self._chosen:
            return self._chosen[key]
        options = candidates(self.form, rows, columns, self.outer)
        best = options[0]
        if device.type == "cuda" and tuning() and len(options) > 1 and not torch.cuda.is_current_stream_capturing():
            best = self._tuned(options, given, rows, columns, index, device)
        self._chosen[key] = best
        return best

    def _tuned(
        self, options: Sequence[Blocks], given: Sequence[Any], rows: int, columns: int, index: Any, device: torch.device
    ) -> Blocks:
        if not self._key:
            source = f"{self.function.src}{triton.__version__}{torch.cuda.get_device_name(device)}"
            self._key = hashlib.sha256(source.encode()).hexdigest()[:16]
        entry = f"{self._key}/{_power(rows)}/{columns}"
        known = DATABASE.get(entry)
        if known is not None:
            return Blocks(*known)

        def run(option: Blocks) -> Callable[[], None]:
            return lambda: self._launch(option, given, rows, columns or None, index)

        times = [float(triton.testing.do_bench(run(o), warmup=3, rep=10)) for o in options[:BUDGET]]
        best = options[times.index(min(times))]
        DATABASE.put(entry, [best.rows, best.columns, best.warps])
        return best


class Database:
    """Block sizes that were measured before, in a file.

    Args:
        path: of the file; nothing is kept between processes where it is None or cannot be written to.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._found: dict[str, list[int]] | None = None

    def get(self, key: str) -> list[int] | None:
        """What was kept under a key."""
        return self._read().get(key)

    def put(self, key: str, value: list[int]) -> None:
        """Keep something."""
        found = self._read()
        found[key] = value
        if self.path is None:
            return
        temporary = self.path.with_name(f".{self.path.name}.{secrets.token_hex(4)}")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(found, indent=0, sort_keys=True), encoding="utf-8")
            temporary.replace(self.path)
        except OSError:
            temporary.unlink(missing_ok=True)

    def _read(self) -> dict[str, list[int]]:
        if self._found is None:
            self._found = {}
            try:
                if self.path is not None and self.path.exists():
                    self._found = json.loads(self.path.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                self._found = {}  # a damaged file costs measuring again, no more
        return self._found


def cache_folder() -> Path:
    """Where generated files and measured block sizes are kept: beside the compile cache."""
    chosen = os.environ.get("BURNISH_CACHE")
    if chosen and chosen.lower() != "off":
        return Path(chosen) / "triton"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "burnish" / "triton"


def tuning() -> bool:
    """Whether candidates are timed; ``BURNISH_TUNE=0`` turns it off."""
    return os.environ.get("BURNISH_TUNE", "1") != "0"


DATABASE = Database(cache_folder() / "blocks.json")


def kernel(form: str, types: str, *, outer: bool = False, columns: int | None = None) -> Callable[[Any], Launcher]:
    """Turn a function of Triton into a :class:`Launcher`; see there for the arguments."""
    return lambda function: Launcher(function, form, types, outer, columns)
