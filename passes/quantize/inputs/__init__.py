"""Quantizing what products read: token by token, or in ranges that were fixed before."""
