"""Tracing a module with ``torch.export``, and saying plainly why it failed."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.export import ExportedProgram

from ...ir.errors import BurnishError, InputError, ModelError, UnsupportedError
from .program import Call
from .structure import Constant, Container, Structure, flatten, is_tensor

_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device)


def trace(
    model: torch.nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], dynamic_shapes: Any, call: Call
) -> ExportedProgram:
    """The exported program of a module; ``call.result`` is set to the structure of its result.

    The result is taken apart by a hook, so that it may be of any class that :mod:`.structure` can open.

    Raises:
        InputError: a dimension said to vary cannot, or the example inputs do not fit ``forward``.
        ModelError: torch cannot trace the model.
    """
    _know_caches()

    def take_apart(module: torch.nn.Module, inputs: Any, result: Any) -> tuple[Any, ...]:
        leaves: list[Any] = []
        call.result = flatten(result, leaves, _is_output)
        _check(call.result)
        return tuple(leaves)

    hook = model.register_forward_hook(take_apart)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            # Recurrent layers refresh a list of their weights on every call; torch puts it back.
            warnings.filterwarnings("ignore", message="The tensor attribute")
            return torch.export.export(model, tuple(args), dict(kwargs), strict=False, dynamic_shapes=dynamic_shapes)
    except BurnishError:
        raise
    except Exception as error:
        raise _explained(error, type(model).__name__) from error
    finally:
        hook.remove()


def _is_output(value: Any) -> bool:
    return is_tensor(value) or isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool))


def _check(structure: Structure) -> None:
    if isinstance(structure, Constant) and not isinstance(structure.value, _PLAIN):
        kind = type(structure.value).__name__
        raise UnsupportedError(
            f"the model's result holds a {kind}, which cannot be taken apart",
            fix=f"return tensors instead, or register {kind} with torch.utils._pytree.register_pytree_node",
        )
    if isinstance(structure, Container):
        for part in structure.parts:
            _check(part)


def _know_caches() -> None:
    """Let pytrees open the cache objects of transformers, which it registers on request only."""
    if "transformers" not in sys.modules:
        return
    try:
        from transformers.integrations.executorch import register_dynamic_cache_export_support
    except ImportError:
        return
    try:
        register_dynamic_cache_export_support()
    except ValueError:  # registered already
        return


def _explained(error: Exception, name: str) -> BurnishError:
    text = str(error)
    violated = re.search(r"Constraints violated \(([^)]*)\)", text)
    if violated:
        reasons = [line.strip(" -") for line in text.splitlines() if line.strip().startswith("- ")]
        fixes = re.findall(r"^\s*(\w+ = .+)$", text.split("Suggested fixes")[-1], re.M) if "Suggested" in text else []
        names = violated[1]
        return InputError(
            f"dimension {names} cannot vary as dynamic_shapes says: {' '.join(reasons[:2])}",
            where=name,
            fix=f"export with {'; '.join(fixes)}" if fixes else "leave that dimension static, or change the model",
        )
    if "dynamic_shapes" in text or "specialized" in text or "Detected mismatch between the structure" in text:
        return InputError(f"dynamic_shapes does not fit: {_first(text)}", where=name, fix="see torch.export.export")
    if isinstance(error, torch.fx.experimental.symbolic_shapes.GuardOnDataDependentSymNode):
        return UnsupportedError(
            f"what the model computes depends on the values of its inputs: {_first(text)}",
            where=name,
            fix="use torch.cond, or compute it outside the model",
        )
    return ModelError(f"torch.export cannot trace the model: {type(error).__name__}: {_first(text)}", where=name)


def _first(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " ".join(lines[:2]) if lines else "no reason given"
