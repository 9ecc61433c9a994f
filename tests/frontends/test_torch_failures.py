"""Models that cannot be imported directly, or at all, and what is said of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir
import pytest
import torch
from burnish.frontends.torch_module import import_exported, import_module
from burnish.ir.errors import BurnishError, InputError, ModelError, UnsupportedError
from burnish.ir.weights import lazy

X = torch.randn(2, 3)


class Function(torch.nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(x)


def test_control_flow_goes_the_other_way(agrees: Any) -> None:
    def choose(x: torch.Tensor) -> torch.Tensor:
        return torch.cond(x.sum() > 0, lambda v: v + 1, lambda v: v - 1, (x,))

    imported = agrees(choose, X.abs(), others=[(-X.abs(),)], route="torch.onnx.export")
    (remark,) = imported.remarks
    assert "cond" in remark.reason and remark.values["operators"] == ["cond"]


def test_operator_without_a_rule_goes_the_other_way(agrees: Any) -> None:
    imported = agrees(lambda x: torch.special.entr(x.abs()), X,
                      dynamic=({0: "batch"},), others=[(torch.randn(5, 3),)], route="torch.onnx.export")  # fmt: skip
    assert "special_entr" in imported.remarks[0].reason
    assert imported.signature.inputs[0].shape == ("batch", 3)


def test_unknown_custom_operator_is_named() -> None:
    @torch.library.custom_op("burnish_test::mystery", mutates_args=())
    def mystery(x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    mystery.register_fake(lambda x: torch.empty_like(x))
    with pytest.raises(UnsupportedError, match=r"burnish_test\.mystery"):
        import_module(Function(mystery).eval(), (X,))


def test_training_mode() -> None:
    with pytest.raises(ModelError, match=r"model\.eval\(\)"):
        import_module(torch.nn.Linear(3, 2), (X,))


def test_active_dropout_of_a_program() -> None:
    program = torch.export.export(torch.nn.Dropout(0.5).train(), (X,), strict=False)
    with pytest.raises(UnsupportedError, match=r"model\.eval\(\)"):
        import_exported(program)


def test_missing_example_inputs() -> None:
    with pytest.raises(InputError, match="example inputs are missing: input"):
        import_module(torch.nn.Linear(3, 2).eval())


def test_example_input_on_another_device() -> None:
    with pytest.raises(InputError, match="is on device 'meta'"):
        import_module(torch.nn.Linear(3, 2).eval(), (X.to("meta"),))


def test_dynamic_dimension_used_as_static() -> None:
    batch = torch.export.Dim("batch")
    with pytest.raises(InputError, match="batch") as error:
        import_module(Function(lambda x: x.reshape(6) + 1).eval(), (X,), None, ({0: batch},))
    assert error.value.fix


def test_dynamic_shapes_of_another_structure() -> None:
    with pytest.raises(InputError, match="dynamic_shapes"):
        import_module(torch.nn.Linear(3, 2).eval(), (X,), None, {"nonsense": {0: torch.export.Dim("n")}})


def test_branch_on_values() -> None:
    with pytest.raises(BurnishError) as error:
        import_module(Function(lambda x: x + 1 if x.sum() > 0 else x - 1).eval(), (X,))
    assert "values" in str(error.value)


def test_model_that_fails() -> None:
    with pytest.raises(ModelError, match="cannot trace"):
        import_module(torch.nn.Linear(4, 2).eval(), (X,))


def test_result_that_cannot_be_taken_apart() -> None:
    class Odd:
        def __init__(self, x: torch.Tensor) -> None:
            self.x = x

    with pytest.raises(UnsupportedError, match="holds a Odd"):
        import_module(Function(Odd).eval(), (X,))


def test_weights_given_by_name(run: Any) -> None:
    """A model on the meta device takes its weights from a mapping, unread until they are needed."""
    reads = []

    def read() -> np.ndarray[Any, Any]:
        reads.append(1)
        return np.ones((2, 3), np.float32)

    with torch.device("meta"):
        model = torch.nn.Linear(3, 2, bias=False).eval()
    weights = {"weight": lazy(read, onnx_ir.DataType.FLOAT, (2, 3))}
    imported = import_module(model, (X.to("meta"),), weights=weights)
    assert not reads
    torch.testing.assert_close(run(imported, (X,)), X.sum(1, keepdim=True).expand(2, 2))


def test_weights_missing() -> None:
    with torch.device("meta"):
        model = torch.nn.Linear(3, 2).eval()
    with pytest.raises(ModelError, match="no data was given"):
        import_module(model, (X.to("meta"),), weights={"weight": onnx_ir.Tensor(np.ones((2, 3), np.float32))})


def test_tied_weights_on_meta_take_the_name_that_has_data() -> None:
    class Tied(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = torch.nn.Linear(3, 3, bias=False), torch.nn.Linear(3, 3, bias=False)
            self.a.weight = self.b.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(self.a(x))

    with torch.device("meta"):
        model = Tied().eval()
    for name in ("a.weight", "b.weight"):
        given = {name: onnx_ir.Tensor(np.ones((3, 3), np.float32))}
        imported = import_module(model, (X.to("meta"),), weights=given)
        assert list(imported.graph.graph.initializers) == [name]


def test_provenance() -> None:
    imported = import_module(torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.GELU()).eval(), (X,))
    modules = [node.metadata_props["burnish.module"] for node in imported.graph.graph]
    assert modules == ["0", "0", "0", "1"]
    assert imported.graph.graph[-1].metadata_props["burnish.source"] == "gelu: aten.gelu.default"
