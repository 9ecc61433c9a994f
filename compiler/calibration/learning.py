"""Gradients: what passes learn from the reference backend on the calibration inputs."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir
import torch
from torch import Tensor
from torch.nn import functional

from ...backends.reference import Reference
from ...ir.errors import UnsupportedError
from ...ir.graph import Graph
from ...passes.base import Change, Noise, Training
from ..inputs import Array, Calibration
from ..progress import Progress

_WARM = 0.1
"""Share of the steps over which the rate rises."""
_CLIP = 1.0
"""Largest norm of the gradients of a step."""
_SAMPLED = 8
"""Calibration inputs whose gradients tell what changes lose: each has many tokens, each change many channels."""


class Learning:
    """What ``Context.distill``, ``Context.influence`` and ``Context.second_order`` call.

    Args:
        graph: that the passes rewrite in place.
        original: the model as it came; None where no pass compares with it.
        calibration: the user's inputs.
        decodes: whether the first output holds logits of next tokens.
        progress: called during long work.
    """

    def __init__(
        self, graph: Graph, original: Graph | None, calibration: Calibration, decodes: bool, progress: Progress
    ) -> None:
        self._graph, self._original, self._calibration = graph, original, calibration
        self._decodes, self._progress = decodes, progress

    def distill(
        self, values: Sequence[onnx_ir.Value], masked: set[onnx_ir.Value], how: Training
    ) -> tuple[dict[onnx_ir.Value, Array], list[float]]:
        """Train constants on the outputs of the model as it came; the loss of each step."""
        assert self._original is not None
        student, teacher = Reference(self._graph), Reference(self._original)
        outputs = trained_outputs(self._graph, self._decodes)
        theirs = [v.name or "" for v in self._original.graph.outputs][: len(outputs)]
        weights = [_Trained(student.constant(value), value in masked, how.rank, how.seed) for value in values]
        names = [value.name or "" for value in values]
        optimizer = torch.optim.AdamW(
            [p for w in weights for p in w.parameters], lr=how.rate, weight_decay=0.0, fused=True
        )
        losses: list[float] = []
        with torch.enable_grad():
            stream = self._shuffled(how.seed)
            for step in range(how.steps):
                self._progress(step, how.steps, "distilling")
                for group in optimizer.param_groups:
                    group["lr"] = how.rate * schedule(step, how.steps)
                total = 0.0
                for _ in range(how.batch):
                    feeds = next(stream)
                    with torch.no_grad(), precision(how.precision):
                        wanted = teacher.run(feeds, theirs)
                    with precision(how.precision):
                        constants = {name: weight.value() for name, weight in zip(names, weights, strict=True)}
                        made = student.run(feeds, outputs, constants=constants)
                    loss = self._loss([made[n] for n in outputs], [wanted[n] for n in theirs]) / how.batch
                    loss.backward()  # type: ignore[no-untyped-call]
                    total += float(loss.detach())
                torch.nn.utils.clip_grad_norm_([p for w in weights for p in w.parameters], _CLIP)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                losses.append(total)
        with torch.no_grad():
            return {v: w.value().float().numpy() for v, w in zip(values, weights, strict=True)}, losses

    def influence(self, places: Sequence[tuple[onnx_ir.Value, int]]) -> list[Array]:
        """Derivatives of the loss by factors on places of constants: for each axis [inputs, places]."""
        model = Reference(self._graph)
        outputs = trained_outputs(self._graph, self._decodes)
        bases = list(dict.fromkeys(value for value, _ in places))
        leaves = {value.name or "": model.constant(value).detach().requires_grad_() for value in bases}
        rows: list[list[Array]] = [[] for _ in places]
        count = sum(1 for _ in self._calibration)
        generator = torch.Generator().manual_seed(0)
        for number, feeds in enumerate(self._calibration):
            self._progress(number, count, "gradients")
            with torch.enable_grad(), precision("auto"):
                made = model.run(feeds, outputs, constants=leaves)
                first = made[outputs[0]].float()
                if self._decodes:
                    targets = torch.as_tensor(np.asarray(feeds["input_ids"]))[:, 1:]
                    loss = functional.cross_entropy(first[:, :-1].flatten(0, 1), targets.flatten())
                else:
                    flat = torch.cat([made[name].float().flatten() for name in outputs])
                    loss = flat @ torch.randn(flat.numel(), generator=generator) / math.sqrt(flat.numel())
                grads = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
            found = dict(zip(leaves, grads, strict=True))
            for row, (value, axis) in zip(rows, places, strict=True):
                gradient, weight = found[value.name or ""], leaves[value.name or ""]
                others = [a for a in range(weight.dim()) if a != axis]
                row.append((gradient * weight).sum(others).detach().numpy())
        return [np.stack(row) for row in rows]

    def second_order(self, changes: Sequence[Change], noises: Sequence[Noise]) -> tuple[list[float], list[float]]:
        """What the model loses by each change and each noise alone, to second order.

        For a language model the divergence of next-token distributions, ``dᵀ F d / 2``: the Fisher information F is the
        mean of ``g gᵀ``, g the gradient of the log-likelihood of tokens drawn from the model itself (Martens 2020,
        section 5). For others the relative squared error of the first output, ``|J d|² / |y|²``, whose mean square of
        ``vᵀ J d`` over random directions v it is (Hutchinson). Channels of a change, and numbers of a noise, count one
        by one: where their errors are independent the mean is the same, and takes few samples.

        Raises:
            UnsupportedError: an operator has no rule in the reference backend, or no output has derivatives.
        """
        outputs = trained_outputs(self._graph, self._decodes)[:1]
        if not outputs:
            raise UnsupportedError("the model has no output of floating point numbers", where="Quantize")
        inputs = list(self._calibration)
        inputs = [inputs[at] for at in np.linspace(0, len(inputs) - 1, min(len(inputs), _SAMPLED)).astype(int)]
        generator = torch.Generator().manual_seed(0)
        model = _Tapped(self._graph, noises)
        by_value: dict[onnx_ir.Value, list[int]] = {}
        for at, change in enumerate(changes):
            by_value.setdefault(change.value, []).append(at)
        leaves = {value.name or "": model.constant(value).detach().requires_grad_() for value in by_value}
        sums = [0.0] * len(changes)

        def add(places: Sequence[int], leaf: Tensor) -> None:
            """Take the derivative by a constant, which is not kept: all together are as large as the model."""
            assert leaf.grad is not None
            for at in places:
                parts = leaf.grad.float() * torch.from_numpy(changes[at].difference())
                channels = parts.sum([axis for axis in range(parts.dim()) if axis != changes[at].axis])
                sums[at] += model.scale * float(channels.square().sum())
            leaf.grad = None

        leaf: Any  # PyTorch has no types for its hooks
        for leaf, places in zip(leaves.values(), by_value.values(), strict=True):
            leaf.register_post_accumulate_grad_hook(functools.partial(add, places))
        for number, feeds in enumerate(inputs):
            self._progress(number, len(inputs), "what errors of each layer cost")
            with torch.enable_grad(), precision("auto"):
                made = model.run(feeds, outputs, constants=leaves)[outputs[0]].float()
                drawn, model.scale = self._sampled(made, generator)
            if drawn.requires_grad:  # else no constant has a part in the first output
                torch.autograd.backward(drawn)
        return [each / len(inputs) for each in sums], [each / len(inputs) for each in model.sums]

    def _sampled(self, made: Tensor, generator: torch.Generator) -> tuple[Tensor, float]:
        """A random number whose squared derivative is what is lost, and what the square is to be multiplied by."""
        if self._decodes:
            rows = made.flatten(0, -2)
            with torch.no_grad():
                tokens = torch.multinomial(torch.softmax(rows, -1), 1, generator=generator)[:, 0]
            return functional.cross_entropy(rows, tokens, reduction="sum"), 0.5 / len(rows)
        flat = made.flatten()
        direction = torch.randn(flat.numel(), generator=generator)
        return flat @ direction / flat.detach().norm().clamp_min(1e-12), 1.0

    def _loss(self, made: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
        if self._decodes:
            log_q = torch.log_softmax(made[0].float(), -1)
            log_p = torch.log_softmax(wanted[0].float(), -1)
            return functional.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1).mean()
        parts = [(a.float() - b.float()).square().sum() / b.float().square().sum().clamp_min(1e-12)
                 for a, b in zip(made, wanted, strict=True)]  # fmt: skip
        return torch.stack(parts).mean()

    def _shuffled(self, seed: int) -> Iterator[Mapping[str, Any]]:
        """The calibration inputs over and over, each time in another order."""
        items = list(self._calibration)
        generator = np.random.default_rng(seed)
        while True:
            for at in generator.permutation(len(items)):
                yield items[at]


class _Tapped(Reference):
    """Adds up what noises cost, out of the derivatives by what their products read.

    Attributes:
        scale: what squared derivatives of the run at hand are to be multiplied by.
        sums: of each noise.
    """

    def __init__(self, graph: Graph, noises: Sequence[Noise]) -> None:
        super().__init__(graph)
        self.scale, self.sums, self._noises = 1.0, [0.0] * len(noises), noises
        self._at: dict[onnx_ir.Node, list[int]] = {}
        for at, noise in enumerate(noises):
            for node in noise.nodes:
                self._at.setdefault(node, []).append(at)

    def _node(self, node: onnx_ir.Node, look_up: Any, known: dict[onnx_ir.Value, Tensor]) -> None:
        places, value = self._at.get(node), node.inputs[0] if node.inputs else None
        if places is None or value is None:
            super()._node(node, look_up, known)
            return
        read: Tensor = look_up(value)
        # A value of its own: the derivative is to be by what this product reads, not by what others read, too. PyTorch
        # has no types for its hooks.
        own: Any = read.view_as(read) if read.requires_grad else read.detach().requires_grad_()

        def add(gradient: Tensor) -> None:
            square, numbers = gradient.float().square(), read.detach().float()
            for at in places:
                self.sums[at] += self.scale * float((square * _variance(numbers, self._noises[at])).sum())

        own.register_hook(add)
        super()._node(node, lambda other: own if other is value else look_up(other), known)


def _variance(read: Tensor, noise: Noise) -> Tensor:
    """Of the error of each number: a twelfth of its squared step."""
    if noise.step is not None:
        return torch.tensor(noise.step**2 / 12)
    if not noise.block:
        step = (read.amax(-1, keepdim=True).clamp_min(0) - read.amin(-1, keepdim=True).clamp_max(0)) / 255
    else:
        width = read.shape[-1]
        padded = functional.pad(read.abs(), (0, -width % noise.block))
        step = padded.reshape(*padded.shape[:-1], -1, noise.block).amax(-1) / 127
        step = step.repeat_interleave(noise.block, -1)[..., :width]
    return step.square() / 12


class _Trained:
    """A constant that learns: itself, or a product of two thin matrices beside it."""

    def __init__(self, start: Tensor, masked: bool, rank: int, seed: int) -> None:
        self._mask = (start != 0) if masked else None
        self._base: Tensor | None = None
        if rank and start.dim() == 2 and rank < min(start.shape):
            generator = torch.Generator().manual_seed(seed)
            self._base = start
            down = torch.randn(start.shape[0], rank, generator=generator) / math.sqrt(rank)
            self.parameters = [down.requires_grad_(), torch.zeros(rank, start.shape[1]).requires_grad_()]
        else:
            self.parameters = [start.clone().requires_grad_()]

    def value(self) -> Tensor:
        """The constant as it is now."""
        found = self.parameters[0] if self._base is None else self._base + self.parameters[0] @ self.parameters[1]
        return found if self._mask is None else found * self._mask


def trained_outputs(graph: Graph, decodes: bool) -> list[str]:
    """Names of the outputs that count: the logits of a language model, else all of floating point."""
    names = [v.name or "" for v in graph.graph.outputs if v.dtype is None or v.dtype.is_floating_point()]
    return names[:1] if decodes else names


def schedule(step: int, steps: int) -> float:
    """The rate of a step relative to the highest: it rises, then falls."""
    warm = max(1, round(_WARM * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def precision(wanted: str) -> contextlib.AbstractContextManager[Any]:
    """Products in bfloat16 where that is wanted, or faster."""
    fast = torch.backends.cpu.get_cpu_capability() == "AVX512" and torch.cpu._is_amx_tile_supported()
    if wanted == "bfloat16" or (wanted == "auto" and fast):
        return torch.autocast("cpu", torch.bfloat16)
    return contextlib.nullcontext()
