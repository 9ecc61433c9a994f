"""ONNX's own node tests: inference agrees with what each model declares, and the verifier accepts all of them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import onnx_ir
import pytest
from burnish.ir import symbolic
from burnish.ir.infer import infer_graph
from burnish.ir.printer import format_graph
from burnish.ir.verify import verify


@pytest.fixture(scope="module")
def cases() -> list[Any]:
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load_model_tests(kind="node")  # type: ignore[no-any-return]


def differences(model: onnx_ir.Model) -> Iterator[str]:
    """Infer the outputs without their declarations and compare; the declarations are put back."""
    declared = [(v.dtype, v.shape) for v in model.graph.outputs]
    for value in model.graph.outputs:
        value.shape = None
    yield from infer_graph(model)
    for value, (dtype, shape) in zip(model.graph.outputs, declared, strict=True):
        found = value.shape
        if value.dtype != dtype:
            yield f"{value.name}: {value.dtype} is declared {dtype}"
        if found is not None and shape is not None:
            wrong = len(found) != len(shape) or any(map(symbolic.contradict, found, shape))
            if wrong:
                yield f"{value.name}: {found} is declared {shape}"
        value.shape = shape


def test_inference_and_verifier_agree_with_onnx(cases: list[Any]) -> None:
    wrong = {}
    for case in cases:
        model = onnx_ir.from_proto(case.model)
        found = list(differences(model))
        if found:
            wrong[case.name] = found
        verify(model)
        format_graph(model)
    assert len(cases) > 1500
    assert wrong == {}
