"""What tests of the frontends share: import a module or function, run it under ONNX Runtime, compare with eager."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest
import torch
from burnish.frontends.imported import Imported
from burnish.frontends.torch_module import import_module


class Wrapped(torch.nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any) -> Any:
        return self.function(*args)


def run_imported(imported: Imported, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None) -> Any:
    """Call an imported model through ONNX Runtime, in the original model's structure."""
    proto = onnx_ir.to_proto(imported.graph)
    onnx.checker.check_model(proto)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feeds = imported.signature.flatten(args, kwargs or {})
    results = session.run(None, {name: np.asarray(value) for name, value in feeds.items()})
    for value, result in zip(imported.graph.graph.outputs, results, strict=True):
        assert value.shape is not None and len(value.shape) == result.ndim
        assert all(not isinstance(d, int) or d == n for d, n in zip(value.shape, result.shape, strict=True)), value
    return imported.signature.unflatten([torch.from_numpy(np.asarray(r)) for r in results])


def assert_same(got: Any, want: Any, tolerance: float) -> None:
    """Equal structures, element types and shapes, and values within ``tolerance`` of the largest one."""
    ours, theirs = torch.utils._pytree.tree_flatten(got), torch.utils._pytree.tree_flatten(want)
    assert ours[1] == theirs[1]
    for a, b in zip(ours[0], theirs[0], strict=True):
        if not isinstance(b, torch.Tensor):
            assert a == b
            continue
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        if not b.dtype.is_floating_point:
            assert torch.equal(a, b)
        elif b.numel():
            assert torch.equal(torch.isfinite(a), torch.isfinite(b))
            finite = torch.isfinite(b)
            assert torch.equal(a[~finite].nan_to_num(), b[~finite].nan_to_num())
            scale = float(b[finite].abs().max()) if finite.any() else 1.0
            error = float((a - b)[finite].abs().max()) if finite.any() else 0.0
            assert error <= tolerance * max(scale, 1e-3), f"off by {error} of {scale}"


@pytest.fixture
def run() -> Callable[..., Any]:
    """:func:`run_imported`."""
    return run_imported


@pytest.fixture
def agrees() -> Callable[..., Imported]:
    """Import a module or function, compare with eager on the example and on other inputs; the import comes back.

    ``dynamic`` names the axes that vary, per argument: ``({0: "batch"}, None)``.
    """

    def check(
        model: torch.nn.Module | Callable[..., Any],
        *args: Any,
        dynamic: Sequence[Any] | None = None,
        others: Sequence[Sequence[Any]] = (),
        tolerance: float = 1e-5,
        route: str = "torch.export",
    ) -> Imported:
        module = (model if isinstance(model, torch.nn.Module) else Wrapped(model)).eval()
        shapes: Any = None
        if dynamic is not None:
            dims: dict[str, Any] = {}
            named = tuple(
                None
                if axes is None
                else {
                    a: dims.setdefault(n, torch.export.Dim(n, min=1 if n == "batch" else 3, max=60))
                    for a, n in axes.items()
                }
                for axes in dynamic
            )
            shapes = named if isinstance(model, torch.nn.Module) else (named,)
        imported = import_module(module, _copies(args), None, shapes)
        assert imported.route == route, imported.remarks
        for inputs in [args, *others]:
            with torch.no_grad():
                want = module(*_copies(inputs))
            assert_same(run_imported(imported, _copies(inputs)), want, tolerance)
        return imported

    return check


def _copies(values: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(v.clone() if isinstance(v, torch.Tensor) else v for v in values)
