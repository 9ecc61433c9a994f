"""Registers and shared memory that a block needs, from the shape of the tile that one program works on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir

from .block_types import BlockType
from .structure import Info

REGISTERS = 255
"""Registers of a thread, of 32 bits."""
SHARED = 227 << 10
"""Bytes of shared memory that one program can have on compute capability 9.0."""
POINTERS = 64
"""Tensors that a kernel takes."""
LONGEST = 16
"""Elements of a row that a thread holds; longer rows are gone through in pieces, once for each pass."""

_BASE = 32
_THREADS = (128, 1024)


@dataclass(frozen=True)
class Resources:
    """What one program of a block needs.

    Attributes:
        tile: elements (or rows and columns) that it works on.
        registers: of a thread.
        shared: bytes of shared memory.
        pointers: tensors read and written.
        passes: how often the inputs are read, because a row is too long to be held.
    """

    tile: tuple[int, ...]
    registers: int
    shared: int
    pointers: int
    passes: int = 1

    @property
    def objection(self) -> str | None:
        """Why it does not fit on a multiprocessor; None if it does."""
        if self.registers > REGISTERS:
            return f"{self.registers} registers a thread"
        if self.shared > SHARED:
            return f"{self.shared} bytes of shared memory"
        if self.pointers > POINTERS:
            return f"{self.pointers} tensors in one kernel"
        return None


def live_values(block: Sequence[Info], outputs: Sequence[onnx_ir.Value]) -> int:
    """The most values of a block, computed in its order, that are needed at the same time."""
    last: dict[onnx_ir.Value, int] = {}
    for step, info in enumerate(block):
        for value in info.sources:
            last[value] = step
    for value in outputs:
        last.setdefault(value, -1)  # stored as soon as it is there
    alive: set[onnx_ir.Value] = set()
    most = 1
    for step, info in enumerate(block):
        alive.update(value for value in info.node.outputs if last.get(value, -1) > step)
        most = max(most, len(alive) + 1)
        alive = {value for value in alive if last[value] > step}
    return most


def estimate(block: Sequence[Info], inputs: int, outputs: Sequence[onnx_ir.Value]) -> Resources:
    """The resources of the largest tile that fits, or of the smallest if none does.

    Args:
        block: nodes in topological order.
        inputs: number of tensors read.
        outputs: values written.
    """
    live = live_values(block, outputs)
    pointers = inputs + len(outputs)
    kinds = {info.type for info in block}
    if BlockType.CONTRACTION in kinds:
        tried = [
            # The accumulators are one of the live values; three stages of both operands wait in shared memory.
            Resources((m, n), _BASE + live * m * n // _THREADS[0], 3 * 4 * 32 * (m + n), pointers)
            for m, n in ((128, 64), (64, 64), (32, 32), (16, 16))
        ]
    elif BlockType.REDUCTION in kinds:
        row = max(info.row for info in block)
        held = -(-row // _THREADS[1])
        passes = 1 if held <= LONGEST else 1 + sum(info.type is BlockType.REDUCTION for info in block)
        per = held if passes == 1 else LONGEST // 4
        threads = max(32, min(_THREADS[1], row))
        tried = [Resources((row,), _BASE + live * max(1, per), 4 * threads // 32, pointers, passes)]
    else:
        tried = [Resources((tile,), _BASE + live * tile // _THREADS[0], 0, pointers) for tile in (1024, 512, 256, 128)]
    return next((found for found in tried if found.objection is None), tried[-1])
