"""The whole 4-bit recipe with its rotation: the same data give the same bytes, another order next to the same."""

from __future__ import annotations

from pathlib import Path

import burnish
import numpy as np
import onnx
import pytest
import torch

WIDTH = 96


class Residual(torch.nn.Module):
    """Two gated blocks on a residual stream with RMS normalizations."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = torch.nn.Linear(WIDTH, WIDTH)
        self.norms = torch.nn.ModuleList(torch.nn.RMSNorm(WIDTH) for _ in range(3))
        self.up = torch.nn.ModuleList(torch.nn.Linear(WIDTH, 160) for _ in range(2))
        self.down = torch.nn.ModuleList(torch.nn.Linear(160, WIDTH) for _ in range(2))
        self.leave = torch.nn.Linear(WIDTH, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.enter(x)
        for norm, up, down in zip(self.norms, self.up, self.down, strict=False):
            x = x + down(torch.nn.functional.silu(up(norm(x))))
        return self.leave(self.norms[2](x))


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    made = Residual().eval()
    with torch.no_grad():
        for norm in made.norms:
            norm.weight.uniform_(0.5, 1.5)
            norm.weight[:4] *= 20
    return made


def batches() -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    return [torch.randn(8, 16, WIDTH, generator=random) for _ in range(6)]


def test_the_same_data_give_the_same_bytes(model: torch.nn.Module, tmp_path: Path) -> None:
    files = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        path = tmp_path / name / "model.onnx"
        compiled = burnish.compile(model, batches()[0], passes="w4a16", calibration=batches(), cache=False)
        assert compiled.report.passes[2].rewrites == {"rotate the residual stream": 1}
        compiled.save(path)
        proto = onnx.load(path)
        # The report that travels in the file holds the seconds that each step took.
        kept = [entry for entry in proto.metadata_props if entry.key != "burnish.report"]
        assert len(kept) < len(proto.metadata_props)
        del proto.metadata_props[:]
        proto.metadata_props.extend(kept)
        files.append(proto.SerializeToString(deterministic=True))
    assert files[0] == files[1]


def test_another_order_of_batches_gives_next_to_the_same_outputs(model: torch.nn.Module) -> None:
    """Sums of the Hessians are float64: only a weight half-way between two codes may fall to the other side."""
    outputs = []
    for data in (batches(), batches()[::-1]):
        compiled = burnish.compile(model, batches()[0], passes="w4a16", calibration=data, cache=False)
        outputs.append(np.asarray(compiled(batches()[1])))
    with torch.no_grad():
        want = model(batches()[1]).numpy()
    error = np.square(outputs[0] - want).mean()
    assert np.square(outputs[0] - outputs[1]).mean() < 0.1 * error


@pytest.mark.slow
def test_another_order_keeps_the_perplexity_of_a_language_model(smollm2: Path) -> None:
    from burnish.tools.perplexity import compiled_logits, perplexity
    from burnish.tools.text import calibration_text, held_out_text, load_tokenizer, windows

    encode = load_tokenizer(smollm2)
    data = [{"input_ids": row[None]} for row in windows(encode, calibration_text(), 8)]
    ids = windows(encode, held_out_text(), 4)
    found = []
    for order in (data, data[::-1]):
        compiled = burnish.compile(smollm2, passes="w4a16", calibration=order, cache=False)
        found.append(perplexity(compiled_logits(compiled), ids))
    assert abs(found[1] / found[0] - 1) < 0.01
