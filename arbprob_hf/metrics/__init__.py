"""Metrics of answers in the form of the library evaluate, each also loadable from the path of its file."""

from .bits_per_byte import BitsPerByte
from .conditional_perplexity import ConditionalPerplexity
from .infill_match import InfillMatch
from .infill_overlap import InfillOverlap

__all__ = ["BitsPerByte", "ConditionalPerplexity", "InfillMatch", "InfillOverlap"]
