"""Progress bars: on a terminal, and silent everywhere else."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TypeAlias

Progress: TypeAlias = Callable[[int, int, str], None]
"""Called with what is done, how much there is in all, and what it is."""


def silent(done: int, total: int, what: str) -> None:
    """Show nothing."""


@contextlib.contextmanager
def terminal_progress(enabled: bool | None = None) -> Iterator[Progress]:
    """A progress callback that draws bars on standard error while it is a terminal.

    Args:
        enabled: draw (True) or stay silent (False) whatever standard error is.
    """
    if not (sys.stderr.isatty() if enabled is None else enabled):
        yield silent
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    columns = [
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    ]
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("")

        def show(done: int, total: int, what: str) -> None:
            bars.update(task, completed=done, total=total or None, description=what)

        yield show
