"""Editing a graph: fresh names, inferred types and provenance for whatever a rule inserts.

Every change of a graph goes through an :class:`Editor` (or through :func:`apply_rules`, which runs rules written in
the pattern language of ``onnxscript.rewriter`` and then does the same bookkeeping for what they inserted).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir

from .errors import VerificationError
from .graph import MODULE, RULE, SOURCE, SPARSITY, WORKING_OPSET, Graph, all_nodes, module_path
from .infer import conflict, infer
from .symbolic import known


class Editor:
    """Inserts, replaces and removes nodes of one graph on behalf of one rule.

    Args:
        graph: the model to edit.
        rule: name of the rewrite, kept as provenance of each node it makes.
        scope: the graph that owns the nodes, when it is a subgraph.
        names: names in use, shared between editors of the same graph; collected if not given.
    """

    def __init__(
        self,
        graph: Graph,
        rule: str,
        scope: onnx_ir.Graph | None = None,
        names: set[str] | None = None,
    ) -> None:
        self.graph, self.rule = graph, rule
        self.scope = scope if scope is not None else graph.graph
        self.names = _names_in(graph) if names is None else names
        self.made: list[onnx_ir.Node] = []
        """Nodes inserted since the last :meth:`at`."""
        self._home = self.scope
        self._counts: dict[str, int] = {}
        self._anchor: onnx_ir.Node | None = None
        self._origin: Sequence[onnx_ir.Node] = ()

    def at(self, anchor: onnx_ir.Node | None, origin: Sequence[onnx_ir.Node] | None = None) -> Editor:
        """Insert what follows before ``anchor`` (None: at the end of the scope), with the provenance of ``origin``.

        The anchor may stand in a subgraph: what follows is then inserted there.
        """
        self._anchor = anchor
        self.made = []
        self.scope = self._home if anchor is None or anchor.graph is None else anchor.graph
        self._origin = origin if origin is not None else ([anchor] if anchor is not None else [])
        return self

    def fresh(self, hint: str) -> str:
        """A name that nothing in the model has."""
        name, count = hint, self._counts.get(hint, 0)
        while name in self.names:
            count += 1
            name = f"{hint}_{count}"
        self._counts[hint] = count
        self.names.add(name)
        return name

    def initializer(self, data: np.ndarray[Any, Any] | onnx_ir.TensorProtocol, hint: str) -> onnx_ir.Value:
        """A new initializer with a fresh name; a lazy tensor stays unread.

        A function cannot see the initializers of the model: there it becomes a ``Constant`` node.
        """
        tensor = onnx_ir.Tensor(data) if isinstance(data, np.ndarray) else data
        if any(function.graph is self.scope for function in self.graph.functions.values()):
            return self.op("Constant", [], {"value": tensor}, hint=hint)
        value = onnx_ir.Value(
            name=self.fresh(hint),
            type=onnx_ir.TensorType(tensor.dtype),
            shape=onnx_ir.Shape(tensor.shape.numpy()),
            const_value=tensor,
        )
        self.graph.graph.register_initializer(value)
        return value

    def ints(self, values: int | Sequence[int], hint: str = "shape") -> onnx_ir.Value:
        """A small int64 initializer: a scalar from an int, a vector from a sequence."""
        return self.initializer(np.asarray(values, dtype=np.int64), hint)

    def op(
        self,
        op_type: str,
        inputs: Sequence[onnx_ir.Value | None],
        attributes: Mapping[str, Any] | None = None,
        *,
        domain: str = "",
        dtype: onnx_ir.DataType | None = None,
        shape: Sequence[int | onnx_ir.SymbolicDim | str | None] | onnx_ir.Shape | None = None,
        hint: str | None = None,
    ) -> onnx_ir.Value:
        """Insert a node of one output and return that; dtype and shape are inferred unless given."""
        (value,) = self.ops(op_type, inputs, attributes, outputs=1, domain=domain, hint=hint, infer_types=False)
        if dtype is not None:
            value.type = onnx_ir.TensorType(dtype)
        if shape is not None:
            value.shape = shape if isinstance(shape, onnx_ir.Shape) else onnx_ir.Shape(shape)
        node = value.producer()
        assert node is not None
        if dtype is None or shape is None:
            infer(node, self._opset(domain))
        return value

    def ops(
        self,
        op_type: str,
        inputs: Sequence[onnx_ir.Value | None],
        attributes: Mapping[str, Any] | None = None,
        *,
        outputs: int,
        domain: str = "",
        hint: str | None = None,
        infer_types: bool = True,
    ) -> Sequence[onnx_ir.Value]:
        """Insert a node of several outputs and return them."""
        hint = hint or op_type
        node = onnx_ir.Node(
            domain,
            op_type,
            inputs,
            attributes=onnx_ir.convenience.convert_attributes(attributes or {}),
            num_outputs=outputs,
            name=self.fresh(f"{hint}"),
            metadata_props=self._provenance(),
        )
        for i, value in enumerate(node.outputs):
            value.name = self.fresh(f"{hint}_out" if outputs == 1 else f"{hint}_out{i}")
        if self._anchor is None:
            self.scope.append(node)
        else:
            self.scope.insert_before(self._anchor, node)
        self.made.append(node)
        if domain not in self.graph.opset_imports:
            self.graph.opset_imports[domain] = 1 if domain else WORKING_OPSET
        if infer_types:
            infer(node, self._opset(domain))
        return node.outputs

    def replace(self, old: onnx_ir.Value, new: onnx_ir.Value) -> None:
        """Let every use of ``old`` read ``new``; a graph output keeps its name.

        The node that makes ``new`` may read ``old`` and goes on doing so. The producer of ``old`` stays, unused;
        :meth:`sweep` removes it. What is known of the type of ``old`` and not of ``new`` is kept.

        Raises:
            VerificationError: if the two cannot have the same type and shape, or ``old`` is a graph input that is
                also a graph output.
        """
        if old is new:
            return
        self._unify(old, new)
        if old.is_graph_output():
            self.replace_output(old, new)
        maker = new.producer()
        for user, index in tuple(old.uses()):
            if user is not maker:
                user.replace_input_with(index, new)

    def _unify(self, old: onnx_ir.Value, new: onnx_ir.Value) -> None:
        dims = None if old.shape is None else old.shape.dims
        reason = conflict(new, old.dtype, dims)
        if reason is not None:
            maker = old.producer()
            raise VerificationError(
                f"rule {self.rule!r} replaces {old.name!r} by a value of another type: {reason}",
                where=None if maker is None else module_path(maker),
                fix="the rule must check types and shapes before it rewrites",
            )
        if new.is_graph_input():
            return
        if new.type is None:
            new.type = old.type
        if new.shape is None:
            new.shape = old.shape
        elif dims is not None and not all(map(known, new.shape)):
            new.shape = onnx_ir.Shape([a if known(a) else b for a, b in zip(new.shape, dims, strict=True)])

    def replace_output(self, old: onnx_ir.Value, new: onnx_ir.Value) -> None:
        """Let ``new`` be the output of the graph that ``old`` is, under its name; other readers of ``old`` stay."""
        name = old.name
        owner = old.graph
        assert owner is not None
        if old.is_graph_input():
            raise VerificationError(
                f"rule {self.rule!r} replaces {name!r}, which is an input and an output of the graph",
                fix="the rule must leave it alone: input and output would need two names",
            )
        if new.is_graph_output() or new.is_graph_input() or new.is_initializer() or new.graph is not owner:
            # One value cannot be two outputs, nor an input and an output under two names.
            new = self._copy_at_end(owner, new)
        for i, output in enumerate(owner.outputs):
            if output is old:
                owner.outputs[i] = new
        old.name = self.fresh(f"{name}_before")
        new.name = name

    def _copy_at_end(self, owner: onnx_ir.Graph, value: onnx_ir.Value) -> onnx_ir.Value:
        anchor, scope = self._anchor, self.scope
        self._anchor, self.scope = None, owner
        copy = self.op("Identity", [value], dtype=value.dtype, shape=value.shape)
        self._anchor, self.scope = anchor, scope
        return copy

    def remove(self, nodes: Iterable[onnx_ir.Node]) -> None:
        """Remove nodes whose outputs nobody uses; raises ValueError if somebody does."""
        for node in nodes:
            owner = node.graph
            assert owner is not None
            owner.remove(node, safe=True)
            _release(node)

    def sweep(self, start: Iterable[onnx_ir.Node]) -> int:
        """Remove ``start`` and everything before it that became unused; the number of nodes removed."""
        stack, removed = list(start), 0
        while stack:
            node = stack.pop()
            if node.graph is None or any(v.uses() or v.is_graph_output() for v in node.outputs):
                continue
            inputs = {v: None for v in node.inputs if v is not None}
            node.graph.remove(node, safe=True)
            # What only a subgraph of the node read is unused now, too.
            inputs.update((v, None) for v in _release(node))
            removed += 1
            for value in inputs:
                maker = value.producer()
                if maker is not None:
                    stack.append(maker)
                self.drop_initializer(value)
        return removed

    def drop_initializer(self, value: onnx_ir.Value) -> None:
        """Forget an initializer that nothing uses any more."""
        if value.is_initializer() and not value.uses() and not value.is_graph_output():
            owner = value.graph
            if owner is not None and not value.is_graph_input():
                assert value.name is not None
                del owner.initializers[value.name]

    def _opset(self, domain: str) -> int:
        return self.graph.opset_imports.get(domain, 1)

    def _provenance(self) -> dict[str, str]:
        return provenance(self._origin, self.rule)


def _release(node: onnx_ir.Node) -> list[onnx_ir.Value]:
    """Take the nodes in the subgraphs of a removed node off the values they read; these values."""
    read: list[onnx_ir.Value] = []
    for attr in node.attributes.values():
        if attr.type != onnx_ir.AttributeType.GRAPH:
            continue
        for inner in onnx_ir.traversal.RecursiveGraphIterator(attr.as_graph()):
            for index, value in enumerate(inner.inputs):
                if value is not None:
                    read.append(value)
                    inner.replace_input_with(index, None)
    return read


def provenance(origin: Iterable[onnx_ir.Node], rule: str) -> dict[str, str]:
    """Metadata of a node that ``rule`` makes out of ``origin``: their common module, first source, all rules."""
    paths = [n.metadata_props[MODULE] for n in origin if MODULE in n.metadata_props]
    sources = [n.metadata_props[SOURCE] for n in origin if SOURCE in n.metadata_props]
    rules = [n.metadata_props[RULE] for n in origin if RULE in n.metadata_props]
    metadata = {}
    if paths:
        metadata[MODULE] = _common_path(paths)
    if sources:
        metadata[SOURCE] = sources[0]
    zeros = {n.metadata_props.get(SPARSITY) for n in origin}
    if len(zeros) == 1 and (pattern := zeros.pop()) is not None:
        metadata[SPARSITY] = pattern
    past = list(dict.fromkeys(part for text in rules for part in text.split(";")))
    if rule not in past:
        past.append(rule)
    metadata[RULE] = ";".join(part for part in past if part)
    return metadata


def _common_path(paths: Sequence[str]) -> str:
    common = paths[0].split(".")
    for path in paths[1:]:
        parts = path.split(".")
        common = [a for a, b in zip(common, parts, strict=False) if a == b][: len(parts)]
    return ".".join(common) or paths[0]


def _names_in(graph: Graph) -> set[str]:
    names: set[str] = set()
    for value in graph.graph.inputs:
        names.add(value.name or "")
    names.update(graph.graph.initializers)
    for node in all_nodes(graph):
        names.add(node.name or "")
        names.update(v.name or "" for v in node.outputs)
        for attr in node.attributes.values():
            if attr.type == onnx_ir.AttributeType.GRAPH:
                names.update(v.name or "" for v in attr.as_graph().inputs)
                names.update(attr.as_graph().initializers)
    return names
