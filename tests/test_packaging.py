"""The package list of pyproject.toml is the folders that are there."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_package_list_matches_folders() -> None:
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    top = ["backends", "compiler", "frontends", "ir", "passes", "tools"]
    found = {"burnish"}
    for folder in top:
        for init in (ROOT / folder).rglob("__init__.py"):
            found.add("burnish." + ".".join(init.parent.relative_to(ROOT).parts))
    assert listed == found
