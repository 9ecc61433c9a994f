"""Which keys a query may attend to, as rules on their positions, and the operators that decide it.

With the distance r = i - j of query i and key j:

- ``window``: |r| < window (Beltagy et al. 2020, Longformer, figure 2b);
- ``dilated``: |r| < window * dilation, and r is a multiple of the dilation (figure 2c);
- ``block_local``: i and j lie in the same block (Qiu et al. 2020, blockwise self-attention, without permutation);
- ``strided``: |r| < window, or r is a multiple of the window (Child et al. 2019, Sparse Transformer, section 4.3);
- ``fixed``: the same block, or j lies in the last ``summary`` positions of its block (the same, second pattern).

The first ``global_tokens`` are seen by all and see all (Longformer, figure 2d).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import onnx_ir

from ...ir.errors import OptionError
from ...ir.rewrite import Editor

Array = np.ndarray[Any, Any]
Kind = Literal["window", "dilated", "block_local", "strided", "fixed"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class Pattern:
    """A rule, and its numbers.

    Attributes:
        kind: see above.
        window: tokens to either side, itself included; the size of a block for ``block_local`` and ``fixed``.
        dilation: of ``dilated``.
        summary: of ``fixed``.
        global_tokens: at the beginning.

    Raises:
        OptionError: a number makes no sense.
    """

    kind: Kind
    window: int
    dilation: int = 1
    summary: int = 1
    global_tokens: int = 0

    def __post_init__(self) -> None:
        where = "sparse_attention"
        if self.kind not in KINDS:
            raise OptionError(f"there is no pattern {self.kind!r}", where=where, fix=f"use {', '.join(KINDS)}")
        for name in ("window", "dilation", "summary"):
            if getattr(self, name) < 1:
                raise OptionError(f"{name}={getattr(self, name)} is not positive", where=where, fix="use 1 or more")
        if self.kind != "dilated" and self.dilation != 1:
            raise OptionError(f"dilation has no effect on {self.kind}", where=where, fix="use pattern=dilated")
        if self.kind == "fixed" and self.summary > self.window:
            raise OptionError("summary is larger than a block", where=where, fix="make it at most the window")
        if self.global_tokens < 0:
            raise OptionError(f"global_tokens={self.global_tokens} is negative", where=where, fix="use 0 or more")

    def allows(self, query: Array, key: Array) -> Array:
        """Whether the query at a position may attend to the key at another; arrays that broadcast."""
        distance = query - key
        if self.kind in ("window", "dilated"):
            near = np.abs(distance) < self.window * self.dilation
            result = near & (distance % self.dilation == 0)
        elif self.kind == "strided":
            result = (np.abs(distance) < self.window) | (distance % self.window == 0)
        else:
            result = query // self.window == key // self.window
            if self.kind == "fixed":
                result = result | (key % self.window >= self.window - self.summary)
        return np.asarray(result | (key < self.global_tokens) | (query < self.global_tokens))

    def insert(self, edit: Editor, query: onnx_ir.Value, key: onnx_ir.Value) -> onnx_ir.Value:
        """The operators that compute :meth:`allows` of int64 positions, without the global tokens."""

        def number(value: int) -> onnx_ir.Value:
            return edit.ints(value, "number")

        def multiple(value: onnx_ir.Value, of: int) -> onnx_ir.Value:
            return edit.op("Equal", [edit.op("Mod", [value, number(of)]), number(0)])

        distance = edit.op("Sub", [query, key])
        near = edit.op("Less", [edit.op("Abs", [distance]), number(self.window * self.dilation)])
        if self.kind in ("window", "dilated"):
            return near if self.dilation == 1 else edit.op("And", [near, multiple(distance, self.dilation)])
        if self.kind == "strided":
            return edit.op("Or", [near, multiple(distance, self.window)])
        blocks = [edit.op("Div", [value, number(self.window)]) for value in (query, key)]
        same = edit.op("Equal", blocks)
        if self.kind == "block_local":
            return same
        place = edit.op("Mod", [key, number(self.window)])
        last = edit.op("GreaterOrEqual", [place, number(self.window - self.summary)])
        return edit.op("Or", [same, last])

    def block(self) -> int | None:
        """The size of the blocks that attention is computed by; None if the pattern reaches back without bound."""
        if self.kind == "block_local":
            return self.window
        if self.kind in ("window", "dilated"):
            reach = self.window * self.dilation
            # Small blocks compute little more than what is wanted; large ones make large products.
            return next(size for size in (16, 32, 64, 128) if 4 * size >= reach or size == 128)
        return None

    def offsets(self, causal: bool) -> Sequence[int]:
        """Blocks that a block of queries attends to, relative to its own."""
        size = self.block()
        if self.kind == "block_local" or size is None:
            return [0]
        reach = -(-(self.window * self.dilation - 1) // size)
        return list(range(-reach, 1 if causal else reach + 1))
