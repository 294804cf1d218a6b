"""Run the mixins on one family: python -m tests.mixins.run ours|stock MIXINS TINY REPORT [test ...]

MIXINS is the folder that holds them, TINY gets the small checkpoints that pipelines load, and REPORT the outcomes, as
JSON: {"TestModel::test_save_load": ["passed", ""], ...}. Only the tests named run, or all of them.
"""

import json
import os
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


class Outcomes:
    """How each test ended, and what the first thing was that went wrong."""

    def __init__(self) -> None:
        self.found: dict[str, tuple[str, str]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name = report.nodeid.partition("::")[2]
        if report.failed and self.found.get(name, ("",))[0] != "failed":
            crash = getattr(report.longrepr, "reprcrash", None)
            self.found[name] = ("failed", str(crash.message if crash else report.longrepr)[:500])
        elif report.skipped and isinstance(report.longrepr, tuple):
            self.found.setdefault(name, ("skipped", report.longrepr[2]))
        elif report.when == "call" and report.passed:
            self.found.setdefault(name, ("passed", ""))


def save_tiny(folder: Path) -> None:
    """The checkpoints that the mixin of pipelines loads, one for each class."""
    from arbprob_hf.data.tokenizer import load_tokenizer
    from tests.mixins.cases import FAMILY, MODELS

    tokenizer = load_tokenizer("gpt2")
    end = tokenizer.eos_token_id
    config = FAMILY["config"](
        n_positions=128, n_embd=32, n_layer=2, n_head=4, bos_token_id=end, eos_token_id=end, pad_token_id=end
    )
    for kind in MODELS:
        home = folder / config.model_type / kind.__name__
        kind(config).save_pretrained(home)
        tokenizer.save_pretrained(home)


def main(family: str, mixins: str, tiny: str, report: str, *names: str) -> None:
    """Run, and write the report."""
    os.environ.update(MIXINS_FAMILY=family, MIXINS_FOLDER=mixins, TRANSFORMERS_TINY_MODEL_PATH=tiny)
    kinds = ["Model", "LMHeadModel", "ForCausalLM", "ForQuestionAnswering", "ForSequenceClassification"]
    classes = [stem + kind for stem in ("ArbProb", "GPT2") for kind in [*kinds, "ForTokenClassification"]]
    summary = {name: {"tokenizer_classes": ["GPT2Tokenizer"], "processor_classes": []} for name in classes}
    (Path(tiny) / "reports").mkdir(parents=True)
    (Path(tiny) / "reports" / "tiny_model_summary.json").write_text(json.dumps(summary))
    outcomes = Outcomes()
    # their warnings are transformers' business
    options = ["-q", "--tb=short", "-p", "no:cacheprovider", "-p", "no:xdist", "-W", "ignore", "-o", "addopts="]
    cases = str(HERE / "cases.py")
    chosen = [f"{cases}::{name}" for name in names] or [cases]
    pytest.main([*options, "-o", "python_files=cases.py", *chosen], plugins=[outcomes, Saver(Path(tiny))])
    Path(report).write_text(json.dumps(outcomes.found, indent=1))


class Saver:
    """Saves the tiny checkpoints once the cases are imported."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        if any("TestPipeline" in item.nodeid for item in session.items):
            save_tiny(self.folder)


if __name__ == "__main__":
    main(*sys.argv[1:])
