"""Language models under arbitrary attention masks: the public names."""

from .evaluation.auditing import audit
from .evaluation.leaking import certify, check_leakage
from .model.blocks_arbprob import block_diffusion, blocks
from .model.conditioning_arbprob import Conditional
from .model.configuration_arbprob import ArbProbConfig
from .model.heads_arbprob import heads
from .model.masking_arbprob import Mask
from .model.modeling_arbprob import (
    ArbProbForCausalLM,
    ArbProbForSequenceClassification,
    ArbProbForTokenClassification,
    ArbProbModel,
)
from .model.patterns_arbprob import causal, dilated, full, prefix, sinks, strided, window
from .model.querying_arbprob import score_text
from .model.registering_arbprob import pattern
from .model.tables_arbprob import HIDDEN, documents, order, padding, tree
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
