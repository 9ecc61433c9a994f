"""Calls of an imported model: nested arguments, results in the module's own structure, arguments that do not fit."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from burnish.frontends.torch_module import import_exported, import_module
from burnish.ir.errors import InputError

Pair = namedtuple("Pair", ["first", "second"])


@dataclass
class Result:
    total: torch.Tensor
    parts: list[torch.Tensor]
    note: str = "fixed"
    nothing: torch.Tensor | None = None


class Model(torch.nn.Module):
    def forward(
        self, x: torch.Tensor, extra: dict[str, Any], scale: float = 1.0, mask: torch.Tensor | None = None
    ) -> Result:
        y = x * scale + extra["a"][0] - extra["b"]
        return Result(y if mask is None else y * mask, [x + 1, y - 1])


X = torch.randn(2, 3)
EXTRA = {"a": (torch.ones(3), 5), "b": torch.zeros(2, 1)}
BATCH = torch.export.Dim("batch", max=50)
SHAPES = {"x": {0: BATCH}, "extra": {"a": (None, None), "b": {0: BATCH}}, "scale": None}


@pytest.fixture
def imported() -> Any:
    return import_module(Model().eval(), (X, EXTRA), {"scale": 2.0}, SHAPES)


def test_nested_arguments_and_dataclass_result(imported: Any, run: Any) -> None:
    assert [v.name for v in imported.graph.graph.inputs] == ["x", "extra.a.0", "extra.b"]
    assert [v.name for v in imported.graph.graph.outputs] == ["total", "parts.0", "parts.1"]
    x, extra = torch.randn(4, 3), {"b": torch.ones(4, 1), "a": (torch.ones(3), 5)}
    got, want = run(imported, (x,), {"scale": 2.0, "extra": extra}), Model()(x, extra, 2.0)
    assert isinstance(got, Result) and got.note == "fixed" and got.nothing is None
    torch.testing.assert_close(got.total, want.total)
    torch.testing.assert_close(got.parts, want.parts)


def test_numpy_arguments(imported: Any) -> None:
    feeds = imported.signature.flatten((np.ones((2, 3), np.float32), {"a": (np.ones(3, np.float32), 5),
                                        "b": np.ones((2, 1), np.float32)}), {})  # fmt: skip
    assert all(isinstance(value, np.ndarray) for value in feeds.values())


BAD: dict[str, tuple[tuple[Any, ...], dict[str, Any], str]] = {
    "missing": ((X,), {}, "'extra' is missing"),
    "unknown": ((X, EXTRA), {"skale": 2.0}, "did you mean 'scale'"),
    "twice": ((X, EXTRA), {"x": X}, "given twice"),
    "too many": ((X, EXTRA, 2.0, None, 1), {}, "5 arguments given, the model takes 4"),
    "other constant": ((X, EXTRA), {"scale": 3.0}, "compiled for 2.0"),
    "not given at export": ((X, EXTRA), {"mask": X}, "not given when the model was compiled"),
    "element type": ((X.double(), EXTRA), {}, "element type DOUBLE"),
    "rank": ((X[0], EXTRA), {}, "1 dimensions"),
    "fixed size": ((torch.randn(2, 4), EXTRA), {}, "compiled for exactly 3"),
    "unequal": ((torch.randn(5, 3), EXTRA), {}, "they must be equal"),
    "device": ((torch.empty(2, 3, device="meta"), EXTRA), {}, "on device"),
    "none": ((None, EXTRA), {}, "is None"),
    "keys": ((X, {"a": EXTRA["a"]}), {}, "has keys ['a']"),
    "parts": ((X, {"a": (torch.ones(3),), "b": EXTRA["b"]}), {}, "has 1 parts"),
    "not a container": ((X, {"a": 5, "b": EXTRA["b"]}), {}, "compiled with a tuple there"),
}


@pytest.mark.parametrize("case", BAD)
def test_arguments_that_do_not_fit(case: str, imported: Any) -> None:
    args, kwargs, message = BAD[case]
    with pytest.raises(InputError) as error:
        imported.signature.flatten(args, kwargs)
    assert message in str(error.value)


@pytest.mark.parametrize(
    "pack",
    [
        lambda x: (x, [x + 1, {"k": x * 2}], None, 3),
        lambda x: Pair(x, x + 1),
        lambda x: {"b": x, "a": x + 1},
        lambda x: x,
        lambda x: [x + 1],
        lambda x: (x, x),
    ],
)
def test_result_structures(pack: Any, agrees: Any) -> None:
    agrees(pack, X)


def test_size_as_result(run: Any) -> None:
    class Sizes(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            return x + 1, x.shape[0]

    imported = import_module(Sizes().eval(), (X,), None, ({0: BATCH},))
    assert int(run(imported, (torch.randn(7, 3),))[1]) == 7


def test_exported_program(run: Any) -> None:
    class Two(torch.nn.Module):
        def forward(self, x: torch.Tensor, pair: tuple[torch.Tensor, torch.Tensor], *, k: torch.Tensor) -> Any:
            return {"sum": x + pair[0], "rest": (pair[1] * k, None)}

    args, kwargs = (X, (X, X + 1)), {"k": torch.tensor(2.0)}
    program = torch.export.export(Two().eval(), args, kwargs, strict=False)
    imported = import_exported(program)
    assert imported.route == "torch.export"
    got, want = run(imported, args, kwargs), Two()(*args, **kwargs)
    torch.testing.assert_close(got["sum"], want["sum"])
    torch.testing.assert_close(got["rest"][0], want["rest"][0])
    assert got["rest"][1] is None


def test_unnamed_dimensions_are_named_after_the_input() -> None:
    model = torch.nn.Linear(3, 2).eval()
    imported = import_module(model, (X,), None, ({0: torch.export.Dim.DYNAMIC},))
    assert imported.signature.inputs[0].shape == ("input_dim0", 3)
