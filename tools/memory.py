"""Runs a command and says how much memory it took at most.

``python -m burnish.tools.memory [--json FILE] COMMAND...`` samples the anonymous memory (RssAnon) of the command and
its children every 50 ms: memory that the system cannot take back. Mapped files do not count.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

INTERVAL = 0.05


@dataclass(frozen=True)
class Usage:
    """What a command took.

    Attributes:
        command: it and its arguments.
        status: its exit status.
        seconds: how long it ran.
        peak_anonymous: bytes of anonymous memory at most, of all its processes together.
        peak_resident: the same with mapped files.
        samples: how often it was looked at.
    """

    command: list[str]
    status: int
    seconds: float
    peak_anonymous: int
    peak_resident: int
    samples: int


def measure(command: Sequence[str], interval: float = INTERVAL) -> Usage:
    """Run ``command`` to its end and sample its memory every ``interval`` seconds (Linux only)."""
    started = time.perf_counter()
    anonymous = resident = samples = 0
    with subprocess.Popen(list(command)) as process:
        while process.poll() is None:
            tree = _tree(process.pid)
            anonymous = max(anonymous, sum(_field(pid, "RssAnon") for pid in tree))
            resident = max(resident, sum(_field(pid, "VmRSS") for pid in tree))
            samples += 1
            time.sleep(interval)
    seconds = time.perf_counter() - started
    return Usage(list(command), process.returncode, round(seconds, 3), anonymous, resident, samples)


def _tree(root: int) -> list[int]:
    """A process and its descendants."""
    found = [root]
    for pid in found:
        try:
            text = "".join(path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children"))
        except OSError:  # it ended meanwhile
            continue
        found += [int(child) for child in text.split()]
    return found


def _field(pid: int, name: str) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":")), 0)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command, print what it took, and end with its status."""
    parser = argparse.ArgumentParser(prog="python -m burnish.tools.memory", description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args(arguments)
    if not options.command:
        parser.error("which command?")
    usage = measure(options.command)
    if options.json:
        options.json.write_text(json.dumps(asdict(usage), indent=2) + "\n")
    print(
        f"{usage.seconds:.1f} s, at most {usage.peak_anonymous / 1e6:.0f} MB anonymous memory "
        f"({usage.peak_resident / 1e6:.0f} MB with mapped files), {usage.samples} samples",
        file=sys.stderr,
    )
    return usage.status


if __name__ == "__main__":
    sys.exit(main())
