"""Finds the frontend for whatever the user calls a model."""

from __future__ import annotations

import contextlib
import copy
import inspect
import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..frontends.imported import Imported
from ..ir.errors import (
    ArtifactError,
    BurnishError,
    InputError,
    ModelError,
    OptionError,
    UnsupportedError,
    VerificationError,
)
from .artifact import MANIFEST_FILE, MANIFEST_KEY
from .inputs import arguments
from .wire import read_header

_TAKES = (
    "pass an nn.Module, an ExportedProgram, an onnx.ModelProto, an onnx_ir.Model, "
    "or the path of an .onnx, .gguf or .pt2 file or of a Hugging Face folder"
)


class Source:
    """A model as the user gave it.

    Attributes:
        name: for the report.
        path: the file or folder, if it comes from disk.

    Raises:
        ModelError: it is no model, is not there, or cannot be read.
        UnsupportedError: it is a model of a kind that cannot be compiled.
        InputError: an nn.Module without example inputs, or inputs on another device.
        OptionError: an option that this kind of model does not take.
    """

    def __init__(self, model: Any, example_inputs: Any, dynamic_shapes: Any) -> None:
        self.path: Path | None = None
        self._args, self._kwargs = arguments(example_inputs)
        self._dynamic_shapes = dynamic_shapes
        self._module: Any = None
        self._import: Callable[[], Imported]
        if isinstance(model, str | os.PathLike):
            self.path = Path(model)
            self.name = self.path.name or str(self.path.absolute())
            self._import = self._from_path(self.path)
        else:
            self.name = type(model).__name__
            self._import = self._from_object(model)
        if dynamic_shapes is not None and not self.traced:
            raise OptionError(
                "dynamic_shapes says what torch.export is to trace; this model has its shapes already",
                where="dynamic_shapes=",
                fix="leave it out",
            )

    @property
    def traced(self) -> bool:
        """Whether the model is an nn.Module, which is traced on the example inputs."""
        return self._module is not None

    @property
    def example(self) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Arguments of one call, if the user gave any."""
        return (self._args, self._kwargs) if self._args or self._kwargs else None

    def load(self) -> Imported:
        """The model as a graph."""
        return self._import()

    def explain(self, error: BurnishError) -> BurnishError:
        """The error that helps: a module that fails on the example inputs by itself was given wrong ones."""
        if not self._module or not isinstance(error, ModelError | UnsupportedError | VerificationError):
            return error
        import torch

        try:
            model, args, kwargs = copy.deepcopy((self._module, self._args, self._kwargs))  # the call may change them
        except Exception:  # whatever cannot be copied
            return error
        try:
            with torch.no_grad():
                model(*args, **kwargs)
        except Exception as reason:  # whatever the user's model raises
            return InputError(
                f"the model does not run on the example inputs: {type(reason).__name__}: {_first_line(reason)}",
                where=f"example_inputs= of {self.name}",
                fix="pass inputs that model(*example_inputs) takes",
            )
        if error.fix is None:
            fix = "change the model so that torch.export.export(model, args) traces it"
            return type(error)(error.what, where=error.where, fix=fix)
        return error

    def _from_path(self, path: Path) -> Callable[[], Imported]:
        if not path.exists():
            raise ModelError("there is no such file or folder", where=str(path), fix=f"check the path; or {_TAKES}")
        if path.is_dir():
            return self._from_folder(path)
        try:
            with path.open("rb") as file:
                magic = file.read(8)
        except OSError as error:
            raise ModelError(
                f"the file cannot be read: {error.strerror}", where=str(path), fix="check its permissions"
            ) from error
        suffix = path.suffix.lower()
        if magic[:4] == b"GGUF" or suffix == ".gguf":
            return lambda: _gguf(path)
        if suffix == ".pt2":
            return lambda: _exported_file(path)
        if suffix in (".pt", ".pth", ".bin", ".ckpt", ".safetensors"):
            raise UnsupportedError(
                f"a {suffix} file holds weights without the program that uses them",
                where=str(path),
                fix="pass the nn.Module, or the Hugging Face folder that the file belongs to",
            )
        if not magic:
            raise ModelError("the file is empty", where=str(path), fix="copy or download it again")
        return lambda: _onnx(path)

    def _from_folder(self, path: Path) -> Callable[[], Imported]:
        if (path / MANIFEST_FILE).exists():
            raise ModelError(
                "the folder is a model that Burnish compiled already",
                where=str(path),
                fix="run it with burnish.load(path), or compile what it was made from",
            )
        if (path / "config.json").exists():
            return lambda: _folder(path)
        files = sorted(item.name for item in path.iterdir() if item.suffix.lower() in (".onnx", ".gguf"))
        raise ModelError(
            "the folder holds no Hugging Face model (config.json is missing)",
            where=str(path),
            fix=f"pass the file: {', '.join(str(path / name) for name in files[:3])}" if files else _TAKES,
        )

    def _from_object(self, model: Any) -> Callable[[], Imported]:
        # A model of a library that nobody imported cannot be here: nothing is imported to find out what it is.
        torch = sys.modules.get("torch")
        if torch is not None:
            if isinstance(model, torch.jit.ScriptModule):
                raise UnsupportedError(
                    "TorchScript modules cannot be compiled", where=self.name, fix="pass the nn.Module it was made from"
                )
            if isinstance(model, torch.nn.Module):
                self._module = model
                _check_module(model)
                self._check_example()
                return lambda: _module(model, self._args, self._kwargs, self._dynamic_shapes)
            if isinstance(model, torch.export.ExportedProgram):
                return lambda: _exported(model)
        onnx, onnx_ir = sys.modules.get("onnx"), sys.modules.get("onnx_ir")
        if onnx is not None and isinstance(model, onnx.ModelProto):
            return lambda: _onnx(model)
        if onnx_ir is not None and isinstance(model, onnx_ir.Model):
            return lambda: _onnx(model)
        if type(model).__name__ == "CompiledModel":
            raise UnsupportedError(
                "the model is compiled already", where=repr(model), fix="compile what it was made from"
            )
        if isinstance(model, type):
            raise ModelError(f"{model.__name__} is a class, not a model", fix=f"pass {model.__name__}(...)")
        raise ModelError(f"a {type(model).__module__}.{type(model).__name__} is not a model", fix=_TAKES)

    def _check_example(self) -> None:
        if not self._args and not self._kwargs:
            raise InputError(
                "example inputs are missing: a module is traced on them",
                where=f"example_inputs= of {self.name}",
                fix='pass a tuple of tensors, or a mapping such as {"input_ids": ids}',
            )
        try:
            inspect.signature(self._module.forward).bind(*self._args, **self._kwargs)
        except TypeError as error:
            takes = ", ".join(inspect.signature(self._module.forward).parameters)
            raise InputError(
                f"the example inputs do not fit the model: {error}",
                where=f"example_inputs= of {self.name}",
                fix=f"forward takes {takes}" if takes else "forward takes nothing",
            ) from error
        for where, value in _tensors(self._args, self._kwargs):
            if value.device.type != "cpu":
                raise InputError(
                    f"the example input {where} is on device {str(value.device)!r}, models are compiled on the CPU",
                    where=f"example_inputs= of {self.name}",
                    fix="pass value.cpu()",
                )


def _tensors(args: Any, kwargs: Any) -> list[tuple[str, Any]]:
    import torch
    from torch.utils import _pytree

    leaves, _ = _pytree.tree_flatten_with_path((args, kwargs))
    return [(_pytree.keystr(path[1:]), value) for path, value in leaves if isinstance(value, torch.Tensor)]


def _check_module(model: Any) -> None:
    training = [name or type(model).__name__ for name, module in model.named_modules() if module.training]
    if training:
        more = f" and {len(training) - 3} more" if len(training) > 3 else ""
        raise ModelError(
            "the model is in training mode (dropout is on, normalization follows the batch)",
            where=", ".join(training[:3]) + more,
            fix="call model.eval() first",
        )
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.device.type == "meta":
            raise ModelError(
                "the model has no weights: a tensor is on device 'meta'",
                where=name,
                fix="load the weights first, or pass the Hugging Face folder",
            )
        if tensor.device.type != "cpu":
            raise ModelError(
                f"the model is on device {str(tensor.device)!r}, models are compiled on the CPU",
                where=name,
                fix="call model.cpu() first",
            )


def _module(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic_shapes: Any) -> Imported:
    from ..frontends.torch_module import import_module

    with _quiet_torch():
        return import_module(model, args, kwargs, dynamic_shapes)


@contextlib.contextmanager
def _quiet_torch() -> Iterator[None]:
    """Hold torch's log back, unless the user asked for it: what goes wrong is told once, in the error."""
    if "TORCH_LOGS" in os.environ:
        yield
        return

    def drop(record: logging.LogRecord) -> bool:
        return False

    loggers = [logging.getLogger(name) for name in list(logging.root.manager.loggerDict) if name.startswith("torch")]
    handlers = [handler for logger in loggers for handler in logger.handlers]  # torch gives each logger its own
    for handler in handlers:
        handler.addFilter(drop)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(drop)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0]


def _exported(program: Any) -> Imported:
    from ..frontends.torch_module import import_exported

    with _quiet_torch():
        return import_exported(program)


def _exported_file(path: Path) -> Imported:
    import torch

    try:
        with _quiet_torch():
            program = torch.export.load(path)
    except Exception as error:  # torch names no error for a damaged file
        raise ModelError(
            f"the file is not an exported program ({type(error).__name__})", where=str(path), fix="export it again"
        ) from error
    return _exported(program)


def _onnx(model: Any) -> Imported:
    from ..frontends.onnx_file import import_onnx

    if isinstance(model, Path):
        _refuse_compiled(model)
    return import_onnx(model)


def _refuse_compiled(path: Path) -> None:
    try:
        metadata = read_header(path).metadata
    except ArtifactError as error:
        # The importer would say the same of most files, but it reads all of them first.
        raise ModelError(error.what, where=error.where, fix="pass a whole ONNX file") from error
    if MANIFEST_KEY in metadata:
        raise ModelError(
            "the file is a model that Burnish compiled already",
            where=str(path),
            fix="run it with burnish.load(path), or compile what it was made from",
        )


def _folder(path: Path) -> Imported:
    from ..frontends.huggingface import import_folder

    return import_folder(path)


def _gguf(path: Path) -> Imported:
    from ..frontends.gguf import import_gguf

    return import_gguf(path)
