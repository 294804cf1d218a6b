"""Language models under arbitrary attention masks: the public names."""

from .model.configuration_arbprob import ArbProbConfig
from .model.masking_arbprob import Mask
from .model.modeling_arbprob import ArbProbForCausalLM, ArbProbModel
from .model.patterns_arbprob import HIDDEN, causal, documents, full, order, padding, prefix, window

__version__ = "0.1.0"

__all__ = [
    "HIDDEN",
    "ArbProbConfig",
    "ArbProbForCausalLM",
    "ArbProbModel",
    "Mask",
    "causal",
    "documents",
    "full",
    "order",
    "padding",
    "prefix",
    "window",
]
