"""The command line: ``burnish compile | passes | inspect | compare | benchmark``."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, ParamSpec

import typer

from ..ir.errors import BurnishError, OptionError, OutputError, nearest

P = ParamSpec("P")

app = typer.Typer(
    name="burnish",
    help="Make neural networks smaller and faster.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Run the command line."""
    app(prog_name="burnish")


def told(command: Callable[P, None]) -> Callable[P, None]:
    """A command whose errors are told in a few red lines: what, where, what to do; exit status 1."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except BurnishError as error:
            show_error(error)
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            raise typer.Exit(130) from None
        except BrokenPipeError:
            # The reader (head, less) has gone; nothing may be flushed to it at exit either.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(1) from None
        except (typer.Exit, typer.Abort):
            raise
        except Exception as error:
            if os.environ.get("BURNISH_TRACEBACK"):
                raise
            what = f"{type(error).__name__}: {error}" if not isinstance(error, MemoryError) else "out of memory"
            fix = "this is a defect of Burnish; set BURNISH_TRACEBACK=1 to see where, and report it"
            show_error(BurnishError(f"unexpected error: {what}", fix=None if isinstance(error, MemoryError) else fix))
            raise typer.Exit(1) from None

    return run


def show_error(error: BurnishError) -> None:
    """Print an error on standard error."""
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True, soft_wrap=True)
    console.print(Text("error: ", style="bold red").append(error.what, style="red"))
    for label, text in (("where", error.where), ("fix", error.fix)):
        if text:
            console.print(Text(f"  {label}: ", style="bold").append(text, style="not bold"))


def _version(wanted: bool) -> None:
    if wanted:
        from .. import __version__

        print(f"burnish {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    pass


def one_of(name: str, value: str, known: tuple[str, ...]) -> str:
    """``value`` if it is known.

    Raises:
        OptionError: it is not.
    """
    if value not in known:
        raise OptionError(f"{name} {value!r} does not exist", fix=nearest(value, known))
    return value


@app.command("compile")
@told
def compile_command(
    model: Annotated[str, typer.Argument(help="An .onnx, .gguf or .pt2 file, or a Hugging Face folder.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="A name that ends in .onnx, or a folder to make.")],
    passes: Annotated[
        str, typer.Option("--passes", help='A preset or a list, e.g. "w4a16" or "quantize(bits=8)"; "" for none.')
    ] = "default",
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
    from .storage import check_target

    # What can be refused without importing torch is refused at once.
    check_target(output, overwrite)
    if report is not None and not report.absolute().parent.is_dir():
        raise OutputError("the folder does not exist", where=str(report.absolute().parent), fix="create it first")
    from .api import export
    from .calibration import DataFile

    result = export(
        model,
        output,
        passes=passes,
        calibration=None if calibration is None else DataFile(calibration),
        target=target,
        verify=verify,
        cache=False if no_cache else None,
        overwrite=overwrite,
    )
    if report is not None:
        result.save(report)
    _print(result)
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

    from ..passes.presets import PRESETS
    from ..passes.registry import PASSES, pass_class
    from ..passes.spec import annotation_text, default_of

    presets = Table("preset", "passes", "", title="Presets", title_justify="left", box=None, padding=(0, 2, 0, 0))
    for name, preset in PRESETS.items():
        presets.add_row(Text(name, style="bold"), Text(preset.spec), Text(preset.summary))
    _print(presets)
    for name in PASSES:
        kind = pass_class(name)
        summary = (inspect.getdoc(kind) or "").split("\n\n")[0].replace("\n", " ")
        print()
        _print(Text(name, style="bold").append(f"  ({kind.stage.name.lower()})  {summary}", style="not bold"))
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
        _print(table)


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


def _print(what: Any) -> None:
    from rich.console import Console

    if sys.stdout.isatty():
        Console().print(what)
        return
    console = Console(width=120)
    with console.capture() as capture:
        console.print(what)
    print("\n".join(line.rstrip() for line in capture.get().splitlines()))


from . import cli_inspect as _more  # noqa: E402, F401  registers inspect, compare and benchmark
