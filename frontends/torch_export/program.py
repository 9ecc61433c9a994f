"""An exported program with its calling convention, imported one way or the other."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx_ir
import sympy
import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind

from ...ir.errors import UnsupportedError
from ...ir.graph import Graph
from ...ir.remarks import Remark
from ...ir.signature import TensorSpec
from ..imported import Imported
from .fallback import export_decomposed
from .importer import Importer, unknown_operators
from .signature import TreeSignature
from .structure import Constant, Container, Leaf, Structure, paths


@dataclass
class Call:
    """How a model is called.

    Attributes:
        parameters: names of positional parameters.
        names: parameter of each positional argument of the export, then of each keyword argument.
        defaults: parameters with a default value.
        variadic: name of ``*args``.
        result: structure of the result; None until the model was traced, or if the program itself says.
    """

    parameters: tuple[str, ...]
    defaults: dict[str, Any] = field(default_factory=dict)
    variadic: str | None = None
    result: Structure | None = None

    @classmethod
    def of_module(cls, model: torch.nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call:
        """The convention of a module's ``forward``."""
        parameters, variadic, defaults = [], None, {}
        for p in inspect.signature(model.forward).parameters.values():
            if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD):
                parameters.append(p.name)
            elif p.kind is p.VAR_POSITIONAL:
                variadic = p.name
            if p.default is not p.empty:
                defaults[p.name] = p.default
        return cls(tuple(parameters), defaults, variadic)

    @classmethod
    def of_program(cls, program: ExportedProgram) -> Call:
        """The convention of an exported program: its arguments are named after their placeholders."""
        names = [spec.arg.name for spec in program.graph_signature.input_specs if spec.kind is InputKind.USER_INPUT]
        spec = program.call_spec.in_spec
        assert spec is not None
        positional, _ = spec.children()
        parameters, at = [], 0
        for child in positional.children():
            parameters.append(names[at] if child.is_leaf() else _stem(names, at, child.num_leaves))
            at += child.num_leaves
        return cls(tuple(dict.fromkeys(parameters)) if len(set(parameters)) == len(parameters) else
                   tuple(f"arg{i}" for i in range(len(parameters))))  # fmt: skip


def _stem(names: Sequence[str], at: int, count: int) -> str:
    """What the names of a nested argument's tensors begin with."""
    inner = names[at : at + count]
    length = next((i for i, letters in enumerate(zip(*inner, strict=False)) if len(set(letters)) > 1), None)
    stem = inner[0][:length].rstrip("_0123456789") if inner else ""
    return stem or f"arg{at}"


def import_program(
    program: ExportedProgram,
    call: Call,
    dynamic_shapes: Any,
    weights: Mapping[str, onnx_ir.TensorProtocol] | None,
) -> Imported:
    """The graph of a program: by rules, or where those do not suffice through ``torch.onnx.export``."""
    arguments = _arguments(program, call)
    result = call.result if call.result is not None else _result(program)
    tensors = [(name, path, leaf) for name, s in arguments.items() for path, leaf in paths(s)]
    input_names = _distinct([".".join((name, *path)) for name, path, _ in sorted(tensors, key=lambda t: t[2].index)])
    output_names = _distinct([_output_name(path) for path, _ in paths(result)], taken=input_names)
    symbols = _symbol_names(program, arguments, dynamic_shapes, input_names)
    unknown = unknown_operators(program)
    remarks: list[Remark] = []
    graph: Graph
    reason = f"no rule translates {', '.join(unknown)}" if unknown else ""
    if not unknown:
        try:
            importer = Importer(program, symbols, weights)
            graph = importer.run(input_names, output_names)
            remarks, route = importer.remarks, "torch.export"
        except UnsupportedError as error:
            reason = f"{error.what} (at {error.where})" if error.where else error.what
            if "model.eval()" in reason:
                raise
    if reason:
        graph = export_decomposed(program, reason, unknown, input_names, output_names, symbols, bool(weights))
        route = "torch.onnx.export"
        remarks = [Remark("skipped", "", f"imported through torch.onnx.export: {reason}", {"operators": unknown})]
    signature = TreeSignature(
        inputs=tuple(_spec(v) for v in graph.graph.inputs),
        outputs=tuple(_spec(v) for v in graph.graph.outputs),
        parameters=call.parameters,
        arguments=arguments,
        defaults=call.defaults,
        variadic=call.variadic,
        result=result,
    )
    size = sum(v.const_value.nbytes for v in graph.graph.initializers.values() if v.const_value is not None)
    return Imported(graph, signature, route, remarks, source_size=size)


def _spec(value: onnx_ir.Value) -> TensorSpec:
    assert value.dtype is not None and value.name is not None
    shape = None
    if value.shape is not None:
        shape = tuple(d if isinstance(d, int) else (d.value or "?") for d in value.shape)
    return TensorSpec(value.name, value.dtype.name, shape)


# Structures.


def _arguments(program: ExportedProgram, call: Call) -> dict[str, Structure]:
    """The structure of each argument; leaves are numbered as the program takes its tensors."""
    specs = iter([s for s in program.graph_signature.input_specs if s.kind is InputKind.USER_INPUT])
    metas = {n.name: n.meta.get("val") for n in program.graph.nodes if n.op == "placeholder"}
    count = 0

    def leaf() -> Structure:
        nonlocal count
        spec = next(specs)
        if isinstance(spec.arg, ConstantArgument):
            return Constant(spec.arg.value)
        if not isinstance(metas.get(spec.arg.name), torch.Tensor):
            return Constant(metas.get(spec.arg.name))
        count += 1
        return Leaf(count - 1)

    in_spec = program.call_spec.in_spec
    assert in_spec is not None
    positional, named = in_spec.children()
    result: dict[str, Structure] = {}
    extra: list[Structure] = []
    for i, child in enumerate(positional.children()):
        part = _of_spec(child, leaf)
        if i < len(call.parameters):
            result[call.parameters[i]] = part
        else:
            extra.append(part)
    if extra:
        assert call.variadic is not None
        result[call.variadic] = Container(tuple, tuple(range(len(extra))), tuple(extra))
    for name, child in zip(named.context, named.children(), strict=True):
        result[name] = _of_spec(child, leaf)
    return result


def _of_spec(spec: Any, leaf: Any) -> Structure:
    """The structure behind a pytree specification; ``leaf()`` gives its leaves one by one."""
    if spec.is_leaf():
        return leaf()  # type: ignore[no-any-return]
    children = spec.children()
    kind, context = spec.type, spec.context
    is_named = isinstance(kind, type) and issubclass(kind, tuple) and hasattr(kind, "_fields")
    keys: tuple[Any, ...] = tuple(range(len(children)))
    if is_named:
        keys = tuple(kind._fields)
    elif isinstance(context, (list, tuple)) and len(context) == len(children):
        keys = tuple(context)
    elif isinstance(context, (list, tuple)) and context and isinstance(context[0], (list, tuple)):
        keys = tuple(context[0]) if len(context[0]) == len(children) else keys
    parts = tuple(_of_spec(child, leaf) for child in children)
    if is_named and not isinstance(kind, type):
        kind = tuple
    return Container(kind, keys, parts, context, registered=kind not in (tuple, list, dict) and not is_named)


def _result(program: ExportedProgram) -> Structure:
    specs = iter([s for s in program.graph_signature.output_specs if s.kind is OutputKind.USER_OUTPUT])
    count = 0

    def leaf() -> Structure:
        nonlocal count
        spec = next(specs)
        if isinstance(spec.arg, ConstantArgument):
            return Constant(spec.arg.value)
        count += 1
        return Leaf(count - 1)

    assert program.call_spec.out_spec is not None
    return _of_spec(program.call_spec.out_spec, leaf)


def _output_name(path: Sequence[str]) -> str:
    if not path:
        return "output"
    return "_".join(("output", *path)) if path[0].isdigit() else ".".join(path)


def _distinct(names: Sequence[str], taken: Sequence[str] = ()) -> list[str]:
    used, result = set(taken), []
    for name in names:
        unique, n = name, 1
        while unique in used:
            unique, n = f"{name}_{n}", n + 1
        used.add(unique)
        result.append(unique)
    return result


# Names of dimensions.


def _symbol_names(
    program: ExportedProgram, arguments: Mapping[str, Structure], dynamic_shapes: Any, input_names: Sequence[str]
) -> dict[sympy.Symbol, str]:
    """A name for each symbol: the user's, or one made of the input and axis where it first appears."""
    wanted = dict(_dims(arguments, dynamic_shapes))
    names: dict[sympy.Symbol, str] = {}
    shapes = _input_shapes(program)
    for (index, axis), dim in wanted.items():
        if index >= len(shapes) or axis >= len(shapes[index]):
            continue
        size = shapes[index][axis]
        root = getattr(dim, "root", dim)
        name = getattr(root, "__name__", None) or (root if isinstance(root, str) else None)
        if name and isinstance(size, torch.SymInt) and len(size.node.expr.free_symbols) == 1:
            (symbol,) = size.node.expr.free_symbols
            names.setdefault(symbol, name)
    for name, shape in zip(input_names, shapes, strict=True):
        for axis, size in enumerate(shape):
            if isinstance(size, torch.SymInt) and size.node.expr.is_Symbol and size.node.expr not in names:
                names[size.node.expr] = _distinct([f"{re.sub(r'[^0-9A-Za-z]', '_', name)}_dim{axis}"],
                                                  list(names.values()))[0]  # fmt: skip
    return names


def _input_shapes(program: ExportedProgram) -> list[Any]:
    users = {s.arg.name for s in program.graph_signature.input_specs if s.kind is InputKind.USER_INPUT}
    metas = [n.meta.get("val") for n in program.graph.nodes if n.op == "placeholder" and n.name in users]
    return [m.shape for m in metas if isinstance(m, torch.Tensor)]


def _dims(arguments: Mapping[str, Structure], dynamic_shapes: Any) -> Iterator[tuple[tuple[int, int], Any]]:
    """(input, axis) and the user's dimension there."""
    if isinstance(dynamic_shapes, Mapping):
        pairs = [(arguments[name], spec) for name, spec in dynamic_shapes.items() if name in arguments]
    elif isinstance(dynamic_shapes, (list, tuple)):
        pairs = list(zip(arguments.values(), dynamic_shapes, strict=False))
    else:
        return
    for structure, spec in pairs:
        yield from _dims_of(structure, spec)


def _dims_of(structure: Structure, spec: Any) -> Iterator[tuple[tuple[int, int], Any]]:
    if isinstance(structure, Leaf):
        axes = spec.items() if isinstance(spec, Mapping) else enumerate(spec or ())
        for axis, dim in axes:
            yield (structure.index, axis), dim
    elif isinstance(structure, Container) and spec is not None:
        parts = list(spec.values()) if isinstance(spec, Mapping) else list(spec)
        for part, inner in zip(structure.parts, parts, strict=False):
            yield from _dims_of(part, inner)
