"""Generated kernels: index expressions, rules for every operator that says it is fusible, equality, compilation."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx_ir
import pytest
import sympy
from burnish.backends.triton.codegen.indexing import Quotient, Ranges, Remainder, Sizes, text
from burnish.backends.triton.codegen.operators import EXPRESSIONS, fusible
from burnish.backends.triton.codegen.program import generate
from burnish.ir.traits import TRAITS, Kind
from hypothesis import given, settings
from hypothesis import strategies as st

HERE = Path(__file__).resolve().parent
SPILLED = 0
"""Bytes that a generated kernel may spill."""


def _symbols(*extents: int) -> tuple[list[sympy.Symbol], Ranges]:
    found = [sympy.Symbol(f"d{n}", integer=True, nonnegative=True) for n in range(len(extents))]
    return found, Ranges({s: sympy.Integer(e) for s, e in zip(found, extents, strict=True)})


def _value(e: sympy.Expr, **symbols: int) -> int:
    found: int = eval(text(e), {}, symbols)  # source that was written here
    return found


@settings(deadline=None, max_examples=25)
@given(st.data())
def test_reshapes_read_the_right_element(data: st.DataObject) -> None:
    """Any way to cut 24 or 36 elements into axes, and any other, one after the other."""
    total = data.draw(st.sampled_from([12, 24, 36]))

    def sizes() -> list[int]:
        left, found = total, []
        while left > 1:
            found.append(data.draw(st.sampled_from([n for n in range(2, left + 1) if left % n == 0])))
            left //= found[-1]
        return found

    shapes = [sizes() for _ in range(3)]
    symbols, ranges = _symbols(*shapes[0])
    index = tuple(symbols)
    order = data.draw(st.permutations(range(len(shapes[1]))))
    whole = [[sympy.Integer(n) for n in shape] for shape in shapes]
    middle = ranges.unflat(ranges.flat(index, whole[0]), whole[1])
    turned = [middle[axis] for axis in order]
    last = ranges.flat(turned, [whole[1][axis] for axis in order])
    array = (
        np.arange(total).reshape([shapes[1][axis] for axis in order]).transpose(np.argsort(order)).reshape(shapes[0])
    )
    for place in np.ndindex(*shapes[0]):
        assert _value(last, **{f"d{n}": i for n, i in enumerate(place)}) == array[place]


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 12), st.integers(0, 9), st.integers(1, 6))
def test_quotients_and_remainders_are_right(a: int, b: int, n: int, shift: int, factor: int) -> None:
    (x, y), ranges = _symbols(a, b)
    e = factor * (x * b + y) + shift
    size = sympy.Integer(n)
    for i in range(0, a, max(1, a // 5)):
        for j in range(b):
            exact = factor * (i * b + j) + shift
            assert _value(ranges.quotient(e, size), d0=i, d1=j) == exact // n
            assert _value(ranges.remainder(e, size), d0=i, d1=j) == exact % n


def test_sizes_are_simplified_with_names() -> None:
    batch, tokens = (sympy.Symbol(n, integer=True, nonnegative=True) for n in ("batch", "tokens"))
    d = [sympy.Symbol(f"d{n}", integer=True, nonnegative=True) for n in range(3)]
    ranges = Ranges({d[0]: batch, d[1]: tokens, d[2]: sympy.Integer(768)})
    whole = [batch, tokens, sympy.Integer(768)]
    heads = [batch, tokens, sympy.Integer(12), sympy.Integer(64)]
    index = ranges.unflat(ranges.flat(d, whole), heads)
    assert [text(e) for e in index] == ["d0", "d1", "(d2 // 64)", "(d2 % 64)"]
    assert not ranges.flat(index, heads).has(Quotient, Remainder)
    # A sum gets a symbol of its own, and a name that a kernel has for itself is not taken.
    sizes = Sizes()
    total = sizes.of(batch + tokens)
    assert total.is_Symbol and sizes.meaning[total] == batch + tokens
    assert sizes.of(sympy.Symbol("rows", integer=True, nonnegative=True)).name != "rows"


LEFT = {
    "BitCast": "its types have other sizes",
    "CumSum": "a scan", "CumProd": "a scan", "LpPool": "windows of powers", "MaxRoiPool": "regions that are data",
    "RoiAlign": "regions that are data", "Det": "no elementwise sum", "LRN": "a window over channels",
    "GlobalLpPool": "rare", "GridSample": "places that are data", "AffineGrid": "rare", "Col2Im": "sums where it moves",
    **dict.fromkeys(("MaxUnpool", "Scatter", "ScatterElements", "ScatterND", "TensorScatter"), "writes where data say"),
    "Compress": "a size that is data",
    "EmbedLayerNormalization": "a fused operator of ONNX Runtime", "GatherBlockQuantized": "one of ONNX Runtime",
}  # fmt: skip
"""Operators of the table that are elementwise, reduce, normalize or move, but are left to PyTorch, and why."""


def test_every_operator_of_the_table_is_covered_or_left_with_a_reason() -> None:
    kinds = (Kind.ELEMENTWISE, Kind.REDUCTION, Kind.NORMALIZATION, Kind.MOVEMENT)
    wanted = {(domain, name) for (domain, name), row in TRAITS.items() if row.kind in kinds}
    missing = {name for domain, name in wanted if (domain, name) not in EXPRESSIONS} - set(LEFT)
    assert missing <= {"RotaryEmbedding"}, missing  # that of com.microsoft
    assert not {name for _, name in EXPRESSIONS} & set(LEFT)


def test_what_has_no_rule_is_left_to_pytorch_with_its_reason() -> None:
    model = onnx_ir.from_onnx_text(
        """<ir_version: 10, opset_import: ["" : 23]>
        g (float[n, 8] x, int64[1] k) => (float[n, m] v, float[n, 8] y) {
            v, i = TopK(x, k)
            y = Add(x, x)
        }"""
    )
    program = generate(model)
    said = [(r.kind, r.reason) for r in program.remarks]
    assert ("skipped", "TopK is left to PyTorch: no generated kernel for this operator") in said
    assert any(kind == "applied" and "Add" in reason for kind, reason in said)
    assert not fusible(next(iter(model.graph))) and len(program.kernels) == 1


def test_a_graph_of_nothing_but_views_has_no_kernel() -> None:
    model = onnx_ir.from_onnx_text(
        """<ir_version: 10, opset_import: ["" : 23]>
        g (float[2, 3] x) => (float[3, 2] y) { y = Transpose<perm=[1, 0]>(x) }"""
    )
    assert generate(model).kernels == ()


def _run(arguments: list[str], *, interpret: bool, timeout: float = 1200) -> subprocess.CompletedProcess[str]:
    # Whether kernels are interpreted is decided when they are defined: each way needs a process of its own.
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    if interpret:
        environment["TRITON_INTERPRET"] = "1"
    command = [sys.executable, "-W", "ignore", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=timeout)


def _compiled(folder: Path) -> list[dict[str, object]]:
    done = _run([str(HERE / "compiled_codegen.py"), str(folder)], interpret=False)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert rows and not [row for row in rows if "error" in row], [row for row in rows if "error" in row]
    assert all(int(str(row["spilled"])) <= SPILLED for row in rows), rows
    return rows


def test_generated_kernels_equal_the_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    monkeypatch.setenv("BURNISH_CACHE", str(tmp_path))
    done = _run([str(HERE / "interpreted_codegen.py")], interpret=True)
    assert done.returncode == 0 and "all right" in done.stdout, done.stdout[-3000:] + done.stderr[-2000:]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("operators: ")]
    used = set(line.removeprefix("operators: ").split())
    # No runtime here knows these names: the same rules under others are tested.
    unknown = {"com.microsoft.SimplifiedLayerNormalization", ".SwiGLU"}
    assert {f"{domain}.{name}" for domain, name in EXPRESSIONS} - used - unknown == set()


def test_compile_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    monkeypatch.setenv("BURNISH_CACHE", str(tmp_path))
    done = _run([str(HERE / "interpreted_compile.py")], interpret=True)
    assert done.returncode == 0 and "all right" in done.stdout, done.stdout[-3000:] + done.stderr[-2000:]


def test_blocks_of_models_and_their_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two models here, the others in the slow test."""
    pytest.importorskip("triton", reason="Triton is not installed")
    monkeypatch.setenv("BURNISH_CACHE", str(tmp_path / "cache"))
    made = tmp_path / "made"
    made.mkdir()
    done = _run([str(HERE / "interpreted_blocks.py"), str(made), "Llama"], interpret=True)
    assert done.returncode == 0 and "all right" in done.stdout, done.stdout[-3000:] + done.stderr[-2000:]
    assert len(_compiled(made)) >= 8


@pytest.mark.slow
def test_all_blocks_and_cases_compile_for_hopper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    monkeypatch.setenv("BURNISH_CACHE", str(tmp_path / "cache"))
    made = tmp_path / "made"
    made.mkdir()
    names = ["Llama", "BERT", "ResNet", "UNet", "ViT", "Llama-bfloat16", "BERT-bfloat16"]
    done = _run([str(HERE / "interpreted_blocks.py"), str(made), *names], interpret=True)
    assert done.returncode == 0 and "all right" in done.stdout, done.stdout[-3000:] + done.stderr[-2000:]
    done = _run([str(HERE / "interpreted_codegen.py"), "--out", str(made)], interpret=True)
    assert done.returncode == 0 and "all right" in done.stdout, done.stdout[-3000:] + done.stderr[-2000:]
    assert len(_compiled(made)) >= 200
