"""Products in a generated function: with what follows them, by a template, or by PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import onnx_ir

from ....ir.graph import Graph, attribute, dims, is_op
from . import templates
from .arrays import Array, Source, Unfit
from .epilogue import Epilogue, epilogue
from .indexing import Expr
from .listing import Line
from .operators import fusible
from .operators.registry import dtype_of
from .schedule import cone
from .steps import Steps
from .values import Made, Scope

PENDING = "computed with what follows"
"""Said of a product instead of the reason why no kernel computes it."""

Shapes = Mapping[Array, tuple[Expr, ...]]


@dataclass(frozen=True)
class Product:
    """A product that is not computed yet: what follows it may be computed with it.

    Attributes:
        node, key: of the product.
        found: its template.
        arguments: of its call, where they are known already.
        plain: the call of PyTorch, where it is known already.
    """

    node: onnx_ir.Node
    key: str
    found: templates.Found
    arguments: tuple[str, ...] | None = None
    plain: str | None = None


class Products(Steps):
    """Keeps products back until it is known what follows them."""

    def __init__(self, graph: Graph, title: str) -> None:
        super().__init__(graph, title)
        self.products: dict[Array, Product] = {}
        self.codes: dict[onnx_ir.Value, templates.Codes] = {}

    def _product(self, node: onnx_ir.Node, key: str, scope: Scope) -> str | None:
        """Leave a product to a template, together with what follows it; the reason if there is none for it."""
        found = templates.find(node, scope.outer, self.codes)
        if not isinstance(found, templates.Found) or len(node.outputs) != 1:
            return found if isinstance(found, str) else None
        try:
            array = Source(self._shape(node.outputs[0]), dtype_of(node.outputs[0]), "")
        except (Unfit, ValueError):
            return None
        self.products[array] = Product(node, key, found)
        self.made[node.outputs[0]] = Made(array)
        return PENDING

    def _halves(self, call: onnx_ir.Node, function: onnx_ir.Function) -> tuple[onnx_ir.Value, ...]:
        """Outputs of a function that are left to the next one: both halves of a product, which it puts together."""
        outputs = tuple(function.outputs)
        split = outputs[0].producer() if len(outputs) == 2 else None
        if split is None or not is_op(split, "Split") or tuple(split.outputs) != outputs:
            return ()
        source = split.inputs[0]
        shapes = [dims(v) for v in outputs]
        last = None if shapes[0] is None else len(shapes[0]) - 1
        if shapes[0] != shapes[1] or attribute(split, "axis", 0) not in (-1, last):
            return ()
        if source is None or not is_op(source.producer(), "MatMul", "Gemm"):
            return ()
        readers = {user for value in call.outputs for user, _ in value.uses()}
        if len(readers) != 1 or any(value.is_graph_output() for value in call.outputs):
            return ()
        (reader,) = readers
        body = self.graph.functions.get(reader.op_identifier())
        if body is None or body.domain != "burnish":
            return ()
        formal = [a for a, b in zip(body.inputs, reader.inputs, strict=False) if b in call.outputs]
        if any(value.is_graph_output() or not fusible(user) for value in formal for user, _ in value.uses()):
            return ()
        return outputs

    def _postpone(self, value: onnx_ir.Value) -> bool:
        """Leave a value as it is for what comes after its block; whether it is made of a product not computed yet."""
        made = self.made.get(value)
        if made is None or made.name or made.array is None:
            return False
        arrays = [a for a in cone([made.array], self.memory) if a in self.products and a not in self.memory]
        for array in arrays:
            product = self.products[array]
            if product.arguments is None:  # what it reads has no name outside of its block
                opset = self.graph.opset_imports.get(product.node.domain, 1)
                plain = None if product.found.packed else self._plain(product.node, product.node.inputs, opset)
                self.products[array] = replace(product, arguments=self._arguments(product), plain=plain)
        return bool(arrays)

    def _finish_products(self, wanted: Mapping[Array, str], shapes: Shapes) -> bool:
        """Compute the products that arrays are made of; True if these are made with it."""
        needed = [a for a in cone(list(wanted), self.memory) if a in self.products and a not in self.memory]
        for array in needed:
            assert isinstance(array, Source)
            product = self.products[array]
            reason = "alone, a vendor's kernel is as good"
            if len(needed) == 1 and len(wanted) == 1:
                ((result, name),) = wanted.items()
                if result is not array or product.found.packed or product.found.norm is not None:
                    said = self._with_epilogue(array, product, result, name, shapes)
                    if said is None:
                        return True
                    reason = said
            self._alone(array, product, reason, wanted.get(array))
        return all(a in self.memory for a in wanted)

    def _with_epilogue(self, array: Source, product: Product, result: Array, name: str, shapes: Shapes) -> str | None:
        """One call for a product and what follows it; the reason if that is not possible."""
        if result.dtype != array.dtype:
            return f"what follows is {result.dtype}"
        function, made = "", None
        if result is not array:
            found = epilogue(array, result, self.memory)
            if isinstance(found, str):
                return found
            made = found
            key = made.source("epilogue", "")
            function = self.kernels.get(key) or self._fresh(f"{self._kernel_name()[:28]}_epilogue")
            if key not in self.kernels:
                self.kernels[key] = function
                self.sources.append(made.source(function, self._summary()))
        tail = self._memory_shape(result, array, shapes)
        self._call_template(product, name, function, made, tail)
        return None

    def _memory_shape(self, result: Array, array: Source, shapes: Shapes) -> str:
        wanted = shapes.get(result, result.shape)
        if wanted == array.shape:
            return ""
        return f".reshape({', '.join(self._host(size) for size in wanted)})"

    def _arguments(self, product: Product) -> tuple[str, ...]:
        """Arguments of the call of a template, without what follows the product."""
        found = product.found
        operands = found.operands if found.norm is None else found.norm.inputs[:1]
        arguments = ["None" if v is None else v if isinstance(v, str) else self._variable(v) for v in operands]
        if found.packed:
            key = f"packed {found.function} {product.key}"
            arguments.append(self._fresh())
            self.constants[key] = arguments[-1]
            self.lines.append(Line(f"{arguments[-1]} = constants[{key!r}]", (arguments[-1],)))
        else:
            assert found.weight is not None
            arguments.append(self._variable(found.weight))
        if found.options:
            arguments.append(found.options)
        if found.norm is not None:
            norm = found.norm
            given = ", ".join([arguments[0], *(self._variable(v) for v in norm.inputs[1:])])
            arguments.append(f"prologue={norm.function}({given}, {norm.epsilon!r})")
            self._import("fused", norm.function)
        return tuple(arguments)

    def _import(self, module: str, name: str) -> None:
        self.imports.add(f"from burnish.backends.triton.{module} import {name}")
        self.names.add(name)

    def _call_template(
        self, product: Product, name: str, function: str = "", made: Epilogue | None = None, tail: str = ""
    ) -> None:
        found = product.found
        arguments = list(product.arguments or self._arguments(product))
        if function and made is not None:
            # Kernels make their operands contiguous when they are launched; a template does not.
            whole = ", ".join(f"{tensor}.contiguous()" for tensor in made.inputs)
            listed = f", tensors=({whole},)" if whole else ""
            gated = ", gated=True, paired=True" if made.paired else ""
            arguments.append(f"epilogue=Epilogue(function={function}{listed}{gated})")
            self._import("fused", "Epilogue")
        self._import(found.module, found.function)
        self.lines.append(Line(f"{name} = {found.function}({', '.join(arguments)}){tail}", (name,)))
        if self.scope is not None:
            self.scope.names.append(f"{found.function} with {function}" if function else found.function)

    def _alone(self, array: Source, product: Product, reason: str, name: str | None) -> None:
        """A product without anything after it: by its template where that has packed weights, else by PyTorch."""
        result = name or self._buffer()
        if product.found.packed:
            self._call_template(product, result)
            self.memory[array] = result
            return
        node = product.node
        opset = self.graph.opset_imports.get(node.domain, 1)
        code = product.plain or self._plain(node, node.inputs, opset)
        self.lines.append(Line(f"{result} = {code}", (result,)))
        self.memory[array] = result
        if self.scope is not None:
            self.scope.left.append((node.op_type, reason))
