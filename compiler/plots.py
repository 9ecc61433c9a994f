"""Pictures of a report, drawn with matplotlib where that is installed."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..ir.errors import OutputError, UnsupportedError
from .figures import LayerError

_INK, _FIRST, _SECOND = "#333333", "#9db7d5", "#1f5a99"


def plot_layers(layers: Sequence[LayerError], path: Path) -> None:
    """Signal to noise of weights and outputs of each layer, worst layer at the top of each module's place.

    Raises:
        UnsupportedError: there is no layer to draw, or matplotlib is not installed.
        OutputError: the file cannot be written.
    """
    if not layers:
        raise UnsupportedError("there is nothing to draw: no layer was rounded", fix="quantize the model first")
    plt = _pyplot()
    figure, axes = plt.subplots(figsize=(max(6.0, min(0.07 * len(layers) + 2, 16)), 3.6))
    at = range(len(layers))
    axes.plot(at, [one.weights for one in layers], ".", color=_FIRST, label="weights")
    measured = [(i, one.outputs) for i, one in enumerate(layers) if one.outputs is not None]
    if measured:
        axes.plot(*zip(*measured, strict=True), ".", color=_SECOND, label="outputs, on calibration inputs")
    worst = min(layers, key=_height)
    axes.set_title(f"lowest: {worst.layer}, {_height(worst):.1f} dB", fontsize=8, loc="left", color=_INK)
    axes.set_xlabel("layer, in the order of the graph")
    axes.set_ylabel("signal to noise, dB")
    axes.margins(y=0.15)
    axes.legend(frameon=False, fontsize=8)
    _save(figure, path)


def _height(layer: LayerError) -> float:
    return layer.weights if layer.outputs is None else layer.outputs


def plot_frontier(
    points: Sequence[tuple[str, float, float]], path: Path, *, x: str, y: str, log_x: bool = False
) -> None:
    """Recipes by cost and loss; those that no other beats in both are joined and numbered, with their names beside.

    Args:
        points: name, cost (size or time) and loss of each recipe.
        path: ends in ``.svg``, ``.png`` or ``.pdf``.
        x: label of the cost.
        y: label of the loss.
        log_x: whether the cost has a logarithmic axis.
    """
    plt = _pyplot()
    figure, axes = plt.subplots(figsize=(7.2, 4.4))
    best = frontier(points)
    rest = [one for one in points if one not in best]
    axes.plot([one[1] for one in rest], [one[2] for one in rest], "o", color=_FIRST, ms=5)
    axes.plot([one[1] for one in best], [one[2] for one in best], "o-", color=_SECOND, ms=6, lw=1)
    for number, (_, cost, loss) in enumerate(best, 1):
        axes.annotate(str(number), (cost, loss), fontsize=8, color=_INK, textcoords="offset points", xytext=(5, 4))
    names = "\n".join(f"{number}  {textwrap.fill(one[0], 44)}" for number, one in enumerate(best, 1))
    axes.text(1.02, 1, names, transform=axes.transAxes, fontsize=8, color=_INK, va="top")
    axes.set_yscale("log")
    if log_x:
        axes.set_xscale("log")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.margins(x=0.06, y=0.1)
    _save(figure, path)


def frontier(points: Sequence[tuple[str, float, float]]) -> list[tuple[str, float, float]]:
    """The points that no other beats in cost and loss, by growing cost."""
    best: list[tuple[str, float, float]] = []
    for one in sorted(points, key=lambda p: (p[1], p[2])):
        if not best or one[2] < best[-1][2]:
            best.append(one)
    return best


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise UnsupportedError(
            "matplotlib is not installed", where="plot", fix="pip install 'burnish[plot]'"
        ) from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "burnish"})
    return pyplot


def _save(figure: Any, path: Path) -> None:
    temporary = path.with_name(f".{path.stem}.tmp{path.suffix}")
    try:
        figure.savefig(temporary, bbox_inches="tight", metadata={"Date": None} if path.suffix == ".svg" else None)
        temporary.replace(path)
    except (OSError, ValueError) as error:
        temporary.unlink(missing_ok=True)
        raise OutputError(
            f"the picture cannot be written: {error}", where=str(path), fix="name an .svg, .png or .pdf file"
        ) from error
    finally:
        _pyplot().close(figure)
