"""Heads that label texts and tokens: transformers' generic ones, on a network that they need not look up."""

from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GenericForSequenceClassification, GenericForTokenClassification


class _Labels:
    # transformers' own heads build their network through AutoModel, which asks before it runs downloaded code
    base_model_prefix = "transformer"
    # these heads leave num_items_in_batch aside: the trainer has to divide what it accumulates
    accepts_loss_kwargs = False
    network: Any
    post_init: Any

    def __init__(self, config: Any) -> None:
        PreTrainedModel.__init__(self, config)  # type: ignore[arg-type]
        self.num_labels: int = config.num_labels
        self.transformer = self.network(config)


class TextLabels(_Labels, GenericForSequenceClassification):
    """Labels of texts (B, `config.num_labels`), read off the last token that is not `config.pad_token_id`.

    Takes every argument of the network's forward, and `labels`: long (B,) for one label a text, float (B, num_labels)
    for several. Weights are named as in GPT2ForSequenceClassification.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.score = nn.Linear(config.n_embd, self.num_labels, bias=False)
        self.post_init()


class TokenLabels(_Labels, GenericForTokenClassification):
    """Labels of tokens (B, T, `config.num_labels`).

    Takes every argument of the network's forward, and `labels`: long (B, T), -100 where nothing is scored. Weights are
    named as in GPT2ForTokenClassification; `classifier_dropout` of the configuration is 0.1 unless given.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        dropout = getattr(config, "classifier_dropout", None)
        self.dropout = nn.Dropout(0.1 if dropout is None else dropout)
        self.classifier = nn.Linear(config.n_embd, self.num_labels)
        self.post_init()

    def score(self, hidden_states: Tensor) -> Tensor:  # type: ignore[override]
        """Logits of states (B, T, D), by the name under which transformers' forward looks for them."""
        return self.classifier(hidden_states)
