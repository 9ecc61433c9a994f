"""Figures of accuracy, as a report keeps them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Accuracy:
    """The outputs of a compiled model beside those of the model as it came, on the same inputs.

    Attributes:
        inputs: how many inputs were compared.
        held_out: whether they were given for this; else they are calibration inputs, and flatter the result.
        signal_to_noise: Σ y² / Σ (y − ŷ)² of the first output, in dB.
        cosine: mean cosine of the vectors along the last axis of the first output.
        cosine_least: the least of these.
        divergence: mean KL(p ‖ q) of next-token distributions in nats; None if the model is no decoder.
        agreement: share of positions where both have the same likeliest token; None if it is no decoder.
        perplexity: of the compiled model on the inputs; None if it is no decoder.
        perplexity_before: of the model as it came.
    """

    inputs: int
    held_out: bool
    signal_to_noise: float
    cosine: float
    cosine_least: float
    divergence: float | None = None
    agreement: float | None = None
    perplexity: float | None = None
    perplexity_before: float | None = None

    def rows(self) -> list[tuple[str, str]]:
        """Label and text of each figure."""
        where = f"on {self.inputs} {'held-out' if self.held_out else 'calibration'} inputs"
        rows = [
            ("signal to noise", f"{self.signal_to_noise:.1f} dB {where}"),
            ("cosine", f"{self.cosine:.5f} mean, {self.cosine_least:.5f} least"),
        ]
        if self.perplexity is not None and self.perplexity_before is not None:
            ratio = self.perplexity / self.perplexity_before
            rows.append(("perplexity", f"{self.perplexity_before:.3f} → {self.perplexity:.3f} ({ratio:.3f}×)"))
        if self.divergence is not None and self.agreement is not None:
            rows.append(
                ("tokens", f"divergence {self.divergence:.4f} nats, {self.agreement:.1%} likeliest tokens agree")
            )
        return rows


@dataclass(frozen=True)
class LayerError:
    """What rounding cost one layer.

    Attributes:
        layer: module path.
        bits: of a weight.
        weights: signal to noise of its weights, in dB.
        outputs: signal to noise of its outputs on the calibration inputs, in dB; None without them.
    """

    layer: str
    bits: int
    weights: float
    outputs: float | None
