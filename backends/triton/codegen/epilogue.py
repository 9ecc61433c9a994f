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
    """

    body: str
    inputs: tuple[str, ...]

    def source(self, name: str, summary: str) -> str:
        """The function."""
        return (
            f'@triton.jit\ndef {name}(value, row, column, inside, n, e0, e1, e2, e3):\n    """{summary}"""\n{self.body}'
        )


def epilogue(product: Source, result: Array, stored: dict[Array, str]) -> Epilogue | str:
    """The function that makes ``result`` out of ``product``, or the reason why there is none.

    Args:
        product: [..., N].
        result: what is to be written instead, element by element at the same place.
        stored: arrays in memory.
    """
    base = unreshaped(result)
    size = sympy.expand(sympy.Mul(*base.shape) - sympy.Mul(*product.shape))
    if size != 0:
        return "what follows has other sizes"
    n = product.shape[-1]
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
    return _Writer(reader, Target(flat, frame, made), frame, n).function()


class _Writer(Writer):
    def __init__(self, reader: Reader, target: Target, frame: tuple[sympy.Symbol, ...], n: Expr) -> None:
        self._frame, self._n = frame, n
        super().__init__(reader, [target], "places")

    def _join(self, symbols: tuple[sympy.Symbol, ...], letter: str) -> list[sympy.Symbol]:
        return list(symbols)  # rows and columns are the template's

    def _shorten(self, group: object, whole: object) -> None:
        return

    def function(self) -> Epilogue | str:
        """The function, or why there is none."""
        row, column = self._frame
        here = sympy.expand(row * self._n + column)
        names = [name for name in self.inputs if name != "value"]
        if len(names) > _TENSORS:
            return f"it reads {len(names)} tensors"
        self.inputs = {name: i for i, name in enumerate(names)}
        for instruction in self.needed:
            if instruction.kind == "load" and instruction.code == "value":
                if sympy.expand(self.place[instruction] - here) != 0:
                    return "the product is read at other places"
                self.names[instruction] = "value"
        for instruction in self.needed:
            self._line(instruction)
        if self.sizes:
            return "it depends on sizes that the product does not know"
        self._say(f"return {self.names[self.targets[0].value]}")
        return Epilogue("\n".join(self.lines) + "\n", tuple(names))

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
