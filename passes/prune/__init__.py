"""Structures that a model can lose: channels, heads, layers, found by data flow and removed, so that shapes shrink."""
