"""Every family of docs/coverage.md compiles the direct way and agrees with eager PyTorch at other sizes."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from burnish.tools.coverage import EXAMPLE, SIZES, TARGET, TOLERANCE, Coverage, measure, table
from burnish.tools.coverage_families import FAMILIES, Family


@pytest.mark.parametrize("name", FAMILIES)
def test_family(name: str) -> None:
    found = measure(name)
    assert found.route == "torch.export"
    assert len(found.errors) == len(SIZES) == 3 and EXAMPLE not in SIZES
    assert max(found.errors) <= TOLERANCE


def test_error_is_noticed() -> None:
    """A model that computes something else than its traced form is far beyond the limit."""

    class Shifty(torch.nn.Module):
        calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            type(self).calls += 1
            return x * type(self).calls

    family = Family(Shifty, lambda batch, _: {"x": torch.ones(batch, 3)}, {"x": {0: torch.export.Dim("batch")}})
    assert max(measure("shifty", family).errors) > 100 * TOLERANCE


def test_page_lists_every_family() -> None:
    page = TARGET.read_text(encoding="utf-8")
    assert [line.split("|")[1].strip() for line in page.splitlines()[9:]] == list(FAMILIES)


def test_table() -> None:
    row = Coverage("Toy", "torch.export", 3, 5, (1e-7, 2e-7, 3e-7))
    last = table([dataclasses.replace(row, name="First"), row]).splitlines()[-1]
    assert last == "| Toy | `torch.export` | 3 | 5 | 1.0e-07 | 2.0e-07 | 3.0e-07 |"
