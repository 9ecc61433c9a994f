"""What a compilation measures besides rewriting: for its passes, and of its outputs beside the original's."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..frontends.imported import Imported
from ..ir.graph import Graph
from ..ir.remarks import Remark
from ..passes.base import Context, Latency, Pass, Stage
from .accuracy import AccuracyCheck, Trials
from .cache import Cache
from .inputs import PAST, Calibration, made_up
from .pipeline import Verify
from .progress import Progress
from .source import Source
from .timing.costs import Costs
from .verification import NumericsCheck

_COMPARED_SIZE = 1 << 30
"""Models up to this many bytes of weights are run as they came, to compare outputs."""


def pass_context(
    stack: contextlib.ExitStack,
    imported: Imported,
    target: str,
    calibration: Calibration | None,
    evaluation: Calibration | None,
    workspace: Path,
    store: Cache | None,
    progress: Progress,
    passes: Sequence[Pass],
) -> Context:
    """What passes may ask for besides statistics."""
    context = _measuring(stack, imported, target, calibration, evaluation, workspace, store, progress)
    if calibration is None:
        return context
    original = imported.graph.clone() if any(item.needs_original for item in passes) else None
    return replace(context, **_learning(imported, original, calibration, progress))


def _learning(
    imported: Imported, original: Graph | None, calibration: Calibration, progress: Progress
) -> dict[str, Any]:
    """Gradients for the passes, loaded when one asks."""

    def learning() -> Any:
        from .calibration.code_learning import CodeLearning

        return CodeLearning(imported.graph, original, calibration, imported.decoder is not None, progress)

    return {
        "distill": None if original is None else lambda *given: learning().distill(*given),
        "learn_codes": None if original is None else lambda *given: learning().learn_codes(*given),
        "influence": lambda places: learning().influence(places),
        "second_order": lambda *given: learning().second_order(*given),
    }


def _measuring(
    stack: contextlib.ExitStack,
    imported: Imported,
    target: str,
    calibration: Calibration | None,
    evaluation: Calibration | None,
    workspace: Path,
    store: Cache | None,
    progress: Progress,
) -> Context:
    decodes = imported.decoder is not None
    if target != "onnxruntime":
        return Context(target, calibration, progress, decodes=decodes, latency=_latency(target))
    trial = None
    if calibration is not None:
        # What passes fit to the calibration inputs loses less on them than on others.
        inputs = calibration if evaluation is None else evaluation
        trial = Trials(imported.graph, inputs, imported.decoder, workspace)
        stack.callback(trial.close)
    costs = Costs(None if store is None else store.folder)
    held_out = evaluation is not None
    return Context(target, calibration, progress, cost=costs, trial=trial, trial_held_out=held_out, decodes=decodes)


def _latency(target: str) -> Latency | None:
    """What takes the time of blocks on the GPU, where kernels are to run and there is one."""
    if target != "triton":
        return None
    from .timing.latency import on_gpu

    return on_gpu()


def accuracy_check(
    stack: contextlib.ExitStack,
    imported: Imported,
    passes: Sequence[Pass],
    evaluation: Calibration | None,
    verify: Verify,
    target: str,
    calibration: Calibration | None,
    workspace: Path,
    remarks: list[Remark],
) -> AccuracyCheck | None:
    """Compares outputs on the user's inputs where a pass may change them: on those for it, else for calibration."""
    lossy = any(item.stage > Stage.RECOVER for item in passes)
    inputs = calibration if evaluation is None else evaluation
    if inputs is None or target != "onnxruntime" or verify == "off" or not (lossy or evaluation):
        return None
    reason = None
    if imported.source_size > _COMPARED_SIZE:
        reason = "the model is too large to be run whole as it came"
    elif any(item.changes_inputs for item in passes):
        reason = "a pass changed the types of its inputs"
    if reason is not None:
        remarks.append(Remark("skipped", "", f"outputs were not compared with those of the model as it came: {reason}"))
        return None
    check = AccuracyCheck(inputs, evaluation is not None, imported.decoder, workspace)
    stack.callback(check.close)
    return check


def numerics_check(
    source: Source,
    imported: Imported,
    calibration: Calibration | None,
    passes: Sequence[Pass],
    target: str,
    empty: bool,
) -> tuple[NumericsCheck, list[Remark]]:
    """Compares numbers on the user's example, else on two of the calibration inputs, else on made-up ones.

    How far an approximate pass is off is a question of real inputs: there the calibration inputs come first.
    """
    real = calibration is not None and any(item.approximate for item in passes)
    if source.example is not None and not real:
        return NumericsCheck([imported.signature.flatten(*source.example)], target), []
    if calibration is not None:
        return NumericsCheck([feeds for feeds, _ in zip(calibration, range(2), strict=False)], target), []
    feeds = [made_up(imported.signature.inputs, imported.decoder)]
    if empty:  # zeros are zeros in any type
        feeds = [{k: np.zeros_like(v) if k.startswith(PAST) else v for k, v in item.items()} for item in feeds]
    remark = Remark(
        "applied", "", "numbers were compared on random inputs: no example or calibration inputs were given"
    )
    return NumericsCheck(feeds, target, made_up=True), [remark]
