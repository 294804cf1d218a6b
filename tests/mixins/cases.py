"""The mixins on one family of classes, our own or stock GPT-2's; run by run.py, which says where the mixins lie."""

import os
import unittest
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.models.auto import modeling_auto as auto

import arbprob_hf
from arbprob_hf import ArbProbConfig, ArbProbForCausalLM, ArbProbModel
from arbprob_hf.model.classifiers import (
    ArbProbForQuestionAnswering,
    ArbProbForSequenceClassification,
    ArbProbForTokenClassification,
)
from tests.mixins import pipelines, stand_ins
from tests.mixins.source import add_package

PACKAGE = "transformers_tests"
OURS = {
    "config": ArbProbConfig,
    "base": ArbProbModel,
    "causal_lm": ArbProbForCausalLM,
    "question_answering": ArbProbForQuestionAnswering,
    "sequence_classification": ArbProbForSequenceClassification,
    "token_classification": ArbProbForTokenClassification,
}
STOCK = {
    "config": transformers.GPT2Config,
    "base": transformers.GPT2Model,
    "causal_lm": transformers.GPT2LMHeadModel,
    "question_answering": transformers.GPT2ForQuestionAnswering,
    "sequence_classification": transformers.GPT2ForSequenceClassification,
    "token_classification": transformers.GPT2ForTokenClassification,
}
FAMILY: dict[str, Any] = OURS if os.environ["MIXINS_FAMILY"] == "ours" else STOCK
MODELS = [FAMILY[name] for name in FAMILY if name != "config"]

add_package(PACKAGE, Path(os.environ["MIXINS_FOLDER"]))
stand_ins.provide(PACKAGE)

# the mixins choose labels and tests by class names of these tables, which hold transformers' own classes alone
_TABLES = {
    "base": auto.MODEL_MAPPING_NAMES,
    "causal_lm": auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "question_answering": auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
    "sequence_classification": auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    "token_classification": auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
}
for _name, _table in _TABLES.items():
    _table[FAMILY["config"].model_type] = FAMILY[_name].__name__

from transformers_tests.test_configuration_common import ConfigTester  # noqa: E402
from transformers_tests.test_modeling_common import GenerationTesterMixin, ModelTesterMixin  # noqa: E402
from transformers_tests.test_pipeline_mixin import PipelineTesterMixin, pipeline_test_mapping  # noqa: E402
from transformers_tests.test_training_mixin import TrainingTesterMixin  # noqa: E402

_JUDGES = {
    "feature-extraction": ("base", pipelines.FeatureExtraction),
    "text-classification": ("sequence_classification", pipelines.TextClassification),
    "token-classification": ("token_classification", pipelines.TokenClassification),
    "zero-shot": ("sequence_classification", pipelines.ZeroShot),
    "text-generation": ("causal_lm", pipelines.TextGeneration),
}
for _task, (_, _judge) in _JUDGES.items():
    pipeline_test_mapping[_task]["test"] = f"{_judge.__module__}.{_judge.__name__}"


class Tester:
    """Makes the configuration and the batch that the mixins ask for."""

    base_model_class = FAMILY["base"]
    causal_lm_class = FAMILY["causal_lm"]
    sequence_classification_class = FAMILY["sequence_classification"]
    token_classification_class = FAMILY["token_classification"]
    question_answering_class = FAMILY["question_answering"]
    all_model_classes = MODELS
    batch_size, seq_length, is_training, num_labels, type_sequence_label_size = 5, 7, True, 3, 2
    vocab_size, hidden_size, num_hidden_layers, num_attention_heads = 99, 32, 2, 4
    max_position_embeddings, intermediate_size, pad_token_id = 128, 64, 0

    def get_config(self) -> Any:
        return FAMILY["config"](
            vocab_size=self.vocab_size,
            n_positions=self.max_position_embeddings,
            n_embd=self.hidden_size,
            n_layer=self.num_hidden_layers,
            n_head=self.num_attention_heads,
            n_inner=self.intermediate_size,
            num_labels=self.num_labels,
            pad_token_id=self.pad_token_id,
            bos_token_id=1,
            eos_token_id=2,
        )

    def prepare_config_and_inputs_for_common(self) -> tuple[Any, dict[str, torch.Tensor]]:
        ids = torch.randint(3, self.vocab_size, (self.batch_size, self.seq_length))
        # row b sees its first b + 1 tokens
        keep = torch.ones_like(ids).tril()
        return self.get_config(), {"input_ids": ids, "attention_mask": keep}


class Family(unittest.TestCase):
    """What every mixin finds on its test case."""

    all_model_classes = tuple(MODELS)
    pipeline_model_mapping = {task: FAMILY[name] for task, (name, _) in _JUDGES.items()}
    test_missing_keys = False
    model_split_percents = [0.5, 0.6, 0.7]

    def setUp(self) -> None:
        self.model_tester = Tester()


class TestModel(Family, ModelTesterMixin, GenerationTesterMixin):  # type: ignore[misc]
    pass


class TestPipeline(Family, PipelineTesterMixin):  # type: ignore[misc]
    pass


class TestTraining(Family, TrainingTesterMixin):  # type: ignore[misc]
    model_tester = None


class TestConfiguration(Family):
    def test_config(self) -> None:
        ConfigTester(self, config_class=FAMILY["config"]).run_common_tests()


assert arbprob_hf  # its import tells the Auto classes of ours
