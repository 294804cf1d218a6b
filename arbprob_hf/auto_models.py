"""The network's classes, entered into the tables of transformers' Auto classes when this module is imported."""

from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from .model.classifiers import (
    ArbProbForQuestionAnswering,
    ArbProbForSequenceClassification,
    ArbProbForTokenClassification,
)
from .model.configuration_arbprob import ArbProbConfig
from .model.modeling_arbprob import ArbProbForCausalLM, ArbProbModel

__all__ = [
    "ArbProbConfig",
    "ArbProbForCausalLM",
    "ArbProbForQuestionAnswering",
    "ArbProbForSequenceClassification",
    "ArbProbForTokenClassification",
    "ArbProbModel",
]

# the public names come from here, so that whoever has a configuration or a network has them in the tables too
AutoModel.register(ArbProbConfig, ArbProbModel)
AutoModelForCausalLM.register(ArbProbConfig, ArbProbForCausalLM)
AutoModelForQuestionAnswering.register(ArbProbConfig, ArbProbForQuestionAnswering)
AutoModelForSequenceClassification.register(ArbProbConfig, ArbProbForSequenceClassification)
AutoModelForTokenClassification.register(ArbProbConfig, ArbProbForTokenClassification)
