"""Attention under a mask: one plan a forward pass, the same numbers on every backend."""
