"""Kernels of products in each type and with each of their block sizes, for compilation ahead of time.

What fuses with them is a choice: one that takes registers (GELU and a residual, a gate after a normalization).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch

from . import gemm, quantized, sparse, unpacking
from .aot import Variant
from .codes import GROUPS, NF4, Codes8
from .pattern24 import Sparse24, Sparse24Codes

TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
_SIZES = ("rows", "n", "k", "groups", "batches", "blocks", "x_batch", "x_row", "w_batch", "w_row")

_NOTHING = torch.empty(0)
_KINDS24: dict[str, Sparse24 | Sparse24Codes] = {
    "": Sparse24(_NOTHING, _NOTHING, 0), "_w4 g64": Sparse24Codes(_NOTHING, _NOTHING, _NOTHING, 64, 0),
    "_w4 g128": Sparse24Codes(_NOTHING, _NOTHING, _NOTHING, 128, 0),
}  # fmt: skip
"""Weights with the pattern 2:4, without any."""


def product_variants() -> Iterator[Variant]:
    """Products of dense matrices and by weights in codes."""
    for name, dtype in TYPES.items():
        yield from _dense(name, dtype)
        yield from _four_bits(name, dtype)
        yield from _eight_bits(name, dtype)
        yield from _sparse(name, dtype)
        if dtype != torch.float32:
            yield from _one_row(name, dtype)
    yield from _scaled()
    yield from _rows()


def _fused(activation: str = "none", epilogue: str = "nothing", bias: bool = True) -> dict[str, Any]:
    from .kernels import epilogues

    return {"HAS_BIAS": bias, "ACTIVATION": epilogues.ACTIVATIONS[activation], "EPILOGUE": getattr(epilogues, epilogue)}


def _work(moved: float, flops: float, rows: int) -> dict[str, float]:
    """The bytes of a step come from memory for few rows, from a cache for many."""
    return {"bytes" if rows <= quantized.FEW else "cached": moved, "flops": flops}


def signature_of(kernel: Any, pointers: dict[str, str], constants: dict[str, Any], default: str) -> dict[str, str]:
    """Types of all arguments that are no constants: sizes are integers, other pointers of the default type."""
    return {
        name: "i32" if name in _SIZES else pointers.get(name, default)
        for name in kernel.arg_names if name not in constants
    }  # fmt: skip


def _dense(name: str, dtype: torch.dtype) -> Iterator[Variant]:
    from .kernels import epilogues
    from .kernels.gemm import KERNELS

    pointer = f"*{name}"
    single = dtype == torch.float32
    fixed = {"PRECISION": "ieee" if single else "tf32", "EXACT": False}
    plain = {"HAS_PROLOGUE": False, "PROLOGUE": epilogues.nothing}
    normed = {"HAS_PROLOGUE": True, "PROLOGUE": epilogues.rms_scale}
    aligned = ("n", "k", "x_batch", "x_row", "w_batch", "w_row")
    kernel = KERNELS["gemm"]
    for number, t in enumerate(gemm.SINGLE if single else gemm.HALF):
        blocks = {"BLOCK_M": t.m, "BLOCK_N": t.n, "BLOCK_K": t.k, "GROUP": t.group, "SPLITS": t.splits}
        forms: dict[str, dict[str, Any]] = {"": {"W_NK": True, "GATED": False, **_fused("gelu", "add"), **plain}}
        if number == 3:
            forms[" kn"] = {"W_NK": False, "GATED": False, **_fused(), **plain}
        if number == 1:
            forms[" gated normed"] = {"W_NK": True, "GATED": True, **_fused("silu", bias=False), **normed}
        for form, extra in forms.items():
            constants = blocks | fixed | extra
            pointers = {"y": "*fp32" if t.splits > 1 else pointer, "p0": "*fp32" if extra["HAS_PROLOGUE"] else pointer}
            work = _work(t.k * (t.m + t.n) * dtype.itemsize, 2 * t.m * t.n * t.k, t.m)
            yield Variant(f"gemm{form} {name} {t.m}x{t.n}x{t.k}/{t.splits}", kernel,
                          signature_of(kernel, pointers, constants, pointer), constants, t.warps, t.stages, aligned,
                          work=work)  # fmt: skip
    if single:
        return
    for t in gemm.TMA:
        constants = {"BLOCK_M": t.m, "BLOCK_N": t.n, "BLOCK_K": t.k, "GROUP": t.group, "EXACT": False, **_fused()}
        kernel = KERNELS["gemm_tma"]
        pointers = {"x": f"tensordesc<{name}[{t.m}, {t.k}]>", "w": f"tensordesc<{name}[{t.n}, {t.k}]>"}
        work = _work(t.k * (t.m + t.n) * dtype.itemsize, 2 * t.m * t.n * t.k, t.m)
        yield Variant(f"gemm tma {name} {t.m}x{t.n}x{t.k}", kernel, signature_of(kernel, pointers, constants, pointer),
                      constants, t.warps, t.stages, ("n", "k"), least=90, work=work)  # fmt: skip
    for t in gemm.ONE_ROW:
        one_row: dict[str, dict[str, Any]] = {
            "": {"GATED": False, **_fused(), **plain},
            " gated normed": {"GATED": True, **_fused("silu", bias=False), **normed},
        }
        for form, extra in one_row.items():
            constants = {"BLOCK_N": t.n, "BLOCK_K": t.k, "SPLITS": t.splits, "rows": 1, **extra}
            kernel = KERNELS["gemv"]
            pointers = {"y": "*fp32" if t.splits > 1 else pointer, "p0": "*fp32" if extra["HAS_PROLOGUE"] else pointer}
            weights = t.n * t.k * (2 if extra["GATED"] else 1)
            yield Variant(f"gemv{form} {name} {t.n}x{t.k}/{t.splits}", kernel,
                          signature_of(kernel, pointers, constants, pointer), constants, t.warps, t.stages, ("n", "k"),
                          work={"bytes": weights * 2, "flops": 2 * weights})  # fmt: skip
    kernel = KERNELS["reduce"]
    constants = {"SPLITS": 4, "GATED": False, "BLOCK_M": 1, "BLOCK_N": 256, **_fused("gelu", "add")}
    yield Variant(f"reduce {name}", kernel, signature_of(kernel, {"parts": "*fp32"}, constants, pointer), constants,
                  2, 1, ("n",))  # fmt: skip


def _four_bits(name: str, dtype: torch.dtype) -> Iterator[Variant]:
    from .kernels.four_bits import KERNELS

    pointer = f"*{name}"
    single = dtype == torch.float32
    fixed = {"PRECISION": "ieee" if single else "tf32", "EXACT": False, **_fused()}
    pointers = {"codes": "*u8", "zeros": "*u8", "table": "*fp32"}
    few = KERNELS["four_bits_few"]
    integers = quantized.assembly(dtype, None, False)
    baked = quantized.assembly(dtype, NF4, True)
    forms = {
        "": (False, False, integers, False), " zeros": (True, False, integers, False),
        " nf4": (False, True, baked, False), " table": (False, True, "", False),
        " gated": (False, False, integers, True),
    }  # fmt: skip
    table = quantized.FOUR_FEW_FLOAT32[:1] if single else quantized.FOUR_FEW
    for number, s in enumerate(table):
        for group in GROUPS:
            for form, (zeros, tabled, unpack, gated) in forms.items():
                if form and (group != 128 or (single and form == " nf4")):
                    continue
                if not number and not single and (group == 32 or form):
                    continue
                constants = fixed | {
                    "BLOCK_M": s.m, "BLOCK_N": s.n, "HALF": group // 2, "PARTS": quantized.parts_of(s, group),
                    "HAS_ZEROS": zeros,
                    "TABLE": tabled, "UNPACK": unpack, "GATED": gated,
                }  # fmt: skip
                weights = s.n * group * constants["PARTS"] * (2 if gated else 1)
                yield Variant(f"w4 few{form} {name} g{group} {number}", few,
                              signature_of(few, pointers, constants, pointer), constants, s.warps, s.stages, ("n",),
                              work={"bytes": weights * (0.5 + 2 / group), "flops": 2 * s.m * weights})  # fmt: skip
    many = KERNELS["four_bits_many"]
    for rows in (64,) if single else (64, 256):
        for form, group in (("", 128), (" zeros", 128), *([("", 256)] if rows == 64 else [])):
            t = quantized.tiles4(rows, group, dtype)
            zeros, tabled, unpack, _ = forms[form]
            constants = fixed | {"BLOCK_M": t.m, "BLOCK_N": t.n, "GROUP": t.group, "HALF": group // 2,
                                 "HAS_ZEROS": zeros, "TABLE": tabled, "UNPACK": unpack}  # fmt: skip
            work = _work(group * (t.n / 2 + t.m * dtype.itemsize), 2 * t.m * t.n * group, t.m)
            yield Variant(f"w4 many{form} {name} g{group} {t.m}x{t.n}", many,
                          signature_of(many, pointers, constants, pointer), constants, t.warps, t.stages, ("n",),
                          work=work)  # fmt: skip


def _eight_bits(name: str, dtype: torch.dtype) -> Iterator[Variant]:
    from .kernels.eight_bits import KERNELS

    pointer = f"*{name}"
    single = dtype == torch.float32
    pointers = {"codes": "*u8", "zeros": "*u8", "table": "*fp32"}
    forms = {"": ("integer", False, False), " grouped zeros": ("integer", True, True), " e4m3": ("float", False, False),
             " table": ("table", False, False)}  # fmt: skip
    fixed = {"BLOCK_K": 64, "PER": 2, "GROUP": 8, "PRECISION": "ieee" if single else "tf32", "EXACT": False}
    few = quantized.EIGHT_FEW_FLOAT32[:1] if single else quantized.EIGHT_FEW
    many = quantized.EIGHT_MANY_FLOAT32[:1] if single else quantized.EIGHT_MANY
    for number, s in enumerate((*few, *many)):
        for form, (kind, zeros, in_groups) in forms.items():
            if form and (single or number not in ((1, 2) if zeros else (1, 3))):
                continue
            constants = fixed | _fused() | {
                "BLOCK_M": s.m, "BLOCK_N": s.n, "KIND": kind, "HAS_ZEROS": zeros, "GROUPED": in_groups,
            }  # fmt: skip
            weights = s.n * 64
            kernel, title = KERNELS["eight_bits_many"], "many"
            if isinstance(s, quantized.Shares):
                kernel, title = KERNELS["eight_bits_few"], "few"
                constants["PARTS"] = s.parts
                weights *= s.parts
            work = _work(weights + (0 if title == "few" else s.m * 64 * dtype.itemsize), 2 * s.m * weights, s.m)
            yield Variant(f"w8 {title}{form} {name} {number % len(few)}", kernel,
                          signature_of(kernel, pointers, constants, pointer), constants, s.warps, s.stages,
                          ("n", "k"), work=work)  # fmt: skip


def _scaled() -> Iterator[Variant]:
    from .kernels.eight_bits import KERNELS

    kernel = KERNELS["scaled"]
    for kind, pointer, least in (("integer", "*i8", 80), ("float", "*fp8e4nv", 90), ("bytes", "*u8", 80)):
        for t in quantized.SCALED:
            for gated, zeros in ((False, False), (True, False), (False, True), (True, True)):
                if (gated and t.m > 16) or (zeros and kind != "integer"):
                    continue
                constants = _fused("silu" if gated else "none") | {
                    "BLOCK_M": t.m, "BLOCK_N": t.n, "BLOCK_K": t.k, "GROUP": t.group, "SPLITS": t.splits, "KIND": kind,
                    "HAS_ZEROS": zeros, "GATED": gated,
                }  # fmt: skip
                pointers = {"x": pointer, "w": pointer, "row_scales": "*fp32", "channel_scales": "*fp32",
                            "row_zeros": "*i8", "channel_sums": "*i32",
                            "y": "*fp32" if t.splits > 1 else "*bf16"}  # fmt: skip
                work = _work(t.k * (t.m + t.n), 2 * t.m * t.n * t.k, t.m)
                form = f"{' gated' if gated else ''}{' zeros' if zeros else ''}"
                yield Variant(f"w8a8 {kind}{form} {t.m}x{t.n}x{t.k}/{t.splits}", kernel,
                              signature_of(kernel, pointers, constants, "*bf16"), constants, t.warps, t.stages,
                              ("n", "k"), least=least, work=work)  # fmt: skip


def _sparse(name: str, dtype: torch.dtype) -> Iterator[Variant]:
    from .kernels.sparse import KERNELS

    pointer = f"*{name}"
    kernel = KERNELS["sparse24"]
    for (kind, weights), rows in itertools.product(_KINDS24.items(), (16,) if dtype == torch.float32 else (16, 64)):
        coded = bool(kind)
        s = sparse.shares_for(rows, dtype, coded=coded)
        constants: dict[str, Any] = {
            "BLOCK_M": s.m, "BLOCK_N": s.n, "PARTS": s.parts, "EXACT": False, **sparse.constants(dtype, weights),
            **_fused(),
        }  # fmt: skip
        pointers = {"values": "*u8" if coded else pointer, "masks": "*u8"}
        quads = 32 * s.n * s.parts
        size = quads * (1.5 if coded else 2 * dtype.itemsize + 0.5)
        title = f"sparse24{kind}{' many' if rows > quantized.FEW else ''} {name}"
        yield Variant(title, kernel, signature_of(kernel, pointers, constants, pointer), constants,
                      s.warps, s.stages, ("n", "blocks", "groups"),
                      work=_work(size, 8 * s.m * quads, s.m))  # fmt: skip
    kernel = KERNELS["expand24"]
    for kind in _KINDS24:
        constants = {"PARTS": 32, "CODES": bool(kind), "HALVES": 2 if kind.endswith("128") else 1}
        pointers = {"values": "*u8" if kind else pointer, "masks": "*u8"}
        yield Variant(f"expand24{kind} {name}", kernel, signature_of(kernel, pointers, constants, pointer), constants,
                      4, 3, ("n", "blocks", "groups"))  # fmt: skip


def _one_row(name: str, dtype: torch.dtype) -> Iterator[Variant]:
    """Products of one row. A size of 1 is a constant to Triton."""
    from .kernels.one_row import CHANNELS, KERNELS

    pointer = f"*{name}"
    kernel = KERNELS["four_bits_row"]
    sixteen = unpacking.SIXTEEN
    forms = {
        "": (False, False, sixteen, False), " zeros": (True, False, sixteen, False),
        " nf4": (False, True, quantized.assembly(dtype, NF4, True), False), " table": (False, True, "", False),
        " gated": (False, False, sixteen, True),
    }  # fmt: skip
    pointers = {"x": "*i64", "codes": "*i32", "zeros": "*u8", "table": "*fp32", "values": pointer, "masks": "*u8"}
    blocks = enumerate(quantized.FOUR_ROW)
    for (number, s), group, (form, (zeros, tabled, unpack, gated)) in itertools.product(blocks, GROUPS, forms.items()):
        if form and (group != 128 or (form == " table" and not number)):
            continue
        constants: dict[str, Any] = {
            "HALF": group // 2, "PARTS": quantized.row_parts(s, group), "HAS_ZEROS": zeros, "TABLE": tabled,
            "UNPACK": unpack, "GATED": gated, "rows": 1, **_fused("silu" if gated else "none"),
        }  # fmt: skip
        weights = CHANNELS * group * constants["PARTS"]
        yield Variant(f"w4 row{form} {name} g{group} {number}", kernel,
                      signature_of(kernel, pointers, constants, pointer), constants, s.warps, s.stages, ("n",),
                      work={"bytes": weights * (0.5 + 2 / group), "flops": 0})  # fmt: skip
    kernel = KERNELS["eight_bits_row"]
    s = quantized.EIGHT_ROW
    eight = {"": ("integer", None, False), " grouped zeros": ("integer", 128, True), " e4m3": ("float", None, False),
             " table": ("table", None, False)}  # fmt: skip
    for form, (kind, in_groups, zeros) in eight.items():
        weights8 = Codes8(_NOTHING, _NOTHING, in_groups, kind)
        constants = {"PARTS": s.parts, "HAS_ZEROS": zeros, "rows": 1, **quantized.row_constants8(weights8), **_fused()}
        yield Variant(f"w8 row{form} {name}", kernel, signature_of(kernel, pointers, constants, pointer), constants,
                      s.warps, s.stages, ("n", "k"),
                      work={"bytes": CHANNELS * 64 * s.parts, "flops": 0})  # fmt: skip
    kernel = KERNELS["sparse24_row"]
    for kind, packed in _KINDS24.items():
        coded = isinstance(packed, Sparse24Codes)
        s = sparse.row_shares(packed)
        constants = {"PARTS": s.parts, "rows": 1, **sparse.row_constants(dtype, packed), **_fused()}
        quads = 32 * CHANNELS * s.parts
        yield Variant(f"sparse24{kind} row {name}", kernel,
                      signature_of(kernel, pointers | ({"values": "*u8"} if coded else {}), constants, pointer),
                      constants, s.warps, s.stages, ("n", "blocks", "groups"),
                      work={"bytes": quads * (1.5 if coded else 4.5), "flops": 0})  # fmt: skip


def _rows() -> Iterator[Variant]:
    from .kernels import epilogues
    from .kernels.rows import KERNELS

    for name in TYPES:
        kernel = epilogues.gate_kernel
        constants: dict[str, Any] = {"GATED": True, "BLOCK_N": 1024} | _fused("silu", bias=False)
        del constants["HAS_BIAS"]
        yield Variant(f"gate {name}", kernel, signature_of(kernel, {}, constants, f"*{name}"), constants, 4, 1, ("n",))
        signature = {"x": f"*{name}", "mean": "*fp32", "scale": "*fp32", "k": "i32", "epsilon": "fp32"}
        yield Variant(f"statistics {name}", KERNELS["statistics"], signature, {"CENTRED": True, "BLOCK": 1024}, 4, 1,
                      ("k",))  # fmt: skip
        for kind, codes, least in (("int8", "*i8", 80), ("e4m3", "*fp8e4nv", 90)):
            signature = {"x": f"*{name}", "codes": codes, "scales": "*fp32", "k": "i32"}
            constants = {"TOP": 127.0 if kind == "int8" else 448.0, "WHOLE": kind == "int8", "BLOCK": 2048}
            yield Variant(f"quantize rows {kind} {name}", KERNELS["quantize_rows"], signature, constants, 4, 1, ("k",),
                          least=least)  # fmt: skip
