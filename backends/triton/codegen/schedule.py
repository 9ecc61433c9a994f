"""Which arrays of a block one kernel makes, and which must be in memory before."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import sympy

from .arrays import Array, Choice, Compute, Moved, Reduce
from .indexing import ZERO, Index
from .kernel import Kernel, forms, write
from .reading import Reader, Split, Target

_DEEP = 20000


@dataclass(frozen=True)
class Step:
    """Kernels for the same work; which one runs depends on sizes.

    Attributes:
        kernels: one, or one for rows in registers and one for longer rows.
        outputs: arrays that it makes.
    """

    kernels: tuple[Kernel, ...]
    outputs: tuple[Array, ...]


@dataclass
class Schedule:
    """How outputs of a block are made.

    Attributes:
        steps: in order.
        temporaries: arrays between the steps that are no outputs, with their names.
        reasons: why there are several steps.
    """

    steps: list[Step] = field(default_factory=list)
    temporaries: dict[Array, str] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)


def schedule(outputs: Mapping[Array, str], memory: Mapping[Array, str], fresh: Callable[[], str]) -> Schedule:
    """Find kernels that make ``outputs``.

    Args:
        outputs: arrays to be written, with the names of their tensors.
        memory: arrays that were written before, the same way.
        fresh: names of further arrays that must be in memory.
    """
    found = Schedule()
    with _deep():
        while True:
            wanted = {**found.temporaries, **outputs}
            stored = {**memory, **wanted}
            try:
                found.steps = _steps(_ordered(wanted, memory), stored)
                return found
            except Split as split:
                if split.array in stored:
                    raise AssertionError(f"{split}: already in memory") from split
                found.temporaries[split.array] = fresh()
                found.reasons.append(str(split))


def _parts(array: Array) -> Sequence[Array]:
    if isinstance(array, Compute):
        return array.operands
    if isinstance(array, Moved):
        return (array.operand, *array.reads)
    if isinstance(array, Reduce):
        return (array.operand,)
    return (array.yes, array.no) if isinstance(array, Choice) else ()


def cone(arrays: Sequence[Array], memory: Mapping[Array, str]) -> list[Array]:
    """Everything that arrays are made of, up to what is in memory; each once."""
    found: dict[Array, None] = {}
    stack = list(arrays)
    while stack:
        top = stack.pop()
        if top in found or top in memory:
            continue
        found[top] = None
        stack += _parts(top)
    return list(found)


def _ordered(stored: Mapping[Array, str], memory: Mapping[Array, str]) -> list[Array]:
    """Arrays to store, each after those that it is made of."""
    order: dict[Array, None] = {}
    seen: set[Array] = set(memory)

    def visit(array: Array) -> None:
        if array in seen:
            return
        seen.add(array)
        for part in _parts(array):
            visit(part)
        if array in stored:
            order[array] = None

    for array in stored:
        visit(array)
    return list(order)


def _steps(targets: Sequence[Array], stored: Mapping[Array, str]) -> list[Step]:
    left = list(targets)
    steps = []
    done: set[Array] = set()
    while left:
        group = _group(left, stored)
        assert group is not None
        reader, chosen = group
        kernels = tuple(write(reader, chosen, form) for form in forms(reader, chosen))
        made = tuple(target.array for target in chosen)
        steps.append(Step(kernels, made))
        done.update(made)
        left = [array for array in left if array not in done]
    return steps


def _group(left: Sequence[Array], stored: Mapping[Array, str]) -> tuple[Reader, list[Target]]:
    """The first array that is left, with as many others as one kernel can make."""
    first = left[0]
    best = _attempt([first], first, left, stored)
    members = [first]
    count = 0
    while count != len(members):  # with one more, another may fit, too
        count = len(members)
        for other in left[1:]:
            if other in members or not _needs_only(other, set(left) - set(members)):
                continue
            for main in (members[0], other):
                order = [main, *[m for m in [*members, other] if m is not main]]
                try:
                    best = _attempt(order, main, left, stored)
                except Split:
                    continue
                members = order
                break
    return best


def _needs_only(array: Array, missing: set[Array]) -> bool:
    """Whether nothing that an array is made of is missing, itself aside."""
    seen: set[Array] = set()
    stack = list(_parts(array))
    while stack:
        top = stack.pop()
        if top in seen:
            continue
        seen.add(top)
        if top in missing:
            return False
        stack += _parts(top)
    return True


def _attempt(
    members: Sequence[Array], main: Array, left: Sequence[Array], stored: Mapping[Array, str]
) -> tuple[Reader, list[Target]]:
    """One kernel for some arrays.

    Raises:
        Split: they do not fit into one.
    """
    symbols = tuple(sympy.Symbol(f"d{n}", integer=True, nonnegative=True) for n in range(len(main.shape)))
    frame = tuple(s for s, size in zip(symbols, main.shape, strict=True) if size != 1)
    index: Index = tuple(s if size != 1 else ZERO for s, size in zip(symbols, main.shape, strict=True))
    extents = tuple(size for size in main.shape if size != 1)
    making: dict[Array, Index] = {main: index}
    reader = Reader(frame, extents, {a: n for a, n in stored.items() if a in making or a not in left}, making)
    targets = [Target(main, index, reader.value(main, index))]
    for other in members[1:]:
        at = _fitting(other, main, index, reader)
        making[other] = at
        reader.stored = {a: n for a, n in stored.items() if a in making or a not in left}
        targets.append(Target(other, at, reader.value(other, at)))
    if len(members) > 1:
        # What was read first was read before the others were known to be made here, too: read again, with all known.
        fixed = Reader(frame, extents, {a: n for a, n in stored.items() if a in making or a not in left}, making)
        targets = [Target(m, making[m], fixed.value(m, making[m])) for m in members]
        if fixed.reduced != reader.reduced:
            raise Split(main, "several outputs that reduce differently")
        reader = fixed
    return reader, targets


def _fitting(other: Array, main: Array, index: Index, reader: Reader) -> Index:
    """The index of an array in a kernel whose main output is another.

    Raises:
        Split: it has other places.
    """
    if other.shape == main.shape:
        return index
    if reader.reduced is None:
        return _along(other, main, index)
    reduced = set(reader.reduced)
    kept: Index = tuple(i for i in index if i not in reduced)
    if len(other.shape) == len(main.shape):
        at = tuple(ZERO if i in reduced else i for i in index)
        if other.shape == tuple(
            size / size if i in reduced else size for i, size in zip(index, main.shape, strict=True)
        ):
            return at
    if reduced and other.shape == tuple(s for i, s in zip(index, main.shape, strict=True) if i not in reduced):
        return kept
    raise Split(other, "an output of other sizes")


def _along(other: Array, main: Array, index: Index) -> Index:
    """The index of an array that has the main output's sizes but for the last axes, which it may reduce.

    Axes before the last are left: a program for each of few rows would write the main output slowly.

    Raises:
        Split: it has other sizes.
    """
    lead = 0
    while lead < min(len(other.shape), len(main.shape)) and other.shape[lead] == main.shape[lead]:
        lead += 1
    if lead and all(size == 1 for size in other.shape[lead:]) and len(other.shape) in (lead, len(main.shape)):
        return (*index[:lead], *(ZERO for _ in other.shape[lead:]))
    raise Split(other, "an output of other sizes")


@contextmanager
def _deep() -> Iterator[None]:
    """Chains of a long block are deeper than Python's default."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(max(before, _DEEP))
    try:
        yield
    finally:
        sys.setrecursionlimit(before)
