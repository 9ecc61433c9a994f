"""Kernels of attention, rotary positions and caches in each type and with each of their block sizes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from . import attention
from .aot import Variant
from .variants import TYPES, product_variants

_FLOATS = ("scale", "soft_cap")
_FORMS: dict[str, dict[str, bool]] = {
    "": {},
    " causal": {"CAUSAL": True},
    " window": {"CAUSAL": True, "WINDOWED": True},
    " bias lengths": {"HAS_BIAS": True, "HAS_LENGTHS": True},
    " mask": {"HAS_BIAS": True},
    " blocks": {"HAS_BLOCKS": True},
}


def variants() -> Iterator[Variant]:
    """Every kernel in a template."""
    yield from product_variants()
    yield from attention_variants()


def attention_variants() -> Iterator[Variant]:
    """Those of attention, of rotary positions and of caches."""
    for name, dtype in TYPES.items():
        for width in (64, 128, 256):
            yield from _attention(name, dtype, width)
            yield from _decoding(name, dtype, width)
        yield from _rope(name)


def _arguments(kernel: Any, pointers: dict[str, str], constants: dict[str, Any], pointer: str) -> dict[str, str]:
    tensors = {
        "q", "k", "v", "y", "bias", "block_mask", "lengths_q", "lengths_k", "lengths", "parts", "sums", "k_scales",
        "v_scales", "qkv", "cos", "sin", "positions", "slots", "k_cache", "v_cache",
    }  # fmt: skip
    return {
        name: pointers.get(name, pointer) if name in tensors else "fp32" if name in _FLOATS else "i32"
        for name in kernel.arg_names if name not in constants
    }  # fmt: skip


def _strides(*tensors: str) -> tuple[str, ...]:
    return tuple(f"{tensor}_{axis}" for tensor in tensors for axis in ("batch", "head", "row"))


def _attention(name: str, dtype: torch.dtype, width: int) -> Iterator[Variant]:
    from .kernels.attention import KERNELS

    kernel = KERNELS["attention"]
    single = dtype == torch.float32
    hopper = [(form, True) for form in ("", " causal") if not single and width <= 128]
    for form, on_hopper in [*((form, False) for form in _FORMS), *hopper]:
        if form and (width != 128 or single) and form not in (" causal", " mask"):
            continue
        flags = _FORMS[form]
        b = attention.blocks_for(width, dtype, hopper=on_hopper, biased="HAS_BIAS" in flags)
        constants: dict[str, Any] = dict.fromkeys(
            ("CAUSAL", "WINDOWED", "HAS_BIAS", "HAS_BLOCKS", "HAS_LENGTHS", "SOFT_CAP", "EXACT"), False
        )
        constants |= flags | {"BLOCK_M": b.m, "BLOCK_N": b.n, "BLOCK_D": width, "BLOCK_V": width,
                              "PRECISION": "ieee" if single else "tf32"}  # fmt: skip
        pointers = {"block_mask": "*u8", "lengths_q": "*i32", "lengths_k": "*i32"}
        if form == " mask":
            pointers["bias"] = "*u8"
        work = {"cached": 2 * b.n * width * dtype.itemsize, "flops": 4 * b.m * b.n * width}
        title = f"attention{' hopper' if on_hopper else ''}{form} {name} d{width}"
        least = 90 if on_hopper else 80
        yield Variant(title, kernel, _arguments(kernel, pointers, constants, f"*{name}"), constants, b.warps, b.stages,
                      ("d", "d_v", *_strides("q", "k", "v", "y")), least=least, work=work)  # fmt: skip


def _decoding(name: str, dtype: torch.dtype, width: int) -> Iterator[Variant]:
    from .kernels.attention import KERNELS

    single = dtype == torch.float32
    kernel = KERNELS["decoding"]
    for form in ("", " int8", " mask"):
        b = attention.blocks_for(width, dtype, few=True, integers=form == " int8")
        constants: dict[str, Any] = dict.fromkeys(("WINDOWED", "SOFT_CAP", "EXACT"), False)
        # A size of 1 is a constant to Triton: another way through its compiler.
        constants |= {"BLOCK_M": b.m, "BLOCK_N": b.n, "BLOCK_D": width, "BLOCK_V": width, "SPLITS": 8, "queries": 1,
                      "HAS_LENGTHS": form != " mask", "HAS_BIAS": form == " mask", "INTEGERS": form == " int8",
                      "PRECISION": "ieee" if single else "tf32"}  # fmt: skip
        cache = "*i8" if form == " int8" else f"*{name}"
        pointers = {"k": cache, "v": cache, "parts": "*fp32", "sums": "*fp32", "lengths": "*i32", "k_scales": "*fp32",
                    "v_scales": "*fp32", "bias": "*u8"}  # fmt: skip
        work = {"bytes": 2 * b.n * width * (1 if form == " int8" else dtype.itemsize), "flops": 4 * b.m * b.n * width}
        yield Variant(f"decoding{form} {name} d{width}", kernel, _arguments(kernel, pointers, constants, f"*{name}"),
                      constants, b.warps, b.stages, ("d", "d_v", *_strides("k", "v")), work=work)  # fmt: skip
    constants = {"SPLITS": 8, "BLOCK_V": width}
    kernel = KERNELS["combine"]
    pointers = {"parts": "*fp32", "sums": "*fp32"}
    yield Variant(f"combine {name} d{width}", kernel, _arguments(kernel, pointers, constants, f"*{name}"), constants,
                  2, 1, ("d_v",))  # fmt: skip


def _rope(name: str) -> Iterator[Variant]:
    from .kernels.rope import KERNELS

    kernel = KERNELS["rope_cache"]
    for form, cache in (("", f"*{name}"), (" int8", "*i8")):
        constants: dict[str, Any] = {
            "BLOCK": 64,
            "PAIRS": False,
            "INTEGERS": bool(form),
            "length": 1,
            "IN_ORDER": False,
        }
        pointers = {"cos": "*fp32", "sin": "*fp32", "positions": "*i64", "slots": "*i64", "k_cache": cache,
                    "v_cache": cache, "k_scales": "*fp32", "v_scales": "*fp32"}  # fmt: skip
        yield Variant(f"rope cache{form} {name}", kernel, _arguments(kernel, pointers, constants, f"*{name}"),
                      constants, 1, 1, ("d", "row"))  # fmt: skip
