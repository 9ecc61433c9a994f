"""Run by ``test_codegen.py`` in a process of its own: generated files whose kernels are compiled for sm_90."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from burnish.backends.triton.codegen.ahead import compile_all
from burnish.backends.triton.session import load_file


def main(folder: str) -> None:
    """Compile every file of a folder; one line of JSON for each kernel."""
    for path in sorted(Path(folder).glob("*.py")):
        module = load_file(path, f"compiled_{path.stem}")
        try:
            made = compile_all(module)
        except Exception as error:
            print(json.dumps({"file": path.stem, "error": f"{type(error).__name__}: {error}"[:600]}))
            continue
        for one in made:
            print(json.dumps({"file": path.stem, "kernel": one.variant, "registers": one.registers,
                              "shared": one.shared, "spilled": one.spilled, "bytes": one.bytes}))  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1])
