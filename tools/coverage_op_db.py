"""PyTorch's own operator samples through ``torch.compile(backend="burnish")``: every operator right, eager, or wrong.

The samples are those of ``torch.testing._internal.common_methods_invocations.op_db``: forward, float32, on the CPU.
What runs eagerly is right by nature; the table says why it did. Operators run in processes of their own, some at a
time, so that a crash ends a few only. Needs the package expecttest.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .bench_results import fill

ROOT = Path(__file__).resolve().parents[1]
RIGHT, EAGER, WRONG, SKIPPED = "right", "eager", "wrong", "skipped"
_RANDOM = ("dropout", "bernoulli", "multinomial", "rand", "normal", "uniform", "exponential", "cauchy", "geometric",
           "log_normal", "empty", "new_empty", "rrelu", "svd_lowrank", "pca_lowrank")  # fmt: skip
"""Names of operators whose results are random or not defined, or parts of them."""


def outcome(op: Any, count: int) -> dict[str, str]:
    """What became of the samples of one operator: status and reason."""
    import burnish
    import torch

    from ..compiler.torch_backend import backend

    if any(part in op.name for part in _RANDOM):
        return {"status": SKIPPED, "reason": "results are random or undefined"}
    if torch.float32 not in op.supported_dtypes("cpu"):
        return {"status": SKIPPED, "reason": "no float32 samples"}
    reasons: list[str] = []
    ran = 0
    for sample in itertools.islice(op.sample_inputs("cpu", torch.float32, requires_grad=False), count):
        torch._dynamo.reset()
        burnish.torch_report().clear()

        def call(x: Any, *args: Any, **kwargs: Any) -> Any:
            return op(x, *args, **kwargs)

        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                expected = call(_copied(sample.input), *_copied(sample.args), **sample.kwargs)
            except Exception:  # a sample that torch itself refuses says nothing
                continue
            try:
                given = torch.compile(call, backend=backend)(
                    _copied(sample.input), *_copied(sample.args), **sample.kwargs
                )
            except Exception as error:  # whatever it is, the user would have seen it
                text = str(error).strip().split("\n", 1)[0][:100]
                return {"status": WRONG, "reason": f"{type(error).__name__}: {text}"}
        ran += 1
        try:
            torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-5, equal_nan=True, check_stride=False)
        except AssertionError as error:
            return {"status": WRONG, "reason": str(error).split("\n", 1)[0]}
        reports = burnish.torch_report()
        reasons += [report.eager for report in reports if report.eager] or ([] if reports else ["nothing to compile"])
    if not ran:
        return {"status": SKIPPED, "reason": "no sample runs"}
    return {"status": EAGER, "reason": reasons[0]} if reasons else {"status": RIGHT, "reason": ""}


def _copied(value: Any) -> Any:
    import torch

    return torch.utils._pytree.tree_map_only(torch.Tensor, lambda tensor: tensor.detach().clone(), value)


def chunk(names: Sequence[str], samples: int) -> dict[str, dict[str, str]]:
    """Outcomes of some operators, in this process; printed one by one, so that a crash loses one only."""
    from torch.testing._internal.common_methods_invocations import op_db

    found = {}
    for op in op_db:
        if op.formatted_name in names:
            found[op.formatted_name] = outcome(op, samples)
            print(json.dumps({op.formatted_name: found[op.formatted_name]}), flush=True)
    return found


def run(names: Sequence[str], samples: int, size: int, limit: float) -> dict[str, dict[str, str]]:
    """Outcomes of all operators; one that ends or blocks its process is wrong.

    Args:
        names: of operators.
        samples: of each, at most.
        size: operators a process.
        limit: seconds a process may take.
    """
    found: dict[str, dict[str, str]] = {}
    left = list(names)
    while left:
        part = left[:size]
        command = [sys.executable, "-m", "burnish.tools.coverage_op_db", "--samples", str(samples), "--chunk", *part]
        ended = "the process ended"
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
            lines = done.stdout.splitlines()
        except subprocess.TimeoutExpired as error:
            ended = f"no answer in {limit:.0f} s"
            out = error.stdout or b""
            lines = (out.decode() if isinstance(out, bytes) else out).splitlines()
        made: dict[str, dict[str, str]] = {}
        for line in lines:
            if line.startswith("{"):
                made |= json.loads(line)
        found |= made
        rest = [name for name in part if name not in made]
        if rest:
            found[rest[0]] = {"status": WRONG, "reason": ended}
        left = rest[1:] + left[size:]
        print(f"{len(found)} of {len(names)}", flush=True)
    return found


def page(found: dict[str, dict[str, str]]) -> str:
    """Markdown: counts, what is wrong, and what runs eagerly by reason."""
    told = Counter(one["status"] for one in found.values())
    counts = {status: told[status] for status in (RIGHT, EAGER, WRONG, SKIPPED)}
    lines = ["| operators | " + " | ".join(counts) + " |", "| ---: |" + " ---: |" * len(counts)]
    lines.append(f"| {len(found)} | " + " | ".join(str(number) for number in counts.values()) + " |")
    for status in (WRONG, EAGER, SKIPPED):
        reasons: dict[str, list[str]] = {}
        for name, one in found.items():
            if one["status"] == status:
                reasons.setdefault(one["reason"].replace("|", "/")[:90], []).append(name)
        if reasons:
            lines += ["", f"| {status}: reason | operators |", "| --- | --- |"]
            ordered = sorted(reasons.items(), key=lambda item: -len(item[1]))
            lines += [f"| {reason} | {', '.join(f'`{name}`' for name in names)} |" for reason, names in ordered]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Run and write ``docs/op_db.md``; the status is the number of wrong operators."""
    parser = argparse.ArgumentParser(prog="python -m burnish.tools.coverage_op_db", description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=2)
    parser.add_argument("--limit", type=float, default=1800, help="seconds that 40 operators may take")
    parser.add_argument("--only", default="", help="operators whose name holds this text; writes nothing")
    parser.add_argument("--chunk", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.chunk:
        chunk(options.chunk, options.samples)
        return 0
    from torch.testing._internal.common_methods_invocations import op_db

    names = [op.formatted_name for op in op_db if options.only in op.formatted_name]
    found = run(list(dict.fromkeys(names)), options.samples, 40, options.limit)
    text = page(found)
    print(text)
    if not options.only:
        document = ROOT / "docs" / "op_db.md"
        document.write_text(fill(document.read_text(encoding="utf-8"), {"operators": text}), encoding="utf-8")
    return sum(one["status"] == WRONG for one in found.values())


if __name__ == "__main__":
    sys.exit(main())
