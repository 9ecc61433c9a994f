"""What a benchmark script writes, and the tables that README and docs show of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Check:
    """A figure that must not be above a limit."""

    name: str
    value: float
    limit: float
    unit: str

    @property
    def passed(self) -> bool:
        """Whether the figure keeps the limit."""
        return self.value <= self.limit

    def to_json(self) -> dict[str, Any]:
        """The fields and whether it passed."""
        return asdict(self) | {"value": float(f"{self.value:.5g}"), "passed": self.passed}


def write_results(path: Path, results: Mapping[str, Any]) -> int:
    """Write ``results`` whole, print its checks, and return how many of them failed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.partial")
    scratch.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    scratch.replace(path)
    failed = 0
    for check in results["checks"]:
        failed += not check["passed"]
        verdict = "ok    " if check["passed"] else "FAILED"
        print(
            f"{verdict} {check['name']}: {check['value']:.4g}{check['unit']} (limit {check['limit']:g}{check['unit']})"
        )
    return failed


def _row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table: the first column to the left, the others to the right."""
    rule = ["---"] + ["---:"] * (len(head) - 1)
    return "\n".join([_row(*head), _row(*rule), *(_row(*row) for row in rows)])


def decoder_table(results: Mapping[str, Any]) -> str:
    """Markdown table of ``decoder.json``: a column a side, the first being what ratios refer to."""
    sides = list(results["sides"])
    base = sides[0]
    titles = {base: f"`{base}`, ONNX Runtime", **{side: _title(side) for side in sides[1:]}}
    rows = [["size on disk", *(f"{size / 1e6:.0f} MB" if (size := results["model_bytes"][s]) else "–" for s in sides)]]
    rows.append(["peak memory", *(f"{results['peak_memory_bytes'][side] / 1e6:.0f} MB" for side in sides)])
    for scenario, figures in results["scenarios"].items():
        cells = [f"{figures[side]['median_ms']:.1f} ms" + _ratio(figures[side], side != base) for side in sides]
        rows.append([f"{scenario}{', per token' if scenario.startswith('decode') else ' tokens'}", *cells])
    perplexity = results["perplexity"]
    rows.append(["perplexity, held-out text", *(f"{perplexity[s]:.2f}" if s in perplexity else "–" for s in sides)])
    return table([results["model"], *(titles.get(side, side) for side in sides)], rows)


def generation_table(results: Mapping[str, Any]) -> str:
    """Markdown of ``generation.json``: times behind a past, agreement with eager, guesses ahead."""
    rows = []
    agreed = results["agreement"]
    near, far = results["scenarios"]
    for side in agreed:
        cells = ["–", "–", "–", "–"]
        if side in results["sides"]:
            early, late = (results["scenarios"][scenario][side]["median_ms"] for scenario in (near, far))
            size = f"{results['cache_bytes_per_token'][side]:,.0f}"
            cells = [f"{early:.1f} ms", f"{late:.1f} ms", f"{late - early:.1f} ms", size]
        places = [place for place in agreed[side] if place is not None]
        same = f"{len(agreed[side]) - len(places)} of {len(agreed[side])}"
        first = f"{sorted(places)[len(places) // 2]}" if places else "–"
        rows.append([f"`{side}`", *cells, same, first])
    head = ["SmolLM2-135M-Instruct", "a token, 128 past", "2,048 past", "difference", "cache, bytes a token",
            "prompts equal to eager over 200 tokens", "first difference, median"]  # fmt: skip
    lines = [table(head, rows), ""]
    guesses = []
    for kind, figure in results["speculation"].items():
        rate, runs = figure["tokens_per_second"], figure["model_runs"]
        guesses.append(
            [
                f"20 prompts, {kind}",
                *(f"{rate[name]:.0f} tokens/s" for name in rate),
                f"{rate['prompt lookup'] / rate['plain']:.2f}×",
                f"{runs['plain'] / runs['prompt lookup']:.2f}",
                "yes" if figure["same_tokens"] else "no",
            ]
        )
    head = ["", "one by one", "prompt lookup", "ratio", "tokens a step", "same tokens"]
    return "\n".join([*lines, table(head, guesses)])


def attention_table(results: Mapping[str, Any]) -> str:
    """Markdown of ``attention.json``: a row a variant, three columns a length."""
    lengths = results["lengths"]
    names = list(next(iter(lengths.values()))["ms"])
    rows = []
    for name in names:
        cells = []
        for figures in lengths.values():
            ratio = figures["ms"][name] / figures["ms"][names[0]]
            cells.append(f"{figures['ms'][name]:.0f} ms ({ratio:.2f}×)")
            cells.append(f"{figures['peak_memory_bytes'][name] / 1e6:.0f} MB")
            cells.append(f"{figures['error'][name]:.2f}")
        rows.append([name, *cells])
    head = [f"{what}{int(length):,}" for length in lengths for what in ("tokens: ", "memory, ", "error, ")]
    return table(["attention", *head], rows)


def _title(side: str) -> str:
    if side == "torch eager":
        return side
    preset, comma, more = side.partition(",")
    return f"Burnish `{preset}`{comma}{more}"


def files_table(results: Mapping[str, Any]) -> str:
    """Markdown table of ``files.json``: a row a file."""
    rows = []
    for name, case in results["cases"].items():
        figures = case["scenarios"]["call"]
        came, compiled = figures["as it came"], figures["default"]
        rows.append(
            [
                name,
                f"{came['median_ms']:.2f} ms ± {came['iqr_ms']:.2f}",
                f"{compiled['median_ms']:.2f} ms ± {compiled['iqr_ms']:.2f}",
                f"{compiled['ratio']:.2f}×",
                f"{case['difference']['default']:.0e}",
            ]
        )
    return table(["float32 ONNX file", "as it came", "Burnish `default`", "ratio", "difference, of range"], rows)


def scale_table(results: Mapping[str, Any]) -> str:
    """Markdown table of ``scale.json``: a row a model that was compiled."""
    rows = [
        [
            row["model"],
            str(row["layers"]),
            f"{row['weight_bytes'] / 1e9:.2f} GB",
            f"{row['compiled_bytes'] / 1e9:.2f} GB",
            f"{row['seconds']:.0f} s",
            f"{row['peak_anonymous_bytes'] / 1e6:.0f} MB",
        ]
        for row in results["compiling"]
    ]
    rows += [
        [
            f"tinyllama-1.1b, GPTQ, {row['sequences']} × 512 tokens",
            str(row["layers"]),
            f"{row['weight_bytes'] / 1e9:.2f} GB",
            "as above",
            f"{row['processor_seconds']:.0f} s of one core",
            f"{row['peak_anonymous_bytes'] / 1e6:.0f} MB",
        ]
        for row in results.get("calibrated", {}).get("rows", [])
    ]
    return table(["shape of", "layers", "weights, bfloat16", "compiled, 4 bits", "time", "peak memory"], rows)


def row_seconds(row: Mapping[str, Any]) -> str:
    """What compiling a row took: by the clock, or †, of the processor, where that is known.

    Beside other work the time of a clock says little.
    """
    return f"{row['cpu_seconds']:.0f}†" if "cpu_seconds" in row else f"{row['seconds']:.0f}"


def note_on_seconds(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """What the † of :func:`row_seconds` means; empty if there is none."""
    marked = {row["cpu"] for row in rows.values() if "cpu" in row}
    return f"\n\n† seconds of all cores together, on {', '.join(sorted(marked))}." if marked else ""


def method_table(results: Mapping[str, Any]) -> str:
    """Markdown table of ``methods.json``: a row a recipe, the first being what ratios refer to."""
    rows = results["rows"]
    base, news = (next(iter(rows.values()))[name] for name in ("perplexity", "news"))
    cells = [
        [
            name,
            f"{row['perplexity'] / base:.3f}×",
            f"{row['divergence']:.4f}",
            f"{100 * row['agreement']:.1f} %",
            f"{row['news'] / news:.3f}×",
            f"{row['bits_per_weight']:.2f}",
            row_seconds(row),
            f"{row['peak_anonymous_bytes'] / 1e9:.1f} GB",
        ]
        for name, row in rows.items()
    ]
    head = [
        results["model"],
        "perplexity",
        "KL, nats",
        "same top token",
        "news",
        "bits per weight",
        "time, s",
        "peak memory",
    ]
    return table(head, cells) + note_on_seconds(rows)


def eight_bits_table(results: Mapping[str, Any]) -> str:
    """Markdown table of ``eight_bits.json``: a row a model and recipe, its time and how near it stays to float32."""
    rows = []
    titles = {"encoders": "MiniLM, 8 × 128", "decoders": "SmolLM2"}
    parts = {titles[name]: results[name] for name in titles if name in results}
    parts |= results.get("detectors", {})
    for title, part in parts.items():
        for scenario, figures in part["scenarios"].items():
            base = next(iter(figures))
            for side, timing in figures.items():
                label = title if scenario == "call" else f"{title}, {scenario}"
                cells = [f"{timing['median_ms']:.1f} ms" + _ratio(timing, side != base), _nearness(part, side)]
                rows.append([label, side, *cells])
        for side, why in part.get("missing", {}).items():
            rows.append([title, side, "–", why.replace("|", "/")])
    return table(["model", "recipe", "time", "beside float32"], rows)


def _nearness(part: Mapping[str, Any], side: str) -> str:
    if side in part.get("cosine", {}):
        return f"cosine {part['cosine'][side]:.4f}"
    if side in part.get("perplexity", {}):
        base = part["perplexity"]["float32"]
        found = part["perplexity"][side]
        return "perplexity " + ", ".join(f"{found[text] / base[text]:.3f}× ({text})" for text in found)
    found = part.get("agreement", {}).get(side)
    if found is None:
        return "–"
    score = f", F1 {found['f1']:.2f} of {found['detections']} detections" if "f1" in found else ""
    return f"overlap {found['overlap']:.3f}, scores differ by {found['score_difference']:.3f}{score}"


def frontend_table(results: Mapping[str, Any]) -> str:
    """Markdown table of ``frontend.json``: a row a step."""
    return table(["step", "seconds"], [[name, f"{value:.2f}"] for name, value in results["seconds"].items()])


def checks_table(*results: Mapping[str, Any]) -> str:
    """Markdown table of every check with its limit."""
    checks = [check for result in results for check in result["checks"]]
    rows = [
        [c["name"], f"{c['value']:.4g}{c['unit']}", f"{c['limit']:g}{c['unit']}", "yes" if c["passed"] else "**no**"]
        for c in checks
    ]
    return table(["check", "measured", "limit", "kept"], rows)


def machine_line(results: Mapping[str, Any]) -> str:
    """One line of Markdown: the machine and the versions."""
    machine = results["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return f"{machine['cpu']}, {machine['cores']} cores, {machine['system']}; Python {machine['python']}, {versions}."


def _ratio(figure: Mapping[str, Any], shown: bool) -> str:
    return f" ({figure['ratio']:.2f}×)" if shown else ""


def fill(document: str, blocks: Mapping[str, str]) -> str:
    """``document`` with what stands between ``<!-- name -->`` and ``<!-- end name -->`` replaced.

    Raises:
        ValueError: a block of that name is not there, or is not closed.
    """
    for name, text in blocks.items():
        opening, closing = f"<!-- {name} -->", f"<!-- end {name} -->"
        before, found, rest = document.partition(opening)
        _, closed, after = rest.partition(closing)
        if not (found and closed):
            raise ValueError(f"the document has no block {opening} … {closing}")
        document = f"{before}{opening}\n{text}\n{closing}{after}"
    return document
