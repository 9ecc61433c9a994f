"""Which operators may stand in a graph: domains, and what each domain asks for.

===============  =====================================================================================================
``""``           ONNX operators of the graph's opset.
``com.microsoft``  ONNX Runtime's own, once the graph is lowered; before that only what an imported file came with.
``aten``         an ATen operator that no rule translates, kept whole; not in a lowered graph.
``burnish``      our operators: each is a function of the model with a body of standard operators.
others           came with an imported file and pass untouched.
===============  =====================================================================================================
"""

from __future__ import annotations

from functools import lru_cache

import onnx
import onnx_ir

from .graph import RULE, Graph

ONNX = ""
MICROSOFT = "com.microsoft"
ATEN = "aten"
BURNISH = "burnish"

RUNTIME_ONLY = frozenset(("SimplifiedLayerNormalization",))
"""Operators that ONNX Runtime registers in ONNX's own domain although ONNX does not define them."""


def complaint(graph: Graph, node: onnx_ir.Node, lowered: bool) -> str | None:
    """Why ``node`` does not belong into ``graph``; None if it does.

    Args:
        graph: the model.
        node: one of its nodes.
        lowered: whether the graph is legalized for a runtime.
    """
    domain = "" if node.domain == "ai.onnx" else node.domain
    opsets = graph.opset_imports
    if domain not in opsets and not (domain == "" and "ai.onnx" in opsets):
        return f"operator domain {domain!r} has no opset import"
    if node.op_identifier() in graph.functions:
        return None
    if domain == BURNISH:
        return f"operator {node.op_type} of domain {BURNISH!r} has no function body in the model"
    if domain == ATEN and lowered:
        return f"ATen operator {node.op_type} is left in a lowered graph"
    if domain == MICROSOFT and not lowered and RULE in node.metadata_props:
        return f"{MICROSOFT} operator {node.op_type} was inserted by {node.metadata_props[RULE]!r} before lowering"
    if domain == ONNX:
        return _against_schema(node, opsets.get("", opsets.get("ai.onnx", 1)))
    return None


@lru_cache(maxsize=4096)
def _schema(op_type: str, opset: int) -> onnx.defs.OpSchema | None:
    return onnx.defs.get_schema(op_type, opset, "") if onnx.defs.has(op_type, opset, "") else None


@lru_cache(maxsize=4096)
def _limits(op_type: str, opset: int) -> tuple[int, int, int, int, frozenset[str], frozenset[str]] | None:
    schema = _schema(op_type, opset)
    if schema is None:
        return None
    required = frozenset(name for name, attr in schema.attributes.items() if attr.required)
    known = frozenset(schema.attributes)
    return schema.min_input, schema.max_input, schema.min_output, schema.max_output, required, known


def _against_schema(node: onnx_ir.Node, opset: int) -> str | None:
    limits = _limits(node.op_type, opset)
    if limits is None:
        if onnx.defs.has(node.op_type) and not onnx.defs.has(node.op_type, opset, ""):
            return f"operator {node.op_type} does not exist in opset {opset}"
        # A private operator of the runtime that the file was made for.
        return None
    min_in, max_in, min_out, max_out, required, known = limits
    inputs = len(node.inputs)
    while inputs and node.inputs[inputs - 1] is None:
        inputs -= 1
    if not min_in <= inputs <= max_in:
        return f"{node.op_type} has {inputs} inputs, opset {opset} wants {_span(min_in, max_in)}"
    if not min_out <= len(node.outputs) <= max_out:
        return f"{node.op_type} has {len(node.outputs)} outputs, opset {opset} wants {_span(min_out, max_out)}"
    names = node.attributes.keys()
    if missing := required - names:
        return f"{node.op_type} has no attribute {', '.join(sorted(missing))}"
    if not known.issuperset(names):
        return f"{node.op_type} of opset {opset} has no attribute {', '.join(sorted(set(names) - known))}"
    return None


def _span(low: int, high: int) -> str:
    return str(low) if low == high else f"{low} or more" if high > 10_000 else f"{low} to {high}"
