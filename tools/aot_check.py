"""Every variant of every Triton kernel compiled for sm_80 and sm_90, with registers, shared memory and spills.

``python -m burnish.tools.aot_check`` needs no GPU; it ends with 1 if a kernel does not compile or spills.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from ..backends.triton.aot import Compiled, compile_variant, variants

CAPABILITIES = (80, 90)
MOST_SPILLED = 0


def table(found: Sequence[Compiled]) -> str:
    """The figures, in Markdown."""
    lines = ["| kernel | GPU | registers | shared, KiB | spilled, bytes |", "|---|---|---:|---:|---:|"]
    for one in found:
        lines.append(
            f"| {one.variant} | sm_{one.capability} | {one.registers} | {one.shared / 1024:.1f} | {one.spilled} |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile all and print the table."""
    parser = argparse.ArgumentParser(prog="python -m burnish.tools.aot_check", description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", metavar="TEXT", help="the variants whose name contains the text")
    parser.add_argument("--out", type=Path, help="where the figures go, as JSON")
    options = parser.parse_args(arguments)
    found = [
        compile_variant(variant, capability)
        for variant in variants()
        if options.only in variant.name
        for capability in CAPABILITIES
    ]
    print(table(found))
    if options.out:
        options.out.write_text(json.dumps([asdict(one) for one in found], indent=1) + "\n", encoding="utf-8")
    return int(any(one.spilled > MOST_SPILLED for one in found))


if __name__ == "__main__":
    sys.exit(main())
