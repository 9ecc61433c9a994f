"""What decides how a model is compiled, checked before anything is read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ..backends.onnxruntime.lower import TARGETS
from ..ir.errors import OptionError, nearest
from ..passes.base import Pass
from ..passes.spec import Passes, check_order, implied, parse
from .calibration.data import DataFile
from .kernels import on_kernels
from .model import ANYWHERE
from .pipeline import Verify, check_mode

_BACKENDS = ("auto", "onnxruntime", *ANYWHERE)


@dataclass(frozen=True)
class Recipe:
    """Everything that decides how a model is compiled.

    Attributes:
        passes: in the order they run, implied ones included.
        target: ``onnxruntime``, ``onnx``, ``triton`` or ``reference``.
        verify: mode of verification.
        calibration: the user's inputs.
        prefill: passes of the graph that a decoder runs on prompts, if it is to have one of its own.
        evaluation: inputs to compare outputs on.
    """

    passes: tuple[Pass, ...]
    target: str = "onnxruntime"
    verify: Verify = "structure"
    calibration: Iterable[Any] | DataFile | None = None
    prefill: tuple[Pass, ...] | None = None
    evaluation: Iterable[Any] | None = None


def recipe(
    passes: Passes,
    *,
    backend: str = "auto",
    target: str = "onnxruntime",
    verify: str = "structure",
    calibration: Iterable[Any] | DataFile | None = None,
    prefill: Passes | None = None,
    evaluation: Iterable[Any] | None = None,
) -> Recipe:
    """Check the options of a compilation before anything is read.

    Raises:
        OptionError: one does not exist, or the passes are in an order that does not work.
        UnsupportedError: a backend that cannot run here.
    """
    if backend not in _BACKENDS:
        raise OptionError(f"there is no backend {backend!r}", where="backend=", fix=nearest(str(backend), _BACKENDS))
    if target not in TARGETS:
        raise OptionError(f"there is no target {target!r}", where="target=", fix=nearest(str(target), TARGETS))
    listed = implied(parse(passes))
    if backend in ANYWHERE:
        target = backend
    if backend == "triton":
        listed = on_kernels(listed)
    check_order(listed)
    if prefill is None:
        return Recipe(tuple(listed), target, check_mode(verify), calibration, None, evaluation)
    if target != "onnxruntime":
        raise OptionError(
            "a graph for prompts needs ONNX Runtime's own operators", where="prefill=", fix="leave it out"
        )
    first = implied(parse(prefill))
    check_order(first)
    if calibration is not None and not isinstance(calibration, DataFile):
        calibration = list(calibration)  # read by both
    return Recipe(tuple(listed), target, check_mode(verify), calibration, tuple(first), evaluation)
