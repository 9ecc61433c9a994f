"""One compilation: passes, lowering, writing, and the report of it all."""

from __future__ import annotations

import contextlib
import importlib.metadata
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import onnxruntime

from ..backends.onnxruntime.check import asked, check_running
from ..backends.onnxruntime.lower import lower
from ..backends.onnxruntime.writer import stored_bytes, write
from ..frontends.imported import Imported, retyped
from ..ir.errors import BurnishError, PassError, VerificationError
from ..ir.remarks import Remark
from ..ir.signature import Signature
from ..passes.spec import format_pass
from .artifact import MANIFEST_KEY, MODEL_FILE, REPORT_KEY, Manifest, data_file, record, stamp
from .cache import Cache
from .calibration.data import DataFile
from .calibration.statistics import Statistics, on_random_tokens
from .checks import accuracy_check, numerics_check, pass_context
from .inputs import Calibration
from .kernels import describe
from .measure import measure, node_count, weight_count
from .model import ANYWHERE
from .phases import add_generation, add_prefill
from .pipeline import Callback, PassRecord, Verify, run_passes
from .progress import Progress
from .recipe import Recipe
from .report import PassReport, RemarkGroup, Report, group
from .requirements import oldest_runtime
from .source import Source
from .storage import write_manifest, writing
from .timing.kernel_times import asked_for
from .verification import StructureCheck

_CHECKED_SIZE = 512 << 20
"""Files up to this many bytes are opened once more after they are written: opening costs time and memory."""
_SHARED_SIZE = 1 << 20
"""A decoder with more bytes of weights keeps them in a file that its graphs share."""
_PACKAGES = ("burnish", "torch", "onnx", "onnx-ir", "onnxruntime", "transformers", "numpy")


@dataclass
class Built:
    """A compiled model on disk.

    Attributes:
        path: the ONNX file; companions lie beside it.
        owned: whether the folder it lies in belongs to the caller, who moves or removes it; else the cache owns it.
    """

    path: Path
    manifest: Manifest
    report: Report
    signature: Signature
    owned: bool
    remarks: list[Remark] = field(default_factory=list)


def load(source: Source) -> Imported:
    """The graph of a model; errors are explained."""
    try:
        return source.load()
    except BurnishError as error:
        if (better := source.explain(error)) is not error:
            raise better from error
        raise


def compile_once(
    source: Source,
    imported: Imported,
    how: Recipe,
    folder: Path,
    seconds: dict[str, float],
    remarks: list[Remark],
    progress: Progress,
    store: Cache | None,
) -> Built:
    """Run a recipe.

    Args:
        source: the model.
        imported: its graph, which is changed.
        how: the recipe.
        folder: empty; gets the file and what belongs to it.
        seconds: gets the time that each step took.
        remarks: of what came before, for the report.
        progress: called during long work.
        store: for statistics and measured times.
    """
    graph = imported.graph
    nodes_before, weights = node_count(graph), weight_count(graph)
    given = how.calibration
    items = given.inputs(imported) if isinstance(given, DataFile) else given
    calibration = None if items is None else Calibration(items, imported.signature, imported.decoder)
    judged = how.evaluation
    evaluation = None if judged is None else Calibration(judged, imported.signature, imported.decoder)
    numerics = None
    changing = any(item.changes_inputs for item in how.passes)
    callbacks: list[Callback] = [] if how.verify == "off" else [StructureCheck()]
    approximate = any(item.approximate for item in how.passes)
    if approximate and calibration is None and how.verify != "numerics":
        why = "how far an approximate pass changes the outputs was not measured: no calibration inputs were given"
        remarks.append(Remark("skipped", "", why))
    if how.verify == "numerics" or (approximate and calibration is not None):
        against = "onnx" if how.target in ANYWHERE else how.target
        numerics, said = numerics_check(source, imported, calibration, how.passes, against, empty=changing)
        remarks += said
        callbacks.append(numerics)
    path = folder / MODEL_FILE
    decoder = imported.decoder if how.target == "onnxruntime" else None
    companions = set(imported.companions)
    with contextlib.ExitStack() as stack:  # weights that are computed when they are written may read statistics
        observe = None
        if calibration is not None:
            observe = stack.enter_context(Statistics(graph, calibration, folder.parent, progress, cache=store))
        random = on_random_tokens(stack, imported, graph, folder.parent, progress)
        context = pass_context(
            stack, imported, how.target, calibration, evaluation, folder.parent, store, progress, how.passes
        )
        times = asked_for(how.passes, None if store is None else store.folder)
        clock = None if times is None else times.unlowered
        context = replace(context, observe=observe, observe_made_up=random, clock=clock)
        if observe is not None:
            context = replace(context, observe_together=observe.together, sequential=observe.sequential)
        accuracy = accuracy_check(
            stack, imported, how.passes, evaluation, how.verify, how.target, calibration, folder.parent, remarks
        )
        if accuracy is not None:
            with timed(seconds, "original"):
                accuracy.begin(graph)
        with timed(seconds, "passes"):
            records = run_passes(graph, how.passes, context, callbacks)
            if changing:
                imported = retyped(imported)
                decoder = imported.decoder if decoder is not None else None
        with timed(seconds, "lowering"):
            backend = [] if how.target in ANYWHERE else lower(graph, target=how.target, clock=times)
            if times is not None:
                times.save()
            if how.verify != "off":
                _verify_lowered(graph, records)
        for name in (MANIFEST_KEY, REPORT_KEY):  # of a model that was compiled before and loaded with onnx
            graph.metadata_props.pop(name, None)
        with timed(seconds, "writing"):
            # The weights of a decoder in a file of their own serve two graphs.
            shared = decoder is not None and stored_bytes(graph) > _SHARED_SIZE
            write(graph, path, external=True if shared else None, progress=progress)
            with writing(folder):
                for name, content in imported.companions.items():
                    if isinstance(content, bytes):
                        (folder / name).write_bytes(content)
                    else:
                        shutil.copyfile(content, folder / name)
        if how.target in ANYWHERE:
            with timed(seconds, "generating"):
                written, said = describe(graph, how.target, folder, imported.decoder is not None)
            companions |= set(written)
            backend += said
        figures = None
        if accuracy is not None:
            with timed(seconds, "comparing"):
                figures = accuracy.compare(path)
    remarks += observe.remarks if observe is not None else []
    if decoder is not None:
        with timed(seconds, "generation graph"):
            names, said = add_generation(path, decoder)
        companions |= set(names)
        backend += said
    if how.prefill is not None:
        with timed(seconds, "prefill graph"):
            companions |= set(_prefill(source, replace(how, passes=how.prefill, prefill=None), path, progress, store))
        backend.append(Remark("applied", "", f"prompts run {','.join(map(format_pass, how.prefill))}"))
    if how.verify != "off" and how.target == "onnxruntime":
        progress(0, 0, "checking the operators that run")
        with timed(seconds, "checking"):
            backend += _check_operators(path, asked(graph), how.verify)
    if calibration is not None and not calibration.read:
        remarks.append(Remark("skipped", "", "the calibration inputs were not read: no pass or check asked for them"))
    sizes = measure(path)
    error = numerics.compare(path) if numerics is not None else None
    versions = _versions()
    runtime = oldest_runtime(graph, onnxruntime.__version__)
    opsets = dict(graph.graph.opset_imports)
    report = Report(
        model=source.name,
        route=imported.route,
        target=how.target,
        source_bytes=imported.source_size,
        weights=weights,
        weight_bytes=sizes.weight_bytes,
        file_bytes=sizes.file_bytes,
        nodes_before=nodes_before,
        nodes_after=sizes.nodes,
        operators=sizes.operators,
        seconds=seconds,
        passes=[_pass_report(item) for item in records],
        frontend=group(imported.remarks),
        backend=group([*backend, *remarks]),
        verify=how.verify,
        error=error,
        runtime=runtime,
        versions=versions,
        accuracy=figures,
    )
    manifest = Manifest(
        passes=tuple(map(format_pass, how.passes)),
        target=how.target,
        route=imported.route,
        versions=versions,
        opsets=opsets,
        runtime=runtime,
        inputs=tuple(imported.signature.inputs),
        outputs=tuple(imported.signature.outputs),
        decoder=None if how.target in ANYWHERE else imported.decoder,
        data=record(data_file(path)) if data_file(path).exists() else None,
        weights=weights,
        weight_bytes=sizes.weight_bytes,
        companions=tuple(sorted(companions)),
    )
    with writing(folder):
        stamp(path, manifest, report.to_json())
        write_manifest(folder, manifest)
    return Built(path, manifest, report, imported.signature, owned=True)


def _prefill(source: Source, how: Recipe, model: Path, progress: Progress, store: Cache | None) -> tuple[str, ...]:
    """Compile the same decoder by another recipe, and take its generation graph for prompts."""
    folder = Path(tempfile.mkdtemp(prefix=".burnish-", dir=model.parent))
    try:
        other = compile_once(source, load(source), how, folder, {}, [], progress, store)
        return add_prefill(other.path, model)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _verify_lowered(graph: Any, records: Sequence[PassRecord]) -> None:
    from ..ir.verify import verify

    try:
        verify(graph, lowered=True)
    except VerificationError as error:
        ran = ", ".join(item.spec for item in records) or "none"
        raise PassError(
            f"lowering broke the graph: {error.what}",
            where="; ".join(filter(None, [error.where, f"passes that ran: {ran}"])),
            fix="report this with the model",
        ) from error


def _check_operators(path: Path, expected: dict[str, int], verify: Verify) -> list[Remark]:
    """Assert that the runtime really runs the operators that were asked for; a large file only on request."""
    size = sum(item.stat().st_size for item in (path, data_file(path)) if item.exists())
    if expected and verify == "structure" and size > _CHECKED_SIZE:
        reason = "not opened to count the operators that run: the file is large; verify='numerics' does it"
        return [Remark("skipped", "", reason, {"bytes": size})]
    return check_running(path, expected) if expected else []


def _pass_report(item: PassRecord) -> PassReport:
    remarks: list[RemarkGroup] = group(item.outcome.remarks)
    return PassReport(
        item.spec, item.seconds, item.nodes_before, item.nodes_after, dict(item.outcome.rewrites), remarks, item.error
    )


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Put down the seconds that a block takes."""
    start = time.perf_counter()
    yield
    seconds[name] = round(time.perf_counter() - start, 4)
