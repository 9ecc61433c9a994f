"""Rules of views, joins, splits, and shapes that vary."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F

X = torch.arange(24.0).reshape(2, 3, 4)

FIXED: dict[str, Callable[[torch.Tensor], Any]] = {
    "view": lambda x: x.view(6, 4),
    "reshape_minus": lambda x: x.reshape(-1, 2),
    "flatten": lambda x: x.flatten(1),
    "unflatten": lambda x: x.unflatten(2, (2, 2)),
    "unsqueeze": lambda x: x.unsqueeze(-1),
    "squeeze": lambda x: x[:, :1].squeeze(1),
    "squeeze_all": lambda x: x[:1, :1].squeeze(),
    "squeeze_nothing": lambda x: x.squeeze(1) + 1,
    "transpose": lambda x: x.transpose(0, -1),
    "permute": lambda x: x.permute(2, 0, 1),
    "movedim": lambda x: x.movedim(0, -1),
    "mT": lambda x: x.mT,
    "t": lambda x: x[0].t(),
    "expand": lambda x: x[:, :1].expand(2, 5, 4),
    "expand_minus": lambda x: x[:1].expand(3, -1, -1),
    "repeat": lambda x: x.repeat(2, 1, 1, 3),
    "repeat_interleave": lambda x: x.repeat_interleave(3, dim=1),
    "repeat_interleave_flat": lambda x: x.repeat_interleave(2),
    "cat": lambda x: torch.cat([x, x[:, :1]], dim=1),
    "cat_promotes": lambda x: torch.cat([x, x.long()], dim=-1),
    "cat_empty": lambda x: torch.cat([torch.empty(0), x], dim=-2),
    "pad_circular": lambda x: (F.pad(x, (1, 2), mode="circular"), F.pad(x, (3, -1), mode="circular")),
    "pad_edge_and_cut": lambda x: (F.pad(x, (2, -1), mode="replicate"), F.pad(x, (-2, 1), mode="replicate")),
    "stack": lambda x: torch.stack([x, x + 1], dim=-1),
    "hstack": lambda x: torch.hstack([x, x]),
    "split": lambda x: x.split(2, dim=2),
    "split_uneven": lambda x: x.split(2, dim=1),
    "split_sizes": lambda x: x.split([1, 2], dim=1),
    "chunk": lambda x: x.chunk(2, dim=-1)[1],
    "unbind": lambda x: x.unbind(1),
    "slice": lambda x: x[:, 1:, ::2],
    "slice_negative": lambda x: x[..., -3:-1],
    "select_negative": lambda x: x[:, -1],
    "narrow": lambda x: x.narrow(2, 1, 2),
    "flip": lambda x: x.flip(0, 2),
    "roll": lambda x: x.roll(1, 2),
    "roll_flat": lambda x: x.roll(5),
    "roll_negative": lambda x: x.roll((-1, 2), (1, 2)),
    "unfold": lambda x: x.unfold(2, 2, 1),
    "pad": lambda x: F.pad(x, (1, 2, 0, 1), value=3.0),
    "pad_negative": lambda x: F.pad(x, (-1, 1)),
    "pad_bool": lambda x: F.pad(x > 3, (1, 1), value=True),
    "pad_reflect": lambda x: F.pad(x, (1, 2), mode="reflect"),
    "pad_replicate": lambda x: F.pad(x, (2, 1), mode="replicate"),
    "meshgrid": lambda x: torch.meshgrid(x[0, 0], x[0, :, 0], indexing="ij"),
    "meshgrid_xy": lambda x: torch.meshgrid(x[0, 0], x[0, :, 0], indexing="xy"),
    "pixel_shuffle": lambda x: F.pixel_shuffle(x.reshape(1, 4, 2, 3), 2),
    "pixel_unshuffle": lambda x: F.pixel_unshuffle(x.reshape(1, 1, 4, 6), 2),
    "diff": lambda x: x.square().diff(n=2, dim=-1),
    "diff_prepend": lambda x: x.diff(dim=1, prepend=x[:, :1]),
    "broadcast_tensors": lambda x: torch.broadcast_tensors(x, x[:, :1]),
    "zeros": lambda x: torch.zeros(2, 3) + x[0, 0, 0],
    "ones_like": lambda x: torch.ones_like(x, dtype=torch.int64),
    "new_full": lambda x: x.new_full((2, 2), 7.0),
    "full_like": lambda x: torch.full_like(x, 2.5),
    "full_infinity": lambda x: torch.full((3, 3), float("-inf")).triu(1) + x[0, 0, 0],
    "tril": lambda x: x.tril(-1),
    "triu_bool": lambda x: torch.ones(4, 4, dtype=torch.bool).triu(1) & (x[0, 0] > 1),
    "arange_float": lambda x: torch.arange(0.5, 3, 0.5) + x[0, 0, 0],
    "arange_down": lambda x: torch.arange(5, 0, -2) + x[0, 0, 0].long(),
    "linspace": lambda x: torch.linspace(0, 1, 5) + x[0, 0, 0],
    "eye": lambda x: torch.eye(3, 4) * x,
    "one_hot": lambda x: F.one_hot(x.long() % 5, 5),
}


@pytest.mark.parametrize("name", FIXED)
def test_fixed_shapes(name: str, agrees: Any) -> None:
    agrees(FIXED[name], X)


OTHERS = [(torch.randn(n, m, 4),) for n, m in [(1, 4), (3, 5), (4, 9)]]
DYNAMIC: dict[str, Callable[[torch.Tensor], Any]] = {
    "merge": lambda x: x.reshape(x.shape[0] * x.shape[1], 4),
    "heads": lambda x: x.view(x.shape[0], x.shape[1], 2, 2).transpose(1, 2).reshape(x.shape[0], -1, 2),
    "swap": lambda x: x.reshape(x.shape[1], x.shape[0], 4),
    "expand": lambda x: x[:, None].expand(-1, x.shape[1], -1, -1),
    "repeat": lambda x: x.repeat(x.shape[0], 1, 2),
    "repeat_interleave": lambda x: x.repeat_interleave(2, dim=1),
    "arange": lambda x: torch.arange(x.shape[1]) * 2 + x.shape[0],
    "causal": lambda x: torch.full((x.shape[1], x.shape[1]), -1e9).triu(1),
    "half": lambda x: x.reshape(x.shape[0], x.shape[1] * 2, 2)[:, 1::2],
    "last": lambda x: x[:, -1],
    "tail": lambda x: x[:, 1:],
    "up_to": lambda x: torch.arange(64)[: x.shape[1]] + x[0, 0, 0],
    "cat": lambda x: torch.cat([x, x], dim=1),
    "zeros": lambda x: torch.zeros(x.shape[0], x.shape[1] + 1),
    "split": lambda x: torch.cat([x, x], 1).chunk(2, dim=2),
    "pad": lambda x: F.pad(x, (0, 0, x.shape[0], 0)),
    "unfold": lambda x: torch.cat([x, x], 1).unfold(1, 2, 1),
    "flatten": lambda x: x.flatten(),
    "mean": lambda x: x.sum(1) / x.shape[1],
    "square": lambda x: torch.arange(x.shape[1] * x.shape[1]),
}


@pytest.mark.parametrize("name", DYNAMIC)
def test_varying_shapes(name: str, agrees: Any) -> None:
    imported = agrees(DYNAMIC[name], torch.randn(2, 6, 4), dynamic=({0: "batch", 1: "length"},), others=OTHERS)
    assert [str(d) for d in imported.graph.graph.inputs[0].shape] == ["batch", "length", "4"]


def test_head_split_needs_no_shape_arithmetic(agrees: Any) -> None:
    imported = agrees(
        lambda x: x.view(x.shape[0], x.shape[1], 2, 2).transpose(1, 2), X,
        dynamic=({0: "batch", 1: "length"},), others=OTHERS,
    )  # fmt: skip
    assert [node.op_type for node in imported.graph.graph] == ["Reshape", "Transpose"]
    assert [str(d) for d in imported.graph.graph.outputs[0].shape] == ["batch", "2", "length", "2"]


def test_expressions_name_derived_sizes(agrees: Any) -> None:
    imported = agrees(lambda x: torch.cat([x, x, x[:, :1]], dim=1), X, dynamic=({1: "length"},),
                      others=[(torch.randn(2, 6, 4),)])  # fmt: skip
    assert [str(d) for d in imported.graph.graph.outputs[0].shape] == ["2", "2*length + 1", "4"]


def test_derived_dimension() -> None:
    from burnish.frontends.torch_module import import_module

    class Halves(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.reshape(2, x.shape[0] // 2) + torch.arange(x.shape[0] // 2)

    half = torch.export.Dim("half", min=2)
    imported = import_module(Halves().eval(), (torch.randn(6),), None, ({0: 2 * half},))
    assert [str(d) for d in imported.graph.graph.inputs[0].shape] == ["2*half"]
    assert [str(d) for d in imported.graph.graph.outputs[0].shape] == ["2", "half"]
