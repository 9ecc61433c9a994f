"""From arrays to the instructions of one kernel: every array read at the index of an output element.

A kernel has an index symbol for each axis of its main output. Some of them, or more symbols, belong to what it
reduces: a reduction along axes that the output has, too (a normalization), runs over the symbols of these axes; the
reduced values are used where the elements are. Whatever needs another reduction raises :class:`Split`: it is computed
by a kernel of its own and read from memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import sympy

from .arrays import (
    Array,
    Bound,
    Choice,
    Compute,
    Moved,
    Number,
    Position,
    Reduce,
    Source,
    broadcast_index,
    tile_type,
)
from .indexing import ZERO, Expr, Index, Ranges

LARGEST = 400
"""Instructions of a kernel, above which registers would run out; a block is split then."""


class Split(Exception):
    """An array must be in memory before a kernel can use it."""

    def __init__(self, array: Array, reason: str) -> None:
        super().__init__(reason)
        self.array = array


@dataclass(eq=False)
class Instruction:
    """One line of a kernel.

    Attributes:
        kind: ``load``, ``compute``, ``index``, ``bounds``, ``number`` or ``reduce``.
        dtype: of the tile.
        code: an expression with ``{0}`` …, the name of a tensor, or the kind of a reduction.
        operands: other instructions.
        place: the position in memory, or the value of an index.
        bounds: which must hold for a load.
        symbols: of the index that it depends on, through others as well.
        level: how many reductions must be done before, one after the other.
        given: the symbol that stands for its value in indices.
    """

    kind: str
    dtype: str
    code: str = ""
    operands: tuple[Instruction, ...] = ()
    place: Expr = ZERO
    bounds: tuple[Bound, ...] = ()
    symbols: frozenset[sympy.Symbol] = frozenset()
    level: int = 0
    given: sympy.Symbol | None = None


@dataclass
class Target:
    """An output of a kernel.

    Attributes:
        array: it.
        index: its index, in symbols of the kernel.
        value: the instruction that makes it.
    """

    array: Array
    index: Index
    value: Instruction


@dataclass
class Reader:
    """Reads arrays for one kernel.

    Args:
        frame: index symbols of the main output.
        extents: their sizes.
        stored: arrays in memory, by name.
        making: of these, the ones that this kernel makes, with the index they are made at.
    """

    frame: tuple[sympy.Symbol, ...]
    extents: Index
    stored: Mapping[Array, str]
    making: Mapping[Array, Index] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.ranges = Ranges(dict(zip(self.frame, self.extents, strict=True)))
        self.reduced: tuple[sympy.Symbol, ...] | None = None
        self.instructions: list[Instruction] = []
        self._memo: dict[tuple[Array, Index, tuple[Bound, ...]], Instruction] = {}
        self._same: dict[tuple[object, ...], Instruction] = {}
        self._loaded: dict[sympy.Symbol, Instruction] = {}
        self._bounds: tuple[Bound, ...] = ()

    def value(self, array: Array, index: Index, bounds: tuple[Bound, ...] = ()) -> Instruction:
        """The instruction that makes an element.

        Raises:
            Split: something must be in memory first.
        """
        key = (array, index, bounds)
        if key not in self._memo:
            self._memo[key] = self._value(array, index, bounds)
        return self._memo[key]

    def element(self, array: Array, index: Index, extent: Expr) -> sympy.Symbol:
        """An element of an integer array, from 0 to ``extent``, as a symbol for indices."""
        made = self.value(array, index, self._bounds)
        if made.given is None:
            made.given = sympy.Symbol(f"place{len(self._loaded)}", integer=True, nonnegative=True)
            self._loaded[made.given] = made
        known = self.ranges.extents.get(made.given)
        self.ranges.extents[made.given] = extent if known is None or known == extent else extent + known
        return made.given

    def instruction_of(self, symbol: sympy.Symbol) -> Instruction | None:
        """The instruction behind a symbol that is no index."""
        return self._loaded.get(symbol)

    def symbols_of(self, e: Expr) -> frozenset[sympy.Symbol]:
        """Index symbols that an expression depends on."""
        found: set[sympy.Symbol] = set()
        for symbol in e.free_symbols:
            if symbol in self._loaded:
                found |= self._loaded[symbol].symbols
            elif symbol in self.ranges.extents:
                found.add(symbol)
        return frozenset(found)

    def _value(self, array: Array, index: Index, bounds: tuple[Bound, ...]) -> Instruction:
        if len(self.instructions) > LARGEST:
            raise Split(array, f"more than {LARGEST} instructions in a kernel")
        if array in self.stored:
            made_at = self.making.get(array)
            if made_at is None:
                return self._load(array, self.stored[array], index, bounds)
            if made_at != index:
                raise Split(array, "read at another place than it is made")
        if isinstance(array, Source):
            return self._load(array, array.name, index, bounds)
        if isinstance(array, Number):
            return self._make("number", tile_type(array.dtype), repr(array.value))
        if isinstance(array, Compute):
            operands = tuple(
                self.value(x, broadcast_index(self.ranges, index, x.shape, array.shape), bounds) for x in array.operands
            )
            if array.code == "{0}":
                return operands[0]
            return self._make("compute", tile_type(array.dtype), array.code, operands)
        if isinstance(array, Moved):
            self._bounds = bounds
            return self.value(array.operand, array.where(self, index), bounds)
        if isinstance(array, Position):
            return self.index(self.ranges.again(array.expression(self.ranges, index)), array.dtype)
        if isinstance(array, Choice):
            return self._choice(array, index, bounds)
        assert isinstance(array, Reduce)
        return self._reduce(array, index, bounds)

    def index(self, e: Expr, dtype: str) -> Instruction:
        """A number made of the index."""
        return self._make("index", dtype, place=e)

    def _load(self, array: Array, name: str, index: Index, bounds: tuple[Bound, ...]) -> Instruction:
        place = self.ranges.flat(index, array.shape)
        needed = [b for b in bounds if self.symbols_of(b.place)]
        return self._make("load", array.dtype, name, place=place, bounds=tuple(needed))

    def _choice(self, array: Choice, index: Index, bounds: tuple[Bound, ...]) -> Instruction:
        conditions = [self._trimmed(bound) for bound in array.bounds(index)]
        kept = tuple(c for c in conditions if c is not None and c not in bounds)
        if not kept:
            return self.value(array.yes, broadcast_index(self.ranges, index, array.yes.shape, array.shape), bounds)
        yes = self.value(array.yes, broadcast_index(self.ranges, index, array.yes.shape, array.shape), (*bounds, *kept))
        # Of several bounds none says alone where the others are read.
        against = bounds
        if len(kept) == 1 and (kept[0].lower is None) != (kept[0].upper is None):
            against = (*bounds, Bound(kept[0].place, kept[0].upper, kept[0].lower))
        no = self.value(array.no, broadcast_index(self.ranges, index, array.no.shape, array.shape), against)
        test = self._make("bounds", "int1", bounds=kept)
        return self._make("compute", tile_type(array.dtype), "tl.where({0}, {1}, {2})", (test, yes, no))

    def _trimmed(self, bound: Bound) -> Bound | None:
        """A condition without what holds anyway."""
        low, top = self.ranges.lower(bound.place), self.ranges.upper(bound.place)
        lower = bound.lower
        if lower is not None and low is not None and (low - lower).is_nonnegative:
            lower = None
        upper = bound.upper
        if upper is not None and top is not None and (upper - 1 - top).is_nonnegative:
            upper = None
        return None if lower is None and upper is None else Bound(bound.place, lower, upper)

    def _reduce(self, array: Reduce, index: Index, bounds: tuple[Bound, ...]) -> Instruction:
        outer = [i for n, i in enumerate(index) if n not in array.axes]
        free: frozenset[sympy.Symbol] = (
            frozenset().union(*(self.symbols_of(i) for i in outer)) if outer else frozenset()
        )
        extents = tuple(array.operand.shape[n] for n in array.axes)
        over = self._over(array, free, extents)
        source = list(index)
        for n, symbol in zip(array.axes, over, strict=True):
            source[n] = symbol
        # What is chosen later along the reduced axes does not cut the reduction short.
        kept = tuple(b for b in bounds if not self.symbols_of(b.place) & set(over))
        operand = self.value(array.operand, tuple(source), kept)
        return self._make("reduce", operand.dtype, array.kind, (operand,))

    def _over(self, array: Reduce, free: frozenset[sympy.Symbol], extents: Index) -> tuple[sympy.Symbol, ...]:
        """The symbols that a reduction runs over."""
        if self.reduced is not None:
            if free & set(self.reduced):
                raise Split(array, "reduced inside a reduction over other axes")
            if tuple(self.ranges.extents[s] for s in self.reduced) != extents:
                raise Split(array, "reductions over different sizes")
            if self._spare(free) - set(self.reduced):
                raise Split(array, "a reduced value used along several axes")
            return self.reduced
        spare = self._spare(free)
        inner = tuple(s for s in self.frame if s in spare)
        if spare and tuple(self.ranges.extents[s] for s in inner) == extents:
            self.reduced = inner
        elif spare:
            raise Split(array, "a reduced value used along other axes than it was reduced over")
        else:
            self.reduced = tuple(sympy.Symbol(f"k{n}", integer=True, nonnegative=True) for n in range(len(extents)))
            self.ranges.extents.update(zip(self.reduced, extents, strict=True))
        return self.reduced

    def _spare(self, free: frozenset[sympy.Symbol]) -> set[sympy.Symbol]:
        """Axes of the output along which a value with these symbols is the same."""
        return {s for s, size in zip(self.frame, self.extents, strict=True) if s not in free and size != 1}

    def _make(
        self,
        kind: str,
        dtype: str,
        code: str = "",
        operands: tuple[Instruction, ...] = (),
        place: Expr = ZERO,
        bounds: tuple[Bound, ...] = (),
    ) -> Instruction:
        key = (kind, dtype, code, operands, place, bounds)
        if key in self._same:
            return self._same[key]
        expressions: Sequence[Expr] = [place, *(b.place for b in bounds)]
        symbols: set[sympy.Symbol] = set()
        level = 0
        for operand in operands:
            symbols |= operand.symbols
            level = max(level, operand.level)
        for e in expressions:
            symbols |= self.symbols_of(e)
            for symbol in e.free_symbols:
                if symbol in self._loaded:
                    level = max(level, self._loaded[symbol].level)
        if kind == "reduce":
            symbols -= set(self.reduced or ())
            level += 1
        made = Instruction(kind, dtype, code, operands, place, bounds, frozenset(symbols), level)
        self._same[key] = made
        self.instructions.append(made)
        return made
