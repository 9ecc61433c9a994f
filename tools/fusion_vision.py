"""Vision networks of DNNFusion's table as PyTorch modules with random weights: layers and widths as published.

VGG-16 (Simonyan and Zisserman 2015), U-Net (Ronneberger et al. 2015), MobileNetV1 with an SSD head (Howard et al. 2017,
Liu et al. 2016), EfficientNet-B0 (Tan and Le 2019) and YOLOv4 (Bochkovskiy et al. 2020).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def convolution(
    channels: int, out: int, size: int = 3, stride: int = 1, groups: int = 1, act: nn.Module | None = None
) -> nn.Sequential:
    """Convolution that keeps the extent (or divides it by ``stride``), batch normalization, activation."""
    layers: list[nn.Module] = [
        nn.Conv2d(channels, out, size, stride, size // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out),
    ]
    return nn.Sequential(*layers, *([] if act is None else [act]))


class Vgg16(nn.Module):
    """13 convolutions, 5 poolings, 3 products; input [1, 3, 224, 224]."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for count, width in ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)):
            for _ in range(count):
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
                channels = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Linear(512 * 7 * 7, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, 1000)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Probabilities of the classes [1, 1000]."""
        return torch.softmax(self.classifier(self.features(x).flatten(1)), -1)


def _double(channels: int, out: int) -> nn.Sequential:
    return nn.Sequential(convolution(channels, out, act=nn.ReLU()), convolution(out, out, act=nn.ReLU()))


class UNet(nn.Module):
    """Four steps down, four up, with skips; input [1, 3, 256, 256]."""

    def __init__(self) -> None:
        super().__init__()
        widths = (64, 128, 256, 512, 1024)
        self.down = nn.ModuleList(_double(a, b) for a, b in zip((3, *widths), widths, strict=False))
        self.up = nn.ModuleList(nn.ConvTranspose2d(w, w // 2, 2, 2) for w in reversed(widths[1:]))
        self.merge = nn.ModuleList(_double(w, w // 2) for w in reversed(widths[1:]))
        self.last = nn.Conv2d(widths[0], 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """A mask for each of two classes [1, 2, 256, 256]."""
        skips: list[Tensor] = []
        for step in self.down:
            if skips:
                x = torch.max_pool2d(x, 2)
            x = step(x)
            skips.append(x)
        skips.pop()
        for up, merge in zip(self.up, self.merge, strict=True):
            x = merge(torch.cat([skips.pop(), up(x)], 1))
        return torch.sigmoid(self.last(x))


class MobileNetSsd(nn.Module):
    """MobileNetV1 and SSD's boxes of six resolutions, 91 classes; input [1, 3, 300, 300]."""

    def __init__(self, classes: int = 91) -> None:
        super().__init__()
        plan = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5]
        self.first = nn.Sequential(convolution(3, 32, stride=2, act=nn.ReLU6()), *self._separable(32, plan))
        self.second = nn.Sequential(*self._separable(512, [(1024, 2), (1024, 1)]))
        widths = [(256, 512), (128, 256), (128, 256), (64, 128)]
        extras, channels = [], 1024
        for narrow, wide in widths:
            extras.append(
                nn.Sequential(
                    convolution(channels, narrow, 1, act=nn.ReLU6()), convolution(narrow, wide, 3, 2, act=nn.ReLU6())
                )
            )
            channels = wide
        self.extras = nn.ModuleList(extras)
        sources = [(512, 3), (1024, 6), (512, 6), (256, 6), (256, 6), (128, 6)]
        self.boxes = nn.ModuleList(nn.Conv2d(c, 4 * n, 1) for c, n in sources)
        self.scores = nn.ModuleList(nn.Conv2d(c, classes * n, 1) for c, n in sources)
        self.classes = classes
        self.anchors = nn.Buffer(torch.rand(1, 1, 4))

    @staticmethod
    def _separable(channels: int, plan: Sequence[tuple[int, int]]) -> list[nn.Module]:
        layers: list[nn.Module] = []
        for out, stride in plan:
            layers.append(convolution(channels, channels, 3, stride, channels, nn.ReLU6()))
            layers.append(convolution(channels, out, 1, act=nn.ReLU6()))
            channels = out
        return layers

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Corners of the boxes [1, boxes, 4] and probabilities of their classes."""
        sources = [self.first(x)]
        sources.append(self.second(sources[0]))
        for extra in self.extras:
            sources.append(extra(sources[-1]))
        boxes = [self._rows(head(s), 4) for head, s in zip(self.boxes, sources, strict=True)]
        scores = [self._rows(head(s), self.classes) for head, s in zip(self.scores, sources, strict=True)]
        offsets = torch.cat(boxes, 1)
        # Boxes from offsets to anchors (Liu et al. 2016, section 2.2).
        centres = offsets[..., :2] * 0.1 * self.anchors[..., 2:] + self.anchors[..., :2]
        sizes = torch.exp(offsets[..., 2:] * 0.2) * self.anchors[..., 2:]
        corners = torch.cat([centres - sizes / 2, centres + sizes / 2], -1)
        return corners, torch.softmax(torch.cat(scores, 1), -1)

    @staticmethod
    def _rows(x: Tensor, width: int) -> Tensor:
        return x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, width)


class _Inverted(nn.Module):
    """MBConv: expansion, depthwise convolution, squeeze and excitation, projection."""

    def __init__(self, channels: int, out: int, size: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide, narrow = channels * expansion, max(1, channels // 4)
        self.expand = nn.Identity() if expansion == 1 else convolution(channels, wide, 1, act=nn.SiLU())
        self.depthwise = convolution(wide, wide, size, stride, wide, nn.SiLU())
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(wide, narrow, 1), nn.SiLU(), nn.Conv2d(narrow, wide, 1), nn.Sigmoid()
        )
        self.project = convolution(wide, out, 1)
        self.residual = stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        y = self.depthwise(self.expand(x))
        y = self.project(y * self.gate(y))
        result: Tensor = x + y if self.residual else y
        return result


class EfficientNetB0(nn.Module):
    """16 MBConv blocks; input [1, 3, 224, 224]."""

    def __init__(self) -> None:
        super().__init__()
        plan = [(1, 16, 1, 3, 1), (2, 24, 2, 3, 6), (2, 40, 2, 5, 6), (3, 80, 2, 3, 6), (3, 112, 1, 5, 6),
                (4, 192, 2, 5, 6), (1, 320, 1, 3, 6)]  # fmt: skip
        layers: list[nn.Module] = [convolution(3, 32, 3, 2, act=nn.SiLU())]
        channels = 32
        for count, out, stride, size, expansion in plan:
            for index in range(count):
                layers.append(_Inverted(channels, out, size, stride if index == 0 else 1, expansion))
                channels = out
        layers += [convolution(320, 1280, 1, act=nn.SiLU()), nn.AdaptiveAvgPool2d(1)]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(1280, 1000)

    def forward(self, x: Tensor) -> Tensor:
        """Scores of the classes [1, 1000]."""
        scores: Tensor = self.classifier(self.features(x).flatten(1))
        return scores


class _Mish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.tanh(nn.functional.softplus(x))


def _mish(channels: int, out: int, size: int = 3, stride: int = 1) -> nn.Sequential:
    return convolution(channels, out, size, stride, act=_Mish())


def _leaky(channels: int, out: int, size: int = 3, stride: int = 1) -> nn.Sequential:
    return convolution(channels, out, size, stride, act=nn.LeakyReLU(0.1))


class _Residual(nn.Module):
    def __init__(self, channels: int, narrow: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(_mish(channels, narrow, 1), _mish(narrow, channels))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.inner(x)
        return result


class _CrossStage(nn.Module):
    """A stage of CSPDarknet53: half the channels go through the residual blocks."""

    def __init__(self, channels: int, out: int, count: int) -> None:
        super().__init__()
        half = out if count == 1 else out // 2
        self.down = _mish(channels, out, 3, 2)
        self.left, self.right = _mish(out, half, 1), _mish(out, half, 1)
        narrow = half // 2 if count == 1 else half
        self.blocks = nn.Sequential(*(_Residual(half, narrow) for _ in range(count)), _mish(half, half, 1))
        self.join = _mish(2 * half, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(x)
        result: Tensor = self.join(torch.cat([self.blocks(self.right(x)), self.left(x)], 1))
        return result


def _five(channels: int, out: int) -> nn.Sequential:
    return nn.Sequential(
        _leaky(channels, out, 1), _leaky(out, 2 * out), _leaky(2 * out, out, 1), _leaky(out, 2 * out),
        _leaky(2 * out, out, 1),
    )  # fmt: skip


class YoloV4(nn.Module):
    """CSPDarknet53, spatial pyramid pooling, path aggregation, three heads; input [1, 3, 416, 416]."""

    def __init__(self, classes: int = 80) -> None:
        super().__init__()
        self.stem = _mish(3, 32)
        stages = ((32, 64, 1), (64, 128, 2), (128, 256, 8), (256, 512, 8), (512, 1024, 4))
        self.stages = nn.ModuleList(_CrossStage(*stage) for stage in stages)
        self.before = nn.Sequential(_leaky(1024, 512, 1), _leaky(512, 1024), _leaky(1024, 512, 1))
        self.after = nn.Sequential(_leaky(2048, 512, 1), _leaky(512, 1024), _leaky(1024, 512, 1))
        self.lift = nn.ModuleList([_leaky(512, 256, 1), _leaky(256, 128, 1)])
        self.lateral = nn.ModuleList([_leaky(512, 256, 1), _leaky(256, 128, 1)])
        self.top_down = nn.ModuleList([_five(512, 256), _five(256, 128)])
        self.lower = nn.ModuleList([_leaky(128, 256, 3, 2), _leaky(256, 512, 3, 2)])
        self.bottom_up = nn.ModuleList([_five(512, 256), _five(1024, 512)])
        outputs = 3 * (classes + 5)
        self.heads = nn.ModuleList(
            nn.Sequential(_leaky(c, 2 * c), nn.Conv2d(2 * c, outputs, 1)) for c in (128, 256, 512)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Raw outputs of three resolutions, finest first."""
        x, found = self.stem(x), []
        for stage in self.stages:
            x = stage(x)
            found.append(x)
        x = self.before(x)
        pools = [torch.max_pool2d(x, size, 1, size // 2) for size in (13, 9, 5)]
        levels = [self.after(torch.cat([*pools, x], 1))]
        for lift, lateral, five, skip in zip(self.lift, self.lateral, self.top_down, (found[3], found[2]), strict=True):
            up = nn.functional.interpolate(lift(levels[-1]), scale_factor=2.0, mode="nearest")
            levels.append(five(torch.cat([lateral(skip), up], 1)))
        low, middle, x = levels
        outputs = [self.heads[0](x)]
        for lower, five, head, level in zip(self.lower, self.bottom_up, self.heads[1:], (middle, low), strict=True):
            x = five(torch.cat([lower(x), level], 1))
            outputs.append(head(x))
        return tuple(outputs)
