"""What transformers' mixins import that its source distribution leaves out, in our own words."""

import sys
from types import ModuleType

CONFIG_FIELDS = {
    "return_dict": False,
    "output_hidden_states": True,
    "output_attentions": True,
    "dtype": "float16",
    "chunk_size_feed_forward": 5,
    "architectures": ["BertModel"],
    "id2label": {0: "label"},
    "label2id": {"label": "0"},
    "problem_type": "regression",
}


class GenerationTesterMixin:
    """In place of transformers' tests of generation, which are not distributed; ours are in tests/model."""


class ExportTesterMixin:
    """In place of transformers' tests of exports, which are not distributed; ours are in tests/clients."""


def provide(package: str) -> None:
    """Make the modules importable below `package`."""
    _add(f"{package}.generation")
    _add(f"{package}.generation.test_utils", GenerationTesterMixin=GenerationTesterMixin)
    _add(f"{package}.exporters")
    _add(f"{package}.exporters.test_export", ExportTesterMixin=ExportTesterMixin)
    _add(f"{package}.utils")
    _add(f"{package}.utils.test_configuration_utils", config_common_kwargs=CONFIG_FIELDS)


def _add(name: str, **contents: object) -> None:
    module = ModuleType(name)
    vars(module).update(contents)
    sys.modules[name] = module
