"""Imports point downwards: compiler -> frontends | passes | backends -> ir; the middle three never meet."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

ALLOWED = {
    "ir": {"ir"},
    "frontends": {"frontends", "ir"},
    "passes": {"passes", "ir"},
    "backends": {"backends", "ir"},
    "compiler": {"compiler", "frontends", "passes", "backends", "ir"},
    "tools": {"tools", "compiler", "frontends", "passes", "backends", "ir"},
}
"""Which folders the modules of a folder may import; ``tools`` stands beside the house and may look in everywhere."""

FILES = sorted(path for folder in ALLOWED for path in (ROOT / folder).rglob("*.py"))


def imported(tree: ast.AST, parts: tuple[str, ...]) -> Iterator[tuple[str, int]]:
    """Folders of the checkout that a module imports, with lines; ``!name`` for an import that is not relative."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            # Level 1 is the module's own package.
            package = parts[: len(parts) - node.level]
            target = [*package, *(node.module or "").split(".")]
            names = [target[0]] if target[0] else [alias.name for alias in node.names]
            yield from ((name, node.lineno) for name in names)
        elif isinstance(node, ast.ImportFrom | ast.Import):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
            for module in modules:
                first = module.split(".")[0]
                if first == "burnish" or first in ALLOWED:
                    yield f"!{module}", node.lineno


def breaches(source: str, parts: tuple[str, ...]) -> list[str]:
    """What a module at ``parts`` (path without suffix) imports that it may not."""
    folder, where = parts[0], "/".join(parts)
    found = []
    for name, line in imported(ast.parse(source), parts):
        if name.startswith("!"):
            if folder != "tools" or not name.startswith("!burnish"):
                found.append(f"{where}.py:{line} imports {name[1:]} by its absolute name")
        elif name in ALLOWED and name not in ALLOWED[folder]:
            found.append(f"{where}.py:{line} imports {name}")
    return found


@pytest.mark.parametrize("path", FILES, ids=[str(p.relative_to(ROOT)) for p in FILES])
def test_imports_point_downwards(path: Path) -> None:
    assert breaches(path.read_text(), path.relative_to(ROOT).with_suffix("").parts) == []


def test_there_is_something_to_check() -> None:
    assert len(FILES) > 40


@pytest.mark.parametrize(
    ("source", "parts", "count"),
    [
        ("from ..ir.graph import Graph", ("passes", "base"), 0),
        ("from ...ir.graph import Graph", ("passes", "quantize", "rtn"), 0),
        ("from .base import Pass", ("passes", "registry"), 0),
        ("from ..backends import x", ("passes", "base"), 1),
        ("from ...frontends.onnx_file import x", ("backends", "onnxruntime", "lower"), 1),
        ("from .. import passes", ("ir", "graph"), 1),
        ("def f():\n    from ..compiler import api", ("backends", "x"), 1),
        ("import ir", ("compiler", "api"), 1),
        ("from ir.graph import Graph", ("compiler", "api"), 1),
        ("import burnish.ir", ("compiler", "api"), 1),
        ("import burnish", ("tools", "bench"), 0),
        ("import onnx_ir", ("ir", "graph"), 0),
    ],
)
def test_the_check_itself(source: str, parts: tuple[str, ...], count: int) -> None:
    assert len(breaches(source, parts)) == count


def test_tests_import_the_package_by_its_name() -> None:
    """``import ir`` would make a second copy of each class."""
    found = []
    for path in (ROOT / "tests").rglob("*.py"):
        for name, line in imported(ast.parse(path.read_text()), path.relative_to(ROOT).with_suffix("").parts):
            if name.startswith("!") and not name.startswith("!burnish"):
                found.append(f"{path.relative_to(ROOT)}:{line} {name[1:]}")
    assert found == []
