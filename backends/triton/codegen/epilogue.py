"""What follows a product, as a function that the product's template calls on its tile."""

from __future__ import annotations

from dataclasses import dataclass

import sympy

from .arrays import SMALL_FLOATS, Array, Source, reshaped, unreshaped
from .indexing import Expr, Index
from .kernel import Writer
from .reading import Instruction, Reader, Split, Target

_TENSORS = 4
"""Tensors that an epilogue may read beside the result."""


@dataclass(frozen=True)
class Epilogue:
    """A function of a tile.

    Attributes:
        body: its lines.
        inputs: names of the tensors that it reads.
        paired: whether it takes the two halves of the channels, a gate and another factor.
    """

    body: str
    inputs: tuple[str, ...]
    paired: bool = False

    def source(self, name: str, summary: str) -> str:
        """The function."""
        value = "value, up" if self.paired else "value"
        head = f"def {name}({value}, row, column, inside, n, e0, e1, e2, e3):"
        return f'@triton.jit\n{head}\n    """{summary}"""\n{self.body}'


def epilogue(product: Source, result: Array, stored: dict[Array, str]) -> Epilogue | str:
    """The function that makes ``result`` out of ``product``, or the reason why there is none.

    Args:
        product: [..., N].
        result: what is to be written instead, element by element at the same place; or half as wide, out of the
            elements at the same place of both halves of the product.
        stored: arrays in memory.
    """
    base = unreshaped(result)
    size, whole = sympy.Mul(*base.shape), sympy.Mul(*product.shape)
    n = product.shape[-1]
    paired = sympy.expand(2 * size - whole) == 0 and n.is_Integer and n % 2 == 0
    if not paired and sympy.expand(size - whole) != 0:
        return "what follows has other sizes"
    if paired:
        n = n / 2
    rows = sympy.Mul(*product.shape[:-1])
    frame = tuple(sympy.Symbol(name, integer=True, nonnegative=True) for name in ("row", "column"))
    extents: Index = (rows, n)
    reader = Reader(frame, extents, {**stored, product: "value"})
    flat = reshaped(base, extents)
    try:
        made = reader.value(flat, frame)
    except Split as reason:
        return str(reason)
    if reader.reduced is not None:
        return "a reduction follows"
    return _Writer(reader, Target(flat, frame, made), frame, n, paired).function()


class _Writer(Writer):
    def __init__(self, reader: Reader, target: Target, frame: tuple[sympy.Symbol, ...], n: Expr, paired: bool) -> None:
        self._frame, self._n, self._paired = frame, n, paired
        super().__init__(reader, [target], "places")

    def _join(self, symbols: tuple[sympy.Symbol, ...], letter: str) -> list[sympy.Symbol]:
        return list(symbols)  # rows and columns are the template's

    def _shorten(self, group: object, whole: object) -> None:
        return

    def function(self) -> Epilogue | str:
        """The function, or why there is none."""
        row, column = self._frame
        here = sympy.expand(row * self._n * (1 + self._paired) + column)
        halves = {here: "value", here + self._n: "up"} if self._paired else {here: "value"}
        names = [name for name in self.inputs if name != "value"]
        if len(names) > _TENSORS:
            return f"it reads {len(names)} tensors"
        self.inputs = {name: i for i, name in enumerate(names)}
        for instruction in self.needed:
            if instruction.kind == "load" and instruction.code == "value":
                name = halves.get(sympy.expand(self.place[instruction]))
                if name is None:
                    return "the product is read at other places"
                self.names[instruction] = name
        if set(self.names.values()) != set(halves.values()):
            return "a part of the product is not read"
        for instruction in self.needed:
            self._line(instruction)
        if self.sizes:
            return "it depends on sizes that the product does not know"
        self._say(f"return {self.names[self.targets[0].value]}")
        return Epilogue("\n".join(self.lines) + "\n", tuple(names), self._paired)

    def _load(self, instruction: Instruction) -> str:
        place = self._text(self.place[instruction])
        placed = self.reader.symbols_of(instruction.place)
        where = f"e{self.inputs[instruction.code]} + {place}"
        for symbol in self._frame:
            if symbol not in placed:
                where = f"{where} + 0 * {symbol.name}"
        mask = " & ".join(["inside", *map(self._condition, self.bounds[instruction])])
        shown = f"tl.load({where}, mask={mask}, other=0)"
        if instruction.dtype in SMALL_FLOATS:
            shown += ".to(tl.float32)"
        return f"{shown} != 0" if instruction.dtype == "int1" else shown

    def _dimensions(self) -> int:
        return 2
