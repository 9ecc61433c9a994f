"""Triton source for graphs: one kernel for a fused block, one readable file for a graph."""
