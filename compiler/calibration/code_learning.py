"""Codes, scales and small float constants of a quantized graph learn the outputs of the model as it came."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir
import torch
from torch import Tensor

from ...backends.reference import Reference
from ...ir.errors import OptionError, nearest
from ...ir.graph import is_op
from ...passes.base import Coded, CodeTraining
from ..inputs import Array
from .learning import Learning, precision, schedule, trained_outputs

_JUDGED = 8
"""Calibration inputs on which the loss before and after is compared."""
_EDGE = 0.49
"""How far from its code an unrounded weight may begin, in steps: not where the next step moves it to another code."""
_TINY = 1e-16
"""What Adam divides by at least: with the usual 1e-8 the codes of a model of millions of weights would not move, since
the derivative by one of them, in steps of its code, is smaller than that."""
_ALIKE = 0.5
"""Relative squared error below which a value inside is taken for what it was in the model as it came."""
_NORMALIZATIONS = ("LayerNormalization", "RMSNormalization")
Loss = Callable[..., tuple[Tensor, list[Tensor]]]


class CodeLearning(Learning):
    """What ``Context.learn_codes`` calls, see :class:`~.learning.Learning`."""

    def learn_codes(
        self,
        coded: Sequence[Coded],
        floats: Sequence[onnx_ir.Value],
        steps: Sequence[onnx_ir.Value],
        how: CodeTraining,
    ) -> tuple[list[tuple[Array, Array]], dict[onnx_ir.Value, Array], tuple[float, float]]:
        """Train; codes and scales of each weight, the other constants, and the loss before and after.

        If the loss after is not below that before, everything comes back as it was.
        """
        assert self._original is not None
        student, teacher = Reference(self._graph), Reference(self._original)
        weights = [_Latent(one) for one in coded]
        biases = [student.constant(value).clone().requires_grad_() for value in floats]
        ranges = [student.constant(value) for value in steps]
        stretches = [torch.zeros_like(scale).requires_grad_() for scale in ranges]
        names = [one.value.name or "" for one in coded]
        step_names = [value.name or "" for value in steps]
        float_names = [value.name or "" for value in floats]
        optimizer = torch.optim.Adam(
            [
                {"params": [w.latent for w in weights], "most": how.rate},
                {"params": [w.stretch for w in weights] + stretches, "most": how.rate * how.scale_rate},
                {"params": biases, "most": how.rate * how.float_rate},
            ],
            betas=(0.9, 0.99),
            eps=_TINY,
            fused=True,
        )
        outputs, theirs = self._outputs(how.outputs)

        def loss(feeds: Mapping[str, Any], inside: Sequence[str] = ()) -> tuple[Tensor, list[Tensor]]:
            """Of the outputs, and of each of some values that both graphs have."""
            given = {name: weight.value() for name, weight in zip(names, weights, strict=True)}
            scales = (scale * (1 + stretch) for scale, stretch in zip(ranges, stretches, strict=True))
            constants = dict(zip((*float_names, *step_names), (*biases, *scales), strict=True))
            with torch.no_grad(), precision(how.precision):
                wanted = teacher.run(feeds, [*theirs, *inside])
            with precision(how.precision):
                made = student.run(feeds, [*outputs, *inside], constants=constants, given=given)
            each = [_relative(made[name], wanted[name]) for name in inside]
            pairs = [(made[mine], wanted[other]) for mine, other in zip(outputs, theirs, strict=True)]
            total = self._loss([a for a, _ in pairs], [b for _, b in pairs])
            means = [_relative(a.mean(1), b.mean(1)) for a, b in pairs if a.dim() == 3 and not self._decodes]
            if means and how.pooled:
                total = total + how.pooled * torch.stack(means).mean()
            return total, each

        before = self._judge(loss)
        inside = self._alike(loss, teacher) if how.hidden else []
        with torch.enable_grad():
            stream = self._shuffled(how.seed)
            for step in range(how.steps):
                self._progress(step, how.steps, "learning codes")
                for group in optimizer.param_groups:
                    group["lr"] = group["most"] * schedule(step, how.steps)
                for _ in range(how.batch):
                    total, each = loss(next(stream), inside)
                    if each:
                        total = total + how.hidden * torch.stack(each).mean()
                    (total / how.batch).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
        after = self._judge(loss)
        if not after < before:
            return [(one.codes, one.scales) for one in coded], {}, (before, after)
        found = {value: bias.detach().numpy() for value, bias in zip(floats, biases, strict=True)}
        for value, scale, stretch in zip(steps, ranges, stretches, strict=True):
            found[value] = (scale * (1 + stretch)).detach().numpy()
        return [weight.result() for weight in weights], found, (before, after)

    def _outputs(self, chosen: Sequence[str]) -> tuple[list[str], list[str]]:
        """Names of the outputs that count, in this graph and in the model as it came.

        Raises:
            OptionError: a chosen one is not there.
        """
        assert self._original is not None
        mine = [v.name or "" for v in self._graph.graph.outputs]
        theirs = dict(zip(mine, [v.name or "" for v in self._original.graph.outputs], strict=False))
        for name in chosen:
            if name not in theirs:
                raise OptionError(f"the model has no output {name!r}", where="LearnCodes", fix=nearest(name, mine))
        names = list(chosen) or trained_outputs(self._graph, self._decodes)
        return names, [theirs[name] for name in names]

    @torch.no_grad()
    def _judge(self, loss: Loss) -> float:
        """Mean loss of the outputs on some calibration inputs."""
        items = list(self._calibration)
        chosen = np.unique(np.linspace(0, len(items) - 1, _JUDGED).astype(int))
        return float(np.mean([float(loss(items[at])[0]) for at in chosen]))

    @torch.no_grad()
    def _alike(self, loss: Loss, teacher: Reference) -> list[str]:
        """Results of normalizations that are there in the model as it came, and are still what they were.

        Passes that rotate or scale what flows between layers keep the names: whether a value still means the same is
        seen on a calibration input.
        """
        before = {v.name for node in teacher.graph.graph if is_op(node, *_NORMALIZATIONS) for v in node.outputs[:1]}
        after = [v.name or "" for node in self._graph.graph if is_op(node, *_NORMALIZATIONS) for v in node.outputs[:1]]
        names = [name for name in after if name in before]
        _, errors = loss(next(iter(self._calibration)), names)
        return [name for name, error in zip(names, errors, strict=True) if error < _ALIKE]


def _relative(made: Tensor, wanted: Tensor) -> Tensor:
    """Squared error relative to the square of what is wanted."""
    wanted = wanted.float()
    return (made.float() - wanted).square().sum() / wanted.square().sum().clamp_min(1e-12)


class _Latent:
    """A quantized weight whose codes can move: ``scales (round(latent) - zero points)`` within the range of codes.

    Latent weights are kept in groups, the last one filled up: axis ``a`` of the weight is ``a`` and ``a + 1`` of them.
    """

    def __init__(self, coded: Coded) -> None:
        self._axis, self._size = coded.axis, coded.codes.shape[coded.axis]
        self._block, self._groups = coded.block, coded.scales.shape[coded.axis]
        self._scales = torch.from_numpy(np.expand_dims(np.array(coded.scales, np.float32), coded.axis + 1))
        self._zeros = torch.from_numpy(np.expand_dims(np.array(coded.zero_points, np.float32), coded.axis + 1))
        self._top = coded.levels - 1
        steps = self._grouped(np.array(coded.codes, np.float32)) - self._zeros
        away = self._grouped(np.array(coded.original, np.float32)) / self._scales - steps
        # A weight that was moved to another code on purpose, to make up for others, begins inside: were all of them
        # at the edge, the first steps would take them back at once.
        inside = torch.where(away.abs() <= 0.5, away.abs(), (1 - away.abs()).clamp_min(0)).clamp_max(_EDGE)
        self.latent = (steps + torch.sign(away) * inside).requires_grad_()
        self.stretch = torch.zeros_like(self._scales).requires_grad_()

    def value(self) -> Tensor:
        """The weight as it is now; rounding counts as the identity in its derivative."""
        scales = self._scales * (1 + self.stretch)
        found: Tensor = _Rounded.apply(self.latent, scales, -self._zeros, self._top - self._zeros)  # type: ignore[no-untyped-call]
        return found.flatten(self._axis, self._axis + 1).narrow(self._axis, 0, self._size)

    def result(self) -> tuple[Array, Array]:
        """Codes as uint8, and scales."""
        with torch.no_grad():
            codes = torch.clamp(torch.round(self.latent) + self._zeros, 0, self._top).to(torch.uint8)
            codes = codes.flatten(self._axis, self._axis + 1).narrow(self._axis, 0, self._size)
            scales = self._scales * (1 + self.stretch)
            return np.ascontiguousarray(codes.numpy()), scales.squeeze(self._axis + 1).numpy()

    def _grouped(self, array: Array) -> Tensor:
        short = self._groups * self._block - self._size
        pads = [(0, short if axis == self._axis else 0) for axis in range(array.ndim)]
        padded = np.pad(array, pads)
        shape = (*padded.shape[: self._axis], self._groups, self._block, *padded.shape[self._axis + 1 :])
        return torch.from_numpy(padded.reshape(shape))


class _Rounded(torch.autograd.Function):
    """``s clamp(round(u), low, high)``; du passes where nothing is clamped (Bengio et al. 2013), ds is exact."""

    @staticmethod
    def forward(ctx: Any, latent: Tensor, scales: Tensor, low: Tensor, high: Tensor) -> Tensor:
        ctx.save_for_backward(latent, scales, low, high)
        return torch.round(latent).clamp_(low, high).mul_(scales)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        latent, scales, low, high = ctx.saved_tensors
        # Computed anew, since the weights of a model would have to be held a second time.
        rounded = torch.round(latent)
        inside = (rounded >= low).logical_and_(rounded <= high)
        steps = rounded.clamp_(low, high)
        shared = [axis for axis, size in enumerate(scales.shape) if size != latent.shape[axis]]
        along = (steps.mul_(gradient)).sum(shared, keepdim=True) if shared else steps.mul_(gradient)
        return (gradient * scales).mul_(inside), along, None, None
