"""Counting what the runtime runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from burnish.tools import dispatched
from burnish.tools.dispatched import BLOCK, MODELS, captured, executed, main


class Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.LayerNorm(8)
        self.up, self.down = torch.nn.Linear(8, 16), torch.nn.Linear(16, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x + self.down(torch.nn.functional.gelu(self.up(x))))


@pytest.fixture
def _block(monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    make = lambda: captured(Block().eval().requires_grad_(False), [torch.randn(2, 3, 8)])  # noqa: E731
    monkeypatch.setitem(MODELS, "block", ("A block", make))


@pytest.mark.usefixtures("_block")
def test_fewer_nodes_are_run_than_were_imported() -> None:
    graph = MODELS["block"][1]()
    count = executed(graph)
    # The runtime puts a Reshape before and behind each of two products; additions of biases go into the products.
    assert count.movement >= 4 and count.nodes >= 8
    title, before, after, rate = [cell.strip() for cell in dispatched.row("block").strip("|").split("|")]
    assert title == "A block" and before == str(count)
    assert after == "7 (2)" and float(rate) > 1  # reshapes, product, BiasGelu, Gemm, residual sum, normalization


@pytest.mark.usefixtures("_block")
def test_the_table_of_a_document_is_filled(tmp_path: Path) -> None:
    document = tmp_path / "page.md"
    document.write_text(f"<!-- {BLOCK} -->\n<!-- end {BLOCK} -->\n", encoding="utf-8")
    assert main(["block", "--document", str(document)]) == 0
    assert "| A block | " in document.read_text(encoding="utf-8")


def test_an_unknown_model_is_refused() -> None:
    with pytest.raises(SystemExit):
        main(["no-such-model"])
