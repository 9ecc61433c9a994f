"""Models for ``torch.compile``, and one as a side of a benchmark: run eagerly, by Burnish or by Inductor.

SmolLM2 and MiniLM are the real ones; ViT-Ti/16, ResNet-18 and a UNet have random weights from public configurations.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..compiler.benchmark.torch_side import TorchSide
from .baseline import eager_smollm2
from .fetch import model_path

Array = np.ndarray[Any, Any]
WAYS = ("eager", "burnish", "inductor")


class _Block(nn.Module):
    """Two convolutions, each with batch normalization and ReLU."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU(inplace=True),
            nn.Conv2d(after, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU(inplace=True),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layers(x)
        return result


class UNet(nn.Module):
    """U-Net (Ronneberger et al. 2015) with padded convolutions, batch norms and five levels."""

    def __init__(self, width: int = 16, classes: int = 2) -> None:
        super().__init__()
        sizes = [width << level for level in range(5)]
        self.down = nn.ModuleList(_Block(a, b) for a, b in zip([3, *sizes], sizes, strict=False))
        self.grow = nn.ModuleList(nn.ConvTranspose2d(2 * size, size, 2, 2) for size in sizes[-2::-1])
        self.up = nn.ModuleList(_Block(2 * size, size) for size in sizes[-2::-1])
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Images [batch, 3, height, width] (multiples of 16) to scores [batch, classes, height, width]."""
        kept: list[Tensor] = []
        for level, block in enumerate(self.down):
            x = block(x if not level else nn.functional.max_pool2d(x, 2))
            kept.append(x)
        for grow, block, beside in zip(self.grow, self.up, kept[-2::-1], strict=True):
            x = block(torch.cat([beside, grow(x)], 1))
        result: Tensor = self.head(x)
        return result


def _normalized(model: nn.Module) -> nn.Module:
    """Batch normalizations with statistics of their own: those of a fresh model would do nothing."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
    return model


def _minilm() -> nn.Module:
    from transformers import AutoModel

    model: nn.Module = AutoModel.from_pretrained(str(model_path("minilm")), dtype=torch.float32)
    return model


def _vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(hidden_size=192, num_hidden_layers=12, num_attention_heads=3, intermediate_size=768,
                       num_labels=1000)  # fmt: skip
    model: nn.Module = ViTForImageClassification(config)
    return model


def _resnet() -> nn.Module:
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2], layer_type="basic", num_labels=1000)
    model: nn.Module = ResNetForImageClassification(config)
    return model


@dataclass(frozen=True)
class Case:
    """A model and what it is called with.

    Attributes:
        title: for tables.
        make: the model, in float32.
        inputs: positional arguments from a random generator.
    """

    title: str
    make: Callable[[], nn.Module]
    inputs: Callable[[np.random.Generator], dict[str, Array]]


def _image(size: int, batch: int = 1) -> Callable[[np.random.Generator], dict[str, Array]]:
    return lambda generator: {"image": generator.standard_normal((batch, 3, size, size), np.float32)}


def _sentences(generator: np.random.Generator) -> dict[str, Array]:
    return {"input_ids": generator.integers(1000, 30000, (8, 128)), "attention_mask": np.ones((8, 128), np.int64)}


CASES = {
    "smollm2": Case(
        "SmolLM2-135M, 1 × 128", eager_smollm2, lambda generator: {"ids": generator.integers(0, 49152, (1, 128))}
    ),
    "minilm": Case("MiniLM, 8 × 128", _minilm, _sentences),
    "vit": Case("ViT-Ti/16, 1 × 224²", _vit, _image(224)),
    "resnet18": Case("ResNet-18, 1 × 224²", _resnet, _image(224)),
    "unet": Case("UNet, 1 × 256²", UNet, _image(256)),
}


def made(name: str) -> nn.Module:
    """A model by its name among :data:`CASES`, the same at each call; in evaluation mode, without gradients."""
    torch.manual_seed(0)
    return _normalized(CASES[name].make()).eval().requires_grad_(False)


def compiled(model: nn.Module, way: str) -> Callable[..., Any]:
    """The model as one of :data:`WAYS` runs it."""
    if way == "eager":
        return model
    if way == "inductor":
        import torch._inductor.config as inductor

        inductor.freezing = True
        return torch.compile(model, backend="inductor")
    return torch.compile(model, backend="burnish")


class CompiledSide(TorchSide):
    """A side of a benchmark; the first call of what :meth:`prepare` returns compiles."""

    is_decoder = False  # it is called on inputs like any other model

    def __init__(self, name: str, way: str, threads: int | None = None) -> None:
        super().__init__(made(name), threads)
        self._call = compiled(self.model, way)

    def prepare(self, feeds: Mapping[str, Array]) -> Callable[[], Sequence[Any]]:
        """A function that calls the model once on ``feeds``, by position."""
        tensors = [torch.from_numpy(array) for array in feeds.values()]

        def run() -> Sequence[Any]:
            with torch.no_grad():
                result = self._call(*tensors)
            return [result if isinstance(result, Tensor) else result[0]]

        return run


def side(argument: str) -> CompiledSide:
    """What a worker of the benchmark runs.

    Args:
        argument: ``model/way``.
    """
    name, _, way = argument.partition("/")
    return CompiledSide(name, way, int(os.environ.get("OMP_NUM_THREADS", "0")) or None)


def first_call(name: str, way: str, threads: int) -> float:
    """Seconds that the first call takes, with nothing of it in a cache."""
    given = CASES[name].inputs(np.random.default_rng(0))
    run = CompiledSide(name, way, threads).prepare(given)
    started = time.perf_counter()
    run()
    return time.perf_counter() - started
