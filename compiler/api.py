"""``compile`` and ``export``: a model in, a smaller and faster one out."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..ir.errors import OptionError
from ..passes.spec import Passes
from .build import build
from .calibration.data import DataFile
from .compilation import Built
from .model import CompiledModel, check_rows, check_streams
from .progress import terminal_progress
from .recipe import recipe
from .report import Report
from .source import Source
from .storage import check_target, is_file_target, publish


def compile(
    model: Any,
    example_inputs: Any = None,
    *,
    dynamic_shapes: Any = None,
    passes: Passes = "default",
    calibration: Iterable[Any] | None = None,
    evaluation: Iterable[Any] | None = None,
    backend: str = "auto",
    verify: str = "structure",
    prefill: Passes | None = None,
    cache: bool | str | os.PathLike[str] | None = None,
    threads: int | None = None,
    streams: int | None = None,
    progress: bool | None = None,
) -> CompiledModel:
    """Compile a model for ONNX Runtime, or for another backend.

    Args:
        model: an ``nn.Module``, an ``ExportedProgram``, an ``onnx.ModelProto`` or an ``onnx_ir.Model`` (none is
            changed), or the path of an ``.onnx``, ``.gguf`` or ``.pt2`` file or of a Hugging Face folder.
        example_inputs: arguments of one call: a tuple, a mapping by name, or one tensor; needed for an ``nn.Module``.
        dynamic_shapes: dimensions that vary, as in ``torch.export.export``.
        passes: a preset or specification (``"w4a16"``, ``"quantize(bits=8)"``), or a list of passes; ``canonicalize``
            and ``recover`` run first unless the list is empty.
        calibration: inputs for passes that look at data; any iterable of what ``example_inputs`` may be.
        evaluation: inputs that calibration does not see: on up to 8 of them the outputs are compared with those of the
            model as it came, for the report, and the scheme ``"auto"`` keeps its budget; without any, on calibration
            inputs.
        backend: ``"auto"`` or ``"onnxruntime"``; ``"triton"``: generated kernels on a GPU, after the pass ``fuse`` (or,
            slowly, on the CPU under ``TRITON_INTERPRET=1``); ``"reference"``: node by node with PyTorch.
        verify: ``"off"``, ``"structure"`` (the graph, after each pass) or ``"numerics"`` (also its outputs).
        prefill: passes of a second graph of a language model, which ``generate`` runs on prompts, with the same cache:
            ``passes="w4a16", prefill="w8a8"`` decodes at 4 bits and reads prompts in int8.
        cache: a folder; True or False; by default on for models that come from disk.
        threads: threads of the session; ONNX Runtime's own choice if not given.
        streams: a call of many rows (the first axis of the outputs) runs in so many shares side by side, each on its
            part of the threads, which is faster where operators are small (encoders, 8 bits); rows must not depend on
            each other, the first call checks it. Weights are in memory twice. ``generate`` takes all threads as ever.
        progress: draw progress bars; by default on a terminal.

    Raises:
        BurnishError: what was wrong, where, and what to do; see :mod:`burnish.ir.errors` for the kinds.
    """
    if threads is not None and threads < 1:
        raise OptionError(f"threads={threads} is not a number of threads", where="threads=", fix="pass 1 or more")
    accept = None
    if streams is not None:
        check_streams(streams, threads, backend)
        accept = check_rows
    how = recipe(
        passes, backend=backend, verify=verify, calibration=calibration, prefill=prefill, evaluation=evaluation
    )
    with terminal_progress(progress) as show:
        built = build(Source(model, example_inputs, dynamic_shapes), how, cache=cache, progress=show, accept=accept)
    compiled = CompiledModel(
        built.path,
        built.manifest,
        built.report,
        signature=built.signature,
        threads=threads,
        streams=streams,
        owned=built.owned,
    )
    compiled.open()  # what cannot run is told here, not at the first call
    return compiled


def export(
    model: Any,
    path: str | os.PathLike[str],
    example_inputs: Any = None,
    *,
    dynamic_shapes: Any = None,
    passes: Passes = "default",
    calibration: Iterable[Any] | DataFile | None = None,
    evaluation: Iterable[Any] | None = None,
    target: str = "onnxruntime",
    verify: str = "structure",
    prefill: Passes | None = None,
    cache: bool | str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    progress: bool | None = None,
) -> Report:
    """Compile a model into a file or folder, without opening it.

    Args:
        model: see :func:`compile`.
        path: a name that ends in ``.onnx``, or a folder to make.
        example_inputs: see :func:`compile`.
        dynamic_shapes: see :func:`compile`.
        passes: see :func:`compile`.
        calibration: see :func:`compile`; or a file.
        evaluation: see :func:`compile`.
        target: ``"onnxruntime"`` (its own operators allowed) or ``"onnx"`` (standard operators only).
        verify: see :func:`compile`.
        prefill: see :func:`compile`; needs a folder.
        cache: see :func:`compile`.
        overwrite: replace a model that is there.
        progress: see :func:`compile`.

    Raises:
        OutputError: something is there already, or the place cannot be written to; before anything is compiled.
        BurnishError: see :func:`compile`.
    """
    output = Path(path)
    check_target(output, overwrite)
    if prefill is not None and is_file_target(output):
        raise OptionError(
            "a second graph for prompts does not fit into one file", where="prefill=", fix="give a folder as path"
        )
    how = recipe(passes, target=target, verify=verify, calibration=calibration, prefill=prefill, evaluation=evaluation)
    with terminal_progress(progress) as show:
        source = Source(model, example_inputs, dynamic_shapes)
        built = build(source, how, cache=cache, workspace=output.absolute().parent, progress=show)
    try:
        publish(built.path, built.manifest, output, overwrite=overwrite, move=built.owned)
    finally:
        _discard(built)
    return built.report


def _discard(built: Built) -> None:
    if built.owned:
        shutil.rmtree(built.path.parent, ignore_errors=True)
