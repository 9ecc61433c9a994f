"""A mark for products whose weights carry so much that they are never rounded to fewer than 8 bits."""

PRECISE = "burnish.precise"
"""Metadata of a node: why it is so."""
