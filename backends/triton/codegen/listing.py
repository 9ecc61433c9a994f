"""Lines of a generated function: what nobody reads is left out, what nobody reads any more is freed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass
class Line:
    """One statement, or an allocation and the launch that fills it."""

    text: str
    writes: tuple[str, ...] = ()

    def names(self) -> set[str]:
        """Names that it mentions."""
        return set(_NAME.findall(_STRING.sub("", self.text)))


_NAME = re.compile(r"(?<![.\w])[A-Za-z_]\w*")
_STRING = re.compile(r"'[^']*'|#.*")


def with_deletions(lines: Sequence[Line], kept_names: set[str]) -> Iterable[str]:
    """Lines that something needs, and after each what is not needed any more.

    Args:
        lines: in order; the last returns.
        kept_names: what costs no memory.
    """
    written = {name for line in lines for name in line.writes}
    live: set[str] = set()
    kept: list[Line] = []
    for line in reversed(lines):
        if line.writes and not live & set(line.writes):
            continue
        live |= line.names() & written
        kept.append(line)
    kept.reverse()
    last: dict[str, int] = {}
    for n, line in enumerate(kept):
        for name in line.names() & written:
            last[name] = n
    for n, line in enumerate(kept[:-1]):
        yield line.text
        dead = sorted(name for name in line.names() & written - kept_names if last[name] == n)
        if dead:
            yield f"del {', '.join(dead)}"
    yield kept[-1].text
