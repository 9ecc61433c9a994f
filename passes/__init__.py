"""Passes: rewrites of the graph. The names are loaded on first use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .algebra.simplify import SimplifyAlgebra as SimplifyAlgebra
    from .attention.linear import LinearizeAttention as LinearizeAttention
    from .attention.quantize_cache import QuantizeCache as QuantizeCache
    from .attention.sparse import SparseAttention as SparseAttention
    from .base import Context as Context
    from .base import Outcome as Outcome
    from .base import Pass as Pass
    from .base import Stage as Stage
    from .canonicalize.canonicalize import Canonicalize as Canonicalize
    from .distill.distill import Distill as Distill
    from .fuse.choose_kernels import ChooseKernels as ChooseKernels
    from .fuse.fuse import Fuse as Fuse
    from .fuse.merge_products import MergeProducts as MergeProducts
    from .prune.experts import PruneExperts as PruneExperts
    from .prune.layers import DropLayers as DropLayers
    from .prune.slice_hidden import SliceHidden as SliceHidden
    from .prune.structures import PruneStructures as PruneStructures
    from .prune.tokens import PruneTokens as PruneTokens
    from .quantize.compensate import CompensateLowRank as CompensateLowRank
    from .quantize.learn_codes import LearnCodes as LearnCodes
    from .quantize.weights import Quantize as Quantize
    from .recover.recover import Recover as Recover
    from .rotate.rotate import Rotate as Rotate
    from .smooth.equalize import EqualizeLog as EqualizeLog
    from .smooth.salient import ScaleSalientChannels as ScaleSalientChannels
    from .smooth.smoothquant import SmoothQuant as SmoothQuant
    from .smooth.suppress import SuppressOutliers as SuppressOutliers
    from .sparsify.compact import CompactZeros as CompactZeros
    from .sparsify.prune import Prune as Prune

_HOME = {
    "Canonicalize": ".canonicalize.canonicalize",
    "ChooseKernels": ".fuse.choose_kernels",
    "CompactZeros": ".sparsify.compact",
    "CompensateLowRank": ".quantize.compensate",
    "Context": ".base",
    "Distill": ".distill.distill",
    "DropLayers": ".prune.layers",
    "EqualizeLog": ".smooth.equalize",
    "Fuse": ".fuse.fuse",
    "LearnCodes": ".quantize.learn_codes",
    "LinearizeAttention": ".attention.linear",
    "MergeProducts": ".fuse.merge_products",
    "Outcome": ".base",
    "Pass": ".base",
    "Prune": ".sparsify.prune",
    "PruneExperts": ".prune.experts",
    "PruneTokens": ".prune.tokens",
    "PruneStructures": ".prune.structures",
    "Quantize": ".quantize.weights",
    "QuantizeCache": ".attention.quantize_cache",
    "Recover": ".recover.recover",
    "Rotate": ".rotate.rotate",
    "ScaleSalientChannels": ".smooth.salient",
    "SimplifyAlgebra": ".algebra.simplify",
    "SliceHidden": ".prune.slice_hidden",
    "SmoothQuant": ".smooth.smoothquant",
    "SparseAttention": ".attention.sparse",
    "Stage": ".base",
    "SuppressOutliers": ".smooth.suppress",
}

__all__ = [
    "Canonicalize",
    "ChooseKernels",
    "CompactZeros",
    "CompensateLowRank",
    "Context",
    "Distill",
    "DropLayers",
    "EqualizeLog",
    "Fuse",
    "LearnCodes",
    "LinearizeAttention",
    "MergeProducts",
    "Outcome",
    "Pass",
    "Prune",
    "PruneExperts",
    "PruneStructures",
    "PruneTokens",
    "Quantize",
    "QuantizeCache",
    "Recover",
    "Rotate",
    "ScaleSalientChannels",
    "SimplifyAlgebra",
    "SliceHidden",
    "SmoothQuant",
    "SparseAttention",
    "Stage",
    "SuppressOutliers",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name], __name__), name)
    raise AttributeError(f"module 'burnish.passes' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
