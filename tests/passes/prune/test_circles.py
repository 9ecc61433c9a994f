"""Modules of pruning import each other one way: what is known of places, then rules, then the analysis, then passes."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path

import networkx as nx
import pytest

PASSES = Path(__file__).resolve().parents[3] / "passes"


def circles(sources: Mapping[str, str]) -> list[list[str]]:
    """Groups of modules of a folder that import each other, also inside functions."""
    graph = nx.DiGraph()
    for name, source in sources.items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom) and node.level == 1:
                names = [node.module] if node.module else [alias.name for alias in node.names]
                graph.add_edges_from((name, other) for other in names if other in sources)
    return [sorted(group) for group in nx.strongly_connected_components(graph) if len(group) > 1]


@pytest.mark.parametrize("folder", ["prune", "sparsify"])
def test_there_are_none(folder: str) -> None:
    sources = {path.stem: path.read_text() for path in (PASSES / folder).glob("*.py")}
    assert len(sources) > 5
    assert circles(sources) == []


def test_one_would_be_found() -> None:
    assert circles({"a": "from .b import x", "b": "def f():\n    from . import a", "c": "from .a import y"}) == [
        ["a", "b"]
    ]
