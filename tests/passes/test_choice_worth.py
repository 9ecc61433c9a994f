"""What the model loses for errors of layers: trials of kinds say how much, derivatives where."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir
import pytest
from burnish.passes.base import Change, Context, Noise, Outcome
from burnish.passes.quantize.choice.sensitivity import Loss, Losses
from burnish.passes.quantize.choice.worth import measure
from burnish.passes.quantize.scheme import NAMED, Scheme
from burnish.passes.quantize.targets import find

GROUPS = replace(NAMED["w4a16"], group_size=32)
Losing = Callable[[float], tuple[list[float], list[float]]]


@pytest.fixture
def losing(parse: Callable[..., onnx_ir.Model], calibrated: Callable[..., Context]) -> Losing:
    """What is expected of two layers of a kind in groups, and of their inputs alone, where a trial loses so much.

    By derivatives their weights are worth 1 and 3, and their inputs 0.1 and 0.3.
    """
    text = "g (float[n, 64] x) => (float[n, 64] y) {h = MatMul(x, a) r = Relu(h) y = MatMul(r, b)}"

    def build(lost: float) -> tuple[list[float], list[float]]:
        graph = parse(text, a=(64, 64), b=(64, 64))
        x = np.random.default_rng(0).standard_normal((256, 64)).astype(np.float32)

        def second_order(changes: Sequence[Change], noises: Sequence[Noise]) -> tuple[list[float], list[float]]:
            first = changes[0].value
            return [1.0, 3.0], [0.1 if first in noise.nodes[0].inputs else 0.3 for noise in noises]

        def trial(schemes: Mapping[int, Scheme], _: object) -> float:
            assert len(schemes) == 2
            return lost

        context = replace(calibrated(graph, {"x": x}), second_order=second_order)
        weights = find(graph).weights
        errors = Losses(weights, context, None)
        worth = measure(weights, lambda _: GROUPS, None, [GROUPS], errors, trial, context, Outcome())
        whole = [worth.loss(weight, GROUPS, errors.of(weight, GROUPS)) for weight in weights]
        return whole, [worth.loss(weight, GROUPS, Loss(0.0, 0.0, 0.0)) for weight in weights]

    return build


def test_what_a_trial_loses_more_is_by_the_weights(losing: Losing) -> None:
    """Rounded inputs are independent noise: that the whole loses twice as much does not make them worth more."""
    whole, inputs = losing(8.4)
    assert whole == pytest.approx([2 * 1.0 + 0.1, 2 * 3.0 + 0.3])
    assert inputs == pytest.approx([0.1, 0.3])


def test_what_a_trial_loses_less_is_by_both(losing: Losing) -> None:
    whole, inputs = losing(2.2)
    assert whole == pytest.approx([0.5 * 1.1, 0.5 * 3.3])
    assert inputs == pytest.approx([0.05, 0.15])


def test_a_trial_that_loses_less_than_the_inputs_alone_leaves_no_negative_worth(losing: Losing) -> None:
    whole, inputs = losing(0.2)
    assert sum(whole) == pytest.approx(0.2) and min(*whole, *inputs) > 0
