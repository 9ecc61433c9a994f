"""Loops in the machine code of a kernel: how many instructions a GPU issues for a step, and of which kinds."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_LABEL = re.compile(r"\s*(\.L_x_\d+):")
_INSTRUCTION = re.compile(r"\s*/\*[0-9a-f]{4,}\*/\s+(.*?);")
_BRANCH = re.compile(r"\bBRA\b.*?(\.L_x_\d+)")
_PREDICATE = re.compile(r"^@!?U?P\w+\s+")
_MATRIX = ("HMMA", "IMMA", "HGMMA", "IGMMA", "QGMMA", "BGMMA", "DMMA")
_SHORTEST = 8


@dataclass(frozen=True)
class Loop:
    """An innermost loop.

    Attributes:
        instructions: that a warp issues in a step.
        matrix: of these, products of the tensor cores.
        kinds: instructions of the most frequent kinds.
    """

    instructions: int
    matrix: int
    kinds: dict[str, int]


def loops(cubin: bytes) -> list[Loop]:
    """The innermost loops of a cubin; none where the disassembler is not at hand."""
    text = _disassembled(cubin)
    return [] if text is None else parse(text.splitlines())


def parse(lines: Sequence[str]) -> list[Loop]:
    """The innermost loops of disassembled code: those stretches from a label to a branch back that hold no other."""
    labels: dict[str, int] = {}
    code: list[str] = []
    for line in lines:
        label = _LABEL.match(line)
        if label:
            labels[label.group(1)] = len(code)
            continue
        instruction = _INSTRUCTION.match(line)
        if instruction:
            code.append(_PREDICATE.sub("", instruction.group(1)))
    spans = []
    for i, statement in enumerate(code):
        branch = _BRANCH.search(statement)
        first = labels.get(branch.group(1), i + 1) if branch else i + 1
        # A wait that stands behind the end of the kernel branches back, too: that is no loop.
        if first <= i - _SHORTEST and not any(line.startswith("EXIT") for line in code[first:i]):
            spans.append((first, i + 1))
    inner = [a for a in spans if not any(b != a and a[0] <= b[0] and b[1] <= a[1] for b in spans)]
    found = []
    for first, last in inner:
        kinds = Counter(instruction.split()[0].split(".")[0] for instruction in code[first:last])
        matrix = sum(kinds[kind] for kind in _MATRIX)
        found.append(Loop(last - first, matrix, dict(kinds.most_common(10))))
    return found


def _disassembled(cubin: bytes) -> str | None:
    import triton

    program = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
    if not program.is_file():
        return None
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run([str(program), "-c", file.name], capture_output=True, text=True, check=False)
    return done.stdout if done.returncode == 0 else None
