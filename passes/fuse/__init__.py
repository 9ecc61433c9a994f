"""Fewer operators to dispatch."""
