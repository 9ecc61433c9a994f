"""Kernels compiled ahead of time, with no GPU: registers, shared memory, spills and loops of every variant."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...ir.errors import UnsupportedError
from . import require_triton
from .sass import Loop, loops


@dataclass(frozen=True)
class Variant:
    """A kernel with all that is decided when it is compiled.

    Attributes:
        name: of the variant.
        kernel: the function, as Triton's ``jit`` made it.
        signature: types of its arguments by name, without the constants.
        constants: its ``constexpr`` arguments.
        warps, stages: of the launch.
        aligned: sizes that are multiples of 16, as those of models are; pointers always are.
        least: the capability it needs.
        work: of a step of its longest loop: ``flops``, and ``bytes`` from memory or ``cached``; for estimates.
    """

    name: str
    kernel: Any
    signature: dict[str, str]
    constants: dict[str, Any]
    warps: int
    stages: int
    aligned: tuple[str, ...] = ()
    least: int = 80
    work: Mapping[str, float] | None = None


@dataclass(frozen=True)
class Compiled:
    """What a variant takes of a multiprocessor.

    Attributes:
        variant: its name.
        capability: of the GPU, 80 or 90.
        warps: of a program.
        registers: of a thread.
        shared: bytes of a program.
        spilled: bytes that a thread writes to and reads from memory for lack of registers.
        bytes: of the cubin.
        loop: its longest innermost loop, None where it has none or the disassembler is not at hand.
    """

    variant: str
    capability: int
    warps: int
    registers: int
    shared: int
    spilled: int
    bytes: int
    loop: Loop | None = None


def compile_variant(variant: Variant, capability: int) -> Compiled:
    """Compile a variant to a cubin.

    Raises:
        UnsupportedError: Triton is not installed, or its assembler refuses the kernel.
    """
    triton = require_triton()
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = variant.kernel
    unknown = (set(variant.signature) | set(variant.constants)) ^ set(kernel.arg_names)
    assert not unknown, f"{variant.name}: arguments {unknown}"
    signature = {name: variant.signature.get(name, "constexpr") for name in kernel.arg_names}
    constants = {(kernel.arg_names.index(name),): value for name, value in variant.constants.items()}
    # Pointers of tensors are aligned to 16 bytes, as PyTorch allocates them.
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(kernel.arg_names)
               if signature[name].startswith("*") or name in variant.aligned}  # fmt: skip
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    options = {"num_warps": variant.warps, "num_stages": variant.stages}
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    registers, spilled = _resources(made.asm["ptx"], capability)
    cubin = made.asm["cubin"]
    found = loops(cubin)
    longest = max(found, key=lambda one: one.instructions) if found else None
    return Compiled(variant.name, capability, variant.warps, registers, int(made.metadata.shared), spilled, len(cubin),
                    longest)  # fmt: skip


def _resources(ptx: str, capability: int) -> tuple[int, int]:
    """Registers and spilled bytes of a thread, as the assembler says them."""
    from triton.backends.nvidia.compiler import get_ptxas

    target = re.search(r"\.target (sm_\w+)", ptx)
    arch = target.group(1) if target else f"sm_{capability}"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.ptx"
        path.write_text(ptx, encoding="utf-8")
        command = [
            get_ptxas(capability).path,
            "-v",
            f"--gpu-name={arch}",
            str(path),
            "-o",
            str(path.with_suffix(".cubin")),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UnsupportedError(
            f"the assembler refuses a kernel: {done.stderr.strip()[:200]}", where=arch, fix="install another Triton"
        )
    said = done.stderr
    registers = re.search(r"Used (\d+) registers", said)
    spills = [int(number) for number in re.findall(r"(\d+) bytes spill (?:stores|loads)", said)]
    assert registers is not None
    return int(registers.group(1)), sum(spills)
