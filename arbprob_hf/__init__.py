"""Language models under arbitrary attention masks: the public names."""

from .model.configuration_arbprob import ArbProbConfig
from .model.leaking_arbprob import certify, check_leakage
from .model.masking_arbprob import Mask
from .model.modeling_arbprob import ArbProbForCausalLM, ArbProbModel
from .model.patterns_arbprob import causal, full, heads, prefix, window
from .model.tables_arbprob import HIDDEN, documents, order, padding

__version__ = "0.1.0"

__all__ = [
    "HIDDEN",
    "ArbProbConfig",
    "ArbProbForCausalLM",
    "ArbProbModel",
    "Mask",
    "causal",
    "certify",
    "check_leakage",
    "documents",
    "full",
    "heads",
    "order",
    "padding",
    "prefix",
    "window",
]
