"""``RotaryEmbedding`` out of products with cosines and sines (Su et al. 2021)."""

from __future__ import annotations

from dataclasses import dataclass, field

import onnx_ir

from ...ir.graph import attribute, dims, is_op, producer, rank
from ...ir.rewrite import Editor
from ...ir.symbolic import same
from .caches import halve
from .match import Site, ints, last_axis, nodes, only_user, origin_of, piece, static_tail, strip

OPSET = 23


@dataclass(frozen=True)
class _Rotation:
    """``output`` is ``x`` rotated by ``cos`` and ``sin``; they span the head, or (``halved``) half of it."""

    output: onnx_ir.Value
    x: onnx_ir.Value
    cos: onnx_ir.Value
    sin: onnx_ir.Value
    interleaved: bool
    halved: bool = False


@dataclass
class _Caches:
    """Half caches made so far, so that all layers share one pair."""

    halves: dict[tuple[onnx_ir.Value, bool], onnx_ir.Value | None] = field(default_factory=dict)
    ready: dict[tuple[object, ...], onnx_ir.Value] = field(default_factory=dict)


def recover_rotary(site: Site) -> None:
    """Replace ``x * cos + rotate_half(x) * sin`` and its interleaved (GPT-J) and two-halves spellings.

    A rotation of only the first part of a head (GPT-NeoX, Phi) becomes one operator too. The caches of half a head
    that the operator wants are made once for all layers.
    """
    caches = _Caches()
    for node in nodes(site.graph, "Add", "Concat"):
        found = _rotation(node) if node.op_type == "Add" else _two_halves(node)
        if found is None:
            continue
        if site.opset < OPSET:
            site.missed(node, "RotaryEmbedding", f"the graph has opset {site.opset}, the operator exists since {OPSET}")
            continue
        reason = site.unsupported("RotaryEmbedding", found.x.dtype) or _replace(site, node, found, caches)
        if reason is not None:
            site.missed(node, "RotaryEmbedding", reason)


def _rotation(node: onnx_ir.Node) -> _Rotation | None:
    """The rotation that an Add completes: one operand is x * cos, the other rotate_half(x) * sin."""
    a, b = (None if v is None else producer(strip(v), "Mul") for v in node.inputs)
    if a is None or b is None:
        return None
    for plain, turned in ((a, b), (b, a)):
        for r in (0, 1):
            value = turned.inputs[r]
            half = None if value is None else _turned(strip(value))
            if half is None:
                continue
            first, second, interleaved = half
            for p in (0, 1):
                x, cos, sin = plain.inputs[p], plain.inputs[1 - p], turned.inputs[1 - r]
                assert x is not None and cos is not None and sin is not None
                x = strip(x)
                if _are_parts(x, first, second, interleaved):
                    return _Rotation(node.outputs[0], x, strip(cos), strip(sin), interleaved)
    return None


def _turned(value: onnx_ir.Value) -> tuple[onnx_ir.Value, onnx_ir.Value, bool] | None:
    """For rotate_half: (first part, second part, whether interleaved) of ``[-second, first]``."""
    node = producer(value, "Concat", "Reshape")
    interleaved = is_op(node, "Reshape")
    if node is not None and interleaved:
        stacked = node.inputs[0]
        if stacked is None or rank(stacked) is None or rank(value) != (rank(stacked) or 0) - 1:
            return None
        node = producer(strip(stacked), "Concat")
    if node is None or len(node.inputs) != 2 or not last_axis(node.outputs[0], attribute(node, "axis")):
        return None
    left, right = (None if v is None else strip(v) for v in node.inputs)
    if left is None or right is None:
        return None
    if interleaved:
        left, right = _unstacked(left), _unstacked(right)
        if left is None or right is None:
            return None
    negated = producer(left, "Neg")
    if negated is None or negated.inputs[0] is None:
        return None
    return right, strip(negated.inputs[0]), interleaved


def _unstacked(value: onnx_ir.Value) -> onnx_ir.Value | None:
    node = producer(value, "Unsqueeze")
    if node is None or node.inputs[0] is None:
        return None
    axes = ints(node.inputs[1]) if len(node.inputs) > 1 else attribute(node, "axes")
    return strip(node.inputs[0]) if axes in ([-1], [rank(node.inputs[0])]) else None


def _are_parts(x: onnx_ir.Value, first: onnx_ir.Value, second: onnx_ir.Value, interleaved: bool) -> bool:
    """Whether ``first`` and ``second`` are the halves (or the even and odd elements) of the last axis of ``x``."""
    size = static_tail(x, 1)
    if interleaved:
        return all(_every_other(v, x) == start for start, v in enumerate((first, second)))
    whole, a, b = piece(x), piece(first), piece(second)
    if size is None or a is None or b is None or size[0] % 2:
        return False
    source, start = (x, 0) if whole is None else (whole[0], whole[1])
    half = size[0] // 2
    if a[0] is x:  # the halves were cut from x itself
        source, start = x, 0
    return a == (source, start, start + half) and b == (source, start + half, start + 2 * half)


def _every_other(value: onnx_ir.Value, x: onnx_ir.Value) -> int | None:
    """The start of a slice of ``x`` by steps of two on the last axis."""
    node = producer(value, "Slice")
    if node is None or node.inputs[0] is None or strip(node.inputs[0]) is not x or len(node.inputs) < 5:
        return None
    starts, ends, axes, steps = (ints(v) for v in node.inputs[1:5])
    size = static_tail(x, 1)
    if starts is None or ends is None or axes is None or steps != [2] or len(starts) != 1 or size is None:
        return None
    return starts[0] if last_axis(x, axes[0]) and ends[0] >= size[0] - 1 else None


def _two_halves(node: onnx_ir.Node) -> _Rotation | None:
    """``concat(x1 * cos - x2 * sin, x2 * cos + x1 * sin)``: caches of half a head."""
    if len(node.inputs) != 2 or not last_axis(node.outputs[0], attribute(node, "axis")):
        return None
    sub, add = producer(node.inputs[0], "Sub"), producer(node.inputs[1], "Add")
    if sub is None or add is None:
        return None
    products = [None if v is None else producer(strip(v), "Mul") for v in (*sub.inputs, *add.inputs)]
    if any(p is None for p in products):
        return None
    terms = [{strip(v) for v in p.inputs if v is not None} for p in products if p is not None]
    for x1 in terms[0]:
        first = piece(x1)
        if first is None:
            continue
        for x2 in terms[1]:
            second = piece(x2)
            if second is None or second[0] is not first[0] or second[1] != first[2]:
                continue
            cos, sin = terms[0] - {x1}, terms[1] - {x2}
            if {frozenset(terms[2]), frozenset(terms[3])} != {frozenset({x2, *cos}), frozenset({x1, *sin})}:
                continue
            size = static_tail(first[0], 1)
            whole = size is not None and first[1] == 0 and second[2] == size[0] == 2 * first[2]
            if len(cos) == len(sin) == 1 and whole:
                return _Rotation(node.outputs[0], first[0], cos.pop(), sin.pop(), False, halved=True)
    return None


def _replace(site: Site, node: onnx_ir.Node, found: _Rotation, caches: _Caches) -> str | None:
    """Put the operator in; the reason why not otherwise."""
    x, shape, size = found.x, dims(found.x), static_tail(found.x, 1)
    if shape is None or len(shape) != 4 or size is None:
        return "the rotated value is not known to have rank 4 and a fixed head size"
    turned = dims(found.output)
    if turned is None or any(d == 1 and t != 1 for d, t in zip(shape, turned, strict=True)):
        return "cosines and sines may have more rows than the rotated value"
    heads_first = _heads_first(found.cos)
    if heads_first is None or heads_first != _heads_first(found.sin):
        return "the layout of cosines and sines is not known"
    edit = site.edit("rotary(x, cos, sin)", node, [node, *origin_of(found.output)])
    output, source, rotated = _widened(found, size[0])
    pair = []
    for value in (found.cos, found.sin):
        half = value if found.halved else _half(edit, value, found.interleaved, caches)
        if half is None:
            return "the two halves of the cosines or sines are not known to be equal"
        pair.append(_cache(edit, half, source, heads_first, caches))
    attributes: dict[str, int] = {"interleaved": int(found.interleaved)}
    if rotated:
        attributes["rotary_embedding_dim"] = rotated
    edit.at(output.producer(), [node, *origin_of(output)])
    whole = dims(source)
    if heads_first:
        new = edit.op("RotaryEmbedding", [source, *pair], attributes, dtype=x.dtype, shape=whole)
        site.finish(edit, output, new, "RotaryEmbedding")
        return None
    assert whole is not None
    heads, width = whole[2], whole[3]
    if not isinstance(heads, int) or not isinstance(width, int):
        return "the number of heads is not known"
    flat = edit.op(
        "Reshape", [source, edit.ints([0, 0, heads * width])], dtype=x.dtype, shape=[*whole[:2], heads * width]
    )
    attributes["num_heads"] = heads
    new = edit.op("RotaryEmbedding", [flat, *pair], attributes, dtype=x.dtype, shape=flat.shape)
    new = edit.op("Reshape", [new, edit.ints([0, 0, heads, width])], dtype=x.dtype, shape=whole)
    site.finish(edit, output, new, "RotaryEmbedding")
    return None


def _heads_first(cos: onnx_ir.Value) -> bool | None:
    """Whether caches broadcast over heads on axis 1 ([batch, heads, sequence, size]) or on axis 2."""
    shape = dims(cos)
    if shape is None or len(shape) > 4:
        return None
    node = producer(cos, "Unsqueeze")
    if node is not None and len(shape) == 4:
        axes = ints(node.inputs[1]) if len(node.inputs) > 1 else attribute(node, "axes")
        if axes is not None and len(axes) == 1:
            return {1: True, 2: False}.get(axes[0] % 4)
    if len(shape) == 2:
        return True
    if len(shape) == 3:
        return True if shape[0] == 1 else None
    if shape[1] == 1:
        return True
    return False if shape[2] == 1 else None


def _half(edit: Editor, value: onnx_ir.Value, interleaved: bool, caches: _Caches) -> onnx_ir.Value | None:
    before = producer(value, "Unsqueeze")
    if before is not None and before.inputs[0] is not None and rank(before.inputs[0]) == 3:
        value = strip(before.inputs[0])  # the axis of the heads, which the operator's caches lack
    key = (value, interleaved)
    if key not in caches.halves:
        caches.halves[key] = halve(edit, value, interleaved)
    return caches.halves[key]


def _cache(edit: Editor, half: onnx_ir.Value, x: onnx_ir.Value, heads_first: bool, caches: _Caches) -> onnx_ir.Value:
    """``half`` as [batch, sequence, size / 2], repeated for each row of ``x`` if it is not yet."""
    axis = 2 if heads_first else 1
    shape = dims(x)
    assert shape is not None
    batch, sequence = shape[0], shape[axis]
    known = all(isinstance(d, int) or d.value is not None for d in (batch, sequence))
    key = (half, heads_first, str(batch), str(sequence)) if known else (half, heads_first, x)
    if key in caches.ready:
        return caches.ready[key]
    flat = half
    if rank(half) == 4:
        flat = edit.op("Squeeze", [half, edit.ints([3 - axis])], dtype=half.dtype)
    elif rank(half) == 2:
        flat = edit.op("Unsqueeze", [flat, edit.ints([0])], dtype=half.dtype)
    have = dims(flat)
    if have is None or not (same(have[0], batch) and same(have[1], sequence)):
        # The kernel wants a row of cosines for each row of x.
        wanted = ("sizes", *key[1:])
        if wanted not in caches.ready:
            sizes = edit.op("Gather", [edit.op("Shape", [x]), edit.ints([0, axis])], {"axis": 0})
            caches.ready[wanted] = edit.op("Concat", [sizes, edit.ints([1])], {"axis": 0})
        target = caches.ready[wanted]
        flat = edit.op("Expand", [flat, target], dtype=half.dtype, shape=[batch, sequence, have[2] if have else None])
    caches.ready[key] = flat
    return flat


def _widened(found: _Rotation, size: int) -> tuple[onnx_ir.Value, onnx_ir.Value, int]:
    """(output, source, rotated size) where only the first part of a head is rotated; rotated size 0 if all is."""
    part = piece(found.x)
    concat = only_user(found.output, "Concat")
    if part is not None and part[1] == 0 and concat is not None and len(concat.inputs) == 2:
        whole = static_tail(part[0], 1)
        rest = None if concat.inputs[1] is None else piece(strip(concat.inputs[1]))
        if (
            whole is not None
            and last_axis(concat.outputs[0], attribute(concat, "axis"))
            and concat.inputs[0] is not None
            and strip(concat.inputs[0]) is found.output
            and rest == (part[0], size, whole[0])
        ):
            return concat.outputs[0], part[0], size
    return found.output, found.x, 0
