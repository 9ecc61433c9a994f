"""``CompensateLowRank``: two small products beside each quantized one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir

from ...ir.errors import OptionError
from ...ir.graph import Graph, is_op, module_path, tensor_of
from ...ir.rewrite import Editor
from .. import selectors
from ..base import Context, Outcome, Pass, Stage
from ..precise import PRECISE
from ..statistics import Hessian
from . import beside
from .methods import gptq, lowrank, rtn
from .methods.rtn import Array

RULE = "compensate by low rank"


@dataclass(frozen=True)
class CompensateLowRank(Pass):
    """Add the largest singular vectors of the rounding error beside each quantized product (LoRC, Yao et al. 2024).

    Runs after ``Quantize`` in the same list of passes, for the original weights are needed. With calibration inputs the
    vectors are those that matter for the outputs on them.

    Attributes:
        rank: of the correction: ``rank (n + k)`` float weights are added to ``n k`` rounded ones.
        include: selectors of products; all quantized ones if empty.
        exclude: selectors of products to leave alone.

    Raises:
        OptionError: ``rank`` is not positive.
        SelectorError: a malformed selector, or (when run) one that matches nothing.
    """

    stage = Stage.QUANTIZE
    rank: int = 8
    include: str | Sequence[str] = ()
    exclude: str | Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise OptionError(f"rank={self.rank!r} is not positive", where="CompensateLowRank", fix="use 8 or 16")
        for name in ("include", "exclude"):
            value = getattr(self, name)
            object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(value))
            selectors.parse_all(getattr(self, name))

    def run(self, graph: Graph, context: Context) -> Outcome:
        """Add to every selected product by a weight that ``Quantize`` rounded."""
        outcome, edit = Outcome(), Editor(graph, RULE)
        include, exclude = selectors.parse_all(self.include), selectors.parse_all(self.exclude)
        places = [(node, source) for node in graph.graph if (source := _dequantized(node)) is not None]
        selectors.require_matches([*include, *exclude], [node for node, _ in places], "quantized products")
        chosen = []
        for node, source in places:
            if (include and selectors.first(include, node) is None) or selectors.first(exclude, node) is not None:
                continue
            if PRECISE in node.metadata_props:
                continue
            if beside.ORIGINAL not in source.meta:
                outcome.missed(module_path(node), "what its weight was before rounding is not known")
            else:
                chosen.append((node, source))
        values = {node.inputs[0]: None for node, _ in chosen if node.inputs[0] is not None}
        observed = [v for v in values if v.shape is not None and isinstance(v.shape[-1], int) and tensor_of(v) is None]
        hessians = context.statistics(observed, Hessian()) if context.has_calibration and observed else {}
        for done, (node, source) in enumerate(chosen):
            context.progress(done, len(chosen), RULE)
            x = node.inputs[0]
            assert x is not None
            self._one(edit, outcome, node, source, hessians.get(x.name or ""))
        if not chosen:
            outcome.skipped("", "no product by a quantized weight is selected: put quantize before it")
        return outcome

    def _one(
        self, edit: Editor, outcome: Outcome, node: onnx_ir.Node, source: onnx_ir.Node, hessian: Array | None
    ) -> None:
        original, layout = source.meta[beside.ORIGINAL]
        before, after = rtn.as_float32(original.numpy()), restored(source)
        error = before - after if layout == "nk" else (before - after).T
        n, k = error.shape
        rank = min(self.rank, k)
        first, second = lowrank.factors(error, hessian, rank)
        dtype = original.dtype.numpy()
        beside.low_rank(edit, node, first.astype(dtype), second.astype(dtype))
        outcome.count(RULE)
        figures = {}
        if hessian is not None and (lost := gptq.output_error(error, hessian)) > 0:
            left = gptq.output_error(error - (first @ second).T, hessian)
            figures["error_left"] = float(f"{left / lost:.3g}")
        more = rank * (n + k) * int(original.dtype.itemsize)
        outcome.applied(module_path(node), f"products of rank {rank} beside it", rank=rank, added_bytes=more, **figures)


def _dequantized(node: onnx_ir.Node) -> onnx_ir.Node | None:
    """The ``DequantizeLinear`` of a constant that a product multiplies by, perhaps behind a ``Transpose``."""
    if not is_op(node, "MatMul", "Gemm"):
        return None
    value = node.inputs[1]
    source = None if value is None else value.producer()
    while source is not None and is_op(source, "Transpose") and source.inputs[0] is not None:
        source = source.inputs[0].producer()
    return source if source is not None and is_op(source, "DequantizeLinear") and tensor_of(source.inputs[0]) else None


def restored(source: onnx_ir.Node) -> Array:
    """The matrix that a ``DequantizeLinear`` of constants makes, float32."""
    codes, scales, zeros = (tensor.numpy() for value in source.inputs if (tensor := tensor_of(value)) is not None)
    axis = source.attributes["axis"].as_int()
    block = source.attributes.get("block_size")
    spread = [array.astype(np.float32) for array in (scales, zeros)]
    if block is not None:
        size = codes.shape[axis]
        spread = [np.repeat(array, block.as_int(), axis=axis).take(range(size), axis=axis) for array in spread]
    else:
        shape = [1, 1]
        shape[axis] = -1
        spread = [array.reshape(shape) for array in spread]
    result: Array = (codes.astype(np.float32) - spread[1]) * spread[0]
    return result
