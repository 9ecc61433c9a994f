"""From a model to a compiled file, or to the one in the cache."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..frontends.imported import Imported
from ..ir.errors import ArtifactError, BurnishError, OutputError
from ..ir.remarks import Remark
from ..ir.signature import Signature
from ..passes.spec import format_pass
from .cache import Cache, cacheable, digest_graph, digest_path, key_of, open_cache
from .calibration.data import digest_inputs
from .compilation import Built, compile_once, load, timed
from .progress import Progress, silent
from .recipe import Recipe
from .report import Report, group
from .source import Source


def build(
    source: Source,
    how: Recipe,
    *,
    cache: Any = None,
    workspace: Path | None = None,
    progress: Progress = silent,
    accept: Callable[[Signature], None] | None = None,
) -> Built:
    """Compile ``source``, or find it in the cache.

    Args:
        source: the model.
        how: the recipe.
        cache: see :func:`~burnish.compiler.cache.open_cache`.
        workspace: folder to make the temporary folder in; the system's choice if not given.
        progress: called during long work.
        accept: called with how the model is called, as soon as that is known; raises what the caller refuses.
    """

    def importing() -> Imported:
        with timed(seconds, "import"):
            found = load(source)
        if accept is not None:
            accept(found.signature)
        return found

    store = results = open_cache(cache, from_disk=source.path is not None)
    remarks: list[Remark] = []
    if store is not None and not cacheable([*how.passes, *(how.prefill or ())]):
        if cache is not None:
            remarks.append(Remark("skipped", "", "not cached: a pass is not one of Burnish's own"))
        store = None
    data = None if how.calibration is None else digest_inputs(how.calibration)
    if store is not None and how.calibration is not None and data is None:
        if cache is not None:
            reason = "not cached: calibration inputs that are no list or tuple of arrays are not part of the key"
            remarks.append(Remark("skipped", "", reason))
        store = None
    judged = None if how.evaluation is None else digest_inputs(how.evaluation)
    if how.evaluation is not None and judged is None:
        store = None
    imported: Imported | None = None
    seconds: dict[str, float] = {}
    key = ""
    if store is not None:
        if source.path is not None:
            digest = digest_path(source.path)
        else:
            imported = importing()
            digest = digest_graph(imported.graph, imported.signature)
        example = repr(source.example) if how.verify == "numerics" else ""
        prompts = [] if how.prefill is None else ["prefill", *map(format_pass, how.prefill)]
        calibrated = [] if data is None else ["calibration", data]
        if judged is not None:
            calibrated += ["evaluation", judged]
        key = key_of(digest, how.passes, [how.target, how.verify, example, *prompts, *calibrated])
        found = _look_up(store, key, remarks)
        if found is not None:
            return replace_signature(found, imported)
    if imported is None:
        progress(0, 0, f"importing {source.name}")
        imported = importing()
    folder = _workspace(store, workspace)
    try:
        built = compile_once(source, imported, how, folder, seconds, remarks, progress, results)
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, BurnishError) and (better := source.explain(error)) is not error:
            raise better from error
        raise
    if store is not None:
        _keep(store, key, built)
    return built


def replace_signature(built: Built, imported: Imported | None) -> Built:
    """The entry of the cache, called in the way of the model at hand."""
    return built if imported is None else replace(built, signature=imported.signature)


def _workspace(store: Cache | None, parent: Path | None) -> Path:
    try:
        if store is not None:
            return store.workspace()
        return Path(tempfile.mkdtemp(prefix=".burnish-" if parent else "burnish-", dir=parent))
    except OSError as error:
        raise OutputError(
            f"no temporary folder can be made: {error.strerror}",
            where=str(parent or tempfile.gettempdir()),
            fix="choose another place, or set TMPDIR",
        ) from error


def _look_up(store: Cache, key: str, remarks: list[Remark]) -> Built | None:
    try:
        found = store.find(key)
        if found is None:
            return None
        path, manifest, signature, text = found
        report = Report.from_json(text, str(path))
    except ArtifactError as error:
        remarks.append(Remark("skipped", "", f"{error.what}; compiled anew"))
        return None
    report.cached = True
    return Built(path, manifest, report, signature, owned=False)


def _keep(store: Cache, key: str, built: Built) -> None:
    try:
        built.path = store.store(key, built.path.parent, built.signature)
        built.owned = False
    except (ArtifactError, OSError) as error:
        why = error.what if isinstance(error, ArtifactError) else error.strerror
        built.report.backend += group([Remark("skipped", "", f"not cached: {why}")])
