"""The graph that ``generate`` runs: one cache that is written in place, logits of the last position only.

The general graph takes any batch, padding and mask, and gives a new cache at each step: a copy of all keys and values
per token. ``GroupQueryAttention`` appends to one buffer instead (past and present are the same memory), turns queries
and keys itself, and takes them side by side as one product makes them. It knows causal attention, and a window of it,
over the first so many tokens of each row; so the mask of the graph at hand is run, and this form is taken only if it is
just that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir

from ...ir.graph import Graph, attribute, dims, is_op, tensor_of
from ...ir.rewrite import Editor
from ...ir.signature import DecoderSpec
from . import kernels
from .binding import LOGITS_FROM, WINDOW
from .session import Session
from .writer import to_bytes

RULE = "Attention(rotary(q), rotary(k), v, mask, past) => GroupQueryAttention(q, k, v, past)"
_OP, _CONTRIB = "GroupQueryAttention", "com.microsoft"
_TURNED = 16
_NORMALIZATIONS = (
    "RMSNormalization", "LayerNormalization", "SimplifiedLayerNormalization", "SkipLayerNormalization",
    "SkipSimplifiedLayerNormalization",
)  # fmt: skip
_ROWWISE = (
    "MatMul", "Gemm", "MatMulNBits", "MatMulIntegerToFloat", "Mul", "Add", "Sub", "Div", "Neg", "Abs", "Max", "Min",
    "Round", "Clip", "Cast", "Tanh", "ReduceMax", "ReduceMin", "QuantizeLinear", "DequantizeLinear", "Concat", "Expand",
    "Transpose",
)  # fmt: skip
Array = np.ndarray[Any, Any]


class Unfit(Exception):
    """Why a decoder stays in its general form."""


@dataclass(frozen=True)
class _Layer:
    """One attention node and what it reads.

    Attributes:
        query: [batch, sequence, heads * size], not turned yet; queries, keys and values side by side if ``packed``.
        angles: cosines and sines of the rotary embedding; None without one.
        past: the graph inputs with keys and values.
        present: the graph outputs with them.
        scales: of keys and values that are kept as integers, [1, kv_heads, 1, size].
    """

    node: onnx_ir.Node
    query: onnx_ir.Value
    key: onnx_ir.Value | None
    value: onnx_ir.Value | None
    angles: tuple[onnx_ir.Value, onnx_ir.Value] | None
    interleaved: int
    heads: int
    kv_heads: int
    past: tuple[onnx_ir.Value, onnx_ir.Value]
    present: tuple[onnx_ir.Value, onnx_ir.Value]
    scales: tuple[onnx_ir.Value, onnx_ir.Value] | None


def generation_graph(graph: Graph, spec: DecoderSpec) -> int:
    """Turn a lowered decoder, in place, into the graph that ``generate`` runs.

    Inputs are ``input_ids`` [batch, sequence], ``attention_mask`` [batch, total] of ones, ``past_key_values.N.key`` and
    ``.value`` [batch, kv_heads, capacity, head_dim], whose first ``total - sequence`` positions hold tokens; outputs
    ``logits`` [batch, positions, vocabulary] and ``present.N.key`` and ``.value``, to be bound to the memory of the
    past. A graph with a window takes ``position_ids``, too: its past may begin later. ``onnxruntime-genai`` drives it
    as it is.

    Returns:
        The size of the attention window, -1 if it has none.

    Raises:
        Unfit: the runtime or the model does not allow it; the graph is unchanged.
    """
    nodes = [node for node in graph.graph if is_op(node, "Attention")]
    layers = [_layer(graph, node) for node in nodes]
    if len(layers) != spec.layers:
        raise Unfit(f"{len(layers)} attention nodes, {spec.layers} layers")
    masks = {layer.node.inputs[3] for layer in layers}
    if None in masks:
        raise Unfit("attention without a mask")
    windows = {_window(graph, mask, spec) for mask in masks if mask is not None}
    if len(windows) != 1:
        raise Unfit("layers differ in how far they look back")
    window = windows.pop()
    angles = {layer.angles for layer in layers}
    if len(angles) != 1:
        raise Unfit("layers differ in their rotary embeddings")
    tables = None
    if (pair := angles.pop()) is not None:
        if spec.head_dim % _TURNED:
            raise Unfit(f"GroupQueryAttention turns heads of multiples of {_TURNED}, not of {spec.head_dim}")
        tables = _tables(graph, pair, spec)
    last = _before_logits(graph)
    _rewrite(graph, layers, tables, window)
    _last_only(graph, last)
    graph.metadata_props[WINDOW] = str(window)
    return window


def _layer(graph: Graph, node: onnx_ir.Node) -> _Layer:
    if len(node.inputs) < 6 or any(value is None for value in node.inputs[:6]) or len(node.outputs) < 3:
        raise Unfit("an attention node keeps its cache outside")
    (keys, key_scales), (values, value_scales) = (_past(graph, value) for value in node.inputs[4:6])
    past, scales = (keys, values), None
    if key_scales is not None and value_scales is not None:
        scales = (key_scales, value_scales)
    elif key_scales is not value_scales:
        raise Unfit("either keys or values are integers")
    present = (_present(graph, keys, node.outputs[1]), _present(graph, values, node.outputs[2]))
    _check_kernel(keys)
    if attribute(node, "is_causal", 0) or attribute(node, "qk_matmul_output_mode", 0):
        raise Unfit("an attention node with more than a mask")
    heads, kv_heads = attribute(node, "q_num_heads", 0), attribute(node, "kv_num_heads", 0)
    if not heads or not kv_heads:
        raise Unfit("attention of heads that are split already")
    (query, a), (key, b) = _turned(node.inputs[0], heads), _turned(node.inputs[1], kv_heads)
    if a != b:
        raise Unfit("queries and keys are turned differently")
    value = node.inputs[2]
    assert value is not None
    packed = _packed((query, key, value))
    angles, interleaved = (None, 0) if a is None else (a[:2], a[2])
    if packed is not None:
        return _Layer(node, packed, None, None, angles, interleaved, heads, kv_heads, past, present, scales)
    return _Layer(node, query, key, value, angles, interleaved, heads, kv_heads, past, present, scales)


def _check_kernel(cache: onnx_ir.Value) -> None:
    name = "float" if cache.dtype is None or cache.dtype == onnx_ir.DataType.FLOAT else cache.dtype.name.lower()
    plain, kept, number = "tensor(float)", f"tensor({name})", "tensor(int32)"
    if not kernels.has(_CONTRIB, _OP, 1, [plain, plain, plain, kept, kept, number, number]):
        raise Unfit(f"ONNX Runtime {kernels.version()} has no GroupQueryAttention of float32 with a cache of {name}")


def _past(graph: Graph, value: onnx_ir.Value | None) -> tuple[onnx_ir.Value, onnx_ir.Value | None]:
    """The graph input that a past comes from, and the scales that it is restored with."""
    assert value is not None
    if value.is_graph_input():
        return value, None
    node = value.producer()
    names = _inputs_of([value])
    found = [v for v in graph.graph.inputs if v.name in names]
    if node is None or not is_op(node, "Mul") or tensor_of(node.inputs[1]) is None or len(found) != 1:
        raise Unfit("a cache is not an input of the graph")
    if found[0].dtype not in (onnx_ir.DataType.INT8, onnx_ir.DataType.UINT8):
        raise Unfit("a cache is changed before attention reads it")
    return found[0], node.inputs[1]


def _present(graph: Graph, past: onnx_ir.Value, joined: onnx_ir.Value) -> onnx_ir.Value:
    """The graph output that gives back what ``past`` and the new tokens make."""
    name = "present." + (past.name or "").partition(".")[2]
    for value in graph.graph.outputs:
        if value.name == name and value.dtype == past.dtype and joined in _before(value):
            return value
    raise Unfit(f"no output {name!r} gives a cache back")


_Turn = tuple[onnx_ir.Value, onnx_ir.Value, int]


def _turned(value: onnx_ir.Value | None, heads: int) -> tuple[onnx_ir.Value, _Turn | None]:
    """What a rotary embedding turns, its angles, and whether it turns neighbours."""
    assert value is not None
    node = value.producer()
    if node is None or not is_op(node, "RotaryEmbedding"):
        return value, None
    source, cosine, sine = node.inputs[:3]
    if len(node.inputs) > 3 or source is None or cosine is None or sine is None:
        raise Unfit("rotary embeddings by position")
    if attribute(node, "rotary_embedding_dim", 0) or attribute(node, "num_heads", heads) != heads:
        raise Unfit("rotary embeddings of a part of each head")
    return source, (cosine, sine, int(attribute(node, "interleaved", 0)))


def _packed(parts: Sequence[onnx_ir.Value]) -> onnx_ir.Value | None:
    """The value that one Split cuts into ``parts``, in this order, and into nothing else."""
    node = parts[0].producer()
    if node is None or not is_op(node, "Split") or list(node.outputs) != list(parts):
        return None
    if any(len(list(value.uses())) != 1 for value in parts):
        return None
    return node.inputs[0] if attribute(node, "axis", 0) in (-1, 2) else None


def _evaluate(graph: Graph, values: Sequence[onnx_ir.Value], feeds: Sequence[dict[str, Array]]) -> list[list[Array]]:
    """What values that depend on few inputs are, for each of ``feeds``."""
    names = {value.name for value in graph.graph.inputs}
    needed = _inputs_of(values)
    if not needed <= set(feeds[0]) & names:
        raise Unfit(f"{values[0].name!r} depends on {', '.join(sorted(needed - set(feeds[0])))}")
    inputs = [value for value in graph.graph.inputs if value.name in needed]
    part = onnx_ir.convenience.extract(graph.graph, inputs=inputs, outputs=list(values))
    model = onnx_ir.Model(part, ir_version=graph.ir_version, functions=list(graph.functions.values()))
    part.opset_imports.update(graph.opset_imports)
    session = Session(to_bytes(model))
    return [[np.asarray(v) for v in session.run({n: f[n] for n in needed})] for f in feeds]


def _inputs_of(values: Sequence[onnx_ir.Value]) -> set[str]:
    """Names of the graph inputs that values depend on."""
    return {value.name or "" for value in _before(*values) if value.is_graph_input()}


def _before(*values: onnx_ir.Value) -> set[onnx_ir.Value]:
    """Values and everything that they are computed from."""
    seen: set[onnx_ir.Value] = set()
    stack = list(values)
    while stack:
        value = stack.pop()
        if value in seen:
            continue
        seen.add(value)
        if (node := value.producer()) is not None:
            stack += [v for v in node.inputs if v is not None]
    return seen


def _feeds(graph: Graph, spec: DecoderSpec, past: int, sequence: int) -> dict[str, Array]:
    feeds: dict[str, Array] = {
        "input_ids": np.zeros((1, sequence), np.int64),
        "attention_mask": np.ones((1, past + sequence), np.int64),
        "position_ids": np.arange(past, past + sequence, dtype=np.int64)[None],
    }
    for value in graph.graph.inputs:
        shape = dims(value) or ()
        if (value.name or "").startswith("past_key_values.") and value.dtype is not None and len(shape) == 4:
            feeds[value.name or ""] = np.zeros((1, spec.kv_heads, past, shape[3]), value.dtype.numpy())
    return feeds


def _window(graph: Graph, mask: onnx_ir.Value, spec: DecoderSpec) -> int:
    """How far a mask lets a token look back: -1 to the beginning, or that many tokens with itself."""
    far = max(spec.context - 1, 8)
    sizes = [(far, 1), (0, 9), (5, 4), (max(far - 6, 0), 7)]
    results = _evaluate(graph, [mask], [_feeds(graph, spec, past, sequence) for past, sequence in sizes])
    window = -1
    for (past, sequence), (array,) in zip(sizes, results, strict=True):
        allowed = array if array.dtype == np.bool_ else array > -1e4
        if array.dtype != np.bool_ and np.any(array[allowed] != 0):
            raise Unfit("a mask adds to the scores")
        allowed = np.broadcast_to(
            allowed, (*np.broadcast_shapes(allowed.shape[:-2], (1, 1)), sequence, past + sequence)
        )
        if window < 0 and (past, sequence) == sizes[0]:
            window = int(allowed[0, 0, 0].sum())
            window = -1 if window == past + 1 else window
        back = np.arange(past, past + sequence)[:, None] - np.arange(past + sequence)
        expected = (back >= 0) & ((back < window) if window > 0 else True)
        if not np.array_equal(allowed, np.broadcast_to(expected, allowed.shape)):
            raise Unfit("its mask is not causal")
    return window


def _tables(graph: Graph, angles: tuple[onnx_ir.Value, onnx_ir.Value], spec: DecoderSpec) -> tuple[Array, Array]:
    """Cosines and sines of every position, [context, head_dim / 2]."""
    feeds = {"position_ids": np.arange(spec.context, dtype=np.int64)[None]}
    cosine, sine = _evaluate(graph, angles, [feeds])[0]
    shape = (1, spec.context, spec.head_dim // 2)
    if cosine.shape != shape or sine.shape != shape:
        raise Unfit(f"angles of shape {cosine.shape}, not {shape}")
    return np.ascontiguousarray(cosine[0]), np.ascontiguousarray(sine[0])


def _before_logits(graph: Graph) -> onnx_ir.Value:
    """The normalized hidden states that the logits are computed from, position by position."""
    logits = next((value for value in graph.graph.outputs if value.name == "logits"), None)
    if logits is None:
        raise Unfit("no output is called logits")
    found: set[onnx_ir.Value] = set()
    stack, seen = [logits], {logits}
    while stack:
        node = stack.pop().producer()
        if node is None or node.op_type not in _ROWWISE:
            raise Unfit(f"the logits come through {'an input' if node is None else node.op_type}")
        for value in node.inputs:
            if value is None or tensor_of(value) is not None or value in seen:
                continue
            seen.add(value)
            maker = value.producer()
            if maker is not None and maker.op_type in _NORMALIZATIONS:
                found.add(value)
            elif maker is not None and not _depends(value):
                continue
            else:
                stack.append(value)
    if len(found) != 1:
        raise Unfit("the logits do not come from one normalization")
    (value,) = found
    if len(dims(value) or ()) != 3:
        raise Unfit("hidden states of unknown rank")
    return value


def _depends(value: onnx_ir.Value) -> bool:
    return bool(_inputs_of([value]))


def _rewrite(graph: Graph, layers: Sequence[_Layer], tables: tuple[Array, Array] | None, window: int) -> None:
    edit = Editor(graph, RULE)
    first = next(iter(graph.graph))
    edit.at(first, [layers[0].node])
    mask = next(value for value in graph.graph.inputs if value.name == "attention_mask")
    count = edit.op("ReduceSum", [mask, edit.ints([1], "axis")], {"keepdims": 0})
    before = edit.op("Sub", [count, edit.ints([1], "one")])
    lengths = edit.op("Cast", [before], {"to": int(onnx_ir.DataType.INT32)}, hint="seqlens_k")
    size = edit.op("Gather", [edit.op("Shape", [mask]), edit.ints(1, "axis")])
    total = edit.op("Cast", [size], {"to": int(onnx_ir.DataType.INT32)}, hint="total_sequence_length")
    turning = [
        edit.initializer(table, name) for table, name in zip(tables or (), ("cos_cache", "sin_cache"), strict=False)
    ]
    # A cache that forgets what lies before the window must be told where a token stands.
    positions = next((v for v in graph.graph.inputs if v.name == "position_ids"), None) if window > 0 else None
    dead: list[onnx_ir.Node] = []
    for layer in layers:
        node = layer.node
        edit.at(node, [node])
        attributes: dict[str, Any] = {
            "num_heads": layer.heads,
            "kv_num_heads": layer.kv_heads,
            "do_rotary": int(bool(turning)),
            "rotary_interleaved": layer.interleaved,
            "local_window_size": window,
        }
        if (scale := attribute(node, "scale")) is not None:
            attributes["scale"] = float(scale)
        if softcap := attribute(node, "softcap", 0.0):
            attributes["softcap"] = float(softcap)
        inputs: list[onnx_ir.Value | None] = [layer.query, layer.key, layer.value, *layer.past, lengths, total]
        inputs += turning if turning else [None, None]
        inputs += [positions if turning else None, None, None]
        if layer.scales is not None:
            inputs += [_kernel_scales(edit, scales, attributes) for scales in layer.scales]
            attributes["kv_cache_bit_width"] = 8 if layer.past[0].dtype == onnx_ir.DataType.INT8 else 4
        while inputs[-1] is None:
            inputs.pop()
        outputs = edit.ops(_OP, inputs, attributes, outputs=3, domain=_CONTRIB, hint=node.name, infer_types=False)
        outputs[0].type, outputs[0].shape = node.outputs[0].type, node.outputs[0].shape
        edit.replace(node.outputs[0], outputs[0])
        for past, new, old in zip(layer.past, outputs[1:], layer.present, strict=True):
            new.type = past.type
            new.shape = old.shape = past.shape  # as long as the buffer, not as the tokens in it
            maker = old.producer()
            edit.replace(old, new)
            dead += [maker] if maker is not None else []
        dead.append(node)
    edit.sweep(dead)
    for value in [v for v in graph.graph.inputs if not v.uses() and not v.is_graph_output()]:
        graph.graph.inputs.remove(value)


def _kernel_scales(edit: Editor, scales: onnx_ir.Value, attributes: dict[str, Any]) -> onnx_ir.Value:
    """Scales as the kernel takes them: one, where all are the same, is faster."""
    tensor = tensor_of(scales)
    assert tensor is not None
    array = tensor.numpy()
    same = attributes.get("kv_cache_bit_width", 8) == 8 and bool((array == array.flat[0]).all())
    kind = "PER_TENSOR" if same else "PER_CHANNEL"
    attributes["k_quant_type" if "k_quant_type" not in attributes else "v_quant_type"] = kind
    return edit.initializer(array.reshape(-1)[:1] if same else array, f"{scales.name}.kernel")


def _last_only(graph: Graph, hidden: onnx_ir.Value) -> None:
    """Compute the logits from :data:`LOGITS_FROM` on."""
    edit = Editor(graph, "logits of the last position")
    readers = [(use.node, use.idx) for use in hidden.uses()]
    order = {node: index for index, node in enumerate(graph.graph)}
    first = min((node for node, _ in readers), key=lambda node: order[node])
    edit.at(first, [first])
    start = edit.ints([0], LOGITS_FROM)
    graph.graph.inputs.append(start)  # an input with a default: who does not know it gets every position
    inputs = [hidden, start, edit.ints([np.iinfo(np.int64).max], "end"), edit.ints([1], "axis")]
    shape = [*(hidden.shape or ())]
    positions = onnx_ir.SymbolicDim("positions")
    cut = edit.op("Slice", inputs, dtype=hidden.dtype, shape=[shape[0], positions, shape[2]])
    for node, index in readers:
        node.replace_input_with(index, cut)
    # Everything behind has so many positions, too.
    stack = [cut]
    while stack:
        for use in list(stack.pop().uses()):
            for value in use.node.outputs:
                if value.shape is not None and len(value.shape) == 3:
                    value.shape = onnx_ir.Shape([value.shape[0], positions, value.shape[2]])
                stack.append(value)
