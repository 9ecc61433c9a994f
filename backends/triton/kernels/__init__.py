"""Kernels in Triton, one file a kind."""
