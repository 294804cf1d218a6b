"""Language models under arbitrary attention masks: the public names, each imported when it is first used."""

from typing import TYPE_CHECKING

from . import auto_config
from .lazy import after_import, lazy_names
from .version import __version__ as __version__

# for type checkers and editors; at run time `import arbprob_hf` waits for neither torch nor matplotlib
if TYPE_CHECKING:
    from .analysis.audit.audit import audit
    from .analysis.leakage import certify, check_leakage
    from .auto_models import (
        ArbProbConfig,
        ArbProbForCausalLM,
        ArbProbForQuestionAnswering,
        ArbProbForSequenceClassification,
        ArbProbForTokenClassification,
        ArbProbModel,
    )
    from .model.masks.custom import pattern
    from .model.masks.mask import Mask
    from .model.masks.patterns import (
        block_diffusion,
        blocks,
        causal,
        dilated,
        full,
        heads,
        prefix,
        sinks,
        strided,
        window,
    )
    from .model.masks.tensors import HIDDEN, documents, order, padding, tree
    from .model.questions.conditional import Conditional
    from .model.questions.mixin import score_text
    from .plotting import plot_attention, plot_conditionals, plot_curves, plot_mask


__all__ = [
    "HIDDEN",
    "ArbProbConfig",
    "ArbProbForCausalLM",
    "ArbProbForQuestionAnswering",
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

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            ".analysis.audit.audit": ("audit",),
            ".analysis.leakage": ("certify", "check_leakage"),
            ".auto_models": (
                "ArbProbConfig",
                "ArbProbForCausalLM",
                "ArbProbForQuestionAnswering",
                "ArbProbForSequenceClassification",
                "ArbProbForTokenClassification",
                "ArbProbModel",
            ),
            ".model.masks.custom": ("pattern",),
            ".model.masks.mask": ("Mask",),
            ".model.masks.patterns": (
                "block_diffusion",
                "blocks",
                "causal",
                "dilated",
                "full",
                "heads",
                "prefix",
                "sinks",
                "strided",
                "window",
            ),
            ".model.masks.tensors": ("HIDDEN", "documents", "order", "padding", "tree"),
            ".model.questions.conditional": ("Conditional",),
            ".model.questions.mixin": ("score_text",),
            ".plotting": ("plot_attention", "plot_conditionals", "plot_curves", "plot_mask"),
        },
    )

after_import(auto_config.TABLE, auto_config.register)
