"""The assembly that expands 4-bit codes and sparse quads, by a reading of the few instructions it uses."""

from __future__ import annotations

import re

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


def _execute(assembly: str, given: dict[str, int], dtype: torch.dtype, planes: int = 2) -> list[torch.Tensor]:
    """The planes, 4 numbers each, that the assembly makes of registers."""
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
            case ["fma", "rn", _]:
                registers[target] = _fused(*arguments, dtype)
            case other:
                raise AssertionError(f"an unknown instruction: {other}")
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
