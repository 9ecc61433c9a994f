"""In-place operators become pure ones, through views as well."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

X = torch.arange(24.0).reshape(2, 3, 4)


def plain(x: torch.Tensor) -> Any:
    y = x * 1
    y.add_(1).mul_(2)
    return y, x


def used_before_and_after(x: torch.Tensor) -> Any:
    y = x * 1
    before = y + 0
    y.neg_()
    return before, y


def keeps_type(x: torch.Tensor) -> Any:
    y = x.long()
    y.mul_(y)
    z = x.half()
    z.add_(x)
    return y, z


def slice_of_base(x: torch.Tensor) -> Any:
    y = torch.zeros(2, 3, 4)
    y[:, 1:] = x[:, 1:]
    y[:, 0, ::2] += 5
    return y


def row_of_base(x: torch.Tensor) -> Any:
    y = x.clone()
    y[1] = 0
    y[:, -1] = 7
    return y


def view_of_view(x: torch.Tensor) -> Any:
    y = x.clone()
    z = y.transpose(1, 2)[:, 1:3]
    z.fill_(-1)
    return y, z


def base_seen_through_view(x: torch.Tensor) -> Any:
    y = x.clone()
    flat = y.view(6, 4)
    row = flat[2]
    y.mul_(2)
    row.add_(100)
    return flat, row, y.permute(2, 0, 1)


def squeezed(x: torch.Tensor) -> Any:
    y = x.clone()
    y.unsqueeze(0).squeeze(0)[0].zero_()
    return y


def clone_is_its_own(x: torch.Tensor) -> Any:
    y = x.clone()
    z = y.clone()
    y.zero_()
    return y, z


def index_put(x: torch.Tensor) -> Any:
    y = x.clone()
    y[torch.tensor([0, 1]), torch.tensor([2, 0])] = 3.5
    y[y > 20] = -1
    return y


def masked(x: torch.Tensor) -> Any:
    y = x.clone()
    y.masked_fill_(y > 5, 0)
    y[0].clamp_(1, 2)
    return y


def copied(x: torch.Tensor) -> Any:
    y = torch.empty(2, 3, 4)
    y.copy_(x[:, :1])
    y[..., 0].copy_(torch.tensor(9))
    return y


def triangle(x: torch.Tensor) -> Any:
    mask = torch.full((4, 4), float("-inf"))
    mask.triu_(1)
    return x @ mask.exp()


def scattered(x: torch.Tensor) -> Any:
    y = torch.zeros(2, 3, 4)
    y.scatter_(2, x.long() % 4, 1.0)
    return y


def detached(x: torch.Tensor) -> Any:
    y = x * 1
    y.detach_()
    z = y.detach()
    y.add_(1)
    return z


def same_part_twice(x: torch.Tensor) -> Any:
    y = x.clone()
    a, b = y[0], y[0]
    a.add_(1)
    b.mul_(3)
    return a, b, y


CASES: list[Callable[[torch.Tensor], Any]] = [
    plain, used_before_and_after, keeps_type, slice_of_base, row_of_base, view_of_view, base_seen_through_view,
    squeezed, clone_is_its_own, index_put, masked, copied, triangle, scattered, detached, same_part_twice,
]  # fmt: skip


@pytest.mark.parametrize("function", CASES, ids=lambda f: f.__name__)
def test_in_place(function: Callable[[torch.Tensor], Any], agrees: Any) -> None:
    imported = agrees(function, X)
    assert imported.remarks == []


@pytest.mark.parametrize("function", [slice_of_base, view_of_view, row_of_base, masked], ids=lambda f: f.__name__)
def test_in_place_with_varying_shape(function: Callable[[torch.Tensor], Any], agrees: Any) -> None:
    generic = function
    if function is slice_of_base:

        def generic(x: torch.Tensor) -> Any:
            y = torch.zeros_like(x)
            y[:, 1:] = x[:, 1:]
            y[:, :-1] += 5
            return y

    agrees(generic, X, dynamic=({1: "length"},), others=[(torch.randn(2, n, 4),) for n in (4, 7)])


def test_write_to_input_is_reported(agrees: Any) -> None:
    def write(x: torch.Tensor) -> torch.Tensor:
        x.add_(1)
        return x * 2

    imported = agrees(write, X)
    (remark,) = imported.remarks
    assert remark.kind == "skipped" and "writes to this input" in remark.reason


def test_write_to_buffer_is_reported(agrees: Any) -> None:
    class Counter(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.count += 1
            return x + self.count.clone()

    from burnish.frontends.torch_module import import_module

    imported = import_module(Counter().eval(), (X,))
    assert [r.kind for r in imported.remarks] == ["skipped"]
    assert "count" in imported.remarks[0].node


def test_write_through_unknown_view_goes_the_other_way(agrees: Any) -> None:
    def write(x: torch.Tensor) -> torch.Tensor:
        y = x.clone()
        y.unbind(1)[0].add_(1)
        return y

    imported = agrees(write, X, route="torch.onnx.export")
    assert "write through" in imported.remarks[0].reason
