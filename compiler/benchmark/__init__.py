"""Measures models side by side, a process each: ``burnish benchmark`` and ``CompiledModel.benchmark``."""

from .result import Result, Scenario, Side, Timing, decode, prefill
from .runner import benchmark

__all__ = ["Result", "Scenario", "Side", "Timing", "benchmark", "decode", "prefill"]
