"""Sparse weights: which weights become zero, in which pattern, and what the others do about it."""
