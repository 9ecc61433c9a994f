"""Source of one kernel out of its instructions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import sympy

from .arrays import FLOATS, SMALL_FLOATS, Bound, tile_type
from .axes import Axes
from .indexing import Expr, text
from .reading import Instruction, Reader, Target

PERSISTENT = 4096
"""Elements of a row that a program holds in registers at once."""
PERSISTENT_OUTER = 128
"""The same where rows lie side by side in memory, so that a program wants many of them."""
WIDTH = 120
_PLAIN = re.compile(r"\d+(\.\d+)?(e-?\d+)?")

_POINTERS = {
    "float32": "*fp32", "float64": "*fp64", "float16": "*fp16", "bfloat16": "*bf16", "int1": "*i1", "int8": "*i8",
    "int16": "*i16", "int32": "*i32", "int64": "*i64", "uint8": "*u8", "uint16": "*u16", "uint32": "*u32",
    "uint64": "*u64", "float8e4nv": "*fp8e4nv", "float8e5": "*fp8e5",
}  # fmt: skip
_LEAST = {"int8": -(2**7), "int16": -(2**15), "int32": -(2**31), "int64": -(2**63)}
_MOST = {"int8": 2**7 - 1, "int16": 2**15 - 1, "int32": 2**31 - 1, "int64": 2**63 - 1, "uint8": 2**8 - 1,
         "uint16": 2**16 - 1, "uint32": 2**32 - 1, "uint64": 2**64 - 1}  # fmt: skip


@dataclass(frozen=True)
class Kernel:
    """A kernel as source.

    Attributes:
        body: lines after the docstring.
        form: ``places``, ``rows`` (a row in registers) or ``loop`` (a row in several steps).
        outer: whether rows, not the elements of a row, lie side by side in memory.
        inputs: names of arrays, in the order of its arguments.
        outputs: the same of what it writes, after the inputs.
        types: Triton's types of these.
        sizes: symbols that are its arguments, after these.
        rows: number of elements, or of rows.
        columns: length of a row; None for ``places``.
        tiles: loads of a whole tile, which take registers.
    """

    body: str
    form: str
    outer: bool
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    types: tuple[str, ...]
    sizes: tuple[sympy.Symbol, ...]
    rows: Expr
    columns: Expr | None
    tiles: int

    def source(self, name: str, summary: str) -> str:
        """The function."""
        pointers = [f"in{n}" for n in range(len(self.inputs))] + [f"out{n}" for n in range(len(self.outputs))]
        arguments = ", ".join(
            [*pointers, *(s.name for s in self.sizes), "rows", *(["columns"] if self.columns else [])]
        )
        blocks = "ROWS: tl.constexpr, " + ("COLUMNS: tl.constexpr, " if self.columns is not None else "")
        outer = ", outer=True" if self.outer else ""
        if self.columns is not None and self.columns.is_Integer:
            outer += f", columns={self.columns}"
        head = f'@kernel("{self.form}", "{" ".join(self.types)}"{outer})\n@triton.jit\n'
        first = f"def {name}({arguments}, {blocks}INDEX: tl.constexpr):"
        if len(first) > WIDTH:
            first = f"def {name}(\n    {arguments},\n    {blocks}INDEX: tl.constexpr,\n):"
        return f'{head}{first}\n    """{summary}"""\n{self.body}'


def column_block(columns: Expr) -> int | None:
    """The tile that holds a row of known length."""
    return 1 << max(0, int(columns) - 1).bit_length() if columns.is_Integer else None


def forms(reader: Reader, targets: Sequence[Target]) -> list[str]:
    """How a kernel may run: both ways where the length of a row is not known."""
    if reader.reduced is None:
        return ["places"]
    columns = sympy.Mul(*(reader.ranges.extents[s] for s in reader.reduced))
    limit = PERSISTENT_OUTER if _outer(reader) else PERSISTENT
    if columns.is_Integer:
        return ["rows"] if int(columns) <= limit else ["loop"]
    return ["rows", "loop"]


def write(reader: Reader, targets: Sequence[Target], form: str) -> Kernel:
    """A kernel's source.

    Args:
        reader: holds the instructions.
        targets: what it writes.
        form: one of :func:`forms`.
    """
    return Writer(reader, targets, form).kernel()


def _outer(reader: Reader) -> bool:
    reduced = reader.reduced or ()
    kept = [s for s in reader.frame if s not in reduced]
    if not kept or not reduced:
        return False
    loads = [i.place for i in reader.instructions if i.kind == "load" and set(reduced) & i.symbols]
    last = [s for s in reduced if reader.ranges.extents[s] != 1][-1:] or list(reduced[-1:])
    inner = sum(place.coeff(last[0]) == 1 for place in loads)
    outer = sum(place.coeff(kept[-1]) == 1 for place in loads)
    return bool(outer > inner)


class Writer(Axes):
    """Prints the instructions that some targets need."""

    def __init__(self, reader: Reader, targets: Sequence[Target], form: str) -> None:
        super().__init__(reader, targets)
        self.form = form
        self.uses: dict[Instruction, int] = {}
        for instruction in self.needed:
            for n, operand in enumerate(instruction.operands):
                times = max(1, instruction.code.count(f"{{{n}}}"))
                self.uses[operand] = self.uses.get(operand, 0) + times
        self.names: dict[Instruction, str] = {}
        self.alias: dict[sympy.Symbol, str] = {}
        self.lines: list[str] = []
        self.inputs: dict[str, int] = {}
        self.types: list[str] = []
        self.sizes: set[sympy.Symbol] = set()
        self.indent = "    "
        self.count = 0
        for instruction in self.needed:
            if instruction.kind == "load" and instruction.code not in self.inputs:
                self.inputs[instruction.code] = len(self.inputs)
                self.types.append(_POINTERS[instruction.dtype])

    def kernel(self) -> Kernel:
        """The kernel."""
        reduces = bool(self.reduced)
        extents = self.ranges.extents
        rows = sympy.Mul(*(extents[s] for s in self.groups[0]))
        columns = sympy.Mul(*(extents[s] for s in self.groups[1])) if reduces else None
        self.whole = False  # whether a tile is a row, without a rest
        if columns is not None and self.form == "rows" and columns.is_Integer:
            self.whole = column_block(columns) == int(columns)
        tail = "[:, None]" if reduces else ""
        self._say(f"x = tl.program_id(0).to(INDEX) * ROWS + tl.arange(0, ROWS){tail}")
        self._say("in_x = x < rows")
        self._axes("x", self.groups[0])
        if self.form == "loop":
            self._loops()
        else:
            if reduces:
                self._row("tl.arange(0, COLUMNS)[None, :]")
            for instruction in self.needed:
                self._line(instruction)
            for n in range(len(self.targets)):
                self._store(n)
        outputs = tuple(self.reader.stored.get(t.array, "") for t in self.targets)
        types = (*self.types, *(_POINTERS[t.array.dtype] for t in self.targets))
        used = sorted(self.sizes, key=lambda s: s.name)
        tiles = sum(i.kind == "load" and bool(set(self.reduced) & i.symbols) for i in self.needed)
        return Kernel("\n".join(self.lines) + "\n", self.form, reduces and _outer(self.reader), tuple(self.inputs),
                      outputs, types, tuple(used), rows, columns, tiles)  # fmt: skip

    def _say(self, line: str) -> None:
        self.lines.append(self.indent + line)

    def _axes(self, whole: str, symbols: Sequence[sympy.Symbol]) -> None:
        """Indices out of the number of a row, or of a place in it."""
        for n, symbol in enumerate(symbols):
            stride: Expr = sympy.Mul(*(self.ranges.extents[s] for s in symbols[n + 1 :]))
            e = whole if stride == 1 else f"{whole} // {self._wrapped(stride)}"
            if n:
                size = self._wrapped(self.ranges.extents[symbol])
                e = f"{whole} % {size}" if stride == 1 else f"({e}) % {size}"
            if e.isidentifier():
                self.alias[symbol] = e
            elif self._used(symbol):
                self._say(f"{symbol.name} = {e}")

    def _used(self, symbol: sympy.Symbol) -> bool:
        everything = [*self.place.values(), *(b.place for bs in self.bounds.values() for b in bs), *self.at]
        return any(e.has(symbol) for e in everything)

    def _wrapped(self, e: Expr) -> str:
        shown = self._text(e)
        return shown if shown.isidentifier() or shown.isdigit() else f"({shown})"

    def _row(self, start: str) -> None:
        self._say(f"r = {start}")
        if not self.whole or any(i.kind == "reduce" and not self._wide(i.operands[0]) for i in self.needed):
            self._say("in_r = r < columns")
        self._axes("r", self.groups[1])

    def _text(self, e: Expr) -> str:
        names = dict(self.alias)
        for symbol in e.free_symbols:
            behind = self.reader.instruction_of(symbol)
            if behind is not None:
                names[symbol] = self.names[behind]
            elif symbol not in self.ranges.extents and symbol.name not in ("x", "r"):
                self.sizes.add(symbol)
        return text(e, names)

    def _wide(self, instruction: Instruction) -> bool:
        """Whether an instruction's tile has the places of a row."""
        return bool(instruction.symbols & set(self.reduced))

    def _mask(self, symbols: frozenset[sympy.Symbol], bounds: Sequence[Bound]) -> str:
        parts = []
        if symbols & set(self.kept):
            parts.append("in_x")
        if symbols & set(self.reduced) and not self.whole:
            parts.append("in_r")
        return " & ".join([*parts, *map(self._condition, bounds)])

    def _condition(self, bound: Bound) -> str:
        e = self._text(bound.place)
        low = [] if bound.lower is None else [f"({e} >= {self._text(bound.lower)})"]
        return " & ".join([*low, *([] if bound.upper is None else [f"({e} < {self._text(bound.upper)})"])])

    def _fresh(self, letter: str = "v") -> str:
        self.count += 1
        return f"{letter}{self.count - 1}"

    def _line(self, instruction: Instruction) -> None:
        """Print an instruction, or keep it to be printed where it is used."""
        if instruction in self.names:
            return
        code = self._code(instruction)
        once = self.uses.get(instruction, 0) <= 1 and instruction.given is None
        short = instruction.kind in ("compute", "number", "index", "bounds") and len(code) <= 60 and once
        short = short or (instruction.kind == "number" and instruction.dtype == "float32")
        if short and not any(t.value is instruction for t in self.targets):
            self.names[instruction] = code
            return
        name = self._fresh()
        self._say(f"{name} = {code}")
        self.names[instruction] = name

    def _code(self, instruction: Instruction) -> str:
        if instruction.kind == "load":
            return self._load(instruction)
        if instruction.kind == "number":
            return _number(instruction.code, instruction.dtype, self._dimensions())
        if instruction.kind == "index":
            e = self._text(self.place[instruction])
            if not instruction.symbols:
                return f"tl.full([{', '.join(['1'] * self._dimensions())}], {e}, tl.{instruction.dtype})"
            return e if e.isidentifier() and instruction.dtype == "int64" else f"({e}).to(tl.{instruction.dtype})"
        if instruction.kind == "bounds":
            return " & ".join(map(self._condition, self.bounds[instruction]))
        operands = [self._operand(instruction.code, n, x) for n, x in enumerate(instruction.operands)]
        if instruction.kind == "compute":
            return instruction.code.format(*operands)
        return self._reduction(instruction, operands[0])

    def _dimensions(self) -> int:
        return 2 if self.reduced else 1

    def _operand(self, code: str, n: int, operand: Instruction) -> str:
        """An operand, in brackets where its code is more than a name or a call."""
        shown = self.names[operand]
        alone = re.search(rf"[(,] ?\{{{n}\}}[),]", code) is not None
        if shown.isidentifier() or alone or _is_call(shown) or _PLAIN.fullmatch(shown):
            return shown
        return f"({shown})"

    def _load(self, instruction: Instruction) -> str:
        place = self._text(self.place[instruction])
        pointer = f"in{self.inputs[instruction.code]}"
        mask = self._mask(instruction.symbols, self.bounds[instruction])
        other = "0.0" if instruction.dtype in FLOATS else "0"
        where = pointer if place == "0" else f"{pointer} + {place}"
        # A mask may have more axes than the place; the pointer must have them, too.
        placed = self.reader.symbols_of(instruction.place)
        for name, symbols in (("x", set(self.kept)), ("r", set(self.reduced))):
            if mask and instruction.symbols & symbols and not placed & symbols:
                where = f"{where} + 0 * {name}"
        shown = f"tl.load({where}, mask={mask}, other={other})" if mask else f"tl.load({where})"
        if instruction.dtype in SMALL_FLOATS:
            shown += ".to(tl.float32)"
        return f"{shown} != 0" if instruction.dtype == "int1" else shown

    def _identity(self, instruction: Instruction) -> str:
        kind, dtype = instruction.code, tile_type(instruction.dtype)
        if kind in ("sum", "prod"):
            return str(int(kind == "prod")) + (".0" if dtype in FLOATS else "")
        if dtype in FLOATS:
            return '-float("inf")' if kind == "max" else 'float("inf")'
        return str(_LEAST.get(dtype, 0) if kind == "max" else _MOST[dtype])

    def _reduction(self, instruction: Instruction, operand: str) -> str:
        """One reduction of a whole row in registers."""
        if not self.whole or not self._wide(instruction.operands[0]):
            operand = f"tl.where(in_r, {_bare(operand)}, {self._identity(instruction)})"
        return self._combined(instruction, operand)

    def _combined(self, instruction: Instruction, operand: str) -> str:
        kind = instruction.code
        shown = f"tl.reduce({operand}, 1, m.multiply)" if kind == "prod" else f"tl.{kind}({_bare(operand)}, axis=1)"
        narrow = instruction.dtype in ("int8", "int16", "uint8", "uint16")
        return f"{shown}[:, None]" + (f".to(tl.{instruction.dtype})" if narrow else "")

    def _store(self, n: int) -> None:
        target, at = self.targets[n], self.at[n]
        symbols = target.value.symbols | frozenset().union(*(self.reader.symbols_of(i) for i in target.index))
        place = self._text(at)
        place = "x" if place == "0" else place
        placed = frozenset().union(*(self.reader.symbols_of(i) for i in target.index))
        mask = self._mask(placed | (symbols & set(self.kept)), ())
        mask = mask if "in_x" in mask else " & ".join(filter(None, ["in_x", mask]))
        # A row's numbers may not depend on the row, where there is one row.
        if placed and not placed & set(self.kept):
            place = f"{place} + 0 * x"
        self._say(f"tl.store(out{n} + {place}, {_bare(self.names[target.value])}, mask={mask})")

    # Rows that do not fit into registers: one loop after another.

    def _loops(self) -> None:
        reductions = [i for i in self.needed if i.kind == "reduce"]
        for instruction in self.needed:
            if not self._wide(instruction) and not instruction.level and instruction.kind != "reduce":
                self._line(instruction)
        for level in range(1, max((i.level for i in reductions), default=0) + 1):
            here = [i for i in reductions if i.level == level]
            sums = {}
            for reduction in here:
                sums[reduction] = self._fresh("sum" if reduction.code == "sum" else reduction.code)
                kind = tile_type(reduction.dtype)
                start = self._identity(reduction)
                self._say(f"{sums[reduction]} = tl.full([ROWS, COLUMNS], {start}, tl.{kind})")
            self._begin()
            kept = dict(self.names)
            self._inside([r.operands[0] for r in here])
            for reduction in here:
                operand = f"tl.where(in_r, {_bare(self.names[reduction.operands[0]])}, {self._identity(reduction)})"
                total = sums[reduction]
                combine = {"sum": f"{total} + {operand}", "prod": f"{total} * {operand}"}.get(
                    reduction.code, f"tl.{reduction.code}imum({total}, {operand})"
                )
                if tile_type(reduction.dtype) in ("int8", "int16", "uint8", "uint16"):
                    combine = f"({combine}).to(tl.{reduction.dtype})"
                self._say(f"{total} = {combine}")
            self.names = kept
            self.indent = "    "
            for reduction in here:
                name = self._fresh()
                self._say(f"{name} = {self._combined(reduction, sums[reduction])}")
                self.names[reduction] = name
            for instruction in self.needed:
                if not self._wide(instruction) and instruction.level <= level and instruction.kind != "reduce":
                    self._line(instruction)
        wide = [n for n, t in enumerate(self.targets) if self._along(t)]
        if wide:
            self._begin()
            kept = dict(self.names)
            self._inside([self.targets[n].value for n in wide])
            for n in wide:
                self._store(n)
            self.names, self.indent = kept, "    "
        for n in range(len(self.targets)):
            if n not in wide:
                self._store(n)

    def _along(self, target: Target) -> bool:
        placed = frozenset().union(*(self.reader.symbols_of(i) for i in target.index))
        return self._wide(target.value) or bool(placed & set(self.reduced))

    def _begin(self) -> None:
        self._say("for start in range(0, columns, COLUMNS):")
        self.indent = "        "
        self._row("start + tl.arange(0, COLUMNS)[None, :]")

    def _inside(self, wanted: Sequence[Instruction]) -> None:
        """Print what these need inside a loop."""
        inner: set[Instruction] = set()
        stack = list(wanted)
        while stack:
            top = stack.pop()
            if top in inner or top in self.names:
                continue
            inner.add(top)
            stack += top.operands
            for e in (top.place, *(b.place for b in top.bounds)):
                behind = [self.reader.instruction_of(s) for s in e.free_symbols]
                stack += [i for i in behind if i is not None]
        for instruction in self.needed:
            if instruction in inner:
                self._line(instruction)


def _number(code: str, dtype: str, dimensions: int) -> str:
    """A constant's source: a plain one in float32, else with its type."""
    shown = {"inf": 'float("inf")', "-inf": '-float("inf")', "nan": 'float("nan")'}.get(code, code)
    if dtype == "float32":
        return shown
    return f"tl.full([{', '.join(['1'] * dimensions)}], {shown}, tl.{dtype})"


def _is_call(shown: str) -> bool:
    """Whether source is one call."""
    if not shown.endswith(")") or not shown[0].isalpha():
        return False
    depth = 0
    for n, letter in enumerate(shown):
        depth += {"(": 1, ")": -1}.get(letter, 0)
        if depth == 0 and letter == ")" and n < len(shown) - 1:
            return False
        if depth == 0 and not (letter.isalnum() or letter in "._)"):
            return False
    return True


def _bare(shown: str) -> str:
    """Source without brackets around all of it."""
    if not (shown.startswith("(") and shown.endswith(")")):
        return shown
    depth = 0
    for n, letter in enumerate(shown):
        depth += {"(": 1, ")": -1}.get(letter, 0)
        if depth == 0 and n < len(shown) - 1:
            return shown
    return shown[1:-1]
