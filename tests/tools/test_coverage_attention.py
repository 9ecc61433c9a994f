"""The count of attention in PyTorch, and the table of what was found."""

from __future__ import annotations

import pytest
import torch
from burnish.tools.coverage import made
from burnish.tools.coverage_attention import Row, expected, good, measure, table
from burnish.tools.coverage_families import FAMILIES


@pytest.mark.parametrize(("name", "count"), [("T5", 6), ("UNet", 1), ("ViT", 2), ("MLP-Mixer", 0), ("Mixtral", 2)])
def test_attention_is_counted_where_it_is_computed(name: str, count: int) -> None:
    torch.manual_seed(0)
    assert expected(made(FAMILIES[name]), FAMILIES[name].inputs(2, 7)) == count


@pytest.mark.parametrize("name", ["T5", "UNet", "GPT-J"])
def test_all_of_it_is_found(name: str) -> None:
    row = measure(name, FAMILIES[name])
    assert row is not None and good(row), row


def test_families_without_attention() -> None:
    assert measure("MLP-Mixer", FAMILIES["MLP-Mixer"]) is None


def test_what_is_not_good() -> None:
    assert good(Row("a", 2, 2, 2, (1e-6, 1e-6), ()))
    assert not good(Row("a", 2, 2, 1, (1e-6, 1e-6), ("why",)))
    assert not good(Row("a", 2, 2, 2, (1e-6, 1e-3), ()))
    assert "| a | 2 | 2 | 1.0e-06 | 1 | 1.0e-06 | why |" in table([Row("a", 2, 2, 1, (1e-6, 1e-6), ("why",))])
