"""Comparison of trained models on the same questions."""
