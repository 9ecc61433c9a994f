"""Generated kernels compiled ahead of time, with no GPU."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from ..aot import Compiled, Variant, compile_variant
from ..launch import Launcher, candidates

ROWS, COLUMNS = 1 << 16, 1024
"""Sizes that block sizes are chosen for where a kernel does not say them."""


def variants(module: ModuleType) -> list[Variant]:
    """A variant of each kernel of a generated file, with the block sizes it has where nothing was measured."""
    found = []
    for launcher in vars(module).values():
        if isinstance(launcher, Launcher):
            found.append(variant(launcher))
    return found


def variant(launcher: Launcher) -> Variant:
    """The variant of one kernel."""
    import triton.language as tl

    blocks = candidates(launcher.form, ROWS, launcher.columns or COLUMNS, launcher.outer)[0]
    names = launcher.function.arg_names
    constants: dict[str, Any] = {"ROWS": blocks.rows, "INDEX": tl.int32}
    if launcher.form != "places":
        constants["COLUMNS"] = blocks.columns
    signature = {name: kind for name, kind in zip(names, launcher.types, strict=False)}
    for name in names[len(launcher.types) :]:
        if name not in constants:
            signature[name] = "i32"
    return Variant(launcher.name, launcher.function, signature, constants, blocks.warps, 3, aligned=("rows",))


def compile_all(module: ModuleType, capability: int = 90) -> list[Compiled]:
    """Compile every kernel of a generated file.

    Raises:
        UnsupportedError: Triton is not installed, or its assembler refuses a kernel.
    """
    return [compile_variant(item, capability) for item in variants(module)]
