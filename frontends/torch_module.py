"""A PyTorch module or exported program as a graph, through ``torch.export`` without decomposition."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import onnx_ir
import torch
from torch.export import ExportedProgram

from ..ir.errors import InputError, ModelError
from .imported import Imported
from .torch_export.program import Call, import_program
from .torch_export.trace import trace


def import_module(
    model: torch.nn.Module,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    *,
    weights: Mapping[str, onnx_ir.TensorProtocol] | None = None,
) -> Imported:
    """Trace a module and import the result.

    Args:
        model: in evaluation mode, on the CPU (or on ``meta``, with ``weights``).
        args: positional example inputs.
        kwargs: keyword example inputs.
        dynamic_shapes: which dimensions may vary, as ``torch.export.export`` takes it.
        weights: data of parameters and buffers by name, used instead of the module's own.

    Raises:
        InputError: example inputs are missing, on another device, or contradict ``dynamic_shapes``.
        ModelError: the model is in training mode, or torch cannot trace it.
        UnsupportedError: an operator that neither way can express.
    """
    args, kwargs = tuple(args), dict(kwargs or {})
    _check_ready(model, args, kwargs, bool(weights))
    call = Call.of_module(model, args, kwargs)
    program = trace(model, args, kwargs, dynamic_shapes, call)
    return import_program(program, call, dynamic_shapes, weights)


def import_exported(
    program: ExportedProgram,
    *,
    dynamic_shapes: Any = None,
    weights: Mapping[str, onnx_ir.TensorProtocol] | None = None,
) -> Imported:
    """Import a program that ``torch.export.export`` made.

    Args:
        program: as exported, not decomposed.
        dynamic_shapes: what the program was exported with, for the names of its dimensions; where it is not given they
            are named after the inputs.
        weights: data of parameters and buffers by name, used instead of the program's own.

    Raises:
        UnsupportedError: an operator that neither way can express.
        ModelError: a weight has no data.
    """
    return import_program(program, Call.of_program(program), dynamic_shapes, weights)


def _check_ready(model: torch.nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], weights: bool) -> None:
    if model.training:
        raise ModelError(
            f"{type(model).__name__} is in training mode", fix="call model.eval() first: compiled models only infer"
        )
    required = [
        p.name
        for p in inspect.signature(model.forward).parameters.values()
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    missing = [name for name in required[len(args) :] if name not in kwargs]
    if missing or not (args or kwargs):
        raise InputError(
            f"example inputs are missing: {', '.join(missing) or 'none were given'}",
            where=type(model).__name__,
            fix="pass example_inputs=(...) or a dictionary of them by name",
        )
    devices = {t.device.type for t in [*model.parameters(), *model.buffers()]}
    if devices - {"cpu", "meta"}:
        raise ModelError(f"the model is on device {', '.join(sorted(devices))}", fix="call model.cpu() first")
    wanted = {"cpu", "meta"} if weights or devices == {"meta"} else {"cpu"}
    for where, tensor in _tensors([*enumerate(args), *kwargs.items()]):
        if tensor.device.type not in wanted:
            raise InputError(
                f"example input {where} is on device {str(tensor.device)!r}, the model on the CPU",
                fix="pass value.cpu()",
            )


def _tensors(named: Sequence[tuple[Any, Any]]) -> Iterator[tuple[str, torch.Tensor]]:
    for name, value in named:
        for leaf in torch.utils._pytree.tree_leaves(value):
            if isinstance(leaf, torch.Tensor):
                yield f"{name!r}", leaf
