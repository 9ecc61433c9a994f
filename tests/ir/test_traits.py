"""The table of operators: every operator of the frontends is in it; kinds, mapping types, axes and index maps."""

from __future__ import annotations

import ast
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import pytest
import sympy
from burnish.ir.index_maps import IndexMap, index_map
from burnish.ir.infer import infer_graph
from burnish.ir.traits import TRAITS, Kind, Mapping, kind, mapping, reduced_axes, trait
from onnx import TensorProto, helper, numpy_helper

ROOT = Path(__file__).resolve().parents[2]
DEFINED = {s.name for s in onnx.defs.get_all_schemas_with_history() if s.domain == ""}


def emitted() -> Iterator[tuple[str, str]]:
    """(file, operator) for each string in the code of the frontends, passes and backends that names an operator."""
    known = DEFINED | {op for domain, op in TRAITS if domain}
    for folder in ("frontends", "passes", "backends"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
                    name = node.args[0].value
                    if isinstance(name, str) and name in known:
                        yield f"{path.relative_to(ROOT)}:{node.lineno}", name


def test_every_operator_the_frontends_emit_is_in_the_table() -> None:
    named = {op for _, op in TRAITS}
    found = list(emitted())
    assert len({op for _, op in found}) > 60
    assert [(where, op) for where, op in found if op not in named] == []


def test_the_table_covers_onnx() -> None:
    """All of ONNX except what is listed here with its reason."""
    # Newer than the newest opset that a released ONNX Runtime executes.
    missing = {op for op in DEFINED if ("", op) not in TRAITS}
    assert missing <= {"FlexAttention"}


def node_of(op: str, inputs: list[Any], attributes: dict[str, Any] | None = None, outputs: int = 1) -> onnx_ir.Node:
    """A node with inferred types; inputs are shapes (float graph inputs) or arrays (initializers)."""
    return next(iter(model_of(op, inputs, attributes, outputs)[1].graph))


def model_of(
    op: str, inputs: list[Any], attributes: dict[str, Any] | None = None, outputs: int = 1
) -> tuple[onnx.ModelProto, onnx_ir.Model]:
    names = [f"x{i}" for i in range(len(inputs))]
    arrays = {n: numpy_helper.from_array(x, n) for n, x in zip(names, inputs, strict=True) if isinstance(x, np.ndarray)}
    infos = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, x)
        for n, x in zip(names, inputs, strict=True)
        if n not in arrays
    ]
    outs = [f"y{i}" for i in range(outputs)]
    made = helper.make_node(op, names, outs, **attributes or {})
    dtype = TensorProto.FLOAT
    graph = helper.make_graph(
        [made], "g", infos, [helper.make_tensor_value_info(o, dtype, None) for o in outs], list(arrays.values())
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    model = onnx_ir.from_proto(proto)
    infer_graph(model, strict=True)
    return proto, model


@pytest.mark.parametrize(
    ("op", "inputs", "attributes", "expected"),
    [
        ("Relu", [("B", 4)], {}, (Kind.ELEMENTWISE, Mapping.ONE_TO_ONE)),
        ("Add", [("B", 4), ("B", 4)], {}, (Kind.ELEMENTWISE, Mapping.ONE_TO_ONE)),
        ("Add", [("B", 4), (4,)], {}, (Kind.ELEMENTWISE, Mapping.ONE_TO_MANY)),
        # One number is no broadcast operand: it is a constant of the kernel.
        ("Mul", [("B", 4), ()], {}, (Kind.ELEMENTWISE, Mapping.ONE_TO_ONE)),
        ("Concat", [("B", 4), ("B", 4)], {"axis": 1}, (Kind.MOVEMENT, Mapping.ONE_TO_ONE)),
        ("Reshape", [("B", 4), np.array([0, 2, 2])], {}, (Kind.MOVEMENT, Mapping.REORGANIZE)),
        ("Transpose", [("B", 4)], {}, (Kind.MOVEMENT, Mapping.SHUFFLE)),
        ("Gather", [(9, 4), np.array([1])], {}, (Kind.MOVEMENT, Mapping.ONE_TO_MANY)),
        ("MatMul", [("B", 4), (4, 5)], {}, (Kind.CONTRACTION, Mapping.MANY_TO_MANY)),
        ("Softmax", [("B", 4)], {}, (Kind.NORMALIZATION, Mapping.MANY_TO_MANY)),
        ("ReduceSum", [("B", 4)], {}, (Kind.REDUCTION, Mapping.MANY_TO_MANY)),
    ],
)
def test_kind_and_mapping(
    op: str, inputs: list[Any], attributes: dict[str, Any], expected: tuple[Kind, Mapping]
) -> None:
    node = node_of(op, inputs, attributes)
    assert (kind(node), mapping(node)) == expected


def test_unknown_operators_are_the_most_complex() -> None:
    node = onnx_ir.Node("my.domain", "Anything", [])
    assert trait(node) is None and kind(node) is Kind.OTHER and mapping(node) is Mapping.MANY_TO_MANY


def test_the_order_of_complexity_is_the_papers() -> None:
    order = [Mapping.ONE_TO_ONE, Mapping.REORGANIZE, Mapping.SHUFFLE, Mapping.ONE_TO_MANY, Mapping.MANY_TO_MANY]
    assert sorted(order) == order


@pytest.mark.parametrize(
    ("op", "inputs", "attributes", "expected"),
    [
        ("ReduceSum", [("B", 3, 4), np.array([-1])], {}, (2,)),
        ("ReduceSum", [("B", 3, 4)], {}, (0, 1, 2)),
        ("ReduceSum", [("B", 3, 4)], {"noop_with_empty_axes": 1}, ()),
        ("Softmax", [("B", 3, 4)], {"axis": 1}, (1,)),
        ("LayerNormalization", [("B", 3, 4), (3, 4)], {"axis": -2}, (1, 2)),
        ("RMSNormalization", [("B", 3, 4), (4,)], {}, (2,)),
        ("InstanceNormalization", [("B", 3, 4), (3,), (3,)], {}, (2,)),
        ("GlobalAveragePool", [("B", 3, 4, 5)], {}, (2, 3)),
        ("Relu", [("B", 3, 4)], {}, None),
        ("MatMul", [("B", 4), (4, 5)], {}, None),
    ],
)
def test_reduced_axes(op: str, inputs: list[Any], attributes: dict[str, Any], expected: Any) -> None:
    assert reduced_axes(node_of(op, inputs, attributes)) == expected


def maps(
    op: str, inputs: list[Any], attributes: dict[str, Any] | None = None, output: int = 0, outputs: int = 1
) -> str:
    found = index_map(node_of(op, inputs, attributes, outputs), output)
    assert found is not None
    return " ".join("_" if i is None else str(list(i)) for i in found.inputs)


def test_index_maps_read() -> None:
    assert maps("Add", [("B", 4), (4,)]) == "[i0, i1] [i1]"
    assert maps("Add", [("B", 1), (4,)]) == "[i0, 0] [i1]"
    assert maps("MatMul", [("B", "S", 4), (4, 5)]) == "[i0, i1, k0] [k0, i2]"
    assert maps("Gemm", [("B", 4), (5, 4), (5,)], {"transB": 1}) == "[i0, k0] [i1, k0] [i1]"
    assert maps("Transpose", [("B", 3, 4)], {"perm": [2, 0, 1]}) == "[i1, i2, i0]"
    assert maps("Gather", [(9, 4), ("B", "S")]) == "[x1(i0, i1), i2] [i0, i1]"
    assert maps("ReduceSum", [("B", 3, 4), np.array([1])], {"keepdims": 0}) == "[i0, k0, i1] _"
    assert maps("Concat", [("B", 3), ("B", 4)], {"axis": 1}) == "[i0, i1] [i0, i1 - 3]"
    assert maps("Split", [("B", 7)], {"axis": 1, "num_outputs": 2}, 1, 2) == "[i0, i1 + 4]"
    assert maps("Slice", [("B", 9), np.array([2]), np.array([8]), np.array([1]), np.array([3])]) == (
        "[i0, 3*i1 + 2] _ _ _ _"
    )


def test_reduced_extents() -> None:
    found = index_map(node_of("ReduceSum", [("B", 3, 4), np.array([0, 2])]))
    assert found is not None
    assert [str(e) for e in found.extents] == ["B", "4"] and [str(k) for k in found.reduced] == ["k0", "k1"]


@pytest.mark.parametrize("op", ["TopK", "NonZero", "RotaryEmbedding"])
def test_what_is_not_expressible_has_no_map(op: str) -> None:
    node = onnx_ir.Node("", op, [])
    node.outputs[0].shape = onnx_ir.Shape([2, 2])
    assert index_map(node) is None


def numbers(found: IndexMap, place: tuple[int, ...], steps: tuple[int, ...], which: int) -> tuple[int, ...] | None:
    index = found.inputs[which]
    assert index is not None
    values = {s: sympy.Integer(n) for s, n in zip((*found.outputs, *found.reduced), (*place, *steps), strict=True)}
    return tuple(int(e.subs(values)) for e in index)


COMBINE: dict[str, Any] = {
    "Add": lambda terms: sum(terms[0]),
    "Sub": lambda terms: terms[0][0] - terms[0][1],
    "Where": None,
    "MatMul": lambda terms: sum(a * b for a, b in terms),
    "Gemm": lambda terms: sum(t[0] * t[1] for t in terms) + (terms[0][2] if len(terms[0]) > 2 else 0),
    "Conv": lambda terms: sum(t[0] * t[1] for t in terms) + (terms[0][2] if len(terms[0]) > 2 else 0),
    "ReduceSum": lambda terms: sum(t[0] for t in terms),
    "ReduceMax": lambda terms: max(t[0] for t in terms),
}


@pytest.mark.parametrize(
    ("op", "inputs", "attributes", "outputs"),
    [
        ("Add", [(2, 3), (3,)], {}, 1),
        ("Sub", [(2, 1, 3), (4, 1)], {}, 1),
        ("MatMul", [(2, 3, 4), (4, 5)], {}, 1),
        ("MatMul", [(1, 2, 3), (4, 3, 2)], {}, 1),
        ("MatMul", [(3,), (2, 3, 4)], {}, 1),
        ("Gemm", [(4, 2), (3, 4), (3,)], {"transA": 1, "transB": 1}, 1),
        ("Conv", [(2, 3, 5), (4, 3, 3), (4,)], {"pads": [1, 1], "strides": [2]}, 1),
        ("Conv", [(1, 4, 6), (4, 2, 2)], {"group": 2, "dilations": [2]}, 1),
        ("ReduceSum", [(2, 3, 4), np.array([1])], {"keepdims": 0}, 1),
        ("ReduceMax", [(2, 3, 4), np.array([0, 2])], {}, 1),
        ("Transpose", [(2, 3, 4)], {"perm": [1, 2, 0]}, 1),
        ("Reshape", [(2, 6), np.array([3, 2, 2])], {}, 1),
        ("Flatten", [(2, 3, 4)], {"axis": 2}, 1),
        ("Squeeze", [(2, 1, 3), np.array([1])], {}, 1),
        ("Unsqueeze", [(2, 3), np.array([0, 2])], {}, 1),
        ("Expand", [(2, 1, 3), np.array([2, 4, 3])], {}, 1),
        ("Tile", [(2, 3), np.array([2, 2])], {}, 1),
        ("Slice", [(5, 6), np.array([-3, 4]), np.array([5, 0]), np.array([0, 1]), np.array([2, -2])], {}, 1),
        ("Slice", [(5, 6), np.array([9]), np.array([-9]), np.array([0]), np.array([-1])], {}, 1),
        ("Split", [(2, 7)], {"axis": 1, "num_outputs": 2}, 2),
    ],
)
def test_index_maps_are_right(run: Any, op: str, inputs: list[Any], attributes: dict[str, Any], outputs: int) -> None:
    """Each output element, put together from the input elements that the map names, is what ONNX Runtime computes."""
    proto, model = model_of(op, inputs, attributes, outputs)
    random = np.random.default_rng(0)
    feeds = {
        f"x{i}": random.standard_normal(x).astype(np.float32)
        for i, x in enumerate(inputs)
        if not isinstance(x, np.ndarray)
    }
    got = run(proto, feeds, None)
    node = next(iter(model.graph))
    combine = COMBINE.get(op, lambda terms: terms[0][0])
    for output in range(outputs):
        found = index_map(node, output)
        assert found is not None
        operands = [i for i, index in enumerate(found.inputs) if index is not None and f"x{i}" in feeds]
        assert operands
        ranges = [range(int(e)) for e in found.extents if e is not None]
        assert len(ranges) == len(found.reduced)
        expected = got[f"y{output}"]
        for place in np.ndindex(*expected.shape):
            terms = []
            for steps in itertools.product(*ranges):
                term = []
                for i in operands:
                    index, data = numbers(found, place, steps, i), feeds[f"x{i}"]
                    inside = all(0 <= n < size for n, size in zip(index or (), data.shape, strict=True))
                    # Outside lies the padding of a convolution.
                    assert inside or op == "Conv"
                    term.append(float(data[index]) if inside else 0.0)
                terms.append(term)
            # Sums of at most a dozen float32 products.
            assert combine(terms) == pytest.approx(float(expected[place]), rel=1e-5, abs=1e-5)
