"""The error hierarchy: each message says what was wrong, where, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class BurnishError(Exception):
    """Base of every error that Burnish raises on purpose.

    Args:
        what: what is wrong, in one sentence.
        where: the module path, node, file or argument it concerns.
        fix: what the user can do about it.
    """

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        self.what, self.where, self.fix = what, where, fix
        lines = [what]
        if where:
            lines.append(f"  where: {where}")
        if fix:
            lines.append(f"  fix: {fix}")
        super().__init__("\n".join(lines))

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.what, self.where, self.fix)


def _rebuild(kind: type[BurnishError], what: str, where: str | None, fix: str | None) -> BurnishError:
    return kind(what, where=where, fix=fix)


class InputError(BurnishError):
    """Inputs of a model are missing, or have the wrong type, rank, size or device."""


class CalibrationError(InputError):
    """Calibration inputs are missing, end early, or give no usable statistics."""


class ModelError(BurnishError):
    """A model cannot be read, or is not valid."""


class UnsupportedError(BurnishError):
    """A model is valid, but holds something that cannot be expressed where it is to go."""


class OptionError(BurnishError):
    """A pass, preset, option or argument does not exist or has no such value."""


class SelectorError(OptionError):
    """A selector matches nothing in the graph."""


class PassError(BurnishError):
    """A pass broke the graph or failed; the message names the passes that ran before it."""


class VerificationError(BurnishError):
    """A graph breaks a rule of the intermediate representation."""


class OutputError(BurnishError):
    """A file cannot be written."""


class ArtifactError(BurnishError):
    """A saved model cannot be run here: damaged, or made for another version."""


LISTED = 40
"""How many known names a message lists."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A sentence that offers the known names nearest to ``name``."""
    names = sorted(known)
    close = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.5)
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    listed = ", ".join(names[:LISTED]) + more
    if close:
        return f"did you mean {close[0]!r}? Known: {listed}"
    return f"known: {listed}"
