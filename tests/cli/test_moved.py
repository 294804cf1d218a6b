"""Modules that moved are found by their old names for one release."""

import subprocess
import sys
from importlib import import_module

import pytest

MOVED = {
    "auditing": "arbprob_hf.analysis.audit.audit",
    "consistency": "arbprob_hf.oracles.consistency",
    "leaking": "arbprob_hf.analysis.leakage",
    "learning": "arbprob_hf.oracles.train",
    "oracles": "arbprob_hf.oracles.score",
    "secrets": "arbprob_hf.analysis.question_leakage",
    "sources": "arbprob_hf.oracles.registry",
}


@pytest.mark.parametrize("old", MOVED)
def test_an_old_name_is_the_new_module_and_warns_once(old: str) -> None:
    name = f"arbprob_hf.evaluation.{old}"
    sys.modules.pop(name, None)
    with pytest.warns(FutureWarning, match=f"^{name} is now {MOVED[old]}; "):
        found = import_module(name)
    # a second warning would be an error here
    assert import_module(name) is found
    assert found is import_module(MOVED[old])
    assert found.__spec__ is not None
    assert found.__spec__.name == MOVED[old]


def test_names_that_documents_showed_are_imported_from_the_old_place() -> None:
    lines = [
        "from arbprob_hf.evaluation.consistency import chain_gap, marginalisation_gap, order_gap",
        "from arbprob_hf.evaluation import learning, oracles",
        "import arbprob_hf.evaluation.secrets",
        "arbprob_hf.evaluation.secrets.check_question",
        "import arbprob_hf",
        "arbprob_hf.evaluation.leaking.certify",
    ]
    ran = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr.count("FutureWarning: arbprob_hf.evaluation.") == 5
    # the line that imports is the one that is named
    assert "<string>:1: FutureWarning: arbprob_hf.evaluation.consistency is now arbprob_hf.oracles." in ran.stderr


def test_a_name_that_never_was_is_not_found() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"arbprob_hf\.evaluation\.nowhere"):
        import_module("arbprob_hf.evaluation.nowhere")


@pytest.mark.parametrize(
    ("module", "name"),
    [
        *(("arbprob_hf.data", name) for name in ("DataArguments", "load_blocks", "load_tokenizer", "BlockCollator")),
        *(("arbprob_hf.data", name) for name in ("Blocks", "StreamedBlocks")),
        ("arbprob_hf.training.trainer", "ArbProbTrainer"),
        ("arbprob_hf.training.arguments", "TrainingArguments"),
        *(("arbprob_hf.metrics", name) for name in ("BitsPerByte", "ConditionalPerplexity")),
        *(("arbprob_hf.metrics", name) for name in ("InfillMatch", "InfillOverlap")),
    ],
)
def test_a_path_that_other_code_uses_stays_without_a_warning(module: str, name: str) -> None:
    # warnings are errors in tests
    assert callable(getattr(import_module(module), name))
