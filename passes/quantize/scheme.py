"""What a product is quantized to, weights and activations; and how users write it down."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ...ir.errors import OptionError, nearest

PER_CHANNEL = 0
"""Group size that stands for one group per output channel."""
_GROUPS = (16, 32, 64, 128, 256)
FORMATS: Mapping[str, tuple[int, bool]] = {"int": (0, False), "nf4": (4, True), "fp8": (8, False)}
"""Number formats of weights: bits of those that have a fixed number, and whether scales are shared by groups."""


@dataclass(frozen=True)
class Activations:
    """How the inputs of products are quantized: 8 bits for each value, with a zero point.

    Attributes:
        granularity: what shares a scale: each ``"token"``, which is one row of the input, or the whole ``"tensor"``.
        dynamic: the scales are computed from the input at hand (by token), not from calibration inputs (by tensor).

    Raises:
        OptionError: there is no kernel for it.
    """

    granularity: str = "token"
    dynamic: bool = True

    def __post_init__(self) -> None:
        if (self.granularity, self.dynamic) not in (("token", True), ("tensor", False)):
            kind = "dynamic" if self.dynamic else "static"
            raise OptionError(
                f"{kind} activations with one scale per {self.granularity} are not supported",
                where="Scheme",
                fix="use dynamic activations with one scale per token, or static ones with one per tensor",
            )

    def __str__(self) -> str:
        when = "" if self.dynamic else " from calibration inputs"
        return f"activations in 8 bits, one scale per {self.granularity}{when}"


@dataclass(frozen=True)
class Scheme:
    """An integer scheme of weights and, for some, of activations.

    Attributes:
        bits: 2, 3, 4 or 8. Codes of 2 and 3 bits are stored in 4, for the 4-bit kernel: they are for weighing methods
            against each other, and for a store that compresses; they save nothing where they run.
        group_size: consecutive weights of one output channel that share a scale: 16, 32, 64, 128 or 256, or 0 for
            all weights of the channel. One that does not divide the channel leaves a shorter last group.
        symmetric: the zero point is the middle of the code range (8 or 128), instead of one chosen for each group.
        activations: how the other operand is quantized; None leaves it in floating point. Static ones need 8-bit
            symmetric weights with one scale per channel. Dynamic ones take these, too, or 4- or 8-bit weights in groups
            (ZeroQuant, Yao et al. 2022): ONNX Runtime's kernel for groups rounds its input itself.
        format: ``"int"``; ``"nf4"`` (4 bits, Dettmers et al. 2023) or ``"fp8"`` (float8_e4m3fn, one scale per channel).
        offsets: each group has an offset in floating point beside its scale, instead of a zero point chosen among the
            codes (HQQ's zero points, llama.cpp's Q4_1); needs the middle code, so ``symmetric``. See :mod:`.offsets`.
        float_inputs: products take their inputs as they are. ONNX Runtime's fast kernel for groups rounds them to 8
            bits a block, with weights of 4 bits and of 8; the one that does not is two to five times slower, and for 8
            bits so much slower that there is none to be had.
        half_scales: scales and offsets are float16 numbers, and stored as such, whatever type the weights had. The
            kernel still multiplies by float32 ones, which a session makes of them when it is made.

    Raises:
        OptionError: no kernel takes this scheme.
    """

    bits: int
    group_size: int
    symmetric: bool
    activations: Activations | None = None
    format: str = "int"
    offsets: bool = False
    float_inputs: bool = False
    half_scales: bool = False

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise OptionError(f"there is no format {self.format!r}", where="Scheme", fix=nearest(self.format, FORMATS))
        if self.bits not in (2, 3, 4, 8) or isinstance(self.bits, bool):
            raise OptionError(f"bits={self.bits!r} is not supported", where="Quantize", fix="use 2, 3, 4 or 8 bits")
        if self.group_size == -1:
            object.__setattr__(self, "group_size", PER_CHANNEL)
        if self.group_size != PER_CHANNEL and self.group_size not in _GROUPS:
            raise OptionError(
                f"group_size={self.group_size!r} is taken by no kernel",
                where="Quantize",
                fix=f"use one of {', '.join(map(str, _GROUPS))}, or 0 for one group per channel",
            )
        if not isinstance(self.symmetric, bool):
            raise OptionError(
                f"symmetric={self.symmetric!r} is not a yes or no", where="Quantize", fix="use True or False"
            )
        if self.offsets and (not self.symmetric or self.activations is not None or self.format != "int"):
            raise OptionError(
                "offsets take the place of zero points of integer weights, beside activations in floating point",
                where="Quantize",
                fix="leave out symmetric=False, or offsets; schemes that take offsets are w4a16 and w8a16",
            )
        if self.float_inputs and (self.stored_bits != 4 or self.activations is not None or self.format != "int"):
            raise OptionError(
                f"no kernel takes inputs in floating point and weights in {self._weights()} at a bearable speed"
                if self.activations is None else "float_inputs contradicts activations in 8 bits",
                where="Quantize", fix="use 4 bits, or leave out float_inputs",
            )  # fmt: skip
        if self.half_scales and not self.takes_half_scales:
            raise OptionError(
                "half_scales is for integer weights beside inputs that the graph leaves in floating point",
                where="Quantize", fix="leave it out",
            )  # fmt: skip
        if self.format != "int":
            self._check_format()
        elif self.activations is not None and not self._multiplies(self.activations):
            raise OptionError(
                f"no kernel multiplies int8 activations by weights in {self._weights()}",
                where="Quantize",
                fix='use the scheme "w8a8", "w8a8_static", "w4a8" or "w8a8_groups" as it is',
            )

    def _multiplies(self, activations: Activations) -> bool:
        if (self.bits, self.group_size, self.symmetric) == (8, PER_CHANNEL, True):
            return True
        return activations.dynamic and self.bits in (4, 8) and self.group_size != PER_CHANNEL

    def _check_format(self) -> None:
        bits, groups = FORMATS[self.format]
        grouped = self.group_size != PER_CHANNEL
        if (self.bits, grouped, self.symmetric, self.activations) != (bits, groups, True, None):
            shape = "groups" if groups else "one scale per channel"
            raise OptionError(
                f"the format {self.format!r} has {bits} bits, symmetric, {shape}, and no quantized activations",
                where="Quantize",
                fix=f'use the scheme "{self.format}" as it is, or another group size'
                if groups
                else f'use the scheme "{self.format}" as it is',
            )

    @property
    def by_kernel(self) -> bool:
        """Whether the kernel of the product rounds the other operand itself, in groups."""
        return self.activations is not None and self.group_size != PER_CHANNEL

    @property
    def is_fine(self) -> bool:
        """Whether rounding to nearest leaves so little error that no other way of rounding has anything to gain."""
        return self.bits == 8 and self.group_size != PER_CHANNEL and self.activations is None

    @property
    def takes_half_scales(self) -> bool:
        """Whether scales may be float16 numbers where the weights were float32 ones."""
        return self.format == "int" and (self.activations is None or self.by_kernel)

    @property
    def levels(self) -> int:
        """Number of codes."""
        return 1 << self.bits

    @property
    def stored_bits(self) -> int:
        """Bits that a code takes in the file and in memory: those of the kernel that reads it."""
        return 8 if self.bits == 8 else 4

    def group(self, channel: int) -> int:
        """Weights in a (full) group of a channel of ``channel`` weights."""
        return channel if self.group_size == PER_CHANNEL else self.group_size

    def groups(self, channel: int) -> int:
        """Groups in a channel of ``channel`` weights."""
        return -(-channel // self.group(channel))

    def __str__(self) -> str:
        inputs = f", {self.activations}" if self.activations else ", inputs as they are" if self.float_inputs else ""
        return f"{self._weights()}{inputs}"

    def _weights(self) -> str:
        group = "channel" if self.group_size == PER_CHANNEL else f"group of {self.group_size}"
        if self.format != "int":
            return f"{self.format.upper()}, one scale per {group}"
        if self.offsets:
            return f"{self.bits}-bit, one scale and one offset per {group}"
        return f"{self.bits}-bit {'symmetric' if self.symmetric else 'asymmetric'}, one scale per {group}"


# Group 64 divides the widths of nearly all models (128 would pad SmolLM2's 576 to 640). Measured on SmolLM2-135M at
# 4 bits, group 64: perplexity 22.88 asymmetric, 22.95 symmetric (float32: 14.62); asymmetric costs 0.07 bits a weight.
NAMED: Mapping[str, Scheme] = {
    "w4a16": Scheme(bits=4, group_size=64, symmetric=False),
    "w8a16": Scheme(bits=8, group_size=64, symmetric=False),
    "w8a8": Scheme(bits=8, group_size=PER_CHANNEL, symmetric=True, activations=Activations()),
    "w8a8_static": Scheme(
        bits=8, group_size=PER_CHANNEL, symmetric=True, activations=Activations("tensor", dynamic=False)
    ),
    "w8a8_groups": Scheme(bits=8, group_size=64, symmetric=True, activations=Activations()),
    "w4a8": Scheme(bits=4, group_size=64, symmetric=False, activations=Activations()),
    "nf4": Scheme(bits=4, group_size=64, symmetric=True, format="nf4"),
    "fp8": Scheme(bits=8, group_size=PER_CHANNEL, symmetric=True, format="fp8"),
}
"""Schemes by their usual short names: bits of weights and of activations."""


def resolve(
    name: str,
    *,
    bits: int | None = None,
    group_size: int | None = None,
    symmetric: bool | None = None,
    offsets: bool | None = None,
    float_inputs: bool | None = None,
    half_scales: bool | None = None,
) -> Scheme:
    """The scheme called ``name`` with the given fields changed.

    Raises:
        OptionError: unknown name, or a field that no kernel takes.
    """
    if name not in NAMED:
        raise OptionError(f"unknown quantization scheme {name!r}", where="Quantize", fix=nearest(str(name), NAMED))
    scheme = NAMED[name]
    if bits is not None and bits != scheme.bits and scheme.activations is None and scheme.format == "int":
        scheme = NAMED.get(f"w{bits}a16", scheme)
    changes: dict[str, Any] = {
        "bits": bits, "group_size": group_size, "symmetric": symmetric, "offsets": offsets,
        "float_inputs": float_inputs, "half_scales": half_scales,
    }  # fmt: skip
    return _changed(scheme, {field: value for field, value in changes.items() if value is not None})


def _changed(scheme: Scheme, changes: Mapping[str, Any]) -> Scheme:
    """``scheme`` with other fields; offsets bring the middle code with them, and take it away again."""
    implied: dict[str, Any] = {}
    if "offsets" in changes and changes["offsets"] != scheme.offsets:
        implied["symmetric"] = bool(changes["offsets"])
    return replace(scheme, **(implied | dict(changes)))


_FIELDS = ("bits", "group_size", "symmetric", "offsets", "float_inputs", "half_scales")


def override(base: Scheme, change: Any) -> Scheme | None:
    """``base`` changed as an override says: a scheme name, a mapping of fields, or None / ``"float"`` to leave it.

    Raises:
        OptionError: the override is neither, names an unknown field, or a scheme no kernel takes.
    """
    if change is None or change == "float":
        return None
    if isinstance(change, Scheme):
        return change
    if isinstance(change, str):
        return resolve(change)
    if isinstance(change, Mapping):
        unknown = set(change) - set(_FIELDS)
        if unknown:
            raise OptionError(
                f"unknown field {sorted(unknown)[0]!r} in an override",
                where="Quantize(overrides=...)",
                fix=nearest(sorted(unknown)[0], _FIELDS),
            )
        return _changed(base, change)
    raise OptionError(
        f"{change!r} is not an override",
        where="Quantize(overrides=...)",
        fix="give a scheme name, a mapping such as {'bits': 8}, or 'float'",
    )
