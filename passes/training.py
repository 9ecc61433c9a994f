"""What the passes that train share: how exactly they compute."""

from __future__ import annotations

from ..ir.errors import OptionError


def check_precision(precision: str, where: str) -> None:
    """Refuse a precision that no training computes in.

    Raises:
        OptionError: it is none of ``auto``, ``float32`` and ``bfloat16``.
    """
    if precision not in ("auto", "float32", "bfloat16"):
        raise OptionError(f"precision={precision!r} does not exist", where=where, fix="use auto, float32 or bfloat16")
