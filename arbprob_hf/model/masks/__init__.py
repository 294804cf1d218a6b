"""Masks: expressions over query and key indices, their text form, and what a mask argument of forward means."""

# patterns register themselves; a mask's text is read with all of them, whichever file is imported first
from . import patterns as patterns
from . import tensors as tensors
