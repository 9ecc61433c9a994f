"""Loops of disassembled kernels, and what is estimated from them."""

from __future__ import annotations

import pytest
from burnish.backends.triton.aot import Compiled, Variant
from burnish.backends.triton.sass import Loop, parse
from burnish.tools.aot_check import problems
from burnish.tools.roofline import H200, estimate, resident


def _code(*lines: str) -> list[str]:
    text = []
    for i, line in enumerate(lines):
        text.append(f"{line}:" if line.startswith(".L") else f"        /*{16 * i:04x}*/                   {line} ;")
    return text


def test_inner_loops_are_found() -> None:
    body = [".L_x_1", *["FFMA R0, R1, R2, R3"] * 6, "HMMA.16816.F32 R4, R8, R10, R4", "@P0 LDG.E R1, [R2]",
            "@!P1 BRA `(.L_x_1)"]  # fmt: skip
    outer = [".L_x_0", "MOV R1, c[0x0][0x28]", *body, "@P2 BRA `(.L_x_0)", "BRA `(.L_x_9)", ".L_x_9", "EXIT"]
    (found,) = parse(_code(*outer))
    assert found.instructions == 9 and found.matrix == 1
    assert found.kinds == {"FFMA": 6, "HMMA": 1, "LDG": 1, "BRA": 1}


def test_a_branch_forward_is_no_loop() -> None:
    assert parse(_code("BRA `(.L_x_0)", *["NOP"] * 20, ".L_x_0", "EXIT")) == []


def test_a_branch_back_from_behind_the_end_is_no_loop() -> None:
    assert parse(_code(".L_x_0", *["NOP"] * 20, "EXIT", "NOP", "BRA `(.L_x_0)")) == []


def _compiled(**changes: int) -> Compiled:
    sizes = {"registers": 128, "shared": 0, "spilled": 0, "bytes": 1, "warps": 8} | changes
    return Compiled("one", 90, loop=Loop(620, 10, {}), **sizes)


def test_what_a_multiprocessor_holds() -> None:
    assert resident(_compiled(), H200) == 2  # 65,536 registers for 256 threads of 128
    assert resident(_compiled(registers=32, shared=100 << 10), H200) == 2  # 228 KiB of shared memory
    assert resident(_compiled(registers=32), H200) == 8  # 2,048 threads


def test_the_slowest_rate_bounds() -> None:
    few = Variant("w4 few", None, {}, {}, 8, 1, work={"bytes": 16384, "flops": 1e6})
    row = estimate(few, _compiled())
    # 620 instructions of 256 threads for 16,384 bytes: 9.7 to a byte, where the H200 issues 6.2 in a byte's time.
    assert (
        row["bound"] == "instructions"
        and row["of"] == "memory"
        and row["instructions_per_byte"] == pytest.approx(9.69, abs=0.01)
    )
    assert row["of_best"] == pytest.approx(6.18 / 9.69, abs=0.01)
    heavy = Variant("gemm", None, {}, {}, 8, 1, work={"cached": 1000, "flops": 1e9})
    row = estimate(heavy, _compiled())
    assert row["bound"] == row["of"] == "tensor cores" and row["of_best"] == 1
    assert "bound" not in estimate(Variant("reduce", None, {}, {}, 8, 1), _compiled())


def test_spills_and_too_much_shared_memory_are_problems() -> None:
    assert problems(_compiled()) == []
    assert "spills 8 bytes" in problems(_compiled(spilled=8))[0]
    assert "shared memory" in problems(_compiled(shared=300 << 10))[0]
