"""transformers' Auto classes know the imported package; where it is trusted, a checkpoint's own code goes first."""

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, pipeline
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import arbprob_hf
from arbprob_hf.lazy import after_import
from tests.clients.micro import tokens
from tests.networks import far

HEADS = {
    "AutoModel": "ArbProbModel",
    "AutoModelForCausalLM": "ArbProbForCausalLM",
    "AutoModelForQuestionAnswering": "ArbProbForQuestionAnswering",
    "AutoModelForSequenceClassification": "ArbProbForSequenceClassification",
    "AutoModelForTokenClassification": "ArbProbForTokenClassification",
}


@pytest.fixture(autouse=True)
def _nobody_to_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    # transformers asks on the terminal whether code may run
    def ask(question: str = "") -> str:
        raise AssertionError(question)

    monkeypatch.setattr("builtins.input", ask)


@pytest.mark.parametrize("name", HEADS)
def test_every_auto_class_takes_the_packages_class(name: str, folders: dict[str, Path]) -> None:
    auto_class = getattr(transformers, name)
    ours = getattr(arbprob_hf, HEADS[name])
    assert type(auto_class.from_pretrained(folders["ours"])) is ours
    assert type(auto_class.from_config(arbprob_hf.ArbProbConfig.from_pretrained(folders["ours"]))) is ours


def test_every_class_that_a_checkpoint_names_is_in_the_table() -> None:
    named = {name: reference.split(".")[1] for name, reference in arbprob_hf.ArbProbConfig().auto_map.items()}
    assert named == {"AutoConfig": "ArbProbConfig", **HEADS}


def test_configuration_and_tokenizer_ask_for_no_trust(folders: dict[str, Path]) -> None:
    assert type(AutoConfig.from_pretrained(folders["ours"])) is arbprob_hf.ArbProbConfig
    assert type(AutoConfig.for_model("arbprob", n_layer=3)) is arbprob_hf.ArbProbConfig
    assert AutoTokenizer.from_pretrained(folders["ours"])("abc").input_ids


def test_a_pipeline_asks_for_no_trust(folders: dict[str, Path]) -> None:
    asked = pipeline("text-generation", model=str(folders["windowed"]))
    assert type(asked.model) is arbprob_hf.ArbProbForCausalLM
    assert asked("who sees", max_new_tokens=3, do_sample=False)[0]["generated_text"].startswith("who sees")


@torch.no_grad()
def test_with_trust_the_checkpoints_own_code_is_taken_before_and_after(folders: dict[str, Path]) -> None:
    def load(*, trusted: bool) -> Any:
        return AutoModelForCausalLM.from_pretrained(folders["ours"], trust_remote_code=trusted or None).eval()

    models = [load(trusted=trusted) for trusted in (False, True, False, True)]
    homes = [type(one).__module__.split(".")[0] for one in models]
    assert homes == ["arbprob_hf", "transformers_modules"] * 2
    assert [type(one.config).__module__.split(".")[0] for one in models] == homes
    assert far(models[0](tokens()).logits, models[1](tokens()).logits) == 0


def test_the_table_of_configurations_can_be_pickled() -> None:
    again = pickle.loads(pickle.dumps(CONFIG_MAPPING))
    assert type(again["arbprob"](n_layer=2)) is arbprob_hf.ArbProbConfig


def test_an_action_follows_the_first_import_of_its_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "waited_for.py").write_text("value = 1\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    seen = []
    finders = list(sys.meta_path)
    after_import("waited_for", lambda: seen.append(sys.modules["waited_for"].value))
    # who only looks whether it is there changes nothing
    assert transformers.utils.import_utils.importlib.util.find_spec("waited_for") is not None
    assert seen == []
    import waited_for  # type: ignore[import-not-found]

    assert seen == [1]
    assert sys.meta_path == finders
    after_import("waited_for", lambda: seen.append(waited_for.value + 1))
    assert seen == [1, 2]


ORDERS = {
    "package first": "import arbprob_hf\nfrom transformers import AutoModelForCausalLM",
    "package last": "from transformers import AutoModelForCausalLM\nimport arbprob_hf",
    "between": "import transformers\nimport arbprob_hf\nfrom transformers import AutoModelForCausalLM",
    "the network first": "from arbprob_hf import ArbProbForCausalLM\nfrom transformers import AutoModelForCausalLM",
    "a module of it": "import arbprob_hf.model.classifiers\nfrom transformers import AutoModelForCausalLM",
}


@pytest.mark.long
@pytest.mark.parametrize("imports", ORDERS.values(), ids=ORDERS)
def test_the_order_of_imports_is_of_no_matter(imports: str, folders: dict[str, Path]) -> None:
    code = f"{imports}\nprint(type(AutoModelForCausalLM.from_pretrained({str(folders['ours'])!r})))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert ran.returncode == 0, ran.stderr
    assert "'arbprob_hf.model.modeling_arbprob.ArbProbForCausalLM'" in ran.stdout
