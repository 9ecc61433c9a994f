"""Rows side by side: the same outputs as all together, in whatever shares, and an error where rows depend on others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import burnish
import numpy as np
import pytest
import torch
from burnish.backends.onnxruntime import streams as module
from burnish.backends.onnxruntime.session import Session
from burnish.backends.onnxruntime.streams import Streams
from burnish.compiler import build
from burnish.ir.errors import InputError, OptionError, UnsupportedError
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

Array = np.ndarray[Any, Any]


class Net(nn.Module):
    """Rows that have nothing to do with each other, beside an input that all of them share."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.outer = nn.Linear(16, 32), nn.Linear(32, 8)

    def forward(self, x: torch.Tensor, shift: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[batch, length, 16] and [16] to [batch, length, 8] and [batch]."""
        made = self.outer(torch.nn.functional.gelu(self.inner(x + shift)))
        return made, made.argmax(-1).sum(-1)


class Centred(nn.Module):
    """Each row less the mean of all."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, 16] to [batch, 16]."""
        return x - x.mean(0)


def _dim() -> Any:
    return torch.export.Dim("batch", min=1, max=64)


def _compiled(**options: Any) -> burnish.CompiledModel:
    shapes = ({0: _dim(), 1: torch.export.Dim("length", min=1, max=64)}, None)
    example = (torch.randn(2, 3, 16), torch.randn(16))
    return burnish.compile(Net().eval(), example, dynamic_shapes=shapes, progress=False, cache=False, **options)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("streams") / "net.onnx"
    _compiled().save(path)
    return path


def _feeds(rows: int, length: int = 3) -> dict[str, Array]:
    generator = np.random.default_rng(rows)
    x = generator.standard_normal((rows, length, 16), np.float32)
    return {"x": x, "shift": generator.standard_normal(16, np.float32)}


def _counted(streams: Streams, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of each share that is run from now on."""
    rows: list[int] = []
    run: Callable[[dict[str, Any]], list[Any]] = streams._share.run
    monkeypatch.setattr(streams._share, "run", lambda feeds: (rows.append(len(feeds["x"])), run(feeds))[1])
    return rows


@settings(deadline=None, max_examples=25)
@given(rows=st.integers(0, 19), length=st.integers(1, 5), streams=st.integers(2, 4), torch_inputs=st.booleans())
def test_the_outputs_are_those_of_all_rows_together(
    file: Path, rows: int, length: int, streams: int, torch_inputs: bool
) -> None:
    feeds: dict[str, Any] = dict(_feeds(rows, length))
    want = Session(file).run(feeds)
    if torch_inputs:
        feeds = {name: torch.from_numpy(value) for name, value in feeds.items()}
    made = Streams(file, streams=streams, threads=4).run(feeds)
    assert all(isinstance(value, torch.Tensor if torch_inputs else np.ndarray) for value in made)
    for one, other in zip(want, made, strict=True):
        assert one.shape == tuple(other.shape)
        np.testing.assert_allclose(np.asarray(other), one, rtol=1e-5, atol=1e-5)


def test_rows_are_shared_out_where_no_stream_idles(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    streams = Streams(file, streams=2, threads=2)
    shares = _counted(streams, monkeypatch)
    found = {}
    for rows in (1, 2, 3, 8, 9, 11):
        shares.clear()
        streams.run(_feeds(rows))
        found[rows] = sorted(shares)
    # Three rows in two streams would take as long as four.
    assert found == {1: [], 2: [1, 1], 3: [], 8: [4, 4], 9: [4, 5], 11: [5, 6]}


def test_rows_that_depend_on_each_other_are_found_out(tmp_path: Path) -> None:
    model = burnish.compile(
        Centred().eval(), (torch.randn(2, 16),), dynamic_shapes=({0: _dim()},), streams=2, threads=2, progress=False
    )
    x = np.random.default_rng(0).standard_normal((4, 16), np.float32)
    np.testing.assert_allclose(model(x[:1]), 0, atol=1e-6)  # a single row runs as ever
    with pytest.raises(UnsupportedError, match="rows depend on each other"):
        model(x)


def test_only_the_first_call_runs_twice(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    streams = Streams(file, streams=2, threads=2)
    runs, run = [], Session.run

    def counted(self: Session, feeds: dict[str, Any]) -> list[Any]:
        runs.append(self is streams)
        return run(self, feeds)

    monkeypatch.setattr(Session, "run", counted)
    for _ in range(3):
        streams.run(_feeds(4))
    assert runs.count(True) == 1 and runs.count(False) == 6


def test_what_has_no_rows_is_refused(tmp_path: Path) -> None:
    fixed = burnish.compile(Net().eval(), (torch.randn(2, 3, 16), torch.randn(16)), progress=False, cache=False)
    path = fixed.save(tmp_path / "fixed.onnx")
    with pytest.raises(UnsupportedError, match=r"a batch cannot be split: output .* has 2 on its first axis"):
        burnish.load(path, streams=2, threads=2)


def test_a_fixed_batch_is_refused_before_anything_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "compile_once", lambda *_: pytest.fail("compiled"))
    with pytest.raises(UnsupportedError, match=r"a batch cannot be split: output .* has 2 on its first axis"):
        burnish.compile(
            Net().eval(), (torch.randn(2, 3, 16), torch.randn(16)), streams=2, threads=2, progress=False, cache=False
        )


@pytest.mark.parametrize("streams", [0, 1, -2, 3, 2.0, True])
def test_numbers_of_streams_that_cannot_be(streams: Any, file: Path) -> None:
    """Told before anything is compiled."""
    with pytest.raises(OptionError, match="streams="):
        burnish.compile("there is no such model", streams=streams, threads=2)
    with pytest.raises(OptionError, match="streams="):
        burnish.load(file, streams=streams, threads=2)
    with pytest.raises(OptionError, match="streams="):
        Streams(file, streams=streams, threads=2)


def test_streams_are_the_runtimes() -> None:
    with pytest.raises(OptionError, match="not of 'reference'"):
        burnish.compile("there is no such model", backend="reference", streams=2, threads=2)


@pytest.mark.parametrize("change", [{"x": None}, {"y": np.zeros((4, 3, 16), np.float32)}])
def test_inputs_that_do_not_fit_are_told_as_ever(file: Path, change: dict[str, Any]) -> None:
    feeds = {name: value for name, value in (_feeds(4) | change).items() if value is not None}
    with pytest.raises(InputError):
        Streams(file, streams=2, threads=2).run(feeds)


def test_a_share_that_fails_is_told_when_all_have_ended(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    streams = Streams(file, streams=2, threads=2)

    def fail(feeds: dict[str, Any]) -> list[Any]:
        raise InputError(f"{len(feeds['x'])} rows")

    monkeypatch.setattr(streams._share, "run", fail)
    with pytest.raises(InputError, match="2 rows"):
        streams.run(_feeds(4))


def test_a_saved_model_runs_in_streams(file: Path) -> None:
    model = burnish.load(file, streams=2, threads=2)
    assert isinstance(model.session, Streams) and model.streams == 2
    feeds = _feeds(8)
    want = burnish.load(file)(**feeds)
    for one, other in zip(want, model(**feeds), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("factor", "runs"), [(1 + module._TOLERANCE / 2, 1), (1 + module._TOLERANCE * 2, 3), (1.3, None)]
)
def test_a_difference_of_a_code_is_no_dependence(
    file: Path, factor: float, runs: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor are other kernels for another number of rows: rows say so themselves, beside others than their own."""
    streams, feeds = Streams(file, streams=2, threads=2), _feeds(4)
    floats, indices = streams._share.run(feeds)
    done, run = [], Session.run
    monkeypatch.setattr(Session, "run", lambda self, feeds: (done.append(1), run(self, feeds))[1])
    if runs is None:
        with pytest.raises(UnsupportedError, match=r"another by 30\.0%"):
            streams._compare(feeds, [floats * factor, indices], [0, 2, 4])
    else:
        streams._compare(feeds, [floats * factor, indices + 7], [0, 2, 4])
        assert len(done) == runs


class Leaning(nn.Module):
    """Rows that lean a little on one of them."""

    def __init__(self, on: int) -> None:
        super().__init__()
        self.on = on

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, 16] to [batch, 16]."""
        return x + 0.05 * x[self.on]


@pytest.mark.parametrize("on", [0, -1])
def test_rows_that_depend_a_little_are_found_out(on: int) -> None:
    model = burnish.compile(
        Leaning(on).eval(), (torch.randn(2, 16),), dynamic_shapes=({0: _dim()},), streams=2, threads=2, progress=False
    )
    with pytest.raises(UnsupportedError, match="rows depend on each other"):
        model(np.random.default_rng(0).standard_normal((4, 16), np.float32))
