"""Rules of layers: linear, convolution, pooling, resampling, normalization, attention, recurrence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

torch.manual_seed(0)
IMAGE = torch.randn(2, 4, 9, 8)
SIGNAL = torch.randn(2, 4, 15)
VOLUME = torch.randn(1, 4, 5, 6, 7)

LAYERS: dict[str, tuple[Callable[[], nn.Module], torch.Tensor]] = {
    "linear": (lambda: nn.Linear(15, 3), SIGNAL),
    "linear_no_bias": (lambda: nn.Linear(15, 3, bias=False), SIGNAL),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1), SIGNAL),
    "conv1d_same": (lambda: nn.Conv1d(4, 6, 4, padding="same"), SIGNAL),
    "conv2d": (lambda: nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=2), IMAGE),
    "conv2d_groups": (lambda: nn.Conv2d(4, 8, 3, groups=4, bias=False, padding="valid"), IMAGE),
    "conv2d_unbatched": (lambda: nn.Conv2d(4, 6, 3), IMAGE[0]),
    "conv3d": (lambda: nn.Conv3d(4, 2, 3, padding=1), VOLUME),
    "conv_transpose1d": (lambda: nn.ConvTranspose1d(4, 2, 3, stride=2, output_padding=1), SIGNAL),
    "conv_transpose2d": (lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, groups=2), IMAGE),
    "max_pool1d": (lambda: nn.MaxPool1d(3, 2), SIGNAL),
    "max_pool2d": (lambda: nn.MaxPool2d(3, 2, padding=1), IMAGE),
    "max_pool2d_ceil": (lambda: nn.MaxPool2d(2, ceil_mode=True), IMAGE),
    "max_pool2d_dilated": (lambda: nn.MaxPool2d(2, 1, dilation=2), IMAGE),
    "avg_pool2d": (lambda: nn.AvgPool2d(3, 2, padding=1), IMAGE),
    "avg_pool2d_uncounted": (lambda: nn.AvgPool2d(3, 2, padding=1, count_include_pad=False), IMAGE),
    "avg_pool2d_divisor": (lambda: nn.AvgPool2d(2, divisor_override=3), IMAGE),
    "avg_pool1d": (lambda: nn.AvgPool1d(3), SIGNAL),
    "adaptive_one": (lambda: nn.AdaptiveAvgPool2d(1), IMAGE),
    "adaptive_even": (lambda: nn.AdaptiveAvgPool2d((3, 4)), IMAGE),
    "adaptive_uneven": (lambda: nn.AdaptiveAvgPool2d((4, 3)), IMAGE),
    "adaptive_max_places": (lambda: nn.AdaptiveMaxPool2d((3, 4), return_indices=True), IMAGE),
    "max_pool_places": (lambda: nn.MaxPool2d(3, 2, 1, return_indices=True), IMAGE),
    "adaptive_max": (lambda: nn.AdaptiveMaxPool2d(1), IMAGE),
    "batch_norm1d": (lambda: nn.BatchNorm1d(4), SIGNAL),
    "batch_norm2d_plain": (lambda: nn.BatchNorm2d(4, affine=False), IMAGE),
    "instance_norm": (lambda: nn.InstanceNorm2d(4, affine=True), IMAGE),
    "group_norm": (lambda: nn.GroupNorm(2, 4), IMAGE),
    "layer_norm": (lambda: nn.LayerNorm((9, 8)), IMAGE),
    "layer_norm_plain": (lambda: nn.LayerNorm(8, elementwise_affine=False), IMAGE),
    "rms_norm": (lambda: nn.RMSNorm(8, eps=1e-6), IMAGE),
    "rms_norm_default": (lambda: nn.RMSNorm(8), IMAGE),
    "prelu": (lambda: nn.PReLU(4), IMAGE),
    "nearest": (lambda: nn.Upsample(scale_factor=2), IMAGE),
    "nearest_size": (lambda: nn.Upsample(size=(5, 11)), IMAGE),
    "bilinear": (lambda: nn.Upsample(scale_factor=2, mode="bilinear"), IMAGE),
    "bilinear_corners": (lambda: nn.Upsample(size=(5, 13), mode="bilinear", align_corners=True), IMAGE),
    "bicubic": (lambda: nn.Upsample(scale_factor=2, mode="bicubic"), IMAGE),
    "linear1d": (lambda: nn.Upsample(scale_factor=3, mode="linear"), SIGNAL),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layer(name: str, agrees: Any) -> None:
    make, x = LAYERS[name]
    torch.manual_seed(1)
    layer = make()
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, -0.5, 0.5)
    for buffer in layer.buffers():
        if buffer.dtype.is_floating_point:
            nn.init.uniform_(buffer, 0.5, 1.5)
    agrees(layer, x, tolerance=2e-5)


def test_layers_with_varying_batch(agrees: Any) -> None:
    model = nn.Sequential(nn.Conv2d(4, 6, 3), nn.GroupNorm(2, 6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                          nn.Linear(6, 2))  # fmt: skip
    agrees(model, IMAGE, dynamic=({0: "batch"},), others=[(torch.randn(n, 4, 9, 8),) for n in (1, 3, 5)])


def test_varying_image_size(agrees: Any) -> None:
    model = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.Upsample(scale_factor=2), nn.AdaptiveAvgPool2d(1))
    agrees(model, IMAGE, dynamic=({2: "height", 3: "width"},), others=[(torch.randn(2, 4, 11, 5),)])


def test_linear_is_a_product_with_a_transposed_weight(agrees: Any) -> None:
    imported = agrees(nn.Linear(15, 3), SIGNAL)
    assert [node.op_type for node in imported.graph.graph] == ["Transpose", "MatMul", "Add"]
    assert list(imported.graph.graph.initializers["weight"].shape) == [3, 15]


def test_weights_are_not_copied(agrees: Any) -> None:
    layer = nn.Linear(15, 3)
    imported = agrees(layer, SIGNAL)
    tensor = imported.graph.graph.initializers["weight"].const_value
    assert tensor is not None and tensor.raw.data_ptr() == layer.weight.data_ptr()
    assert imported.source_size == 4 * (15 * 3 + 3)


def test_tied_weights_are_one_initializer(agrees: Any) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(11, 6), nn.Linear(6, 11, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.head(self.embed(ids))

    imported = agrees(Tied(), torch.tensor([[1, 2], [3, 10]]))
    assert list(imported.graph.graph.initializers) == ["embed.weight"]


Q = torch.randn(2, 4, 5, 8)
K, V = torch.randn(2, 4, 7, 8), torch.randn(2, 4, 7, 8)
BOOL = torch.rand(2, 1, 5, 7) > 0.3
BOOL[..., 0] = True
ATTENTION: dict[str, Callable[..., torch.Tensor]] = {
    "plain": lambda q, k, v: F.scaled_dot_product_attention(q, k, v),
    "scale": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, scale=0.5),
    "causal": lambda q, k, v: F.scaled_dot_product_attention(q, k[:, :, :5], v[:, :, :5], is_causal=True),
    "causal_longer": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
    "bool_mask": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=BOOL),
    "float_mask": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=BOOL.float() * 3),
    "mask_of_two_dimensions": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=BOOL[0, 0]),
    "mask_per_head": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=BOOL.expand(2, 4, 5, 7)),
    "fewer_heads": lambda q, k, v: F.scaled_dot_product_attention(q, k[:, :2], v[:, :2], enable_gqa=True),
    "wide_values": lambda q, k, v: F.scaled_dot_product_attention(q, k, torch.cat([v, v], -1)),
    "three_dimensions": lambda q, k, v: F.scaled_dot_product_attention(q[0], k[0], v[0]),
    "three_masked": lambda q, k, v: F.scaled_dot_product_attention(q[:, 0], k[:, 0], v[:, 0], attn_mask=BOOL[:, 0]),
    "double": lambda q, k, v: F.scaled_dot_product_attention(q.double(), k.double(), v.double(), attn_mask=BOOL),
    "double_causal": lambda q, k, v: F.scaled_dot_product_attention(q.double(), k.double(), v.double(), is_causal=True),
}


@pytest.mark.parametrize("name", ATTENTION)
def test_attention(name: str, agrees: Any) -> None:
    imported = agrees(ATTENTION[name], Q, K, V)
    kinds = [node.op_type for node in imported.graph.graph]
    assert ("Attention" in kinds) != ("double" in name)


def test_attention_module(agrees: Any) -> None:
    class Attend(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: torch.Tensor) -> Any:
            return self.inner(x, x, x, need_weights=False)[0]

    agrees(Attend(), torch.randn(2, 5, 8), dynamic=({0: "batch"},), others=[(torch.randn(3, 5, 8),)])


def test_transformer_encoder(agrees: Any) -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    agrees(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), torch.randn(2, 5, 8))


OPTIONS: list[dict[str, Any]] = [{}, {"bidirectional": True, "num_layers": 2}, {"batch_first": True, "bias": False}]


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize("options", OPTIONS)
def test_recurrent(kind: Any, options: dict[str, Any], agrees: Any) -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = kind(6, 4, **options)

        def forward(self, x: torch.Tensor) -> Any:
            return self.inner(x)

    axis = 0 if options.get("batch_first") else 1
    inputs = [torch.randn((n, 5, 6) if axis == 0 else (5, n, 6)) for n in (2, 1, 4)]
    agrees(Recurrent(), inputs[0], dynamic=({axis: "batch"},), others=[(x,) for x in inputs[1:]])


def test_embedding_is_a_gather(agrees: Any) -> None:
    imported = agrees(nn.Embedding(11, 6, padding_idx=0), torch.tensor([[1, 2], [0, 10]]))
    assert [node.op_type for node in imported.graph.graph] == ["Gather"]


def test_half_stays_half(agrees: Any) -> None:
    agrees(nn.Sequential(nn.Linear(8, 4), nn.GELU()).half(), torch.randn(3, 8).half(), tolerance=4e-3)
