"""The network with a head that labels texts or tokens, or that finds the tokens where an answer begins and ends."""

from torch import Tensor, nn
from transformers.modeling_layers import (
    GenericForQuestionAnswering,
    GenericForSequenceClassification,
    GenericForTokenClassification,
)

from .configuration_arbprob import ArbProbConfig
from .modeling_arbprob import ArbProbModel, ArbProbPreTrainedModel


class ArbProbForSequenceClassification(GenericForSequenceClassification, ArbProbPreTrainedModel):
    """Labels of texts (B, `config.num_labels`), read off the last token that is not `config.pad_token_id`.

    Takes every argument of the network's forward, and `labels`: long (B,) for one label a text, float (B, num_labels)
    for several. Weights are named as in GPT2ForSequenceClassification.
    """

    base_model_prefix = "transformer"
    _label_weight = "score.weight"
    # the head leaves num_items_in_batch aside: the trainer has to divide what it accumulates
    accepts_loss_kwargs = False

    def __init__(self, config: ArbProbConfig) -> None:
        # past the generic head's own, which looks the network up and asks before it runs downloaded code
        ArbProbPreTrainedModel.__init__(self, config)
        # transformers reads it off the name of the class, which a derived one may not have
        self.loss_type = "ForSequenceClassification"
        self.num_labels = config.num_labels
        self.transformer = ArbProbModel(config)
        self.score = nn.Linear(config.n_embd, self.num_labels, bias=False)
        self.post_init()


class ArbProbForTokenClassification(GenericForTokenClassification, ArbProbPreTrainedModel):
    """Labels of tokens (B, T, `config.num_labels`).

    Takes every argument of the network's forward, and `labels`: long (B, T), -100 where nothing is scored. Weights are
    named as in GPT2ForTokenClassification; `classifier_dropout` of the configuration is 0.1 unless given.
    """

    base_model_prefix = "transformer"
    _label_weight = "classifier.weight"
    accepts_loss_kwargs = False

    def __init__(self, config: ArbProbConfig) -> None:
        ArbProbPreTrainedModel.__init__(self, config)
        self.loss_type = "ForTokenClassification"
        self.num_labels = config.num_labels
        self.transformer = ArbProbModel(config)
        dropout = getattr(config, "classifier_dropout", None)
        self.dropout = nn.Dropout(0.1 if dropout is None else dropout)
        self.classifier = nn.Linear(config.n_embd, self.num_labels)
        self.post_init()

    def score(self, hidden_states: Tensor) -> Tensor:  # type: ignore[override]
        """Logits of states (B, T, D), by the name under which transformers' forward looks for them."""
        return self.classifier(hidden_states)


class ArbProbForQuestionAnswering(GenericForQuestionAnswering, ArbProbPreTrainedModel):
    """Where in a text an answer begins and ends: two scores of every token, `start_logits` and `end_logits` (B, T).

    Takes every argument of the network's forward, and `start_positions` and `end_positions`: long (B,). Weights are
    named as in GPT2ForQuestionAnswering.
    """

    base_model_prefix = "transformer"
    accepts_loss_kwargs = False

    def __init__(self, config: ArbProbConfig) -> None:
        ArbProbPreTrainedModel.__init__(self, config)
        self.loss_type = "ForQuestionAnswering"
        self.transformer = ArbProbModel(config)
        self.qa_outputs = nn.Linear(config.n_embd, 2)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The token embedding, which the generic head looks for under another name."""
        return self.transformer.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.transformer.set_input_embeddings(value)
