"""Translation rules by ATen overload."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

import torch

Rule: TypeAlias = Callable[..., Any]
"""``rule(builder, *arguments)`` takes the operator's arguments by the names and defaults of its schema.

Tensors arrive as ``onnx_ir.Value``, symbolic sizes as ``torch.SymInt``, everything else as Python values. It returns
one value, or a list of them for an operator of several results.
"""

F = TypeVar("F", bound=Rule)

RULES: dict[str, Rule] = {}


def rule(*overloads: str) -> Callable[[F], F]:
    """Register a function as the rule of these overloads, such as ``aten.add.Tensor``."""

    def register(function: F) -> F:
        for name in overloads:
            if name in RULES:
                raise ValueError(f"{name} has two rules")
            RULES[name] = function
        return function

    return register


def find(target: object) -> Rule | None:
    """The rule of an FX target, or None. An in-place operator has the rule of its functional form."""
    importlib.import_module(f"{__package__}.rules")  # its files import this module
    name = overload_name(target)
    found = RULES.get(name)
    if found is None and is_mutable(target):
        found = RULES.get(functional_name(name))
    return found


def overload_name(target: object) -> str:
    """``aten.add.Tensor`` for an overload; a readable name for anything else."""
    return str(target) if isinstance(target, torch._ops.OpOverload) else getattr(target, "__name__", str(target))


def functional_name(name: str) -> str:
    """``aten.add.Tensor`` for ``aten.add_.Tensor``."""
    namespace, packet, overload = name.split(".", 2)
    return f"{namespace}.{packet.removesuffix('_')}.{overload}"


def is_mutable(target: object) -> bool:
    """Whether an FX target is an operator that writes to an argument."""
    return isinstance(target, torch._ops.OpOverload) and target._schema.is_mutable
