"""Presets: named lists of passes, written as a specification."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Preset:
    """A named list of passes.

    Attributes:
        spec: the passes.
        summary: one sentence for the command line.
    """

    spec: str
    summary: str


PRESETS: dict[str, Preset] = {
    "default": Preset("canonicalize,recover", "Lossless: folds constants, finds fused operators."),
    "w4a16": Preset(
        "canonicalize,recover,rotate(only_calibrated=true),quantize(scheme=w4a16),merge_products",
        "Weights in 4 bits, groups of 64, activations in floating point; with data rotated and rounded by GPTQ.",
    ),
    "w8a16": Preset(
        "canonicalize,recover,quantize(scheme=w8a16),merge_products",
        "Weights in 8 bits, groups of 64, activations in floating point.",
    ),
    "w8a8": Preset(
        "canonicalize,recover,rotate(only_calibrated=true),smoothquant(only_calibrated=true),quantize(scheme=w8a8),"
        "merge_products",
        "Weights in 8 bits per channel, activations in 8 bits per token; with data smoothed and rounded by GPTQ.",
    ),
    "sparse24": Preset(
        "canonicalize,recover,prune(pattern='2:4',permute=true)",
        "Of 4 neighbouring weights 2 are zero, for kernels that use it; with data by SparseGPT. No faster on a CPU.",
    ),
    "w8a8_static": Preset(
        "canonicalize,recover,smoothquant(alpha=0.8,insert=true),quantize(scheme=w8a8_static)",
        "Like w8a8, with a scale per tensor from data, convolutions included; faster, less accurate.",
    ),
}
