"""The last step before writing: standard operators become what the target runs best, or what it runs at all."""

from __future__ import annotations

from typing import Literal

from ...ir.errors import OptionError, nearest
from ...ir.excerpt import Clock
from ...ir.graph import Graph
from ...ir.outline import inline_all
from ...ir.remarks import Remark
from .activation import approximate_rounded, lower_activations
from .attention import lower_attention
from .attention_kernels import choose_attention
from .choice import Choices
from .codebook import lower_codebook
from .concatenated import lower_concatenated
from .halves import store_halves
from .integer import lower_integer
from .legality import check, nonstandard
from .nbits import lower_quantized
from .normalization import lower_residual_norms
from .products import choose_products
from .rows import flatten_rows
from .transposes import fold_transposes
from .unpadded import lower_unpadded
from .zero_points import write_zero_points

Target = Literal["onnxruntime", "onnx"]
TARGETS = ("onnxruntime", "onnx")


def lower(graph: Graph, target: str = "onnxruntime", clock: Clock | None = None) -> list[Remark]:
    """Rewrite ``graph`` in place for a target.

    Args:
        graph: after the passes; weights stay unread, those of int8 products excepted.
        target: ``onnxruntime`` (contrib operators of the installed build allowed) or ``onnx`` (standard operators
            only: the file passes ``onnx.checker`` and runs in ``onnx.reference``).
        clock: takes the time of kernels that could do the same, and the faster one is taken; without it, or where it
            does not know, a rule of thumb decides.

    Returns:
        Every choice made, and every non-standard operator used.

    Raises:
        OptionError: unknown target.
        UnsupportedError: an operator has no kernel in the installed build, or no standard form.
    """
    if target not in TARGETS:
        raise OptionError(f"unknown target {target!r}", where="target", fix=nearest(str(target), TARGETS))
    if target == "onnx":
        from .portable import lower_portable

        remarks = lower_portable(graph)
        remarks += fold_transposes(graph)
        return remarks
    remarks = []
    # The patterns below are looked for in the main graph: a block would hide its products and normalizations.
    if calls := inline_all(graph):
        remarks.append(Remark("applied", "", f"{calls} fused blocks written out: this runtime chooses its own kernels"))
    remarks += lower_integer(graph)
    remarks += lower_quantized(graph)
    remarks += lower_codebook(graph)
    remarks += fold_transposes(graph)
    remarks += lower_attention(graph)
    remarks += flatten_rows(graph)
    choices = Choices(graph, clock)
    remarks += choose_attention(graph, choices)
    remarks += lower_residual_norms(graph, choices)
    remarks += approximate_rounded(graph)
    remarks += lower_activations(graph, choices)
    remarks += choose_products(graph, choices)
    remarks += lower_concatenated(graph, choices)
    remarks += lower_unpadded(graph)  # last of what looks for attention: it is inside of other graphs then
    write_zero_points(graph)
    remarks += choices.remarks
    remarks += check(graph)
    remarks += store_halves(graph)
    for name, count in sorted(nonstandard(graph).items()):
        remarks.append(Remark("applied", "", f"non-standard operator {name} used {count} times", {name: count}))
    return remarks
