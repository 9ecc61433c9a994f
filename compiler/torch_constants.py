"""Arguments of a captured graph that were compiled into it, and whether they still are what they were."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

_SAMPLE = 8
"""Numbers of each constant that a fingerprint looks at."""
_TIMES = 2
"""Changes after which an argument is an input like any other: whatever changes again and again is no constant."""


class Constants:
    """Parameters and buffers of one graph.

    Args:
        every: calls between two looks at the numbers; 0 for never.
    """

    def __init__(self, every: int) -> None:
        self._every = every
        self._positions: tuple[int, ...] = ()
        self._counted: tuple[int, ...] = ()
        self._state: tuple[list[int], list[int]] = [], []
        self._sample: list[Any] = []
        self._changes: dict[int, int] = {}
        self.varying: set[int] = set()
        """Positions of arguments that are not compiled in any more."""

    def remember(self, positions: Sequence[int], args: Sequence[Any]) -> None:
        """Take note of the constants that were just compiled in."""
        self._positions = tuple(positions)
        # Tensors made in inference mode have no version: torch refuses writes to them outside of it.
        self._counted = tuple(i for i in self._positions if not args[i].is_inference())
        self._state = self._now(args)
        self._sample = [_fingerprint(args[i]) for i in self._positions] if self._every else []

    def changed(self, args: Sequence[Any], call: int) -> str | None:
        """Why the constants are not what they were, or None.

        Args:
            args: of the graph.
            call: its number, which says whether it is time to look at the numbers.
        """
        try:
            same = self._now(args) == self._state
        except RuntimeError:  # another tensor, made in inference mode
            same = False
        if not same:
            self._count(self._compared(args))
            return "a parameter or buffer was changed"
        if self._every and call % self._every == 0:
            sample = [_fingerprint(args[i]) for i in self._positions]
            if sample != self._sample:
                self._count(now == then for now, then in zip(sample, self._sample, strict=True))
                return "a parameter or buffer was written to through .data"
        return None

    def _now(self, args: Sequence[Any]) -> tuple[list[int], list[int]]:
        """Addresses and versions, in as few steps of Python as can be: this runs at each call."""
        return [args[i].data_ptr() for i in self._positions], [args[i]._version for i in self._counted]

    def _compared(self, args: Sequence[Any]) -> Iterator[bool]:
        """For each constant whether it is the same."""
        places, versions = self._state
        before = dict(zip(self._counted, versions, strict=True))
        for position, place in zip(self._positions, places, strict=True):
            tensor = args[position]
            version = None if tensor.is_inference() else tensor._version
            yield tensor.data_ptr() == place and version == before.get(position)

    def _count(self, same: Iterable[bool]) -> None:
        for position, equal in zip(self._positions, same, strict=True):
            if not equal:
                self._changes[position] = self._changes.get(position, 0) + 1
                if self._changes[position] >= _TIMES:
                    self.varying.add(position)


def _fingerprint(tensor: torch.Tensor) -> list[str]:
    tensor = tensor.detach()
    if not tensor.numel():
        return []
    places = np.linspace(0, tensor.numel() - 1, _SAMPLE).astype(int).tolist()
    flat = tensor.view(-1) if tensor.is_contiguous() else tensor.flatten()
    return [str(number) for number in flat[places].tolist()]  # NaN is not equal to itself
