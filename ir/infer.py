"""Types and shapes of a node's outputs from those of its inputs.

Operators for which ``onnx.shape_inference`` loses named dimensions have a rule in ``ir/shapes/``; for the others ONNX's
own inference is asked, one node at a time. With plain sizes no rule touches SymPy.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

import onnx
import onnx_ir

from .errors import VerificationError
from .graph import Graph, all_nodes, module_path, tensor_of
from .shapes import arrangement, contraction, contrib, elementwise, movement, reduction
from .shapes.node_view import NOTHING, RULES, ShapeError, Typed, View, show
from .symbolic import Dim, Dims, contradict, known, readable, symbols_of
from .values import Evaluator

__all__ = ["RULE_MODULES", "conflict", "infer", "infer_graph", "inferred"]

DATA_LIMIT = 1024
"""Constants up to this many elements are given to ONNX's shape inference as data."""

RULE_MODULES = (arrangement, contraction, contrib, elementwise, movement, reduction)
"""The modules that fill the table of rules."""


def infer(node: onnx_ir.Node, opset: int) -> None:
    """Set dtype and shape of each output of ``node`` that can be inferred; what is known already stays.

    Args:
        node: its inputs carry what is known of their types.
        opset: version of the node's domain.

    Raises:
        VerificationError: if the operator does not accept its inputs.
    """
    for value, (dtype, dims) in zip(node.outputs, inferred(node, opset), strict=False):
        _fill(value, dtype, dims)


def infer_graph(graph: Graph, *, strict: bool = False) -> list[str]:
    """Infer types and shapes of a whole graph and its ``If`` and ``Loop`` subgraphs, in place.

    What a file says of inner values is corrected where inference knows better; what graph inputs declare stays, and so
    do names of output dimensions. A dimension of the main graph of which nothing is known gets a name of its own, so
    that the shapes computed from it can be followed.

    Args:
        graph: nodes in topological order.
        strict: a contradiction is an error; otherwise the value's shape is left as it is.

    Returns:
        The contradictions found, one sentence each.

    Raises:
        VerificationError: with ``strict``, at the first node that does not accept its inputs.
    """
    found: list[str] = []
    namer = _Namer(graph)
    for value in graph.graph.inputs:
        namer.clean(value)
    roots = frozenset(s for v in graph.graph.inputs if v.shape is not None for d in v.shape for s in symbols_of(d))
    _infer_nodes(graph, graph.graph, Evaluator(), roots, namer, strict, found)
    return found


class _Namer:
    """Names the dimensions of which nothing else is known."""

    def __init__(self, graph: Graph) -> None:
        self._graph, self._taken, self._count = graph, set[str](), -1
        self._renamed: dict[str, str] = {}

    def clean(self, value: onnx_ir.Value) -> None:
        """Name the dimensions of a graph input; names that cannot stand in an expression are replaced."""
        shape = value.shape
        if shape is None:
            return
        cleaned: list[Dim | str | None] = list(shape)
        for i, dim in enumerate(shape):
            if isinstance(dim, int) or dim.value is None or readable(dim.value):
                continue
            if not any(c.isalnum() for c in dim.value):
                # "?" on several dimensions does not mean that they are equal.
                cleaned[i] = None
            else:
                if dim.value not in self._renamed:
                    self._renamed[dim.value] = self._fresh(re.sub(r"\W+", "_", f"d_{dim.value}"))
                cleaned[i] = self._renamed[dim.value]
        if cleaned != list(shape):
            value.shape = onnx_ir.Shape(cleaned)
        self.name(value)

    def name(self, value: onnx_ir.Value) -> None:
        """Name the unknown dimensions of a value."""
        shape = value.shape
        # Some exporters write -1 for a dimension of any size.
        if shape is None or not any(d.value is None if isinstance(d, onnx_ir.SymbolicDim) else d < 0 for d in shape):
            return
        value.shape = onnx_ir.Shape(
            [d if known(d) and not (isinstance(d, int) and d < 0) else self._fresh() for d in shape]
        )

    def _fresh(self, hint: str | None = None) -> str:
        if self._count < 0:
            values = [*self._graph.graph.inputs, *(v for node in all_nodes(self._graph) for v in node.outputs)]
            shapes = [v.shape for v in values if v.shape is not None]
            self._taken = {s for shape in shapes for d in shape for s in symbols_of(d)}
            self._count = 0
        name = hint or f"u{self._count}"
        while name in self._taken:
            self._count += 1
            name = f"{hint or 'u'}{self._count}"
        self._taken.add(name)
        return name


def _infer_nodes(
    graph: Graph,
    scope: onnx_ir.Graph,
    evaluator: Evaluator,
    roots: frozenset[str],
    namer: _Namer | None,
    strict: bool,
    found: list[str],
) -> None:
    for node in scope:
        for attr in node.attributes.values():
            if attr.type == onnx_ir.AttributeType.GRAPH:
                body = attr.as_graph()
                _bind_loop(node, body)
                _infer_nodes(graph, body, evaluator, roots, None, strict, found)
        try:
            results = inferred(node, graph.opset_imports.get(node.domain, 1), evaluator, graph)
        except VerificationError as error:
            if strict:
                raise
            found.append(str(error).replace("\n  ", "; "))
            continue
        for value, (dtype, dims) in zip(node.outputs, results, strict=False):
            _refine(value, dtype, dims, roots)
        if namer is not None:
            for value in node.outputs:
                namer.name(value)


def inferred(
    node: onnx_ir.Node, opset: int, evaluator: Evaluator | None = None, graph: Graph | None = None
) -> Sequence[Typed]:
    """(dtype, dims) of each output as far as the inputs tell; recorded types of the outputs are not looked at.

    Args:
        node: the node; its inputs carry what is known of their types.
        opset: version of the node's domain.
        evaluator: symbolic values worked out so far, where many nodes of one graph are asked about.
        graph: the model, so that calls of its functions are followed.

    Raises:
        VerificationError: if the operator does not accept its inputs.
    """
    domain = "" if node.domain == "ai.onnx" else node.domain
    function = None if graph is None or not graph.functions else graph.functions.get(node.op_identifier())
    if function is not None:
        return _of_function(node, function)
    rule = RULES.get((domain, node.op_type))
    if rule is not None and not _tensors_only(node):
        rule = None
    if rule is None:
        if domain == "" and node.op_type in ("If", "Loop", "Scan"):
            return _of_subgraphs(node)
        return _by_schema(node, opset)
    try:
        view = View(node, opset, evaluator if evaluator is not None else Evaluator())
        results = rule(view)
    except ShapeError as error:
        raise VerificationError(
            f"{node.op_type} does not accept its inputs: {error}",
            where=_where(node),
            fix="the shapes were " + ", ".join(show(None if v is None else _dims(v)) for v in node.inputs),
        ) from error
    if results is None:
        return _by_schema(node, opset)
    return results


def _tensors_only(node: onnx_ir.Node) -> bool:
    return all(v is None or v.type is None or type(v.type) is onnx_ir.TensorType for v in node.inputs)


def _where(node: onnx_ir.Node) -> str:
    path = module_path(node)
    return path if not node.name or path == node.name else f"{path}, node {node.name}"


def _dims(value: onnx_ir.Value) -> Dims | None:
    return None if value.shape is None else value.shape.dims


def _fill(value: onnx_ir.Value, dtype: onnx_ir.DataType | None, dims: Dims | None) -> None:
    """Add what is inferred to what is recorded."""
    if value.type is None and dtype is not None:
        value.type = onnx_ir.TensorType(dtype)
    if dims is None:
        return
    shape = value.shape
    if shape is None:
        value.shape = onnx_ir.Shape(dims)
    elif len(shape) == len(dims) and not all(map(known, shape)):
        value.shape = onnx_ir.Shape([a if known(a) else b for a, b in zip(shape, dims, strict=True)])


def _refine(value: onnx_ir.Value, dtype: onnx_ir.DataType | None, dims: Dims | None, roots: frozenset[str]) -> None:
    """Record what is inferred, keeping of what is recorded only what inference does not know."""
    if dtype is not None and value.dtype != dtype:
        value.type = onnx_ir.TensorType(dtype)
    if dims is None:
        return
    shape = value.shape
    if shape is None or len(shape) != len(dims):
        value.shape = onnx_ir.Shape(dims)
        return
    output = value.is_graph_output()
    merged = [_better(a, b, output, roots) for a, b in zip(shape, dims, strict=True)]
    if any(a is not b for a, b in zip(shape, merged, strict=True)):
        value.shape = onnx_ir.Shape(merged)


def _better(recorded: Dim, found: Dim, output: bool, roots: frozenset[str]) -> Dim:
    if not known(found) or recorded is found or recorded == found:
        return recorded
    if isinstance(found, int) or not known(recorded):
        return found
    sure = symbols_of(found) <= roots
    if isinstance(recorded, int):
        # Files whose batch was made dynamic by hand often still say 1 inside.
        return found if sure else recorded
    if contradict(recorded, found):
        return found
    claims = symbols_of(recorded) <= roots
    if output and not claims:
        return recorded
    # Of two expressions, the one in terms of the sizes of the graph's inputs says more.
    return found if sure or not claims else recorded


def conflict(value: onnx_ir.Value, dtype: onnx_ir.DataType | None, dims: Dims | None) -> str | None:
    """Why the recorded type of ``value`` cannot be what was inferred; None if it can."""
    if dtype is not None and value.dtype is not None and value.dtype != dtype:
        return f"recorded type {value.dtype.name}, inferred {dtype.name}"
    shape = value.shape
    if shape is None or dims is None:
        return None
    if len(shape) != len(dims) or any(map(contradict, shape, dims)):
        return f"recorded shape {show(shape.dims)}, inferred {show(dims)}"
    return None


def _bind_loop(node: onnx_ir.Node, body: onnx_ir.Graph) -> None:
    """Give the inputs of a loop body the element types of what is passed in; shapes may change between rounds."""
    if node.op_type != "Loop" or node.domain not in ("", "ai.onnx"):
        return
    for inner, outer in zip(body.inputs[2:], node.inputs[2:], strict=False):
        if inner.type is None and outer is not None and outer.type is not None:
            inner.type = outer.type


def _of_subgraphs(node: onnx_ir.Node) -> list[Typed]:
    """What the subgraphs of If, Loop and Scan say of the node's outputs."""
    bodies = [attr.as_graph() for attr in node.attributes.values() if attr.type == onnx_ir.AttributeType.GRAPH]
    if node.op_type == "If":
        return [_common([body.outputs[i] for body in bodies]) for i in range(len(node.outputs))]
    if node.op_type == "Loop" and bodies:
        carried = len(node.inputs) - 2
        results: list[Typed] = []
        for i in range(len(node.outputs)):
            value = bodies[0].outputs[i + 1]
            # Scanned outputs gain a first dimension; carried ones may change their shape from round to round.
            results.append((value.dtype, None) if i < carried else NOTHING)
        return results
    return []


def _common(values: Sequence[onnx_ir.Value]) -> Typed:
    """What several values have in common."""
    if any(v.type is None or type(v.type) is not onnx_ir.TensorType for v in values):
        return NOTHING
    dtype = values[0].dtype if len({v.dtype for v in values}) == 1 else None
    shapes = [_dims(v) for v in values]
    first = shapes[0]
    if first is None or any(s is None or len(s) != len(first) for s in shapes):
        return dtype, None
    unknown = onnx_ir.SymbolicDim(None)
    columns = zip(*(s for s in shapes if s is not None), strict=True)
    return dtype, tuple(c[0] if all(d == c[0] for d in c) else unknown for c in columns)


def _of_function(node: onnx_ir.Node, function: onnx_ir.Function) -> list[Typed]:
    """What the body of a function makes of the types of a call; functions called in it are not followed."""
    body = function.clone()
    for inner, outer in zip(body.inputs, node.inputs, strict=False):
        if outer is not None:
            inner.type, inner.shape, inner.const_value = outer.type, outer.shape, outer.const_value
    evaluator = Evaluator()
    for step in body:
        for name, attr in list(step.attributes.items()):
            if attr.is_ref():
                given = node.attributes.get(attr.ref_attr_name or "", body.attributes.get(attr.ref_attr_name or ""))
                del step.attributes[name]
                if given is not None and given.value is not None:
                    step.attributes[name] = onnx_ir.Attr(name, given.type, given.value)
        results = inferred(step, body.opset_imports.get(step.domain, 1), evaluator)
        for value, (dtype, dims) in zip(step.outputs, results, strict=False):
            _fill(value, dtype, dims)
    return [(v.dtype if type(v.type) is onnx_ir.TensorType else None, _dims(v)) for v in body.outputs]


@lru_cache(maxsize=4096)
def _schema(op_type: str, opset: int, domain: str) -> onnx.defs.OpSchema | None:
    if not onnx.defs.has(op_type, opset, domain):
        return None
    return onnx.defs.get_schema(op_type, opset, domain)


def _by_schema(node: onnx_ir.Node, opset: int) -> list[Typed]:
    """Ask ONNX; what it cannot say is unknown, and shape errors are left to the runtime that has the kernel."""
    schema = _schema(node.op_type, opset, node.domain)
    if schema is None or not schema.has_type_and_shape_inference_function:
        return []
    if any(attr.type == onnx_ir.AttributeType.GRAPH for attr in node.attributes.values()):
        return []
    types: dict[str, onnx.TypeProto] = {}
    data: dict[str, onnx.TensorProto] = {}
    proto = onnx_ir.to_proto(node)
    for i, value in enumerate(node.inputs):
        if value is None:
            continue
        if value.type is None:
            return []
        name = f"i{i}"
        proto.input[i] = name
        types[name] = onnx_ir.serde.serialize_value(value).type
        tensor = tensor_of(value)
        if tensor is not None and tensor.size <= DATA_LIMIT:
            data[name] = onnx_ir.to_proto(onnx_ir.Tensor(tensor.numpy(), name=name, dtype=tensor.dtype))
    for i in range(len(proto.output)):
        proto.output[i] = f"o{i}"
    try:
        result = onnx.shape_inference.infer_node_outputs(schema, proto, types, data)
    except (onnx.shape_inference.InferenceError, RuntimeError):
        return []
    results: list[Typed] = []
    for i in range(len(node.outputs)):
        found = result.get(f"o{i}")
        typed = None if found is None else onnx_ir.serde.deserialize_type_proto_for_type(found)
        if found is None or type(typed) is not onnx_ir.TensorType:
            results.append(NOTHING)
            continue
        shape = onnx_ir.serde.deserialize_type_proto_for_shape(found)
        results.append((typed.dtype, None if shape is None else shape.dims))
    return results
