"""Names of passes. A pass is imported when its name is looked up, not before."""

from __future__ import annotations

import importlib
from dataclasses import dataclass

from ..ir.errors import OptionError, nearest
from .base import Pass


@dataclass(frozen=True)
class Entry:
    """Where a pass lives: its module inside ``burnish.passes`` and the name of its class."""

    module: str
    name: str

    def load(self) -> type[Pass]:
        """Import the class."""
        loaded: type[Pass] = getattr(importlib.import_module(self.module, __package__), self.name)
        return loaded


PASSES: dict[str, Entry] = {
    "canonicalize": Entry(".canonicalize.canonicalize", "Canonicalize"),
    "recover": Entry(".recover.recover", "Recover"),
    "simplify_algebra": Entry(".algebra.simplify", "SimplifyAlgebra"),
    "drop_layers": Entry(".prune.layers", "DropLayers"),
    "slice_hidden": Entry(".prune.slice_hidden", "SliceHidden"),
    "prune_experts": Entry(".prune.experts", "PruneExperts"),
    "prune_tokens": Entry(".prune.tokens", "PruneTokens"),
    "prune_structures": Entry(".prune.structures", "PruneStructures"),
    "distill": Entry(".distill.distill", "Distill"),
    "rotate": Entry(".rotate.rotate", "Rotate"),
    "smoothquant": Entry(".smooth.smoothquant", "SmoothQuant"),
    "equalize_log": Entry(".smooth.equalize", "EqualizeLog"),
    "suppress_outliers": Entry(".smooth.suppress", "SuppressOutliers"),
    "scale_salient_channels": Entry(".smooth.salient", "ScaleSalientChannels"),
    "prune": Entry(".sparsify.prune", "Prune"),
    "compact_zeros": Entry(".sparsify.compact", "CompactZeros"),
    "quantize": Entry(".quantize.weights", "Quantize"),
    "learn_codes": Entry(".quantize.learn_codes", "LearnCodes"),
    "compensate_low_rank": Entry(".quantize.compensate", "CompensateLowRank"),
    "sparse_attention": Entry(".attention.sparse", "SparseAttention"),
    "linearize_attention": Entry(".attention.linear", "LinearizeAttention"),
    "quantize_cache": Entry(".attention.quantize_cache", "QuantizeCache"),
    "merge_products": Entry(".fuse.merge_products", "MergeProducts"),
    "choose_kernels": Entry(".fuse.choose_kernels", "ChooseKernels"),
    "fuse": Entry(".fuse.fuse", "Fuse"),
}
"""Every pass by the name it has in a specification, in the order they run."""


def pass_class(name: str) -> type[Pass]:
    """The class of a pass.

    Raises:
        OptionError: there is no such pass.
    """
    try:
        return PASSES[name].load()
    except KeyError:
        from .presets import PRESETS

        known = [*PASSES, *PRESETS]
        raise OptionError(f"there is no pass or preset {name!r}", fix=nearest(name, known)) from None


def pass_name(kind: type[Pass]) -> str:
    """The name of a pass in a specification; the class's own name for a pass that is not registered."""
    for name, entry in PASSES.items():
        if kind.__name__ == entry.name and kind.__module__ == f"{__package__}{entry.module}":
            return name
    return kind.__name__
