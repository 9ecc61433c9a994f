"""The report of a compilation: a table in a terminal, HTML in a notebook, JSON on disk."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..ir.errors import ArtifactError, OutputError
from ..ir.noise import OUTPUT_NOISE, WEIGHT_NOISE
from ..ir.remarks import Kind, Remark
from .figures import Accuracy, LayerError

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True)
class RemarkGroup:
    """Remarks that say the same of several nodes."""

    kind: Kind
    reason: str
    nodes: tuple[str, ...]
    values: tuple[Mapping[str, Any], ...] = ()

    @property
    def count(self) -> int:
        """How many nodes it was said of."""
        return len(self.nodes)


def group(remarks: Iterable[Remark]) -> list[RemarkGroup]:
    """Remarks by kind and reason, in the order in which they first appear."""
    found: dict[tuple[Kind, str], list[Remark]] = {}
    for remark in remarks:
        found.setdefault((remark.kind, remark.reason), []).append(remark)
    return [
        RemarkGroup(
            kind,
            reason,
            tuple(remark.node for remark in members),
            tuple(dict(remark.values) for remark in members) if any(remark.values for remark in members) else (),
        )
        for (kind, reason), members in found.items()
    ]


@dataclass
class PassReport:
    """What one pass did; see :class:`~burnish.compiler.pipeline.PassRecord`."""

    spec: str
    seconds: float
    nodes_before: int
    nodes_after: int
    rewrites: dict[str, int] = field(default_factory=dict)
    remarks: list[RemarkGroup] = field(default_factory=list)
    error: float | None = None


@dataclass
class Report:
    """What happened to a model.

    Attributes:
        model: what was compiled.
        route: the way it came in.
        target: ``onnxruntime`` or ``onnx``.
        source_bytes: bytes of the weights as they came.
        weights: number of weights.
        weight_bytes: bytes of weight tensors now, with scales, zero points and padding.
        file_bytes: bytes on disk of the graph and its data.
        nodes_before: nodes of the imported graph.
        nodes_after: nodes of the graph that runs.
        operators: how often each operator occurs in the graph that runs; ``domain.Name`` if it is not standard.
        seconds: time of each step.
        passes: one entry a pass.
        frontend: remarks of the frontend.
        backend: remarks of the backend.
        verify: the mode of verification.
        error: relative error of the compiled model against the imported graph; None if it was not measured.
        runtime: the oldest ONNX Runtime that runs it.
        versions: of the packages that made it.
        cached: whether it came from the compile cache.
        accuracy: outputs beside those of the model as it came; None if no real inputs were given.
    """

    model: str
    route: str
    target: str
    source_bytes: int = 0
    weights: int = 0
    weight_bytes: int = 0
    file_bytes: int = 0
    nodes_before: int = 0
    nodes_after: int = 0
    operators: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    passes: list[PassReport] = field(default_factory=list)
    frontend: list[RemarkGroup] = field(default_factory=list)
    backend: list[RemarkGroup] = field(default_factory=list)
    verify: str = "off"
    error: float | None = None
    runtime: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    cached: bool = False
    accuracy: Accuracy | None = None

    @property
    def layers(self) -> list[LayerError]:
        """What rounding cost each layer, in the order of the graph; empty if nothing was rounded."""
        found = []
        for item in self.passes:
            for one in item.remarks:
                for node, values in zip(one.nodes, one.values, strict=False):
                    if one.kind == "applied" and WEIGHT_NOISE in values:
                        found.append(
                            LayerError(
                                node,
                                values.get("bits", 0),
                                values[WEIGHT_NOISE],
                                values.get(OUTPUT_NOISE),
                            )
                        )
        return found

    @property
    def bits_per_weight(self) -> float:
        """Bytes of weight tensors × 8 / weights."""
        return 8 * self.weight_bytes / self.weights if self.weights else 0.0

    @property
    def nonstandard(self) -> dict[str, int]:
        """Operators that are not part of ONNX itself, with how often they occur."""
        return {name: count for name, count in self.operators.items() if "." in name}

    def to_json(self, *, indent: int | None = None) -> str:
        """The report as JSON."""
        derived = {"bits_per_weight": self.bits_per_weight, "layers": [asdict(one) for one in self.layers]}
        return json.dumps(asdict(self) | derived, indent=indent)

    @classmethod
    def from_json(cls, text: str, where: str = "report") -> Report:
        """Read a report back.

        Raises:
            ArtifactError: it is damaged.
        """
        try:
            raw = json.loads(text)
            raw.pop("bits_per_weight", None)
            passes = [
                PassReport(**{**item, "remarks": [_group(one) for one in item["remarks"]]})
                for item in raw.pop("passes")
            ]
            if raw.get("accuracy") is not None:
                raw["accuracy"] = Accuracy(**raw["accuracy"])
            raw.pop("layers", None)
            frontend = [_group(one) for one in raw.pop("frontend")]
            backend = [_group(one) for one in raw.pop("backend")]
            return cls(**raw, passes=passes, frontend=frontend, backend=backend)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ArtifactError(
                f"the report is damaged ({error})", where=where, fix="compile the model again"
            ) from error

    def save(self, path: str | Path) -> None:
        """Write the report as JSON, or as a page if the name ends in ``.html``.

        Raises:
            OutputError: the file cannot be written.
        """
        path = Path(path)
        text = self._repr_html_() if path.suffix.lower() in (".html", ".htm") else self.to_json(indent=2) + "\n"
        temporary = path.with_name(f".{path.name}.tmp")
        try:
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise OutputError(
                f"the report cannot be written: {error.strerror}",
                where=str(path),
                fix="choose a folder you can write to",
            ) from error

    def summary(self) -> list[tuple[str, str]]:
        """The figures at the top: label and text."""
        rows = [("model", self.model), ("route", self.route + (", from the compile cache" if self.cached else ""))]
        rows.append(("runs on", f"ONNX Runtime {self.runtime} or newer" if self.runtime else self.target))
        if self.weight_bytes:
            before = f"{size_text(self.source_bytes)} → " if self.source_bytes else ""
            ratio = f" ({self.source_bytes / self.weight_bytes:.1f}× smaller)" if self._smaller() else ""
            rows.append(("weights", f"{before}{size_text(self.weight_bytes)}{ratio}"))
            rows.append(("bits per weight", f"{self.bits_per_weight:.2f} ({self.weights:,} weights)"))
        rows.append(("on disk", size_text(self.file_bytes)))
        rows.append(("nodes", f"{self.nodes_before:,} → {self.nodes_after:,}"))
        if self.nonstandard:
            listed = ", ".join(f"{name} × {count}" for name, count in sorted(self.nonstandard.items()))
            rows.append(("not in ONNX", listed))
        verified = {"off": "nothing", "structure": "structure after each pass"}.get(
            self.verify, f"outputs after each pass, relative error {error_text(self.error)}"
        )
        rows.append(("verified", verified))
        if self.accuracy is not None:
            rows += self.accuracy.rows()
        rows.append(("time", ", ".join(f"{name} {seconds_text(took)}" for name, took in self.seconds.items())))
        return rows

    def _smaller(self) -> bool:
        return bool(self.source_bytes and self.source_bytes > 1.05 * self.weight_bytes)

    def remark_rows(self) -> list[tuple[str, RemarkGroup]]:
        """Every group of remarks with the step that made it."""
        rows = [("import", one) for one in self.frontend]
        rows += [(_name(item.spec), one) for item in self.passes for one in item.remarks]
        return rows + [("backend", one) for one in self.backend]

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        head = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
        head.add_column(style="bold")
        head.add_column()
        for label, text in self.summary():
            head.add_row(label, Text(text))
        parts: list[RenderableType] = [head]
        if self.passes:
            table = Table(title="Passes", title_justify="left", title_style="bold", box=_box())
            table.add_column("pass", overflow="fold")
            for name in ("time", "nodes") + (("error",) if self._measured() else ()):
                table.add_column(name, justify="right", no_wrap=True)
            table.add_column("rewrites", ratio=1)
            for item in self.passes:
                row = [item.spec, seconds_text(item.seconds), _change(item)]
                row += [error_text(item.error)] if self._measured() else []
                table.add_row(*(Text(cell) for cell in row), Text(_rewrites(item)))
            parts += ["", table]
        if layers := self.worst_layers():
            table = Table(title=_WORST, title_justify="left", title_style="bold", box=_box())
            table.add_column("layer", overflow="fold", ratio=1)
            for name in _LAYER_COLUMNS:
                table.add_column(name, justify="right", no_wrap=True)
            for cells in layers:
                table.add_row(*map(Text, cells))
            parts += ["", table]
        remarks = self.remark_rows()
        if remarks:
            table = Table(title="Remarks", title_justify="left", title_style="bold", box=_box())
            table.add_column("step", no_wrap=True)
            table.add_column("", no_wrap=True)
            table.add_column("nodes", justify="right", no_wrap=True)
            table.add_column("reason", ratio=1)
            for step, one in remarks:
                reason = Text(one.reason)
                if where := _examples(one):
                    reason.append(f"\n{where}", style="dim")
                table.add_row(step, Text(one.kind, style=_COLORS[one.kind]), str(one.count), reason)
            parts += ["", table]
        return Group(*parts)

    def worst_layers(self, most: int = 5) -> list[tuple[str, str, str, str]]:
        """The layers that rounding cost most: path, bits, and signal to noise of weights and outputs in dB."""
        ordered = sorted(self.layers, key=lambda one: one.weights if one.outputs is None else one.outputs)
        return [
            (one.layer, str(one.bits), f"{one.weights:.1f} dB", "–" if one.outputs is None else f"{one.outputs:.1f} dB")
            for one in ordered[:most]
        ]

    def plot(self, path: str | Path) -> None:
        """Draw the signal to noise of every layer into an ``.svg``, ``.png`` or ``.pdf`` file.

        Raises:
            UnsupportedError: nothing was rounded, or matplotlib is not installed.
            OutputError: the file cannot be written.
        """
        from .plots import plot_layers

        plot_layers(self.layers, Path(path))

    def _measured(self) -> bool:
        return any(item.error is not None for item in self.passes)

    def __str__(self) -> str:
        from rich.console import Console

        console = Console(width=None if _terminal() else 110, color_system="auto" if _terminal() else None)
        with console.capture() as capture:
            console.print(self)
        return "\n".join(line.rstrip() for line in capture.get().splitlines())

    def _repr_html_(self) -> str:
        head = "".join(f"<tr><th>{_e(label)}</th><td>{_e(text)}</td></tr>" for label, text in self.summary())
        parts = [f"<style>{_CSS}</style><div class='burnish'><table class='figures'>{head}</table>"]
        if self.passes:
            names = ["pass", "time", "nodes", *(["error"] if self._measured() else []), "rewrites"]
            rows = []
            for item in self.passes:
                cells = [item.spec, seconds_text(item.seconds), _change(item)]
                cells += [error_text(item.error)] if self._measured() else []
                rows.append([_e(cell) for cell in [*cells, _rewrites(item)]])
            parts.append(_html_table("Passes", names, rows))
        if layers := self.worst_layers():
            parts.append(_html_table(_WORST, ["layer", *_LAYER_COLUMNS], [list(map(_e, cells)) for cells in layers]))
        if remarks := self.remark_rows():
            rows = []
            for step, one in remarks:
                where = _examples(one)
                reason = _e(one.reason) + (f"<br><small>{_e(where)}</small>" if where else "")
                rows.append([_e(step), f"<span class='{one.kind}'>{one.kind}</span>", str(one.count), reason])
            parts.append(_html_table("Remarks", ["step", "", "nodes", "reason"], rows))
        return "".join(parts) + "</div>"


_WORST = "Layers that rounding cost most (signal to noise)"
_LAYER_COLUMNS = ("bits", "weights", "outputs")
_COLORS = {"applied": "green", "missed": "yellow", "skipped": "cyan"}
_CSS = """
.burnish{font:13px/1.45 system-ui,sans-serif;max-width:64rem}
.burnish table{border-collapse:collapse;margin:.3rem 0 1rem;text-align:left}
.burnish th,.burnish td{padding:.2rem .8rem .2rem 0;text-align:left!important;vertical-align:top}
.burnish td:last-child{overflow-wrap:anywhere}
.burnish .rows td:not(:last-child){white-space:nowrap}
.burnish .figures th{font-weight:600;white-space:nowrap}
.burnish .rows thead th{border-bottom:1px solid currentColor;font-weight:600}
.burnish .rows td{border-bottom:1px solid rgba(128,128,128,.25)}
.burnish caption{text-align:left;font-weight:700;padding:.2rem 0;caption-side:top}
.burnish small{opacity:.65}
.burnish .applied{color:#1a7f37}.burnish .missed{color:#9a6700}.burnish .skipped{color:#0969da}
"""


def _group(raw: Mapping[str, Any]) -> RemarkGroup:
    return RemarkGroup(raw["kind"], raw["reason"], tuple(raw["nodes"]), tuple(raw["values"]))


def _terminal() -> bool:
    import sys

    return sys.stdout.isatty()


def _box() -> Any:
    from rich import box

    return box.SIMPLE_HEAD


def _e(text: str) -> str:
    return html.escape(text)


def _html_table(title: str, names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{_e(name)}</th>" for name in names)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table class='rows'><caption>{title}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _name(spec: str) -> str:
    return spec.split("(", 1)[0]


def _change(item: PassReport) -> str:
    if item.nodes_before == item.nodes_after:
        return f"{item.nodes_after:,}"
    return f"{item.nodes_before:,} → {item.nodes_after:,}"


def _rewrites(item: PassReport) -> str:
    made = sorted(((rule, count) for rule, count in item.rewrites.items() if count), key=lambda pair: -pair[1])
    return ", ".join(f"{rule} × {count}" for rule, count in made) or "none"


def _examples(one: RemarkGroup, most: int = 3) -> str:
    named = [node for node in one.nodes if node]
    more = f", and {len(named) - most} more" if len(named) > most else ""
    return ", ".join(named[:most]) + more


def size_text(size: float) -> str:
    """Bytes as people write them (decimal units)."""
    for unit in ("B", "kB", "MB"):
        if abs(size) < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} GB"


def seconds_text(seconds: float) -> str:
    """A duration as people write it."""
    if seconds < 1:
        return f"{seconds * 1e3:.0f} ms"
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds / 60:.1f} min"


def error_text(error: float | None) -> str:
    """A relative error, or a dash where there is none."""
    return "–" if error is None else f"{error:.1e}" if error else "0"
