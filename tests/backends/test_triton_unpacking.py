"""The assembly that expands 4-bit codes and sparse quads, by a reading of the few instructions it uses."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from burnish.backends.triton import unpacking
from burnish.backends.triton.codes import NF4

FLOATS = [torch.float16, torch.bfloat16]


def _permute(a: int, b: int, selector: int) -> int:
    """PTX ``prmt.b32`` in its default mode: byte i is the one that nibble i chooses; its highest bit repeats a sign."""
    source = [(a >> 8 * i) & 255 for i in range(4)] + [(b >> 8 * i) & 255 for i in range(4)]
    result = 0
    for i in range(4):
        chosen = (selector >> 4 * i) & 15
        byte = source[chosen & 7]
        if chosen & 8:
            byte = 255 if byte & 128 else 0
        result |= byte << 8 * i
    return result


def _halves(word: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.tensor([word & 0xFFFF, word >> 16], dtype=torch.int32).to(torch.int16).view(dtype).double()


def _fused(a: int, b: int, c: int, dtype: torch.dtype) -> int:
    result = (_halves(a, dtype) * _halves(b, dtype) + _halves(c, dtype)).to(dtype)
    low, high = (int(x) & 0xFFFF for x in result.view(torch.int16).tolist())
    return low | high << 16


def _single(word: int) -> np.float32:
    return np.uint32(word).view(np.float32)


def _word(number: np.float32) -> int:
    return int(np.float32(number).view(np.uint32))


def _run(assembly: str, given: dict[str, int], dtype: torch.dtype) -> dict[str, int]:
    """The registers that the assembly makes of registers; numbers are their bits."""
    registers = dict(given)

    def value(name: str) -> int:
        return int(name, 0) if re.match(r"0x|\d", name) else registers[name]

    for statement in re.split(r"[;{}\n]", assembly):
        parts = statement.replace(",", " ").split()
        if not parts or parts[0] == ".reg":
            continue
        target, arguments = parts[1], [value(a) for a in parts[2:]]
        match parts[0].split("."):
            case ["mov", _]:
                registers[target] = arguments[0]
            case ["and", _]:
                registers[target] = arguments[0] & arguments[1]
            case ["or", _]:
                registers[target] = arguments[0] | arguments[1]
            case ["xor", _]:
                registers[target] = arguments[0] ^ arguments[1]
            case ["sub", _]:
                registers[target] = (arguments[0] - arguments[1]) & 0xFFFFFFFF
            case ["shl", _]:
                registers[target] = (arguments[0] << arguments[1]) & 0xFFFFFFFF
            case ["shr", "u32"]:
                registers[target] = arguments[0] >> arguments[1]
            case ["prmt", _]:
                registers[target] = _permute(*arguments)
            case ["lop3", _]:
                a, b, c, table = arguments
                registers[target] = sum(
                    ((table >> ((a >> i & 1) << 2 | (b >> i & 1) << 1 | (c >> i & 1))) & 1) << i for i in range(32)
                )
            case ["shr", "u64"]:
                registers[target] = arguments[0] >> arguments[1]
            case ["cvt", "u32" | "u16" as narrow, _]:
                registers[target] = arguments[0] & (0xFFFFFFFF if narrow == "u32" else 0xFFFF)
            case ["cvt", "f32", "f16"]:
                registers[target] = _word(np.float32(np.uint16(arguments[0]).view(np.float16)))
            case ["mul", "rn", "f32"]:
                registers[target] = _word(_single(arguments[0]) * _single(arguments[1]))
            case ["fma", "rn", "f32"]:
                a, b, c = (np.float64(_single(x)) for x in arguments)
                registers[target] = _word(np.float32(a * b + c))
            case ["fma", "rn", _]:
                registers[target] = _fused(*arguments, dtype)
            case other:
                raise AssertionError(f"an unknown instruction: {other}")
    return registers


def _execute(assembly: str, given: dict[str, int], dtype: torch.dtype, planes: int = 2) -> list[torch.Tensor]:
    """The planes, 4 numbers each, that the assembly makes of registers."""
    registers = _run(assembly, given, dtype)
    return [torch.cat([_halves(registers[f"${2 * i + j}"], dtype) for j in (0, 1)]) for i in range(planes)]


def _words() -> list[int]:
    generator = torch.Generator().manual_seed(0)
    return [0, 0xFFFFFFFF, 0x76543210, 0xFEDCBA98, *torch.randint(0, 2**32, (40,), generator=generator).tolist()]


@pytest.mark.parametrize("dtype", FLOATS)
def test_integers_are_exact(dtype: torch.dtype) -> None:
    for word in _words():
        codes = [(word >> 4 * i) & 15 for i in range(8)]
        low, high = _execute(unpacking.integers(dtype), {"$4": word}, dtype)
        assert low.tolist() == [c - 8 for c in codes[::2]] and high.tolist() == [c - 8 for c in codes[1::2]]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("values", [NF4, tuple(float(-(2**i)) for i in range(8)) + tuple(i / 7 for i in range(8))])
def test_tables_are_exact(dtype: torch.dtype, values: tuple[float, ...]) -> None:
    table = torch.tensor(values, dtype=torch.float64).to(dtype).double()
    for word in _words():
        codes = torch.tensor([(word >> 4 * i) & 15 for i in range(8)])
        low, high = _execute(unpacking.table(values, dtype), {"$4": word}, dtype)
        assert torch.equal(low, table[codes[::2]]) and torch.equal(high, table[codes[1::2]])


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("half", [0, 1])
def test_quads_have_their_values_at_their_places(dtype: torch.dtype, half: int) -> None:
    generator = torch.Generator().manual_seed(1)
    pairs = [(i, j) for i in range(4) for j in range(i + 1, 4)]
    for _ in range(30):
        chosen = [pairs[int(i)] for i in torch.randint(0, 6, (8,), generator=generator)]
        nibbles = [1 << a | 1 << b for a, b in chosen]
        masks = sum((nibbles[i] | nibbles[4 + i] << 4) << 8 * i for i in range(4))
        mine = chosen[4 * half : 4 * half + 4]
        values = torch.randn(2, 4, generator=generator).to(dtype)
        given = {"$8": masks}
        for i, pair in enumerate(values.view(torch.int16).reshape(4, 2).tolist()):
            given[f"${9 + i}"] = (pair[0] & 0xFFFF) | (pair[1] & 0xFFFF) << 16
        planes = _execute(unpacking.expand24(half), given, dtype, 4)
        codes = torch.randint(0, 16, (2, 4), generator=generator)
        word = sum(int(codes[0, i] | codes[1, i] << 4) << 8 * i for i in range(4))
        coded = _execute(unpacking.expand24(half, dtype), {"$8": masks, "$9": word}, dtype, 4)
        for place in range(4):
            for quad, (first, second) in enumerate(mine):
                which = {first: 0, second: 1}.get(place)
                want = 0.0 if which is None else float(values[which, quad])
                assert float(planes[place][quad]) == want
                assert float(coded[place][quad]) == (0.0 if which is None else float(codes[which, quad]) - 8)


def _pairs(values: torch.Tensor) -> list[int]:
    """16-bit numbers, two to a word."""
    return [(a & 0xFFFF) | (b & 0xFFFF) << 16 for a, b in values.view(torch.int16).reshape(-1, 2).tolist()]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("coded", [False, True])
def test_quads_meet_the_activations_at_their_places(dtype: torch.dtype, coded: bool) -> None:
    generator = torch.Generator().manual_seed(2)
    pairs = [(i, j) for i in range(4) for j in range(i + 1, 4)]
    assembly, constraints = unpacking.choose24(dtype, coded=coded)
    assert constraints.count("=f") == 8 and constraints.count("l") == 8
    for _ in range(30):
        chosen = [pairs[int(i)] for i in torch.randint(0, 6, (8,), generator=generator)]
        nibbles = [1 << a | 1 << b for a, b in chosen]
        given = {"$8": sum((nibbles[i] | nibbles[4 + i] << 4) << 8 * i for i in range(4))}
        x = torch.randn(8, 4, generator=generator).to(dtype)
        if coded:
            codes = torch.randint(0, 16, (2, 8), generator=generator)
            values = codes.double() - 8
            words = [int(codes[0, i]) | int(codes[1, i]) << 4 for i in range(8)]
            given |= {f"${9 + half}": sum(words[4 * half + i] << 8 * i for i in range(4)) for half in (0, 1)}
        else:
            numbers = torch.randn(2, 8, generator=generator).to(dtype)
            values = numbers.double()
            ordered = torch.cat([numbers[:, :4], numbers[:, 4:]])  # first, second, and those of the others
            given |= {f"${9 + i}": word for i, word in enumerate(_pairs(ordered))}
        start = 11 if coded else 17
        for quad in range(8):
            low, high = _pairs(x[quad])
            given[f"${start + quad}"] = low | high << 32
        registers = _run(assembly, given, dtype)
        for quad, (first, second) in enumerate(chosen):
            want = values[0, quad] * x[quad, first].double() + values[1, quad] * x[quad, second].double()
            got = float(_single(registers[f"${quad}"]))
            assert got == pytest.approx(float(want), rel=1e-5, abs=1e-5)


def test_codes_stand_below_the_bits_of_a_power_of_two() -> None:
    for code in range(256):
        moved = code << 15 | 0x7F807FFF & ~0x007F8000 & 0xFFFFFFFF
        assert _single(_run(unpacking.TWO_HUNDRED_AND_FIFTY_SIX, {"$1": moved}, torch.float16)["$0"]) == 256 + code
    for code in range(16):
        moved = code << 19 | 0xFF87FFFF
        assert _single(_run(unpacking.SIXTEEN, {"$1": moved}, torch.float16)["$0"]) == 16 + code
