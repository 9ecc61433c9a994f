"""Symbolic values: what small tensors of sizes hold, as expressions over the named dimensions.

Imported files compute shapes at run time (``Shape -> Gather -> Mul -> Concat -> Reshape``). :func:`propagate` follows
such chains and says, element by element, what comes out. It promises:

- A known element equals what the graph computes at run time, for every size of the named dimensions for which the
  graph runs; a named dimension is an integer of at least zero, and of at least one where a slice takes or drops its
  first or last element. Nothing is guessed: what cannot be followed is unknown.
- Only integer and boolean tensors, and float tensors made from those by exact arithmetic (halves, quarters ...; sizes
  below 2**14 stay exact in float32), of at most ``LIMIT`` elements.
- Initializers that the caller may override (they are also graph inputs) are not constants.
- Nothing in the graph is changed.
"""

from __future__ import annotations

import onnx_ir

from .graph import Graph, all_nodes, tensor_of
from .symbolic import known
from .symbolic_value import FOLLOWED, LIMIT, SymbolicValue, from_tensor
from .transfer import TRANSFER, sizes_of

__all__ = ["LIMIT", "Evaluator", "SymbolicValue", "propagate"]


class Evaluator:
    """Finds the symbolic values behind the values of one graph; each is worked out once and kept.

    The graph must not be edited, nor shapes be set on values already asked for, as long as an evaluator is in use.
    """

    def __init__(self) -> None:
        self._memo: dict[onnx_ir.Value, SymbolicValue | None] = {}

    def of(self, value: onnx_ir.Value | None) -> SymbolicValue | None:
        """What ``value`` holds; None if it is not a small tensor of sizes or cannot be followed."""
        if value is None:
            return None
        pending = [value]
        # A stack of its own: chains of a long graph are deeper than Python's.
        while pending:
            top = pending[-1]
            if top in self._memo:
                pending.pop()
                continue
            needs = [v for v in self._operands(top) if v not in self._memo]
            if needs:
                pending.extend(needs)
                continue
            self._memo[top] = self._compute(top)
            pending.pop()
        return self._memo[value]

    def _operands(self, value: onnx_ir.Value) -> list[onnx_ir.Value]:
        node = value.producer()
        if node is None or node.domain not in ("", "ai.onnx") or node.op_type not in TRANSFER or _too_large(value):
            return []
        return [v for v in node.inputs if v is not None]

    def _compute(self, value: onnx_ir.Value) -> SymbolicValue | None:
        tensor = tensor_of(value)
        if tensor is not None:
            return from_tensor(tensor)
        node = value.producer()
        if node is None or node.domain not in ("", "ai.onnx") or _too_large(value):
            return None
        if node.op_type in ("Shape", "Size"):
            return sizes_of(node)
        transfer = TRANSFER.get(node.op_type)
        if transfer is None:
            return None
        inputs = [self._memo.get(v) if v is not None else None for v in node.inputs]
        index = value.index() or 0
        try:
            results = transfer(node, inputs)
        except (ValueError, IndexError, TypeError, OverflowError):
            # Malformed arguments: inference and the verifier say so; here the value is simply not known.
            return None
        if results is None:
            return None
        result = results[index] if isinstance(results, list) else results
        return result if result is None or result.array.size <= LIMIT else None


def propagate(graph: Graph) -> dict[onnx_ir.Value, SymbolicValue]:
    """Symbolic values of everything in ``graph`` that is a small tensor of sizes (see the module's promises).

    Args:
        graph: shapes of its values should be inferred (:func:`~burnish.ir.infer.infer_graph`).

    Returns:
        By value (of main graph and subgraphs, initializers excepted); values of which no element is known are left out.
    """
    evaluator = Evaluator()
    found: dict[onnx_ir.Value, SymbolicValue] = {}
    for node in all_nodes(graph):
        if node.op_type not in TRANSFER and node.op_type not in ("Shape", "Size", "Constant"):
            continue
        for value in node.outputs:
            result = evaluator.of(value)
            if result is not None and (result.array.size == 0 or any(known(e) for e in result.array.ravel())):
                found[value] = result
    return found


def _too_large(value: onnx_ir.Value) -> bool:
    """Whether type or shape already say that ``value`` is not a small tensor of sizes."""
    if value.dtype not in FOLLOWED:
        return True
    if value.shape is None:
        # Sizes are integers; without a shape, floats are far more often activations, and following them is wasted.
        return value.dtype.is_floating_point()
    size = 1
    for dim in value.shape:
        if not isinstance(dim, int):
            return True
        size *= dim
    return size > LIMIT
