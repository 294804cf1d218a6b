"""Tests of masks: what they mean, what is refused, and what no input may leak through."""
