"""Language models under arbitrary attention masks: the public names."""

from .analysis.audit.audit import audit
from .analysis.leakage import certify, check_leakage
from .model.configuration_arbprob import ArbProbConfig
from .model.masks.custom import pattern
from .model.masks.mask import Mask
from .model.masks.patterns import block_diffusion, blocks, causal, dilated, full, heads, prefix, sinks, strided, window
from .model.masks.tensors import HIDDEN, documents, order, padding, tree
from .model.modeling_arbprob import (
    ArbProbForCausalLM,
    ArbProbForSequenceClassification,
    ArbProbForTokenClassification,
    ArbProbModel,
)
from .model.questions.conditional import Conditional
from .model.questions.mixin import score_text
from .plotting import plot_attention, plot_conditionals, plot_curves, plot_mask

__version__ = "0.1.0"

__all__ = [
    "HIDDEN",
    "ArbProbConfig",
    "ArbProbForCausalLM",
    "ArbProbForSequenceClassification",
    "ArbProbForTokenClassification",
    "ArbProbModel",
    "Conditional",
    "Mask",
    "audit",
    "block_diffusion",
    "blocks",
    "causal",
    "certify",
    "check_leakage",
    "dilated",
    "documents",
    "full",
    "heads",
    "order",
    "padding",
    "pattern",
    "plot_attention",
    "plot_conditionals",
    "plot_curves",
    "plot_mask",
    "prefix",
    "score_text",
    "sinks",
    "strided",
    "tree",
    "window",
]
