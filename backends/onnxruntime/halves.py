"""Numbers that are float16 ones are stored as such, and widened once, when a session is made.

ONNX Runtime's kernels for float inputs take scales in float32 only, which is a fifth of a 4-bit weight in groups of 32.
A ``Cast`` of a constant is computed when the session is made, so nothing changes where the model runs.
"""

from __future__ import annotations

import onnx_ir

from ...ir.graph import Graph
from ...ir.remarks import Remark
from ...ir.rewrite import Editor
from ...ir.weights import Widened

RULE = "float16 numbers are stored in 16 bits"


def store_halves(graph: Graph) -> list[Remark]:
    """Put a ``Cast`` over the halves of each :class:`~..ir.weights.Widened` initializer."""
    edit = Editor(graph, RULE)
    found = [v for v in list(graph.graph.initializers.values()) if isinstance(v.const_value, Widened) and v.uses()]
    saved = 0
    for value in found:
        tensor = value.const_value
        assert isinstance(tensor, Widened)
        saved += int(tensor.base.nbytes)
        edit.at(next(iter(graph.graph)))
        half = edit.initializer(tensor.base, f"{value.name}.half")
        wide = edit.op(
            "Cast", [half], {"to": int(onnx_ir.DataType.FLOAT)}, dtype=value.dtype, shape=value.shape,
            hint=f"{value.name}.wide",
        )  # fmt: skip
        for use in list(value.uses()):
            use.node.replace_input_with(use.idx, wide)
        edit.drop_initializer(value)
    if not found:
        return []
    text = f"{len(found)} tensors of float16 numbers stored in 16 bits, widened when a session is made"
    return [Remark("applied", "", text, {"bytes_saved": saved})]
