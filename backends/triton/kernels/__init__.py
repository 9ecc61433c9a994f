"""Kernels in Triton, one file a product."""
