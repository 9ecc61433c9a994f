"""Run by ``test_codegen.py`` in a process of its own with the interpreter: generated kernels against the reference."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path

import onnx_ir
import onnxruntime
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

from burnish.backends.reference import Reference
from burnish.backends.triton import launch
from burnish.backends.triton.session import Session
from burnish.ir.errors import UnsupportedError
from codegen_cases import CASES, Case


def close(got: torch.Tensor, want: torch.Tensor, tolerance: float, what: str) -> None:
    """Equal to a part of the largest output; infinities and NaN at the same places."""
    assert got.dtype == want.dtype and got.shape == want.shape, (
        f"{what}: {got.dtype} {got.shape}, {want.dtype} {want.shape}"
    )
    if not got.numel():
        return
    a, b = got.double(), want.double()
    assert torch.equal(a.isnan(), b.isnan()) and torch.equal(a.isinf(), b.isinf()), (
        f"{what}: not finite at other places"
    )
    ok = b.isfinite()
    scale = float(b[ok].abs().max()) if ok.any() else 1.0
    error = float((a[ok] - b[ok]).abs().max()) if ok.any() else 0.0
    assert error <= tolerance * max(scale, 1e-3), f"{what}: {error:.2e} of {scale:.2e}"


def expected(graph: onnx_ir.Model, feeds: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What the reference backend computes; ONNX Runtime for the few operators that it has no rule for."""
    try:
        with torch.no_grad():
            return Reference(graph).run(feeds)
    except UnsupportedError:
        session = onnxruntime.InferenceSession(onnx_ir.to_proto(graph).SerializeToString())
        found = session.run(None, {name: tensor.numpy() for name, tensor in feeds.items()})
        return {str(v.name): torch.as_tensor(a) for v, a in zip(graph.graph.outputs, found, strict=True)}


USED: set[str] = set()
"""Operators of the cases that ran, with their domains."""


def run(case: Case, *, show: bool = False) -> Session:
    """A case: equal outputs, few launches, nothing left to PyTorch that should not be."""
    graph, feeds = case.make()
    nodes = [*graph.graph, *(node for function in graph.functions.values() for node in function)]
    USED.update(f"{node.domain}.{node.op_type}" for node in nodes)
    want = expected(graph, feeds)
    session = Session(graph)
    if show:
        print(session.source)
    got = [torch.as_tensor(t) for t in session.run(feeds)]
    for name, tensor in zip(want, got, strict=True):
        close(tensor, want[name], case.tolerance, f"{case.name}, {name}")
    left = {r.reason.split(" is left")[0] for r in session.remarks if r.kind == "skipped"} - {"Shape"}
    assert left <= set(case.torch_calls), f"{case.name}: left to PyTorch: {[r.reason for r in session.remarks]}"
    if case.kernels is not None:
        launches = sum("rows=" in line for line in session.source[session.source.index("def call(") :].splitlines())
        assert launches == case.kernels, f"{case.name}: {launches} launches, not {case.kernels}\n{session.source}"
    return session


def main(wanted: list[str]) -> None:
    """Run the cases whose names hold one of the words, or all; ``--out FOLDER`` keeps the generated files."""
    failures = 0
    folder = None
    if wanted[:1] == ["--out"]:
        folder, wanted = Path(wanted[1]), wanted[2:]
    chosen = [c for c in CASES if not wanted or any(w in c.name for w in wanted)]
    for case in chosen:
        try:
            session = run(case, show=len(wanted) > 0)
            if folder is not None:
                (folder / f"case{CASES.index(case)}.py").write_text(session.source)
        except Exception as error:
            failures += 1
            text = traceback.format_exc() if wanted else f"{type(error).__name__}: {str(error)[:300]}"
            print(f"FAILED {case.name}: {text}")
    if not wanted:
        # Places counted in 64 bits, as those of tensors of 2 GiB are.
        launch.FAR = 0
        for case in chosen[::9]:
            run(case)
    print(f"operators: {' '.join(sorted(USED))}")
    print(f"{len(chosen) - failures} of {len(chosen)} right")
    if not failures:
        print("all right")


if __name__ == "__main__":
    main(sys.argv[1:])
