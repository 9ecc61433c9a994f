"""Rules of indexing, scattering, sorting, reductions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

torch.manual_seed(0)
X = torch.randn(3, 4, 5)
ROW = torch.tensor([2, 0, -1])
COLUMN = torch.tensor([[1], [3]])

CASES: dict[str, Callable[[torch.Tensor], Any]] = {
    "index_one": lambda x: x[ROW],
    "index_middle": lambda x: x[:, COLUMN],
    "index_two": lambda x: x[ROW, torch.tensor([0, 1, -2])],
    "index_two_adjacent": lambda x: x[:, torch.tensor([0, 1]), COLUMN],
    "index_two_apart": lambda x: x[torch.tensor([0, 1]), :, COLUMN],
    "index_broadcast": lambda x: x[COLUMN % 3, torch.tensor([0, 1])],
    "index_bool_axis": lambda x: x[torch.tensor([True, False, True])],
    "mask": lambda x: x[x > 0],
    "mask_rows": lambda x: x[x[..., 0] > 0],
    "masked_select": lambda x: torch.masked_select(x, x[:, :1] > 0),
    "nonzero": lambda x: torch.nonzero(x > 0),
    "gather": lambda x: x.gather(1, torch.tensor([[[0, 1, 2, 3, 0]], [[1, 1, 1, 1, 1]], [[3, 2, 1, 0, 0]]])),
    "take_along_dim": lambda x: torch.take_along_dim(x, x.argsort(dim=1), dim=1),
    "index_select": lambda x: x.index_select(1, torch.tensor([3, 0])),
    "scatter": lambda x: torch.scatter(x, 0, torch.zeros(1, 4, 5, dtype=torch.int64), x[1:]),
    "scatter_value": lambda x: x.scatter(2, COLUMN.expand(2, 4)[..., None], 9.0),
    "scatter_add": lambda x: x.scatter_add(1, torch.zeros(3, 2, 5, dtype=torch.int64), x[:, :2]),
    "scatter_reduce": lambda x: x.scatter_reduce(1, torch.zeros(3, 2, 5, dtype=torch.int64), x[:, :2], "amax"),
    "index_copy": lambda x: x.index_copy(1, torch.tensor([2, 0]), torch.zeros(3, 2, 5)),
    "index_add": lambda x: x.index_add(1, torch.tensor([2, 2]), torch.ones(3, 2, 5), alpha=2),
    "index_fill": lambda x: x.index_fill(1, torch.tensor([2, 0]), 4.0),
    "index_put": lambda x: torch.index_put(x, (ROW, torch.tensor([0, 1, 2])), torch.tensor(1.5)),
    "index_put_add": lambda x: torch.index_put(x, (torch.tensor([1, 1]),), torch.ones(5), accumulate=True),
    "index_put_mask": lambda x: torch.index_put(x, (x > 0,), torch.tensor(0.0)),
    "select_scatter": lambda x: torch.select_scatter(x, torch.zeros(3, 5), 1, -1),
    "slice_scatter": lambda x: torch.slice_scatter(x, torch.zeros(3, 2, 5), 1, 0, 4, 2),
    "masked_scatter": lambda x: x.masked_scatter(x > 0, torch.arange(60.0)),
    "bucketize": lambda x: torch.bucketize(x, torch.tensor([-1.0, 0.0, 1.0])),
    "bucketize_right": lambda x: torch.bucketize(x.round(), torch.tensor([-1.0, 0.0, 1.0]), right=True),
    "histc": lambda x: torch.histc(x, bins=4, min=-1, max=1),
    "topk": lambda x: torch.topk(x, 2, dim=1),
    "topk_smallest": lambda x: torch.topk(x, 2, largest=False),
    "sort": lambda x: torch.sort(x, dim=1),
    "sort_descending": lambda x: torch.sort(x, descending=True, stable=True),
    "argsort": lambda x: torch.argsort(x, dim=0),
    "sum": lambda x: x.sum(),
    "nansum": lambda x: (x.log().nansum(1), (x > 0).nansum()),
    "sum_dims": lambda x: x.sum((0, -1), keepdim=True),
    "sum_bool": lambda x: (x > 0).sum(1),
    "sum_dtype": lambda x: x.sum(1, dtype=torch.float64),
    "mean": lambda x: x.mean((1, 2)),
    "prod": lambda x: x.prod(1),
    "amax": lambda x: x.amax((0, 1)),
    "max_all": lambda x: x.max(),
    "max_dim": lambda x: x.max(1),
    "min_dim_keep": lambda x: x.min(-1, keepdim=True),
    "argmax": lambda x: x.argmax(1),
    "argmax_all": lambda x: x.argmax(),
    "argmax_int": lambda x: (x * 10).long().argmax(-1),
    "argmin_keep": lambda x: x.argmin(0, keepdim=True),
    "any": lambda x: ((x > 1).any(1), (x > 9).any()),
    "all": lambda x: ((x > -1).all(1), (x > -9).all()),
    "var": lambda x: x.var(1),
    "std_biased": lambda x: x.std((0, 1), unbiased=False, keepdim=True),
    "var_mean": lambda x: torch.var_mean(x, dim=-1),
    "logsumexp": lambda x: x.logsumexp(1),
    "cumsum": lambda x: x.cumsum(1),
    "cumsum_bool": lambda x: (x > 0).cumsum(-1),
    "count_nonzero": lambda x: torch.count_nonzero(x > 0, dim=1),
    "norm": lambda x: (x.norm(dim=-1), x.norm(p=1, dim=1, keepdim=True), torch.linalg.vector_norm(x, float("inf"))),
    "softmax": lambda x: x.softmax(1),
    "log_softmax": lambda x: x.log_softmax(-1),
    "softmax_dtype": lambda x: x.half().softmax(-1, dtype=torch.float32),
    "cdist": lambda x: torch.cdist(x, x[:, :2]),
    "einsum": lambda x: torch.einsum("b i d, b j d -> b i j", x, x),
    "matmul": lambda x: x @ x.mT,
    "matmul_vector": lambda x: x @ x[0, 0],
    "bmm": lambda x: torch.bmm(x, x.mT),
    "addmm": lambda x: torch.addmm(x[0], x[1, :, :4], x[2], beta=0.5, alpha=2.0),
    "baddbmm": lambda x: torch.baddbmm(x[:, :, :4], x, x.mT),
    "outer": lambda x: torch.outer(x[0, 0], x[0, :, 0]),
    "scatter_reduce_alone": lambda x: tuple(
        x.scatter_reduce(1, torch.zeros(3, 2, 5, dtype=torch.int64), x[:, :2], how, include_self=False)
        for how in ("sum", "prod", "mean", "amax", "amin")
    ),
    "scatter_reduce_mean": lambda x: x.scatter_reduce(1, torch.zeros(3, 2, 5, dtype=torch.int64), x[:, :2], "mean"),
    "scatter_reduce_infinite": lambda x: torch.where(x > 0, torch.inf, x).scatter_reduce(
        1, torch.zeros(3, 2, 5, dtype=torch.int64), x[:, :2], "sum", include_self=False
    ),
    "scatter_multiply": lambda x: x.scatter(1, torch.zeros(3, 2, 5, dtype=torch.int64), x[:, :2], reduce="multiply"),
    "index_reduce": lambda x: x.index_reduce(1, torch.tensor([2, 0, 2]), x[:, :3], "amax", include_self=False),
    "put": lambda x: x.put(torch.tensor([3, 0, 17]), torch.tensor([1.0, 2.0, 3.0])),
    "searchsorted": lambda x: (
        torch.searchsorted(x.sort(-1).values, x),
        torch.searchsorted(torch.tensor([-1.0, 0.0, 0.0, 1.0]), x.round(), right=True),
    ),
    "diagonal": lambda x: (x.diagonal(), x.diagonal(1, -2, -1), x.diagonal(-2, 2, 0), torch.linalg.diagonal(x)),
    "diag": lambda x: (torch.diag(x[0]), torch.diag(x[0, 0], 2), torch.diag(x[0, 0], -1), torch.diag(x[0], -3)),
    "trace": lambda x: x[0].trace(),
    "cumprod": lambda x: (x.cumprod(1), x.cumprod(-1)),
    "cummax": lambda x: (*torch.cummax(x.round(), 1), *torch.cummin(x.round(), -1)),
    "cummax_nan": lambda x: torch.cummax(torch.where(x > 1, torch.nan, x), -1)[0],
    "logcumsumexp": lambda x: (x * 30).logcumsumexp(-1),
    "kthvalue": lambda x: (*x.kthvalue(2, 1), *x.kthvalue(3, keepdim=True)),
    "median": lambda x: (*x.median(1), *x.median(-1, keepdim=True), x.median()),
    "median_nan": lambda x: torch.where(x > 1, torch.nan, x).median(-1)[0],
    "norm_zero": lambda x: torch.linalg.vector_norm(x.round(), 0, dim=1),
    "fmax": lambda x: (torch.fmax(x, torch.where(x > 0, torch.nan, -x)), torch.fmin(x.log(), x)),
    "copysign": lambda x: (torch.copysign(x, x.roll(1)), torch.copysign(torch.ones_like(x), x * 0), x.signbit()),
    "angle": lambda x: x.angle(),
    "erfc": lambda x: x.erfc(),
    "det": lambda x: torch.linalg.det(x[:, :, :4]),
    "of_a_number": lambda x: (
        x[0, 0, 0].index_select(0, torch.tensor([0])),
        x[0, 0, 0].argmax(0),
        x[0, 0, 0].unfold(0, 1, 1),
        x[0, 0, 0].index_fill(0, torch.tensor([0]), 2.0),
        x[0, 0, 0].index_add(0, torch.tensor([0]), x[0, 0, 1]),
        x[0, 0, 0].index_copy(0, torch.tensor([0]), x[0, 0, 1]),
        x[0, 0, 0].median(0)[1],
        x[0, 0, 0].cumprod(0),
    ),
    "zero_dim": lambda x: x[0, 0, 0].sum() + x[0, 0, 0].max(),
}


@pytest.mark.parametrize("name", CASES)
def test_fixed(name: str, agrees: Any) -> None:
    agrees(CASES[name], X, tolerance=3e-5)


VARYING = ["index_one", "index_two", "mask", "nonzero", "sum_dims", "var", "cumsum", "argsort", "topk", "einsum",
           "index_put_mask", "masked_scatter"]  # fmt: skip


@pytest.mark.parametrize("name", VARYING)
def test_varying_second_axis(name: str, agrees: Any) -> None:
    agrees(CASES[name], X, dynamic=({1: "n"},), others=[(torch.randn(3, n, 5),) for n in (3, 7)], tolerance=3e-5)


def test_size_that_only_the_values_tell(agrees: Any) -> None:
    """What follows a mask has a size that no input dimension gives."""
    agrees(lambda x: x[x > 0] * 2 + 1, X, others=[(-X.abs(),), (X.abs(),)])


def test_uint8_index(agrees: Any) -> None:
    agrees(lambda x: x[:, torch.tensor([1, 2], dtype=torch.int32).long()], X)
