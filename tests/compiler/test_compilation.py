"""The written file is opened once more, to see that the operators asked for are the ones that run."""

from typing import Any

import burnish
import pytest
import torch
from burnish.compiler import compilation
from burnish.ir.errors import VerificationError


def _compile(**options: Any) -> Any:
    model = torch.nn.Sequential(torch.nn.Linear(64, 64)).eval()
    return burnish.compile(model, (torch.ones(2, 64),), passes="w4a16", **options)


def _reasons(compiled: Any) -> list[str]:
    return [item.reason for item in compiled.report.backend]


def test_operators_that_run_are_counted() -> None:
    assert any("the runtime runs what was asked for: 1 MatMulNBits" in reason for reason in _reasons(_compile()))


def test_an_operator_that_does_not_run_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation, "asked", lambda graph: {"MatMulNBits": 2})
    with pytest.raises(VerificationError, match="2 MatMulNBits were asked for, the runtime runs 1"):
        _compile()


def test_a_large_file_is_opened_only_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation, "_CHECKED_SIZE", 0)
    assert any("not opened to count" in reason for reason in _reasons(_compile()))
    assert any("the runtime runs" in reason for reason in _reasons(_compile(verify="numerics")))
    assert not any("the runtime runs" in reason for reason in _reasons(_compile(verify="off")))
