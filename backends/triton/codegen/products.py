"""Products in a generated function: with what follows them, by a template, or by PyTorch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir

from ....ir.graph import Graph
from . import templates
from .arrays import Array, Source, Unfit
from .epilogue import epilogue
from .indexing import Expr
from .listing import Line
from .operators.registry import dtype_of
from .schedule import cone
from .steps import Steps
from .values import Made, Scope

PENDING = "computed with what follows"
"""Said of a product instead of the reason why no kernel computes it."""

Shapes = Mapping[Array, tuple[Expr, ...]]


@dataclass(frozen=True)
class Product:
    """A product that is not computed yet: what follows it may be computed with it."""

    node: onnx_ir.Node
    key: str
    found: templates.Found


class Products(Steps):
    """Keeps products back until it is known what follows them."""

    def __init__(self, graph: Graph, title: str) -> None:
        super().__init__(graph, title)
        self.products: dict[Array, Product] = {}

    def _product(self, node: onnx_ir.Node, key: str, scope: Scope) -> str | None:
        """Leave a product to a template, together with what follows it."""
        found = templates.find(node, scope.outer)
        if found is None or len(node.outputs) != 1:
            return None
        try:
            array = Source(self._shape(node.outputs[0]), dtype_of(node.outputs[0]), "")
        except (Unfit, ValueError):
            return None
        self.products[array] = Product(node, key, found)
        self.made[node.outputs[0]] = Made(array)
        return PENDING

    def _finish_products(self, wanted: Mapping[Array, str], shapes: Shapes) -> bool:
        """Compute the products that arrays are made of; True if these are made with it."""
        needed = [a for a in cone(list(wanted), self.memory) if a in self.products and a not in self.memory]
        for array in needed:
            assert isinstance(array, Source)
            product = self.products[array]
            reason = "alone, a vendor's kernel is as good"
            if len(needed) == 1 and len(wanted) == 1:
                ((result, name),) = wanted.items()
                if result is not array or product.found.packed:
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
        function = ""
        tensors: tuple[str, ...] = ()
        if result is not array:
            made = epilogue(array, result, self.memory)
            if isinstance(made, str):
                return made
            key = made.source("epilogue", "")
            function = self.kernels.get(key) or self._fresh(f"{self._kernel_name()}_epilogue")
            if key not in self.kernels:
                self.kernels[key] = function
                self.sources.append(made.source(function, self._summary()))
            tensors = made.inputs
        self._call_template(array, product, name, function, tensors, self._memory_shape(result, array, shapes))
        return None

    def _memory_shape(self, result: Array, array: Source, shapes: Shapes) -> str:
        wanted = shapes.get(result, result.shape)
        if wanted == array.shape:
            return ""
        return f".reshape({', '.join(self._host(size) for size in wanted)})"

    def _call_template(
        self, array: Source, product: Product, name: str, function: str, tensors: Sequence[str], tail: str
    ) -> None:
        found = product.found
        arguments = [self._variable(found.x)]
        if found.packed:
            key = f"packed {product.key}"
            arguments.append(self._fresh())
            self.constants[key] = arguments[-1]
            self.lines.append(Line(f"{arguments[-1]} = constants[{key!r}]", (arguments[-1],)))
        else:
            assert found.weight is not None
            arguments.append(self._variable(found.weight))
        if found.options:
            arguments.append(found.options)
        if function:
            # Kernels make their operands contiguous when they are launched; a template does not.
            whole = ", ".join(f"{tensor}.contiguous()" for tensor in tensors)
            listed = f", tensors=({whole},)" if tensors else ""
            arguments.append(f"epilogue=Epilogue(function={function}{listed})")
            self.imports.add("from burnish.backends.triton.fused import Epilogue")
        self.imports.add(f"from burnish.backends.triton.{found.module} import {found.function}")
        self.names.update(("Epilogue", found.function))
        self.lines.append(Line(f"{name} = {found.function}({', '.join(arguments)}){tail}", (name,)))
        if self.scope is not None:
            self.scope.names.append(f"{found.function} with {function}" if function else found.function)

    def _alone(self, array: Source, product: Product, reason: str, name: str | None) -> None:
        """A product without anything after it: by its template where that has packed weights, else by PyTorch."""
        if product.found.packed:
            self._call_template(array, product, name or self._buffer(), "", (), "")
            self.memory[array] = self.lines[-1].writes[0]
            return
        node = product.node
        result = name or self._buffer()
        opset = self.graph.opset_imports.get(node.domain, 1)
        code = self._plain(node, node.inputs, opset)
        self.lines.append(Line(f"{result} = {code}", (result,)))
        self.memory[array] = result
        if self.scope is not None:
            self.scope.left.append((node.op_type, reason))
