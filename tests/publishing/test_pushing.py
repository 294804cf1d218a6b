"""What a run pushes while it trains: models, logs and at the end the card, never a pickle unless it was asked for."""

import logging
import threading
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi, ModelCard, snapshot_download
from safetensors.torch import load_file
from transformers import TrainerCallback

from arbprob_hf import ArbProbConfig, ArbProbForCausalLM
from arbprob_hf.errors import UsageError
from arbprob_hf.training.arguments import TrainingArguments, parse
from arbprob_hf.training.run import Outcome
from arbprob_hf.training.trainer import ArbProbTrainer
from tests.hub.hub import TOKEN
from tests.publishing.conftest import HubHere, train_micro

# huggingface_hub's, about its own way of calling its HTTP client
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes:DeprecationWarning")

PICKLES = {"optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"}
STATE = PICKLES | {"trainer_state.json", "run.json", "manifest.json"}


@pytest.fixture(scope="module")
def pushed(hub: HubHere, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """A run that pushes two checkpoints and its end."""
    folder = tmp_path_factory.mktemp("runs")
    return train_micro(
        folder,
        folder / "run",
        mask="causal & window(8)",
        **dict(push_to_hub="true", hub_model_id="tester/run", hub_strategy="checkpoint", hub_always_push="true"),
        **dict(hub_private_repo="true", save_steps=1),
    )


def micro_trainer(output: Path, **options: object) -> ArbProbTrainer:
    """Two steps of a network of a few hundred weights, a checkpoint after each."""
    config = ArbProbConfig.preset("nano", n_embd=8, vocab_size=20, n_positions=8, bos_token_id=0, eos_token_id=0)
    fixed = dict(max_steps=2, save_steps=1, use_cpu=True, disable_tqdm=True, report_to="none", eval_strategy="no")
    pushing = dict(push_to_hub=True, hub_always_push=True, hub_token=TOKEN)
    return ArbProbTrainer(
        model=ArbProbForCausalLM(config),
        train_dataset=[{"input_ids": list(range(8)), "labels": list(range(8))}] * 16,
        args=TrainingArguments(output_dir=str(output), **{**fixed, **pushing, **options}),
    )


def names(trees: list[set[str]]) -> set[str]:
    """The last parts of the names in any of the commits."""
    return {path.rpartition("/")[2] for tree in trees for path in tree}


def test_each_checkpoint_and_the_end_is_a_commit(hub: HubHere, pushed: Outcome) -> None:
    titles = [commit.title for commit in hub.api.list_repo_commits("tester/run")]
    assert titles == [
        "End of training: the card",
        "End of training",
        "Training in progress, step 2",
        "Training in progress, step 1",
        "initial commit",
    ]


def test_no_commit_ever_held_a_state_of_training(hub: HubHere, pushed: Outcome) -> None:
    assert names(hub.trees("tester/run")) & STATE == set()
    assert "last-checkpoint/model.safetensors" in hub.api.list_repo_files("tester/run")
    # they were there to be sent
    assert {path.name for path in pushed.folder.rglob("*")} >= STATE


def test_nothing_that_arrived_holds_the_token_or_a_path(hub: HubHere, pushed: Outcome) -> None:
    needles = [TOKEN.encode(), str(pushed.folder.parent).encode(), f"{Path.home()}/".encode()]
    contents = hub.received().values()
    assert len(contents) > 10
    assert not any(needle in content for content in contents for needle in needles)


def test_what_lies_there_at_the_end_is_the_model_with_its_card_and_pictures(hub: HubHere, pushed: Outcome) -> None:
    assert hub.api.model_info("tester/run").private is True
    files = set(hub.api.list_repo_files("tester/run"))
    assert {"README.md", "tokenizer.json", "logs/mask.png", "logs/training_curves.png"} <= files
    there = load_file(hub.api.hf_hub_download("tester/run", "model.safetensors"))
    here = load_file(pushed.folder / "model.safetensors")
    assert all(here[name].equal(there[name]) for name in here)
    card = ModelCard.load("tester/run").text
    assert "![Who sees whom" in card
    assert "(logs/mask.png)" in card
    commit = hub.api.list_repo_commits("tester/run")[1].commit_id
    assert f'source, revision = "tester/run", "{commit}"' in card


def test_nothing_on_its_way_is_left_in_the_folder(pushed: Outcome) -> None:
    assert not (pushed.folder / ".arbprob").exists()


def test_every_save_pushes_no_checkpoint(hub: HubHere, tmp_path: Path) -> None:
    micro_trainer(tmp_path / "out", hub_model_id="tester/every", hub_strategy="every_save").train()
    trees = hub.trees("tester/every")
    assert len(trees) == 3
    assert "model.safetensors" in names(trees)
    assert [path for tree in trees for path in tree if "checkpoint" in path] == []
    assert names(trees) & STATE == set()


def test_a_state_of_training_that_is_asked_for_comes_without_the_token(hub: HubHere, tmp_path: Path) -> None:
    trainer = micro_trainer(
        tmp_path / "out", hub_model_id="tester/state", hub_strategy="all_checkpoints", hub_training_state=True
    )
    trainer.train()
    files = hub.api.list_repo_files("tester/state")
    assert {f"checkpoint-{step}/{name}" for step in (1, 2) for name in STATE} <= set(files)
    assert not any(TOKEN.encode() in content for content in hub.received().values())
    assert trainer.args.hub_token == TOKEN
    pulled = snapshot_download("tester/state", allow_patterns="checkpoint-1/*", local_dir=tmp_path / "pulled")
    again = micro_trainer(tmp_path / "again", push_to_hub=False)
    again.train(resume_from_checkpoint=str(Path(pulled, "checkpoint-1")))
    first, second = (load_file(tmp_path / name / "checkpoint-2" / "model.safetensors") for name in ("out", "again"))
    assert all(first[name].equal(second[name]) for name in first)


def test_a_push_to_a_branch_makes_it(hub: HubHere, tmp_path: Path) -> None:
    micro_trainer(tmp_path / "out", hub_model_id="tester/branch", hub_revision="trial", max_steps=1).train()
    assert "model.safetensors" in hub.api.list_repo_files("tester/branch", revision="trial")
    assert "model.safetensors" not in hub.api.list_repo_files("tester/branch")


def test_a_push_that_fails_is_warned_of_and_training_goes_on(
    hub: HubHere, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub.handler, "breaks", True)
    with caplog.at_level(logging.WARNING, logger="arbprob_hf.training.hub"):
        trainer = micro_trainer(tmp_path / "out", hub_model_id="tester/broken")
        trainer.train()
    warnings = [record.getMessage() for record in caplog.records if record.name == "arbprob_hf.training.hub"]
    assert [line.split()[0] for line in warnings] == ["checkpoint-1", "checkpoint-2"]
    assert all(line.endswith("; training goes on") for line in warnings)
    assert trainer.state.global_step == 2
    assert not (tmp_path / "out" / ".arbprob").exists()


@pytest.mark.parametrize("limit", [1, 2])
def test_a_checkpoint_stays_while_it_is_sent_and_those_saved_meanwhile_are_left_out(
    hub: HubHere, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    is_over, there = threading.Event(), []
    commit = HfApi.create_commit

    def late(*about: Any, **options: Any) -> Any:
        assert is_over.wait(60)
        return commit(*about, **options)

    class Over(TrainerCallback):
        def on_train_end(self, *about: Any, **state: Any) -> None:
            there.extend(path.name for path in (tmp_path / "out").glob("checkpoint-*"))
            is_over.set()

    monkeypatch.setattr("huggingface_hub.HfApi.create_commit", late)
    repository = f"tester/late-{limit}"
    options = dict(hub_model_id=repository, hub_always_push=False, save_total_limit=limit, max_steps=4)
    trainer = micro_trainer(tmp_path / "out", **options)
    trainer.add_callback(Over())
    trainer.train()
    newest = [f"checkpoint-{step}" for step in range(1, 5)][-limit:]
    assert sorted(there) == ["checkpoint-1", *newest]
    # and goes once it has arrived
    assert sorted(path.name for path in (tmp_path / "out").glob("checkpoint-*")) == newest
    titles = [commit.title for commit in hub.api.list_repo_commits(repository)]
    assert titles == ["Training in progress, step 1", "initial commit"]


def test_the_limit_holds_where_every_checkpoint_is_sent(hub: HubHere, tmp_path: Path) -> None:
    trainer = micro_trainer(tmp_path / "out", hub_model_id="tester/limit", save_total_limit=1, max_steps=3)
    trainer.train()
    assert [path.name for path in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-3"]


def test_a_state_without_a_checkpoint_to_push_is_refused() -> None:
    with pytest.raises(UsageError, match="^hub_training_state: true has no effect with hub_strategy every_save, which"):
        parse(["--hub_training_state=true"])


@pytest.mark.parametrize(
    ("repository", "message"),
    [
        ("a/b/c", "^push_to_hub: a/b/c: not published: Repo id must .*; give a name such as somebody/my-model$"),
        ("-run-", "^push_to_hub: -run-: not published: Repo id must .*; give a name such as somebody/my-model$"),
    ],
)
def test_a_name_that_cannot_be_is_refused_before_the_text_is_prepared(
    hub: HubHere, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repository: str, message: str
) -> None:
    monkeypatch.setattr("arbprob_hf.training.run.load_blocks", _unprepared)
    with pytest.raises(UsageError, match=message):
        train_micro(tmp_path, tmp_path / "run", push_to_hub="true", hub_model_id=repository)
    assert not (tmp_path / "run").exists()


def test_a_missing_token_is_reported_before_the_text_is_prepared(
    hub: HubHere, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("arbprob_hf.training.run.load_blocks", _unprepared)
    with pytest.raises(UsageError, match="^push_to_hub: run: not published: no Hub token here; log in with `hf auth"):
        train_micro(tmp_path, tmp_path / "run", push_to_hub="true")


def test_a_hub_that_refuses_is_reported_in_one_line(
    hub: HubHere, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*about: Any, **options: Any) -> None:
        raise OSError("403 Forbidden\nyou may not")

    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", refuse)
    with pytest.raises(ValueError, match="^other/x: cannot be pushed to: 403 Forbidden you may not; give another hub_"):
        micro_trainer(tmp_path / "out", hub_model_id="other/x")


def _unprepared(*about: Any, **options: Any) -> None:
    raise AssertionError("the text was prepared")
