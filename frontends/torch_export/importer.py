"""An exported program as a graph: one rule per operator, no decomposition."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir
import sympy
import torch
from onnx_ir import Value
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, InputSpec, TensorArgument

from ...ir.errors import ModelError, UnsupportedError
from ...ir.graph import WORKING_OPSET, Graph
from ...ir.remarks import Remark
from .builder import Builder
from .dtypes import from_torch
from .expressions import Dimensions
from .mutation import Aliases
from .registry import find, is_mutable, overload_name

_SYMBOLIC = (torch.SymInt, torch.SymFloat, torch.SymBool)
_IGNORED = frozenset(
    "aten._assert_tensor_metadata.default aten._assert_scalar.default aten.sym_constrain_range.default "
    "aten.sym_constrain_range_for_size.default aten._assert_async.msg aten._assert_async.default".split()
)
IR_VERSION = 11
"""Version of the file format: the one that came with the working opset."""


def unknown_operators(program: ExportedProgram) -> list[str]:
    """Names of the operators in a program that no rule translates, in order of appearance."""
    names: dict[str, None] = {}
    for module in program.graph_module.modules():
        if not isinstance(module, torch.fx.GraphModule):
            continue
        for node in module.graph.nodes:
            if node.op == "call_function" and not needs_no_rule(node) and find(node.target) is None:
                names[overload_name(node.target)] = None
    return list(names)


def needs_no_rule(node: torch.fx.Node) -> bool:
    """Whether an FX node is imported without a rule: a part of a result, an assertion, arithmetic on sizes."""
    if node.target is operator.getitem or overload_name(node.target) in _IGNORED:
        return True
    # Arithmetic on sizes is read off the result's expression.
    value = node.meta.get("val")
    return isinstance(value, (*_SYMBOLIC, int, float, bool)) and find(node.target) is None


class Importer:
    """Builds the graph of one exported program.

    Args:
        program: its operators all have rules.
        names: names of the sizes' symbols.
        weights: tensors to use for parameters and buffers, by name, instead of the program's own.
    """

    def __init__(
        self,
        program: ExportedProgram,
        names: Mapping[sympy.Symbol, str],
        weights: Mapping[str, onnx_ir.TensorProtocol] | None = None,
    ) -> None:
        self.program, self.weights = program, weights or {}
        self.builder = Builder(Dimensions(names))
        self.remarks: list[Remark] = []
        self.inputs: list[Value] = []
        self._values: dict[torch.fx.Node, Any] = {}
        self._shared: dict[object, Value] = {}
        self._aliases = Aliases(self, program.graph)
        self._modules: dict[int, str] = {}

    def run(self, input_names: Sequence[str], output_names: Sequence[str]) -> Graph:
        """The graph.

        Args:
            input_names: names of the user's tensor inputs, in order.
            output_names: names of the outputs, in order.

        Raises:
            UnsupportedError: a case that a rule does not cover.
            ModelError: a weight has no data.
        """
        for name in [*input_names, *output_names]:
            self.builder.fresh(name)
        specs = {spec.arg.name: spec for spec in self.program.graph_signature.input_specs}
        names = iter(input_names)
        result: Sequence[Value] = []
        for node in self.program.graph.nodes:
            if node.op == "placeholder":
                self._placeholder(node, specs[node.name], names)
            elif node.op == "call_function":
                self._call(node)
            elif node.op == "output":
                result = self._outputs(node, output_names)
            else:
                raise UnsupportedError(f"an FX node of kind {node.op} cannot be imported", where=node.name)
        graph = onnx_ir.Graph(
            self.inputs,
            result,
            nodes=self.builder.nodes,
            initializers=[v for v in self.builder.initializers if v.uses() or v in result],
            opset_imports={"": WORKING_OPSET},
            name="main",
        )
        return onnx_ir.Model(graph, ir_version=IR_VERSION, producer_name="burnish")

    # What goes in.

    def _placeholder(self, node: torch.fx.Node, spec: InputSpec, names: Any) -> None:
        meta = node.meta.get("val")
        if spec.kind is InputKind.USER_INPUT:
            if isinstance(spec.arg, ConstantArgument) or not isinstance(meta, torch.Tensor):
                if isinstance(meta, _SYMBOLIC):
                    raise UnsupportedError(
                        f"input {node.name!r} is a number that may vary", fix="pass it as a tensor, or fix its value"
                    )
                self._values[node] = getattr(spec.arg, "value", meta)
                return
            value = Value(
                name=next(names),
                type=onnx_ir.TensorType(from_torch(meta.dtype)),
                shape=onnx_ir.Shape(self.builder.dimensions.shape(meta.shape)),
            )
            self.inputs.append(value)
            self._values[node] = value
            self.builder.bind_input(value, meta.shape)
        elif isinstance(spec.arg, TensorArgument):
            self._values[node] = self._weight(node, spec)
        else:
            raise UnsupportedError(f"an input of kind {spec.kind.name} cannot be imported", where=node.name)

    def _weight(self, node: torch.fx.Node, spec: InputSpec) -> Value:
        name = spec.target
        assert name is not None
        program = self.program
        tensor = program.state_dict.get(name)
        if tensor is None:
            tensor = program.constants.get(name)
        given = self.weights.get(name)
        key: object = id(given) if given is not None else name
        if isinstance(tensor, torch.Tensor):
            # Two names of one tensor (tied weights) share an initializer.
            storage = tensor.untyped_storage()._cdata
            alias = (storage, tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
            if alias in self._shared:
                return self._shared[alias]
            key = key if given is not None else alias
            if key in self._shared:
                return self._shared[key]
            if given is None and tensor.device.type == "meta":
                given, name = self._of_alias(name, tensor)
        if given is None:
            if not isinstance(tensor, torch.Tensor):
                raise ModelError(f"weight {name!r} has no data", fix="export the model again, with its weights")
            given = onnx_ir.tensor_adapters.TorchTensor(tensor.detach(), name)
        value = self.builder.initializer(given, name)
        self._shared[key] = value
        if isinstance(tensor, torch.Tensor):
            self._shared[alias] = value
        return value

    def _of_alias(self, name: str, tensor: torch.Tensor) -> tuple[onnx_ir.TensorProtocol, str]:
        """The data of a tied weight that the files hold under its other name."""
        storage = tensor.untyped_storage()._cdata
        for other, candidate in self.program.state_dict.items():
            if (
                isinstance(candidate, torch.Tensor)
                and other in self.weights
                and candidate.untyped_storage()._cdata == storage
                and candidate.shape == tensor.shape
            ):
                return self.weights[other], other
        raise ModelError(f"weight {name!r} is on the meta device and no data was given for it", where=name)

    # What happens.

    def _call(self, node: torch.fx.Node) -> None:
        meta = node.meta.get("val")
        if node.target is operator.getitem:
            source = self.value(node.args[0])
            index = node.args[1]
            # A rule may leave out results that nobody reads.
            self._values[node] = source[index] if isinstance(index, int) and index < len(source) else None
            if self._values[node] is None and node.users and isinstance(meta, torch.Tensor):
                self.builder.begin(node.name, self._module(node), node.name, meta)
                raise self.builder.unsupported(
                    f"no rule gives result {index} of {overload_name(node.args[0].target)}"  # type: ignore[union-attr]
                )
            self._aliases.getitem(node)
            return
        if overload_name(node.target) in _IGNORED:
            return
        if needs_no_rule(node):
            self._values[node] = meta
            return
        result = self.translate(node)
        self._values[node] = result
        self._aliases.after(node)

    def translate(self, node: torch.fx.Node, replacing: Mapping[torch.fx.Node, Any] | None = None) -> Any:
        """Apply the rule of a node to its arguments, some of which may be replaced."""
        rule = find(node.target)
        if rule is None:
            raise UnsupportedError(
                f"no rule translates the operator {overload_name(node.target)}", where=self._module(node) or node.name
            )
        meta = node.meta.get("val")
        self.builder.begin(node.name, self._module(node), f"{node.name}: {overload_name(node.target)}", meta)
        replacing = replacing or {}

        def resolve(arg: Any) -> Any:
            if isinstance(arg, torch.fx.Node):
                return replacing[arg] if arg in replacing else self.value(arg)
            if isinstance(arg, (list, tuple)):
                return [resolve(item) for item in arg]
            return arg

        args = [resolve(arg) for arg in node.args]
        kwargs = {name: resolve(arg) for name, arg in node.kwargs.items()}
        count = len(self.builder.nodes)
        try:
            result = rule(self.builder, *args, **kwargs)
        except TypeError as error:
            if "argument" in str(error) and error.__traceback__ is not None and error.__traceback__.tb_next is None:
                name = overload_name(node.target)
                raise self.builder.unsupported(f"the rule of {name} does not take these arguments: {error}") from error
            raise
        if isinstance(result, Value) and isinstance(meta, torch.Tensor) and is_mutable(node.target):
            # An in-place operator keeps the element type of what it writes to.
            result = self.builder.cast(result, from_torch(meta.dtype))
        self._label(node, result, meta, fresh=len(self.builder.nodes) > count)
        return result

    def _label(self, node: torch.fx.Node, result: Any, meta: Any, *, fresh: bool) -> None:
        """Give results the types that torch found, and the FX node's name."""
        if isinstance(result, Value):
            if not isinstance(meta, torch.Tensor):
                return
            expected = from_torch(meta.dtype)
            if result.dtype != expected:
                raise self.builder.unsupported(f"the rule gives {result.dtype}, torch gives {expected}")
            made = result.producer()
            if fresh and made is self.builder.nodes[-1] and len(made.outputs) == 1:
                result.shape = onnx_ir.Shape(self.builder.dimensions.shape(meta.shape))
                result.name = self.builder.fresh(node.name)
        elif isinstance(result, (list, tuple)) and isinstance(meta, (list, tuple)):
            for part, each in zip(result, meta, strict=False):
                if isinstance(part, Value) and part.producer() is not None and isinstance(each, torch.Tensor):
                    if part.type is None:
                        part.type = onnx_ir.TensorType(from_torch(each.dtype))
                    part.shape = onnx_ir.Shape(self.builder.dimensions.shape(each.shape))

    def value(self, arg: Any) -> Any:
        """The graph's value (or number) of an FX argument, mutations so far included."""
        if not isinstance(arg, torch.fx.Node):
            return arg
        self._aliases.refresh(arg)
        return self._values[arg]

    def assign(self, node: torch.fx.Node, value: Any) -> None:
        """Let an FX node stand for another value from here on."""
        self._values[node] = value

    def _module(self, node: torch.fx.Node) -> str:
        stack = node.meta.get("nn_module_stack")
        if not stack:
            return ""
        path = next(reversed(stack.values()))[0]
        return str(path).removeprefix("L['self'].").removeprefix("L['self']")

    # What comes out.

    def _outputs(self, node: torch.fx.Node, names: Sequence[str]) -> list[Value]:
        results: list[Value] = []
        kinds = self.program.graph_signature.output_specs
        wanted = iter(names)
        for spec, arg in zip(kinds, node.args[0], strict=True):  # type: ignore[arg-type]
            if spec.kind.name != "USER_OUTPUT":
                self.remarks.append(
                    Remark("skipped", str(spec.target), f"{spec.kind.name.lower().replace('_', ' ')} is not kept")
                )
                continue
            if not isinstance(arg, torch.fx.Node) or not isinstance(arg.meta.get("val"), (torch.Tensor, *_SYMBOLIC)):
                continue
            name = next(wanted)
            value = self.value(arg)
            self.builder.begin(name, "", f"output: {name}", arg.meta["val"])
            if isinstance(value, _SYMBOLIC):
                dtype = onnx_ir.DataType.INT64 if isinstance(value, torch.SymInt) else onnx_ir.DataType.DOUBLE
                value = self.builder.scalar(value, dtype)
            made = value.producer()
            if made is None or value in results:
                value = self.builder.op("Identity", value, shape=tuple(value.shape))
            value.name = name
            results.append(value)
        self.remarks.extend(self._aliases.lost())
        return results
