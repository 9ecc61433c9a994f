"""The command line itself: its name, its options, and how errors are told."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from typing import Annotated, Any, ParamSpec

import typer

from ...ir.errors import BurnishError

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
        from ... import __version__

        print(f"burnish {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    pass


def show(what: Any) -> None:
    """Print something that rich can draw, 120 columns wide where the output is no terminal."""
    from rich.console import Console

    if sys.stdout.isatty():
        Console().print(what)
        return
    console = Console(width=120)
    with console.capture() as capture:
        console.print(what)
    print("\n".join(line.rstrip() for line in capture.get().splitlines()))
