"""Smoothing passes: scales move from activations into weights, or back, and the outputs stay what they are."""

from .equalize import EqualizeLog
from .salient import ScaleSalientChannels
from .smoothquant import SmoothQuant
from .suppress import SuppressOutliers

__all__ = ["EqualizeLog", "ScaleSalientChannels", "SmoothQuant", "SuppressOutliers"]
