"""The commands that look at models: ``inspect``, ``compare`` and ``benchmark``."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...ir.errors import ArtifactError, InputError, ModelError, OptionError
from ..artifact import MANIFEST_KEY, MODEL_FILE, Manifest, check_files
from ..wire import Header, read_header
from .app import app, show, told

if TYPE_CHECKING:
    import numpy as np

    from ...ir.signature import TensorSpec


def onnx_path(path: Path) -> Path:
    """The ONNX file of a path: the file itself, or the one in a compiled folder.

    Raises:
        ModelError: there is none.
    """
    if path.is_dir():
        if (path / MODEL_FILE).exists():
            return path / MODEL_FILE
        raise ModelError(f"the folder holds no {MODEL_FILE}", where=str(path), fix="pass an ONNX file")
    if not path.exists():
        raise ModelError("there is no such file or folder", where=str(path), fix="check the path")
    return path


@app.command()
@told
def inspect(
    file: Annotated[Path, typer.Argument(help="An ONNX file, or a folder that Burnish wrote.")],
    graph: Annotated[bool, typer.Option("--graph", help="Also print the graph, one line a node.")] = False,
    report: Annotated[bool, typer.Option("--report", help="Also print the report of its compilation.")] = False,
) -> None:
    """Say what a model takes and gives, how large it is and how it was made."""
    path = onnx_path(file)
    header = read_header(path)
    manifest = Manifest.from_json(text, str(path)) if (text := header.metadata.get(MANIFEST_KEY)) else None
    if manifest is not None:
        check_files(path, manifest, contents=True)
    show(_figures(path, header, manifest))
    if report:
        from ..artifact import REPORT_KEY
        from ..report import Report

        if REPORT_KEY not in header.metadata:
            raise ArtifactError("the file holds no report", where=str(path), fix="Burnish did not make it")
        print()
        show(Report.from_json(header.metadata[REPORT_KEY], str(path)))
    if graph:
        from ...frontends.onnx_file import import_onnx
        from ...ir.printer import format_graph

        print()
        print(format_graph(import_onnx(path, opset=None).graph))


def _figures(path: Path, header: Header, manifest: Manifest | None) -> Any:
    import onnx_ir
    from rich.table import Table
    from rich.text import Text

    from ...ir.errors import BurnishError
    from ..measure import measure
    from ..report import size_text

    try:
        sizes = measure(path)
        model = onnx_ir.load(path)
    except BurnishError:
        raise
    except Exception as error:  # onnx and onnx_ir name no common error
        raise ModelError(
            f"the graph cannot be read: {str(error).splitlines()[0]}", where=str(path), fix="copy or compile it again"
        ) from error
    rows: list[tuple[str, str]] = [("file", str(path)), ("on disk", size_text(sizes.file_bytes))]
    weights = manifest.weights if manifest is not None else _elements(model)
    if weights:
        bits = f"{8 * sizes.weight_bytes / weights:.2f} bits per weight"
        rows.append(("weights", f"{weights:,}, {size_text(sizes.weight_bytes)}, {bits}"))
    for label, values in (("input", model.graph.inputs), ("output", model.graph.outputs)):
        lines = _merged([_typed(value) for value in values if label == "output" or not value.is_initializer()])
        if len(lines) > 12:
            lines = [*lines[:9], f"… {len(lines) - 10} more", lines[-1]]
        rows += [(label if i == 0 else "", line) for i, line in enumerate(lines)]
    rows.append(("opsets", ", ".join(f"{domain or 'ai.onnx'} {version}" for domain, version in header.opsets.items())))
    listed = [f"{name} × {count}" for name, count in sizes.operators.items()]
    rows.append(("nodes", f"{sizes.nodes:,}: " + ", ".join(listed)))
    if manifest is None:
        rows.append(("made by", header.producer or "unknown"))
    else:
        rows.append(("made by", f"Burnish, from {manifest.route}, for {manifest.target}"))
        rows.append(("passes", ", ".join(manifest.passes) or "none"))
        rows.append(("with", ", ".join(f"{name} {version}" for name, version in manifest.versions.items())))
        rows.append(("runs on", f"ONNX Runtime {manifest.runtime} or newer"))
        if manifest.decoder is not None:
            spec = manifest.decoder
            rows.append(("decoder", f"{spec.layers} layers, vocabulary {spec.vocabulary:,}, context {spec.context:,}"))
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for label, text in rows:
        table.add_row(label, Text(text))
    return table


def _elements(model: Any) -> int:
    from ..measure import weight_count

    return weight_count(model)


def _merged(lines: list[str]) -> list[str]:
    """Lines that differ in the number inside their name alone as one: ``past.0…29.key: float[…]``."""
    found: dict[str, list[int]] = {}
    for line in lines:
        name, _, rest = line.partition(":")
        number = re.search(r"(?<=\.)\d+(?=\.)", name)
        key = f"{name[: number.start()]}\0{name[number.end() :]}:{rest}" if number else line
        found.setdefault(key, []).append(int(number[0]) if number else 0)
    return [
        key.replace("\0", f"{numbers[0]}…{numbers[-1]}" if len(numbers) > 1 else str(numbers[0]))
        for key, numbers in found.items()
    ]


def _typed(value: Any) -> str:
    shape = "?" if value.shape is None else ", ".join("?" if str(dim) == "None" else str(dim) for dim in value.shape)
    return f"{value.name}: {value.dtype.name.lower() if value.dtype is not None else value.type}[{shape}]"


@app.command()
@told
def compare(
    a: Annotated[Path, typer.Argument(help="An ONNX file, or a folder that Burnish wrote.")],
    b: Annotated[Path, typer.Argument(help="The other one.")],
    inputs: Annotated[
        Path | None, typer.Option("--inputs", help="An .npz file with an array by input name; random if left out.")
    ] = None,
) -> None:
    """Compare two models: their graphs, and what they compute on the same inputs."""
    from rich.table import Table
    from rich.text import Text

    from ...backends.onnxruntime.session import Session
    from ...frontends.onnx_file import import_onnx
    from ...ir.diff import diff
    from ..calibration.data import load_arrays
    from ..report import error_text
    from ..verification import relative_error

    paths = [onnx_path(a), onnx_path(b)]
    graphs = [import_onnx(path, opset=None).graph for path in paths]
    print(diff(*graphs))
    feeds = load_arrays(inputs) if inputs is not None else None
    results: list[dict[str, Any]] = []
    for path in paths:
        session = Session(path)
        if feeds is None:
            feeds = _made_up(session.inputs, path)
        results.append(_run(session, feeds, path))
    table = Table("output", "relative error", "largest difference", box=None, padding=(0, 2, 0, 0))
    names = list(zip(*results, strict=False))
    if len(results[0]) != len(results[1]):
        raise ModelError(
            f"the models have {len(results[0])} and {len(results[1])} outputs, so they are not compared",
            where=f"{a}, {b}",
        )
    for one, other in names:
        x, y = results[0][one], results[1][other]
        largest = f"{_largest(x, y):.2e}"
        label = one if one == other else f"{one} / {other}"
        table.add_row(Text(label), error_text(relative_error([[x]], [[y]])), largest)
    print()
    show(table)


def _largest(x: Any, y: Any) -> float:
    import numpy as np

    if isinstance(x, list) or x.shape != y.shape or x.dtype.kind in "OUS":
        return float("nan")
    return float(np.abs(x.astype(np.float64) - y.astype(np.float64)).max(initial=0.0))


def _run(session: Any, feeds: dict[str, Any], path: Path) -> dict[str, Any]:
    import numpy as np

    from ...ir.signature import NamedSignature

    missing = [spec.name for spec in session.inputs if spec.name not in feeds]
    if missing:
        raise InputError(f"no array for input {', '.join(missing)}", where=str(path), fix="give all inputs in the .npz")
    signature = NamedSignature(tuple(session.inputs), tuple(session.outputs))
    bound = signature.flatten((), {spec.name: feeds[spec.name] for spec in session.inputs})
    outputs = session.run(bound)
    return {
        spec.name: value if isinstance(value, list) else np.asarray(value)
        for spec, value in zip(session.outputs, outputs, strict=True)
    }


def _made_up(specs: tuple[TensorSpec, ...], path: Path) -> dict[str, np.ndarray[Any, Any]]:
    from ..inputs import made_up

    header = read_header(path)
    text = header.metadata.get(MANIFEST_KEY)
    decoder = Manifest.from_json(text, str(path)).decoder if text else None
    return made_up(specs, decoder)


@app.command()
@told
def benchmark(
    models: Annotated[list[Path], typer.Argument(help="ONNX files, or folders that Burnish wrote; one or two.")],
    rounds: Annotated[int, typer.Option("--rounds", help="Turns of each model, at least 5.")] = 7,
    threads: Annotated[int | None, typer.Option("--threads", help="Threads of each; all cores if left out.")] = None,
    streams: Annotated[
        int | None, typer.Option("--streams", help="Shares of a batch, side by side; the batch as one if left out.")
    ] = None,
    dim: Annotated[
        list[str] | None, typer.Option("--dim", help="Size of a symbolic dimension, NAME=SIZE; may be repeated.")
    ] = None,
    inputs: Annotated[Path | None, typer.Option("--inputs", help="An .npz file with an array by input name.")] = None,
    output: Annotated[Path | None, typer.Option("--json", help="Also write the figures as JSON.")] = None,
) -> None:
    """Time a model, or two side by side: a process each, rounds alternated."""
    from ..benchmark import Side
    from ..benchmark import benchmark as run
    from ..calibration.data import load_arrays
    from ..progress import terminal_progress

    with terminal_progress() as drawn:
        result = run(
            *(Side(path.name or str(path), str(path.absolute()), streams=streams) for path in models),
            rounds=rounds,
            threads=threads,
            dims=_dims(dim or []),
            inputs=load_arrays(inputs) if inputs is not None else None,
            progress=drawn,
        )
    if output is not None:
        from ...ir.errors import OutputError

        try:
            output.write_text(json.dumps(result.to_json(), indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise OutputError(f"the figures cannot be written: {error.strerror}", where=str(output)) from error
    show(result.table())


def _dims(given: list[str]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for item in given:
        name, _, size = item.rpartition("=")
        if not name or not size.isdigit():
            raise OptionError(f"--dim {item!r} is not NAME=SIZE", fix="write it like --dim batch=4")
        sizes[name] = int(size)
    return sizes
