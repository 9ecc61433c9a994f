from __future__ import annotations

import onnx_ir
import pytest
from burnish.ir.errors import SelectorError
from burnish.passes import selectors


def node(op: str, name: str, module: str | None = None, domain: str = "") -> onnx_ir.Node:
    metadata = {} if module is None else {"burnish.module": module}
    return onnx_ir.Node(domain, op, [], num_outputs=1, name=name, metadata_props=metadata)


NODES = [
    node("MatMul", "n0", "model.layers.0.mlp.up_proj"),
    node("MatMul", "n1", "model.layers.10.mlp.up_proj"),
    node("Gemm", "/encoder/fc/Gemm"),
    node("MatMulNBits", "n3", "lm_head", "com.microsoft"),
]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model.layers.0.mlp.up_proj", [0]),
        ("model.layers.0", [0]),  # a module selects what is inside it
        ("model.layers.1", []),  # and not its longer namesakes
        ("model.layers.*.mlp", [0, 1]),
        ("model.layers.1?.*", [1]),
        ("*up_proj", [0, 1]),
        ("op:Gemm", [2]),
        ("op:MatMul", [0, 1]),
        ("op:com.microsoft.*", [3]),
        ("name:/encoder/*", [2]),
        ("name:n1", [1]),
        ("/encoder/*", [2]),  # a node without a module goes by its name
        ("LM_HEAD", []),
    ],
)
def test_matches(text: str, expected: list[int]) -> None:
    selector = selectors.parse(text)
    assert [i for i, n in enumerate(NODES) if selector.matches(n)] == expected


@pytest.mark.parametrize("text", ["", "op:", "name:", "module:x", ":x"])
def test_malformed(text: str) -> None:
    with pytest.raises(SelectorError, match="is not a selector"):
        selectors.parse(text)


def test_first_match_wins() -> None:
    chosen = selectors.parse_all(["op:Gemm", "model.*", "*.up_proj"])
    assert [selectors.first(chosen, n) for n in NODES] == [1, 1, 0, None]


def test_one_string_is_one_selector() -> None:
    assert [s.text for s in selectors.parse_all("op:Gemm")] == ["op:Gemm"]


@pytest.mark.parametrize(
    ("text", "offer"),
    [("model.layers.0.mlp.up_prj", "model.layers.0.mlp.up_proj"), ("op:Gem", "Gemm"), ("name:n7", "n0")],
)
def test_no_match_offers_the_nearest(text: str, offer: str) -> None:
    with pytest.raises(SelectorError, match="matches none of the 4 products") as caught:
        selectors.require_matches(selectors.parse_all([text]), NODES, "products")
    assert offer in str(caught.value)


def test_no_nodes_at_all() -> None:
    with pytest.raises(SelectorError, match="the graph has no products"):
        selectors.require_matches(selectors.parse_all(["x"]), [], "products")
