"""Assembly that turns 4 bytes of 4-bit codes into 8 numbers of 16 bits, and values with masks into sparse quads.

Integers: a byte permutation puts a code below the exponent of 2^7 (bfloat16) or 2^10 (float16), which makes it
``128 + c`` or ``1024 + c``; a fused multiply-add of two numbers at a time takes 136 or 1032 away, exactly (after Kim et
al. 2022, "Who Says Elephants Can't Run", section 4). Tables: the 16 values are two tables of 16 bytes in registers; a
permutation looks four places up in 8 bytes, the code's highest bit chooses between two of them.

Quads: the lowest bit of a quad's mask of two is its first value's place, the other its second's. A shift brings the bit
of a place to the top of its byte, and a permutation that repeats top bits makes of it 16 ones or zeros, which the value
is masked with: about 10 instructions for 4 quads' numbers at a place.

Choices: for a product of one row the activations move instead. A quad's mask without its highest bit is a place in a
table of six pairs; two permutations look pairs up for 4 quads, a third puts a pair together, and what comes out is
itself the selector of a permutation that takes the two numbers out of a quad of activations.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

SIXTEEN = "lop3.b32 $0, $1, 0x00780000, 0x41800000, 0xea;"
"""``16 + c`` in float32 for a word whose bits 19 to 22 are a code, by one instruction: a mask, and the bits of 16."""

TWO_HUNDRED_AND_FIFTY_SIX = "lop3.b32 $0, $1, 0x007f8000, 0x43800000, 0xea;"
"""``256 + c`` of a word whose bits 15 to 22 are a code."""

_INTEGERS = """
{{
.reg .b32 low, high, p0, p1, p2, p3, one, less, above;
mov.b32 one, {one};
mov.b32 less, {less};
mov.b32 above, {above};
and.b32 low, $4, 0x0f0f0f0f;
shr.u32 high, $4, 4;
and.b32 high, high, 0x0f0f0f0f;
prmt.b32 p0, low, above, 0x5140;
prmt.b32 p1, low, above, 0x7362;
prmt.b32 p2, high, above, 0x5140;
prmt.b32 p3, high, above, 0x7362;
fma.rn.{type} $0, p0, one, less;
fma.rn.{type} $1, p1, one, less;
fma.rn.{type} $2, p2, one, less;
fma.rn.{type} $3, p3, one, less;
}}
"""

_TABLE = """
{
.reg .b32 place, chosen, half, a, b, low0, low1, high0, high1, t;
and.b32 place, $4, 0x77777777;
shr.u32 chosen, $4, 1;
and.b32 chosen, chosen, 0x44444444;
or.b32 chosen, chosen, 0x32103210;
LOOKUP
}
"""


def integers(dtype: torch.dtype) -> str:
    """Codes less 8, for float16 or bfloat16."""
    if dtype == torch.float16:
        return _INTEGERS.format(one="0x3c003c00", less="0xe408e408", above="0x64646464", type="f16x2")
    return _INTEGERS.format(one="0x3f803f80", less="0xc308c308", above="0x43434343", type="bf16x2")


def table(values: Sequence[float], dtype: torch.dtype) -> str:
    """Values of a table of 16, for float16 or bfloat16."""
    bits = torch.tensor(values, dtype=torch.float64).to(dtype).view(torch.int16).tolist()
    lines = []
    for half in (0, 1):
        # The permutation reads 4 nibbles of its selector: the halves of 4 bytes are two selectors.
        lines += [f"shr.u32 half, place, {16 * half};", f"shr.u32 t, chosen, {16 * half};"] if half else [
            "mov.b32 half, place;", "mov.b32 t, chosen;"]  # fmt: skip
        for name, shift in (("low", 0), ("high", 8)):
            words = _words([(b >> shift) & 255 for b in bits])
            lines += [
                "{ .reg .b32 w0, w1, w2, w3;", *[f"mov.b32 w{i}, {word:#010x};" for i, word in enumerate(words)],
                "prmt.b32 a, w0, w1, half;", "prmt.b32 b, w2, w3, half;", f"prmt.b32 {name}{half}, a, b, t; }}",
            ]  # fmt: skip
    # Nibbles come as low, high, low, high halves of two bytes: the even ones are the first plane.
    lines += [f"prmt.b32 ${half}, low{half}, high{half}, 0x6240;" for half in (0, 1)]
    lines += [f"prmt.b32 ${2 + half}, low{half}, high{half}, 0x7351;" for half in (0, 1)]
    return _TABLE.replace("LOOKUP", "\n".join(lines))


def _words(entries: Sequence[int]) -> list[int]:
    return [sum(entries[i + j] << 8 * j for j in range(4)) for i in range(0, len(entries), 4)]


def expand24(half: int, codes: torch.dtype | None = None) -> str:
    """Four planes of 4 quads: $0 to $7, two registers each; from masks $8, and values $9 to $12 or codes $9.

    Args:
        half: which half of the masks' bytes.
        codes: the type of the numbers if they come as codes of 4 bits, both of a quad in a byte.
    """
    lines = [".reg .b32 mask, first, second, less_one, a, b, one0, one1, other0, other1;"]
    lines += ["shr.u32 mask, $8, 4;"] if half else ["mov.b32 mask, $8;"]
    lines += ["and.b32 mask, mask, 0x0f0f0f0f;", "sub.u32 less_one, mask, 0x01010101;",
              "and.b32 second, mask, less_one;", "xor.b32 first, mask, second;"]  # fmt: skip
    if codes is None:
        lines += ["mov.b32 one0, $9;", "mov.b32 one1, $10;", "mov.b32 other0, $11;", "mov.b32 other1, $12;"]
    else:
        text = integers(codes).replace("$4", "$9")
        for place, name in enumerate(("one0", "one1", "other0", "other1")):
            text = text.replace(f"${place},", f"{name},")
        lines += text.strip().splitlines()
    for place in range(4):
        lines += [f"shl.b32 a, first, {7 - place};", f"shl.b32 b, second, {7 - place};"]
        for pair, repeat in ((0, "0x9988"), (1, "0xbbaa")):
            out = f"${2 * place + pair}"
            lines += ["{ .reg .b32 m, o, t;", f"prmt.b32 m, a, a, {repeat};", f"prmt.b32 o, b, b, {repeat};",
                      f"and.b32 t, one{pair}, m;", f"and.b32 o, other{pair}, o;",
                      f"or.b32 {out}, t, o; }}"]  # fmt: skip
    return "{\n" + "\n".join(lines) + "\n}\n"


_FIRST = (0, 0, 1, 0, 2, 0, 1, 0)
_SECOND = (1, 3, 3, 1, 3, 2, 2, 1)
"""Places of a quad's two values by its mask without the highest bit; the masks 0 and 7 do not occur."""


def choose24(dtype: torch.dtype, *, coded: bool) -> tuple[str, str]:
    """Products of 4 quads and 4 others with the activations that they meet, and the constraints of the operands.

    ``$0`` to ``$3`` and ``$4`` to ``$7`` become ``v a + w b`` in float32, with v and w the values of a quad and a and b
    the activations at their places. Given are masks, ``$8``, the first quad's in the low half of a byte; values in 16
    bits, two registers each: first, second, and those of the others; or codes, one register each; then a 64-bit word of
    activations for each quad and each of the others.

    Args:
        dtype: of activations and values: float16 or bfloat16.
        coded: whether the values are 4-bit codes, less 8.
    """
    at = 11 if coded else 17
    names = "mask, first0, first1, second0, second1, pick, a, b, v, w, t, low, high, of0, of1"
    lines = [f".reg .b32 {names};", ".reg .b32 v00, v01, w00, w01, v10, v11, w10, w11;", ".reg .b64 wide;",
             ".reg .b16 h;", "and.b32 mask, $8, 0x77777777;"]  # fmt: skip
    for name, places in (("first", _FIRST), ("second", _SECOND)):
        for i, word in enumerate(_words([2 * p | (2 * p + 1) << 4 for p in places])):
            lines.append(f"mov.b32 {name}{i}, {word:#010x};")
    for half in (0, 1):
        registers = [f"v{half}0", f"v{half}1", f"w{half}0", f"w{half}1"]
        if coded:
            text = integers(dtype).replace("$4", f"${9 + half}")
            for place, name in enumerate(registers):
                text = text.replace(f"${place},", f"{name},")
            lines += text.strip().splitlines()
        else:
            lines += [f"mov.b32 {name}, ${9 + 4 * half + i};" for i, name in enumerate(registers)]
    for pair in (0, 1):
        lines += [f"shr.u32 t, mask, {16 * pair};", "prmt.b32 of0, first0, first1, t;",
                  "prmt.b32 of1, second0, second1, t;"]  # fmt: skip
        for byte in range(4):
            quad, half = 2 * pair + byte // 2, byte % 2
            word = at + 4 * half + quad
            lines += [
                f"prmt.b32 pick, of0, of1, {0x40 + 0x11 * byte:#x};", f"cvt.u32.u64 low, ${word};",
                f"shr.u64 wide, ${word}, 32;", "cvt.u32.u64 high, wide;", "prmt.b32 t, low, high, pick;",
                *_number("a", "t", 0, dtype), *_number("b", "t", 1, dtype),
                *_number("v", f"v{half}{pair}", quad % 2, dtype), *_number("w", f"w{half}{pair}", quad % 2, dtype),
                "mul.rn.f32 a, a, v;", f"fma.rn.f32 ${4 * half + quad}, b, w, a;",
            ]  # fmt: skip
    constraints = ["=f"] * 8 + ["r"] * (at - 8) + ["l"] * 8
    return "{\n" + "\n".join(lines) + "\n}\n", ",".join(constraints)


def _number(target: str, pair: str, place: int, dtype: torch.dtype) -> list[str]:
    """One of two 16-bit numbers of a register in float32."""
    if dtype == torch.bfloat16:
        return [f"and.b32 {target}, {pair}, 0xffff0000;" if place else f"shl.b32 {target}, {pair}, 16;"]
    return [f"shr.u32 {target}, {pair}, {16 * place};", f"cvt.u16.u32 h, {target};", f"cvt.f32.f16 {target}, h;"]
