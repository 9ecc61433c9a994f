"""Which kernels the installed ONNX Runtime has: asked of the build, never assumed."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as build

CPU = "CPUExecutionProvider"
_FOREVER = 2**31 - 1


@dataclass(frozen=True)
class Kernel:
    """One CPU kernel.

    Attributes:
        first: oldest version of the operator it implements.
        last: newest version.
        types: allowed types of each type variable (or input), such as ``{"T": {"tensor(float)"}}``.
    """

    first: int
    last: int
    types: Mapping[str, frozenset[str]]

    def runs(self, since: int) -> bool:
        """Whether it implements the operator version introduced in opset ``since`` (ONNX Runtime's own rule)."""
        return self.first == since or (self.first < since <= self.last and self.last != _FOREVER)


@dataclass(frozen=True)
class Schema:
    """One operator version: names and type variables of its inputs; ``variadic`` if the last one repeats."""

    since: int
    inputs: tuple[tuple[str, str], ...]
    variadic: bool
    attributes: frozenset[str]


def version() -> str:
    """Version of the installed ONNX Runtime."""
    return str(onnxruntime.__version__)


@functools.cache
def _kernels() -> dict[tuple[str, str], list[Kernel]]:
    table: dict[tuple[str, str], list[Kernel]] = {}
    for kernel in build.get_all_opkernel_def():
        if kernel.provider != CPU:
            continue
        first, last = kernel.version_range
        types = {name: frozenset(allowed) for name, allowed in kernel.type_constraints.items()}
        domain = "" if kernel.domain == "ai.onnx" else kernel.domain
        table.setdefault((domain, kernel.op_name), []).append(Kernel(first, last, types))
    return table


@functools.cache
def _schemas() -> dict[tuple[str, str], list[Schema]]:
    table: dict[tuple[str, str], list[Schema]] = {}
    for schema in build.get_all_operator_schema():
        inputs = tuple((formal.name, formal.typeStr) for formal in schema.inputs)
        variadic = bool(schema.inputs) and "Variadic" in str(schema.inputs[-1].option)
        domain = "" if schema.domain == "ai.onnx" else schema.domain
        table.setdefault((domain, schema.name), []).append(
            Schema(schema.since_version, inputs, variadic, frozenset(schema.attributes))
        )
    for versions in table.values():
        versions.sort(key=lambda schema: schema.since)
    return table


def schema(domain: str, op: str, opset: int) -> Schema | None:
    """The newest version of an operator that opset ``opset`` of its domain has; None if the build does not know it."""
    versions = [schema for schema in _schemas().get((domain, op), []) if schema.since <= opset]
    return versions[-1] if versions else None


def newest_opset() -> int:
    """The newest ONNX opset for which the build knows an operator."""
    return max(v.since for (domain, _), versions in _schemas().items() if domain == "" for v in versions)


def has(domain: str, op: str, opset: int, types: Sequence[str | None] = (), attributes: Sequence[str] = ()) -> bool:
    """Whether a CPU kernel runs an operator on inputs of these types.

    Args:
        domain: "" for standard operators.
        op: operator type.
        opset: version of the domain that the model imports.
        types: of the inputs in order, such as ``"tensor(float)"``; None where unknown or absent.
        attributes: names that the operator must accept.
    """
    found = schema(domain, op, opset)
    if found is None or not found.attributes.issuperset(attributes):
        return False
    return any(
        kernel.runs(found.since) and _accepts(kernel, found, types) for kernel in _kernels().get((domain, op), [])
    )


def _accepts(kernel: Kernel, found: Schema, types: Sequence[str | None]) -> bool:
    for i, given in enumerate(types):
        if given is None or not found.inputs:
            continue
        if i >= len(found.inputs) and not found.variadic:
            return False
        name, variable = found.inputs[min(i, len(found.inputs) - 1)]
        allowed = kernel.types.get(variable) or kernel.types.get(name)
        if allowed is not None and given not in allowed:
            return False
    return True
