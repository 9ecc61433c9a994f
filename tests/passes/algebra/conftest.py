"""What terms mean: as NumPy arrays, as SymPy expressions, and as ONNX graphs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest
import sympy
from burnish.ir.infer import infer_graph
from burnish.passes.algebra.equation import Condition, Equation
from burnish.passes.algebra.terms import ONNX, REDUCTIONS, Apply, Number, Term, Variable, variables
from onnx import TensorProto, helper, numpy_helper

Array = np.ndarray[Any, Any]

_erf = np.vectorize(math.erf, otypes=[np.float64])
NUMERIC: Mapping[str, Callable[..., Any]] = {
    "+": np.add, "-": np.subtract, "*": np.multiply, "/": np.divide, "@": np.matmul, "<<": np.left_shift,
    "pow": np.power, "neg": np.negative, "and": np.logical_and, "or": np.logical_or, "not": np.logical_not,
    "max": np.maximum, "min": np.minimum, "where": np.where, "abs": np.abs, "ceil": np.ceil, "cos": np.cos,
    "erf": lambda x: _erf(x).astype(x.dtype), "exp": np.exp, "floor": np.floor, "log": np.log,
    "recip": lambda x: (1 / x).astype(x.dtype), "relu": lambda x: np.maximum(x, np.zeros_like(x)), "round": np.round,
    "sigmoid": lambda x: (1 / (1 + np.exp(-x))).astype(x.dtype), "sign": np.sign, "sin": np.sin,
    "softplus": lambda x: np.logaddexp(x, np.zeros_like(x)), "sqrt": np.sqrt, "tanh": np.tanh,
}  # fmt: skip
REDUCED: Mapping[str, Callable[..., Any]] = {
    "sum": np.sum, "mean": np.mean, "prod": np.prod, "top": np.max, "bottom": np.min,
}  # fmt: skip


@pytest.fixture(scope="session")
def evaluate() -> Callable[[Term, Mapping[str, Array]], Array]:
    """The array that a term is, for arrays by name; reductions go over the last axis and keep it."""

    def value(term: Term, arrays: Mapping[str, Array]) -> Array:
        if isinstance(term, Variable):
            return arrays[term.name]
        if isinstance(term, Number):
            kind = next(a.dtype for a in arrays.values() if a.dtype != bool)
            return np.asarray(term.value, kind)
        parts = [value(argument, arrays) for argument in term.args]
        with np.errstate(all="ignore"):
            if term.op in REDUCED:
                return np.asarray(REDUCED[term.op](parts[0], axis=-1, keepdims=True), parts[0].dtype)
            result = parts[0] if len(parts) > 1 and term.op in ("+", "*", "and", "or", "max", "min") else None
            if result is None:
                return np.asarray(NUMERIC[term.op](*parts))
            for part in parts[1:]:
                result = NUMERIC[term.op](result, part)
            return np.asarray(result)

    return value


# --- symbols --------------------------------------------------------------------------------------------------------


INCREASING: Mapping[str, Any] = {
    "exp": sympy.Function("exp_", positive=True), "tanh": sympy.Function("tanh_", real=True),
    "sigmoid": sympy.Function("sigmoid_", positive=True), "softplus": sympy.Function("softplus_", positive=True),
    "erf": sympy.Function("erf_", real=True), "sqrt": sympy.Function("sqrt_", nonnegative=True),
    "log": sympy.Function("log_", real=True), "floor": sympy.Function("floor_", real=True),
    "ceil": sympy.Function("ceil_", real=True),
}  # fmt: skip
"""Where only the order of results matters: functions of which no more is known than that they increase."""


def _greater(x: Any, y: Any) -> bool | None:
    """Whether ``x`` is at least ``y``; None if the assumptions do not say."""
    if x == y:
        return True
    if x.func == y.func and x.func in INCREASING.values():
        return _greater(x.args[0], y.args[0])
    difference = sympy.factor(sympy.expand(x - y))
    if difference.is_nonnegative:
        return True
    if difference.is_nonpositive:
        return False
    if difference.has(sympy.I):
        raise ValueError(f"{difference} is not comparable with zero")
    return None


def _maximum(x: Any, y: Any) -> Any:
    larger = _greater(x, y)
    return sympy.Max(x, y) if larger is None else x if larger else y


def _minimum(x: Any, y: Any) -> Any:
    larger = _greater(x, y)
    return sympy.Min(x, y) if larger is None else y if larger else x


def _sign(x: Any) -> Any:
    if x.is_positive:
        return sympy.Integer(1)
    return sympy.Integer(-1) if x.is_negative else sympy.sign(x)


_SIGMOID = lambda x: 1 / (1 + sympy.exp(-x))  # noqa: E731
SYMBOLIC: Mapping[str, Callable[..., Any]] = {
    "+": lambda x, y: x + y, "-": lambda x, y: x - y, "*": lambda x, y: x * y, "/": lambda x, y: x / y,
    "@": lambda x, y: x * y, "<<": lambda x, y: x * 2**y, "pow": lambda x, y: x**y, "neg": lambda x: -x,
    "and": sympy.And, "or": sympy.Or, "not": sympy.Not, "max": _maximum, "min": _minimum,
    "where": lambda c, x, y: sympy.Piecewise((x, c), (y, True)), "abs": lambda x: _maximum(x, -x),
    "ceil": sympy.ceiling, "cos": sympy.cos, "erf": sympy.erf, "exp": sympy.exp, "floor": sympy.floor,
    "log": sympy.log, "recip": lambda x: 1 / x, "relu": lambda x: _maximum(x, sympy.Integer(0)),
    "sigmoid": _SIGMOID, "sign": _sign, "sin": sympy.sin, "softplus": lambda x: sympy.log(1 + sympy.exp(x)),
    "sqrt": sympy.sqrt, "tanh": sympy.tanh,
}  # fmt: skip
NO_SYMBOLS = frozenset(("round",))
"""Operators that SymPy has no equal of: halves go to the even neighbour."""


@pytest.fixture(scope="session")
def symbolic() -> Callable[..., Any]:
    """The expressions of a term for two places along the reduced axis, for such pairs by name.

    ``opaque``: increasing functions are nothing but that.
    """

    def value(term: Term, pairs: Mapping[str, Any], opaque: bool = False) -> Any:
        if isinstance(term, Variable):
            return pairs[term.name]
        if isinstance(term, Number):
            number = sympy.nsimplify(term.value)
            return (number, number)
        parts = [value(argument, pairs, opaque) for argument in term.args]
        if term.op in REDUCTIONS:
            x, y = parts[0]
            result = {
                "sum": lambda: x + y, "mean": lambda: (x + y) / 2, "prod": lambda: x * y,
                "top": lambda: _maximum(x, y), "bottom": lambda: _minimum(x, y),
            }[term.op]()  # fmt: skip
            return (result, result)
        function = INCREASING[term.op] if opaque and term.op in INCREASING else SYMBOLIC[term.op]
        places = []
        for place in (0, 1):
            operands = [part[place] for part in parts]
            result = operands[0] if len(operands) > 1 and term.op not in ("where", "and", "or") else None
            if result is None:
                places.append(function(*operands))
                continue
            for operand in operands[1:]:
                result = function(result, operand)
            places.append(result)
        return tuple(places)

    return value


# --- graphs ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def arrays_for() -> Callable[..., dict[str, Array]]:
    """Random arrays for the names of an equation that keep its conditions; ``special``: with infinities and zeros."""

    def make(equation: Equation, seed: int = 0, *, special: bool = False, dtype: Any = np.float32) -> dict[str, Array]:
        random = np.random.default_rng(seed)
        names = sorted({v.name for v in variables(equation.pattern)})
        result: dict[str, Array] = {}
        for name in names:
            conditions = {condition for n, condition in equation.where if n == name}
            shape: tuple[int, ...] = (3, 4, 4)
            if conditions & {Condition.UNREDUCED, Condition.SMALL}:
                shape = (4, 1)
            if Condition.SCALAR in conditions:
                shape = ()
            if np.dtype(dtype).kind in "iu":
                array = random.integers(1, 5, shape).astype(dtype)
            else:
                array = random.normal(0, 2, shape).astype(dtype)
                array = np.where(np.abs(array) < 0.1, np.asarray(0.5, dtype), array)
                if special and name not in "kmn":
                    flat = np.array(array).reshape(-1)
                    places = random.integers(0, flat.size, max(1, flat.size // 4))
                    values = np.array([0.0, -0.0, np.inf, -np.inf, 1e38, 1e-40], dtype)
                    flat[places] = values[places % len(values)]
                    array = flat.reshape(shape)
            if name in equation.assuming or Condition.POSITIVE in conditions:
                array = np.abs(array)
            if _boolean(equation, name):
                array = random.random(shape) < 0.5
            result[name] = np.asarray(array)
        return result

    return make


def _boolean(equation: Equation, name: str) -> bool:
    """Whether a name stands for booleans: operands of logic, and the first of ``where``."""

    def found(term: Term, logical: bool) -> bool:
        if isinstance(term, Variable):
            return logical and term.name == name
        if not isinstance(term, Apply):
            return False
        inner = [term.op in ("and", "or", "not") or (term.op == "where" and i == 0) for i in range(len(term.args))]
        return any(found(argument, is_one) for argument, is_one in zip(term.args, inner, strict=True))

    return found(equation.pattern, False)


def _logical(term: Term) -> bool:
    return isinstance(term, Apply) and term.op in ("and", "or", "not")


@pytest.fixture(scope="session")
def graph_for() -> Callable[..., onnx_ir.Model]:
    """The graph of one side of an equation; names k, m, n are initializers, the others inputs.

    ``swapped`` turns the operands of what is commutative around; ``shared`` makes every inner value an output.
    """

    def make(
        term: Term, arrays: Mapping[str, Array], *, swapped: bool = False, shared: bool = False, opset: int = 23
    ) -> onnx_ir.Model:
        nodes: list[onnx.NodeProto] = []
        constants: list[onnx.TensorProto] = []
        kind = next((a.dtype for a in arrays.values() if a.dtype != bool), np.dtype(np.float32))

        def emit(part: Term) -> str:
            if isinstance(part, Variable):
                return part.name
            if isinstance(part, Number):
                name = f"number{len(constants)}"
                constants.append(numpy_helper.from_array(np.asarray(part.value, kind), name))
                return name
            inputs = [emit(argument) for argument in part.args]
            if swapped and part.op in ("+", "*", "max", "min", "and", "or"):
                inputs.reverse()
            attributes: dict[str, Any] = {"direction": "LEFT"} if part.op == "<<" else {}
            if part.op in REDUCTIONS:
                attributes["keepdims"] = 1
                if opset >= (13 if part.op == "sum" else 18):
                    name = f"axes{len(constants)}"
                    constants.append(numpy_helper.from_array(np.asarray([-1], np.int64), name))
                    inputs.append(name)
                else:
                    attributes["axes"] = [-1]
            result = inputs[0]
            pairs = [inputs] if len(inputs) < 3 or part.op == "where" else None
            if pairs is None:
                for other in inputs[1:]:
                    nodes.append(helper.make_node(ONNX[part.op], [result, other], [f"t{len(nodes)}"]))
                    result = f"t{len(nodes) - 1}"
                return result
            nodes.append(helper.make_node(ONNX[part.op], inputs, [f"t{len(nodes)}"], **attributes))
            return f"t{len(nodes) - 1}"

        last = emit(term)
        names = sorted({v.name for v in variables(term)})
        constants += [numpy_helper.from_array(arrays[n], n) for n in names if n in "kmn"]
        inputs = [
            helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(arrays[n].dtype), arrays[n].shape)
            for n in names
            if n not in "kmn"
        ]
        result = TensorProto.BOOL if _logical(term) else helper.np_dtype_to_tensor_dtype(kind)
        wanted = [node.output[0] for node in nodes] if shared else [last]
        outputs = [helper.make_tensor_value_info(n, result, None) for n in wanted]
        graph = helper.make_graph(nodes, "g", inputs, outputs, constants)
        model = onnx_ir.from_proto(
            helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
        )
        infer_graph(model)
        return model

    return make


@pytest.fixture(scope="session")
def run() -> Callable[[onnx_ir.Model, Mapping[str, Array]], list[Array]]:
    """What a graph computes, by ONNX Runtime without its optimizer; the graph must pass the checker."""

    def outputs(graph: onnx_ir.Model, feeds: Mapping[str, Array]) -> list[Array]:
        proto = onnx_ir.to_proto(graph)
        onnx.checker.check_model(proto, full_check=True)
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 4
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        wanted = {value.name for value in session.get_inputs()}
        return list(session.run(None, {name: array for name, array in feeds.items() if name in wanted}))

    return outputs


@pytest.fixture(scope="session")
def reference() -> Callable[[onnx_ir.Model, Mapping[str, Array]], list[Array]]:
    """What a graph computes, by ONNX's own evaluator: for types that ONNX Runtime has no kernel for."""
    from onnx.reference import ReferenceEvaluator

    def outputs(graph: onnx_ir.Model, feeds: Mapping[str, Array]) -> list[Array]:
        evaluator = ReferenceEvaluator(onnx_ir.to_proto(graph))
        return list(evaluator.run(None, {name: feeds[name] for name in evaluator.input_names}))

    return outputs
