"""How calls of the original model become graph inputs, and the graph's outputs its result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...ir.errors import InputError, nearest
from ...ir.signature import TensorSpec, check_input
from .structure import Constant, Structure, match, unflatten


@dataclass(frozen=True)
class TreeSignature:
    """The signature of a module's ``forward``: arguments by position or name, nested; results as the module packs them.

    Attributes:
        inputs: what the graph takes.
        outputs: what it gives.
        parameters: names of the positional parameters of ``forward``, in order.
        arguments: the structure of each argument that the model was exported with, by parameter name.
        defaults: parameters with a default, which may be left out if they were at export.
        variadic: name of the ``*args`` parameter, if there is one.
        result: the structure of the result.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    parameters: tuple[str, ...]
    arguments: Mapping[str, Structure]
    defaults: Mapping[str, Any]
    variadic: str | None
    result: Structure

    def flatten(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Graph inputs by name, in the caller's own tensor type.

        Raises:
            InputError: an argument is missing, unknown, given twice, or does not fit.
        """
        given = self._bind(args, kwargs)
        leaves: dict[int, Any] = {}
        for name, structure in self.arguments.items():
            if name in given:
                match(structure, given.pop(name), f"argument {name!r}", leaves)
            elif isinstance(structure, Constant):
                # A number or None of the export: leaving it out means the same.
                continue
            else:
                raise InputError(
                    f"argument {name!r} is missing", fix=f"pass {', '.join(self.arguments)}, as when compiling"
                )
        for name, value in given.items():
            if value is not None and not (name in self.defaults and _is_default(value, self.defaults[name])):
                raise InputError(
                    f"argument {name!r} was not given when the model was compiled",
                    fix="leave it out, or compile with it among the example inputs",
                )
        symbols: dict[str, tuple[int, str]] = {}
        return {spec.name: check_input(spec, leaves[i], symbols) for i, spec in enumerate(self.inputs)}

    def _bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        given = dict(zip(self.parameters, args, strict=False))
        extra = args[len(self.parameters) :]
        if self.variadic is not None:
            if extra or self.variadic in self.arguments:
                given[self.variadic] = tuple(extra)
        elif extra:
            raise InputError(
                f"{len(args)} arguments given, the model takes {len(self.parameters)}",
                where="the call of the model",
                fix=f"pass {', '.join(self.parameters)}",
            )
        for name, value in kwargs.items():
            if name in given:
                raise InputError(f"argument {name!r} is given twice", fix="pass it by position or by name")
            if name not in self.arguments and name not in self.parameters and name not in self.defaults:
                raise InputError(f"the model has no argument {name!r}", fix=nearest(name, self.arguments))
            given[name] = value
        return given

    def unflatten(self, outputs: Sequence[Any]) -> Any:
        """The module's own result structure with these tensors in it."""
        return unflatten(self.result, outputs)


def _is_default(value: Any, default: Any) -> bool:
    try:
        return bool(value is default or value == default)
    except (ValueError, TypeError, RuntimeError):
        return False
