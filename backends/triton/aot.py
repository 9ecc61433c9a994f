"""Kernels compiled ahead of time, with no GPU: registers, shared memory and spills of every variant."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from ...ir.errors import UnsupportedError
from . import require_triton
from .products import BLOCKS, BLOCKS_FLOAT32

_TYPES = {"fp16": "*fp16", "bf16": "*bf16", "fp32": "*fp32"}


@dataclass(frozen=True)
class Variant:
    """A kernel with all that is decided when it is compiled.

    Attributes:
        name: of the variant.
        kernel: its name in ``kernels.products.KERNELS``.
        signature: types of its arguments by name.
        constants: its ``constexpr`` arguments.
        warps, stages: of the launch.
    """

    name: str
    kernel: str
    signature: dict[str, str]
    constants: dict[str, object]
    warps: int
    stages: int


@dataclass(frozen=True)
class Compiled:
    """What a variant takes of a multiprocessor.

    Attributes:
        variant: its name.
        capability: of the GPU, 80 or 90.
        registers: of a thread.
        shared: bytes of a program.
        spilled: bytes that a thread writes to and reads from memory for lack of registers.
        bytes: of the cubin.
    """

    variant: str
    capability: int
    registers: int
    shared: int
    spilled: int
    bytes: int


def variants() -> list[Variant]:
    """Every kernel in each type and with each of the block sizes."""
    found = []
    for kernel in ("sparse24", "sparse24_w4", "w4"):
        for dtype, pointer in _TYPES.items():
            for number, b in enumerate(BLOCKS_FLOAT32 if dtype == "fp32" else BLOCKS):
                constants: dict[str, object] = {
                    "BLOCK_M": b.m, "BLOCK_N": b.n, "SPLITS": b.splits, "HAS_BIAS": b.splits == 1,
                    "PRECISION": "ieee" if dtype == "fp32" else "tf32", "EXACT": False,
                }  # fmt: skip
                constants |= {"HALF": 32} if kernel == "w4" else {"BLOCK_Q": b.quads if kernel == "sparse24" else 16}
                result = "*fp32" if b.splits > 1 else pointer
                found.append(Variant(f"{kernel} {dtype} {number}", kernel, _signature(kernel, pointer, result),
                                     constants, b.warps, b.stages))  # fmt: skip
    return found


def _signature(kernel: str, pointer: str, result: str) -> dict[str, str]:
    if kernel == "sparse24":
        pointers = {"x": pointer, "values": pointer, "places": "*i32", "bias": pointer, "y": result}
        sizes = ["rows", "n", "quads", "words"]
    elif kernel == "sparse24_w4":
        pointers = {"x": pointer, "codes": "*u8", "places": "*i32", "scales": pointer, "bias": pointer, "y": result}
        sizes = ["rows", "n", "quads", "words", "groups"]
    else:
        pointers = {"x": pointer, "codes": "*u8", "scales": pointer, "bias": pointer, "y": result}
        sizes = ["rows", "n", "k", "groups"]
    return pointers | dict.fromkeys(sizes, "i32")


def compile_variant(variant: Variant, capability: int) -> Compiled:
    """Compile a variant to a cubin.

    Raises:
        UnsupportedError: Triton is not installed.
    """
    triton = require_triton()
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from .kernels.products import KERNELS

    kernel = KERNELS[variant.kernel]
    signature = variant.signature | dict.fromkeys(variant.constants, "constexpr")
    constants = {(kernel.arg_names.index(name),): value for name, value in variant.constants.items()}
    # Pointers of tensors are aligned to 16 bytes, as PyTorch allocates them.
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(kernel.arg_names)
               if variant.signature.get(name, "").startswith("*")}  # fmt: skip
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    options = {"num_warps": variant.warps, "num_stages": variant.stages}
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    registers, spilled = _resources(made.asm["ptx"], capability)
    return Compiled(variant.name, capability, registers, int(made.metadata.shared), spilled, len(made.asm["cubin"]))


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
