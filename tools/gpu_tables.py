"""What ``gpu_check`` measured, as the tables of docs/benchmarks.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .bench_results import table

Rows = Sequence[Mapping[str, Any]]
_LEFT_OUT = "left out"


def gpu_tables(figures: Mapping[str, Any]) -> dict[str, str]:
    """Tables by the name of their block in the document, out of the JSON of ``gpu_check --out``."""
    rows = {name: part.get("rows", []) for name, part in figures.items() if isinstance(part, Mapping)}
    right = figures["correctness"]
    cases = len(right["errors"]) + len(right["failed"])
    said = (
        f"{figures['device']}; torch {figures['torch']}, triton {figures['triton']}. {cases - right['bad']} of {cases} "
        f"cases right, the worst {max(right['errors'].values()):.2f} of what is allowed; {right['left_out']} left out "
        "for lack of time."
    )
    return {
        "gpu": said,
        "gpu one row": _by_shape([row for row in rows["products"] if row["rows"] == 1], read=True),
        "gpu few rows": _by_shape([row for row in rows["products"] if row["rows"] == 16], read=False),
        "gpu many rows": _many(rows["products of many rows"]),
        "gpu attention": _attention(rows["attention"]),
        "gpu decoding attention": _decoding(rows["decoding attention"]),
        "gpu blocks": _blocks(rows["blocks"]),
        "gpu decoder": _decoder(rows["decoder"]),
    }


def _by_shape(rows: Rows, *, read: bool) -> str:
    """A line for each kernel, a column for each size of the weights."""
    sizes = list(dict.fromkeys((row["n"], row["k"]) for row in rows))
    found = {(row["kernel"], row["n"], row["k"]): row for row in rows}
    lines = []
    for kernel in dict.fromkeys(row["kernel"] for row in rows):
        line = [kernel]
        for size in sizes:
            row = found.get((kernel, *size), {})
            line.append(_time(row, read=read) if "microseconds" in row else _LEFT_OUT)
        lines.append(line)
    return table(["kernel", *(f"{n} × {k}" for n, k in sizes)], lines)


def _time(row: Mapping[str, Any], *, read: bool) -> str:
    text = f"{row['microseconds']:.1f} µs, {row['times_cublas_bf16']:.2f}×"
    part = row.get("of_read_bandwidth")
    return f"{text}, {100 * part:.0f} %" if read and part is not None else text


def _many(rows: Rows) -> str:
    sizes = list(dict.fromkeys((row["rows"], row["n"], row["k"]) for row in rows))
    found = {(row["kernel"], row["rows"], row["n"], row["k"]): row for row in rows}
    lines = []
    for kernel in dict.fromkeys(row["kernel"] for row in rows):
        line = [kernel]
        for size in sizes:
            row = found.get((kernel, *size), {})
            measured = "microseconds" in row
            line.append(f"{row['teraflops']:.0f}, {row['times_cublas_bf16']:.2f}×" if measured else _LEFT_OUT)
        lines.append(line)
    return table(["kernel", *(f"{m} rows, {n} × {k}" for m, n, k in sizes)], lines)


def _attention(rows: Rows) -> str:
    lines = [[
        f"{row['length']}{', causal' if row['causal'] else ''}", f"{row['ours_ms']:.2f} ms",
        *(f"{row[key]:.2f} ms" if key in row else _LEFT_OUT for key in ("flash_attention_ms", "cudnn_attention_ms")),
        f"{row['teraflops']:.0f}", f"{row['times_best_sdpa']:.2f}×",
    ] for row in rows]  # fmt: skip
    return table(["tokens", "ours", "PyTorch's flash attention", "cuDNN", "TFLOP/s", "beside the faster"], lines)


def _decoding(rows: Rows) -> str:
    lines = [[
        str(row["keys"]), str(row["shared"]), f"{row['microseconds']:.1f} µs ± {row['spread']:.1f}",
        f"{100 * row['of_read_bandwidth']:.0f} %", f"{row['times_sdpa']:.2f}×",
    ] for row in rows]  # fmt: skip
    return table(["keys", "heads of keys", "ours", "of reading", "beside PyTorch"], lines)


def _blocks(rows: Rows) -> str:
    lines = []
    for row in rows:
        if "microseconds" in row:
            more = [f"{row['microseconds']:.0f} µs ± {row['spread']:.0f}", f"{100 * row['of_copy_bandwidth']:.0f} %",
                    f"{row['times_inductor']:.2f}×"]  # fmt: skip
        else:
            more = [_LEFT_OUT, "", ""]
        lines.append([row["block"], *more])
    return table(["block", "ours", "of a copy's rate", "beside Inductor"], lines)


def _decoder(rows: Rows) -> str:
    lines = []
    for row in rows:
        measured = "milliseconds" in row
        more = [f"{row['milliseconds']:.2f} ms ± {row['spread']:.2f}", f"{row['tokens']:.0f}"] if measured else []
        lines.append([row["side"], *(more or [_LEFT_OUT, ""]), f"{row['times_eager']:.2f}×" if measured else ""])
    return table(["side", "a token", "tokens a second", "beside eager"], lines)
