"""Masks: expressions over query and key indices, their text form, and what a mask argument of forward means."""
