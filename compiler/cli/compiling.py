"""The commands that make models: ``compile``, and ``passes`` that says what can be asked of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ...ir.errors import OutputError
from .app import app, show, told


@app.command("compile")
@told
def compile_command(
    model: Annotated[str, typer.Argument(help="An .onnx, .gguf or .pt2 file, or a Hugging Face folder.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="A name that ends in .onnx, or a folder to make.")],
    passes: Annotated[
        str, typer.Option("--passes", help='A preset or a list, e.g. "w4a16" or "quantize(bits=8)"; "" for none.')
    ] = "default",
    prefill: Annotated[
        str | None, typer.Option("--prefill", help='Passes of a second graph for prompts, e.g. "w8a8".')
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option("--calibration", help="Data to look at: text, or an .npz file with an array by input name."),
    ] = None,
    target: Annotated[
        str, typer.Option("--target", help="onnxruntime, or onnx (standard operators only).")
    ] = "onnxruntime",
    verify: Annotated[str, typer.Option("--verify", help="off, structure or numerics.")] = "structure",
    report: Annotated[Path | None, typer.Option("--report", help="Also write the report, .json or .html.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a model that is there.")] = False,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Neither use nor fill the compile cache.")] = False,
) -> None:
    """Compile a model into a file or folder."""
    from ..storage import check_target

    # What can be refused without importing torch is refused at once.
    check_target(output, overwrite)
    if report is not None and not report.absolute().parent.is_dir():
        raise OutputError("the folder does not exist", where=str(report.absolute().parent), fix="create it first")
    from ..api import export
    from ..calibration.data import DataFile

    result = export(
        model,
        output,
        passes=passes,
        prefill=prefill,
        calibration=None if calibration is None else DataFile(calibration),
        target=target,
        verify=verify,
        cache=False if no_cache else None,
        overwrite=overwrite,
    )
    if report is not None:
        result.save(report)
    show(result)
    print(f"\nwritten: {output}")


@app.command("passes")
@told
def passes_command() -> None:
    """List passes and presets with their options."""
    import dataclasses
    import inspect
    import typing

    from rich.table import Table
    from rich.text import Text

    from ...passes.presets import PRESETS
    from ...passes.registry import PASSES, pass_class
    from ...passes.spec import annotation_text, default_of

    presets = Table("preset", "passes", "", title="Presets", title_justify="left", box=None, padding=(0, 2, 0, 0))
    for name, preset in PRESETS.items():
        presets.add_row(Text(name, style="bold"), Text(preset.spec), Text(preset.summary))
    show(presets)
    for name in PASSES:
        kind = pass_class(name)
        summary = (inspect.getdoc(kind) or "").split("\n\n")[0].replace("\n", " ")
        print()
        show(Text(name, style="bold").append(f"  ({kind.stage.name.lower()})  {summary}", style="not bold"))
        hints, said = typing.get_type_hints(kind), option_docs(kind)
        fields = [field for field in dataclasses.fields(kind) if field.init]
        if not fields:
            continue
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 2))
        for field in fields:
            default = default_of(field)
            shown = "required" if default is dataclasses.MISSING else f"= {default!r}"
            table.add_row(
                Text(field.name), Text(annotation_text(hints[field.name])), Text(shown), Text(said.get(field.name, ""))
            )
        show(table)


def option_docs(kind: type) -> dict[str, str]:
    """What the docstring of a pass says of each option (its ``Args:`` or ``Attributes:`` section)."""
    import inspect
    import re

    found: dict[str, str] = {}
    inside, last = False, ""
    for line in (inspect.getdoc(kind) or "").splitlines():
        if re.fullmatch(r"(Args|Attributes|Options):", line.strip()):
            inside = True
        elif inside and line.strip() and not line.startswith(" "):
            inside = False
        elif inside and (match := re.fullmatch(r"    (\w+): (.*)", line)):
            last = match[1]
            found[last] = match[2].strip()
        elif inside and last and line.strip():
            found[last] += " " + line.strip()
    return found
