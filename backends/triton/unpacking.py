"""Assembly that turns 4 bytes of 4-bit codes into 8 numbers of 16 bits, and values with masks into sparse quads.

Integers: a byte permutation puts a code below the exponent of 2^7 (bfloat16) or 2^10 (float16), which makes it
``128 + c`` or ``1024 + c``; a fused multiply-add of two numbers at a time takes 136 or 1032 away, exactly (after Kim et
al. 2022, "Who Says Elephants Can't Run", section 4). Tables: the 16 values are two tables of 16 bytes in registers; a
permutation looks four places up in 8 bytes, the code's highest bit chooses between two of them.

Quads: the lowest bit of a quad's mask of two is its first value's place, the other its second's. A shift brings the bit
of a place to the top of its byte, and a permutation that repeats top bits makes of it 16 ones or zeros, which the value
is masked with: about 10 instructions for 4 quads' numbers at a place.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

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
    return [sum(entries[4 * i + j] << 8 * j for j in range(4)) for i in range(4)]


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
