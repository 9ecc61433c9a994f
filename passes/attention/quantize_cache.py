"""``QuantizeCache``: what a decoder remembers of each token, in 8 or 4 bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir

from ...ir.errors import OptionError
from ...ir.graph import Graph, attribute, dims, is_op, module_path
from ...ir.rewrite import Editor
from ..base import Context, Outcome, Pass, Stage
from ..statistics import AbsMax
from .cache_codes import LARGEST, Array, cache_scales, restored, rounded

RULE = "quantize cache"
_MARGIN_4 = 0.7


@dataclass(frozen=True)
class _Cache:
    """Keys or values of one layer: ``joined = Concat(past, new)``, read by attention and given back."""

    past: onnx_ir.Value
    new: onnx_ir.Value
    joined: onnx_ir.Value
    attention: onnx_ir.Node
    heads: int
    size: int


@dataclass(frozen=True)
class QuantizeCache(Pass):
    """Keep keys and values as integers with fixed scales.

    The scales are the largest magnitudes on the calibration inputs, or, without any, on sequences of random tokens.
    ``generate`` then runs ``GroupQueryAttention`` on the integers; the general graph restores them at each step.

    Attributes:
        bits: 8, or 4: half the size again, and a loss that shows.
        granularity: ``channel``: a scale for each channel of each head; ``tensor``: one for all keys and one for all
            values of a layer, which the kernel reads up to twice as fast and which rounds coarser. ``auto`` takes the
            first where there are calibration inputs or 4 bits, else the second: random tokens say too little of a
            single channel (perplexity of SmolLM2-135M: 1.0005 by channels on text, 1.021 by channels and 1.001 by
            tensors on random tokens).
        margin: where the codes end, as a factor of the largest magnitude seen; 1 for 8 bits and 0.7 for 4 if not given
            (with so few codes, cutting off the largest costs less than coarse steps: 1.12 against 1.17).
    """

    stage = Stage.FUSE  # it changes nothing that another pass looks at, and may follow any preset
    changes_inputs = True
    bits: int = 8
    granularity: Literal["auto", "channel", "tensor"] = "auto"
    margin: float | None = None

    def __post_init__(self) -> None:
        if self.bits not in LARGEST:
            raise OptionError(f"bits={self.bits} is no size of a cache", where="quantize_cache", fix="use 8 or 4")
        if self.granularity not in ("auto", "channel", "tensor"):
            raise OptionError(
                f"granularity={self.granularity!r} is not known",
                where="quantize_cache",
                fix="use auto, channel or tensor",
            )
        if self.bits == 4 and self.granularity == "tensor":
            raise OptionError(
                "one scale for a whole tensor is too coarse for 4 bits", where="quantize_cache", fix="use channel"
            )
        if self.margin is not None and not 0 < self.margin < np.inf:
            raise OptionError(
                f"margin={self.margin} is no factor", where="quantize_cache", fix="use 1, or a little more"
            )

    def run(self, graph: Graph, context: Context) -> Outcome:
        """Rewrite the caches of the main graph in place."""
        outcome = Outcome()
        caches: list[_Cache] = []
        attentions = [node for node in graph.graph if is_op(node, "Attention")]
        for node in attentions:
            for index, what in ((1, "keys"), (2, "values")):
                found = _cache(node, index, self.bits)
                if isinstance(found, str):
                    outcome.missed(module_path(node), f"its {what} stay as they are: {found}")
                else:
                    caches.append(found)
        if not caches:
            why = "attention keeps no cache" if attentions else "there is no attention"
            outcome.skipped("", f"no cache was quantized: {why}")
            return outcome
        largest = _largest(graph, caches, context)
        edit = Editor(graph, RULE)
        granularity = self.granularity
        if granularity == "auto":
            granularity = "channel" if context.has_calibration or self.bits == 4 else "tensor"
        margin = self.margin or (1.0 if self.bits == 8 else _MARGIN_4)
        for cache, peak in zip(caches, largest, strict=True):
            self._rewrite(edit, cache, cache_scales(peak * margin, self.bits, granularity), graph)
        outcome.count(RULE, len(caches))
        source = (
            "the calibration inputs" if context.has_calibration else "random tokens: no calibration inputs were given"
        )
        per_token = sum(cache.heads * cache.size for cache in caches) * self.bits // 8
        outcome.applied(
            "",
            f"{len(caches)} caches in {self.bits} bits, {per_token} bytes a token; "
            f"a scale a {granularity}, from {source}",
            bytes_per_token=per_token,
        )
        return outcome

    def _rewrite(self, edit: Editor, cache: _Cache, scales: Array, graph: Graph) -> None:
        name, given = cache.past.name or "past", cache.joined.name
        first = next(iter(graph.graph))
        readers = [(use.node, use.idx) for use in cache.past.uses()]
        size = cache.size if self.bits == 8 else cache.size // 2
        kind = onnx_ir.DataType.INT8 if self.bits == 8 else onnx_ir.DataType.UINT8
        before = cache.past.shape
        cache.past.dtype = kind
        cache.past.shape = None if before is None else onnx_ir.Shape([*before[:3], size])
        edit.at(first, [cache.attention])
        plain = restored(edit, cache.past, scales, self.bits, name)
        plain.dtype, plain.shape = onnx_ir.DataType.FLOAT, before
        for node, index in readers:
            if not is_op(node, "Shape"):  # the length is that of the codes, too
                node.replace_input_with(index, plain)
        edit.at(None, [cache.attention])
        codes = rounded(edit, cache.joined, scales, self.bits, name)
        shape = cache.joined.shape
        place = list(graph.graph.outputs).index(cache.joined)
        cache.joined.name = f"{given}.restored"
        codes.name, codes.dtype = given, kind
        codes.shape = None if shape is None else onnx_ir.Shape([*shape[:3], size])
        graph.graph.outputs[place] = codes


def _cache(node: onnx_ir.Node, index: int, bits: int) -> _Cache | str:
    joined = node.inputs[index] if len(node.inputs) > index else None
    concat = None if joined is None else joined.producer()
    if joined is None or concat is None or not is_op(concat, "Concat") or len(concat.inputs) != 2:
        return "no cache is joined to them"
    past, new = concat.inputs
    if attribute(concat, "axis") not in (2, -2) or past is None or new is None or not past.is_graph_input():
        return "their cache is no input of the graph"
    if not joined.is_graph_output():
        return "they are not given back"
    if past.dtype != onnx_ir.DataType.FLOAT:
        return f"the cache is of {'an unknown type' if past.dtype is None else past.dtype.name}, not float32"
    shape = dims(past) or ()
    if len(shape) != 4 or not isinstance(shape[1], int) or not isinstance(shape[3], int):
        return "heads of unknown number or size"
    if bits == 4 and shape[3] % 2:
        return f"heads of odd size {shape[3]}"
    return _Cache(past, new, joined, node, shape[1], shape[3])


def _largest(graph: Graph, caches: list[_Cache], context: Context) -> list[Array]:
    """max |x| of each channel of each head, [heads, size], by cache."""
    edit = Editor(graph, RULE)
    flat = []
    for cache in caches:
        edit.at(cache.joined.producer(), [cache.attention])
        turned = edit.op("Transpose", [cache.new], {"perm": [0, 2, 1, 3]})
        flat.append(edit.op("Reshape", [turned, edit.ints([0, 0, cache.heads * cache.size], "flat")]))
    try:
        found = context.statistics(flat, AbsMax(), made_up=True)
        names = [value.name or "" for value in flat]
        return [found[name].reshape(c.heads, c.size) for name, c in zip(names, caches, strict=True)]
    finally:
        edit.sweep([node for value in flat if (node := value.producer()) is not None])
