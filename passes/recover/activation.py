"""``Gelu`` (exact and by tanh), ``Sigmoid`` and ``HardSigmoid`` out of elementary functions."""

from __future__ import annotations

import math

import onnx_ir

from ...ir.graph import is_op, producer
from .match import Site, close, factors, nodes, origin_of, same_rank, scalar, strip, users, with_scalar

_CUBIC = 0.044715


def recover_activation(site: Site) -> None:
    """Replace decomposed activations.

    ``x * 0.5 * (1 + erf(x / sqrt(2)))`` and ``x * 0.5 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3)))`` in any
    association become Gelu (Hendrycks and Gimpel 2016); ``1 / (1 + exp(-x))`` becomes Sigmoid, so that SiLU has its
    one standard form ``x * Sigmoid(x)``; ``clip(x + 3, 0, 6) / 6`` becomes HardSigmoid.
    """
    for node in nodes(site.graph, "Erf", "Tanh"):
        _gelu(site, node)
    for node in nodes(site.graph, "Div", "Reciprocal"):
        _sigmoid(site, node)
    for node in nodes(site.graph, "Clip"):
        _hard_sigmoid(site, node)


def _gelu(site: Site, node: onnx_ir.Node) -> None:
    argument = node.inputs[0]
    assert argument is not None
    half = _one_plus(node.outputs[0])
    if not half:
        return
    exact = node.op_type == "Erf"
    sources = [v for v in _cone(argument) if _is_argument(argument, v, exact)]
    if not sources:
        if exact:
            site.missed(node, "Gelu", "the argument of Erf is not x / sqrt(2)")
        return
    if site.opset < 20:
        site.missed(node, "Gelu", f"the graph has opset {site.opset}, the operator exists since 20")
        return
    for bracket, weight in half:
        for x in sources:
            output = _product(bracket, x, 0.5 / weight)
            if output is not None and same_rank(output, x):
                reason = site.unsupported("Gelu", x.dtype)
                if reason is not None:
                    site.missed(node, "Gelu", reason)
                    break
                anchor = output.producer()
                assert anchor is not None
                edit = site.edit("gelu(x)", anchor, [node, *origin_of(output)])
                new = edit.op(
                    "Gelu", [x], {"approximate": "none" if exact else "tanh"}, dtype=x.dtype, shape=output.shape
                )
                site.finish(edit, output, new, "Gelu")
                break
        else:
            site.missed(node, "Gelu", "1 + erf or tanh is not multiplied by x / 2")


def _one_plus(value: onnx_ir.Value) -> list[tuple[onnx_ir.Value, float]]:
    """Values ``w + w * value`` among the users of ``value``, with ``w``."""
    found = []
    for weighted, weight in [(value, 1.0), *((n.outputs[0], w) for n in users(value, "Mul") for w in _number(n))]:
        for add in users(weighted, "Add"):
            operands = with_scalar(add, "Add")
            if operands is not None and close(operands[1], weight):
                found.append((add.outputs[0], weight))
    return found


def _number(node: onnx_ir.Node) -> list[float]:
    operands = with_scalar(node, "Mul")
    return [] if operands is None or operands[1] <= 0 else [operands[1]]


def _cone(value: onnx_ir.Value, depth: int = 8) -> list[onnx_ir.Value]:
    """``value`` and what arithmetic computes it from, nearest first."""
    found: dict[onnx_ir.Value, None] = {}
    layer = [strip(value)]
    for _ in range(depth):
        following: list[onnx_ir.Value] = []
        for v in layer:
            if v in found or scalar(v) is not None:
                continue
            found[v] = None
            if is_op(v.producer(), "Mul", "Div", "Add", "Sub", "Pow"):
                node = v.producer()
                assert node is not None
                following.extend(strip(i) for i in node.inputs if i is not None)
        layer = following
    return list(found)


def _is_argument(argument: onnx_ir.Value, x: onnx_ir.Value, exact: bool) -> bool:
    terms = _polynomial(argument, x)
    if terms is None:
        return False
    terms = {power: c for power, c in terms.items() if c}
    if exact:
        return set(terms) == {1} and close(terms[1], math.sqrt(0.5))
    first = math.sqrt(2 / math.pi)
    return set(terms) == {1, 3} and close(terms[1], first) and close(terms[3], first * _CUBIC)


def _polynomial(value: onnx_ir.Value, x: onnx_ir.Value, depth: int = 10) -> dict[int, float] | None:
    """``value`` as a polynomial of ``x`` (coefficient by power), or None."""
    value = strip(value)
    if value is x:
        return {1: 1.0}
    number = scalar(value)
    if number is not None:
        return {0: number}
    node = value.producer()
    if depth == 0 or not is_op(node, "Mul", "Div", "Add", "Sub", "Pow"):
        return None
    assert node is not None and node.inputs[0] is not None and node.inputs[1] is not None
    left = _polynomial(node.inputs[0], x, depth - 1)
    if left is None:
        return None
    right = _polynomial(node.inputs[1], x, depth - 1)
    if right is None:
        return None
    if node.op_type in ("Add", "Sub"):
        sign = 1.0 if node.op_type == "Add" else -1.0
        return {p: left.get(p, 0.0) + sign * right.get(p, 0.0) for p in {*left, *right}}
    if node.op_type == "Mul":
        return _times(left, right)
    constant = right.get(0, 0.0)
    if set(right) != {0} or not constant:
        return None
    if node.op_type == "Div":
        return {p: c / constant for p, c in left.items()}
    if constant not in (1.0, 2.0, 3.0):
        return None
    power = left
    for _ in range(int(constant) - 1):
        power = _times(power, left)
    return power


def _times(left: dict[int, float], right: dict[int, float]) -> dict[int, float]:
    product: dict[int, float] = {}
    for p, a in left.items():
        for q, b in right.items():
            product[p + q] = product.get(p + q, 0.0) + a * b
    return product


def _product(bracket: onnx_ir.Value, x: onnx_ir.Value, coefficient: float) -> onnx_ir.Value | None:
    """The value ``coefficient * x * bracket`` among the users of ``bracket``, in any association."""
    layer = [bracket]
    for _ in range(3):
        following = []
        for value in layer:
            for node in users(value, "Mul", "Div"):
                output = node.outputs[0]
                number, bases = factors(output, [bracket, x])
                if close(number, coefficient) and len(bases) == 2 and {*bases} == {bracket, x}:
                    return output
                following.append(output)
        layer = following
    return None


def _sigmoid(site: Site, node: onnx_ir.Node) -> None:
    bottom = node.inputs[-1]
    assert bottom is not None
    operands = with_scalar(producer(strip(bottom)), "Add")
    if operands is None or operands[1] != 1.0:
        return
    exp = producer(strip(operands[0]), "Exp")
    if exp is None or exp.inputs[0] is None:
        return
    negative = strip(exp.inputs[0])
    number, bases = factors(negative, [])
    if number != -1.0 or len(bases) != 1 or not same_rank(bottom, bases[0]):
        site.missed(node, "Sigmoid", "the exponent is not -x")
        return
    edit = site.edit("sigmoid(x)", node, [node, exp])
    new = edit.op("Sigmoid", [bases[0]], dtype=bases[0].dtype, shape=bottom.shape)
    if node.op_type == "Div" and scalar(node.inputs[0]) != 1.0:
        new = edit.op("Mul", [node.inputs[0], new], dtype=new.dtype, shape=node.outputs[0].shape)
    site.finish(edit, node.outputs[0], new, "Sigmoid")


def _hard_sigmoid(site: Site, node: onnx_ir.Node) -> None:
    if len(node.inputs) < 3 or scalar(node.inputs[1]) != 0.0 or scalar(node.inputs[2]) != 6.0:
        return
    assert node.inputs[0] is not None
    operands = with_scalar(producer(strip(node.inputs[0])), "Add")
    if operands is None or operands[1] != 3.0 or not same_rank(operands[0], node.outputs[0]):
        return
    for user in users(node.outputs[0], "Mul", "Div"):
        number, bases = factors(user.outputs[0], [node.outputs[0]])
        if bases == [node.outputs[0]] and close(number, 1 / 6) and same_rank(user.outputs[0], operands[0]):
            edit = site.edit("hardsigmoid(x)", user, [node, user])
            new = edit.op(
                "HardSigmoid",
                [operands[0]],
                {"alpha": 1 / 6, "beta": 0.5},
                dtype=operands[0].dtype,
                shape=user.outputs[0].shape,
            )
            site.finish(edit, user.outputs[0], new, "HardSigmoid")
