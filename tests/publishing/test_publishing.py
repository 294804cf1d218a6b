"""The folder of a run goes to a Hub, whole, private and clean, and comes back as the model it was."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import RepositoryNotFoundError
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from arbprob_hf import ArbProbForCausalLM
from arbprob_hf.cli import app
from arbprob_hf.data.eval_sets import MODES
from arbprob_hf.publishing import publish
from arbprob_hf.publishing.files import refuse_secrets, run_files
from arbprob_hf.publishing.hub import upload
from arbprob_hf.publishing.load_test import prove
from tests.hub.hub import TOKEN, client_environment
from tests.publishing.conftest import HubHere, train_micro

# huggingface_hub's, about its own way of calling its HTTP client
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes:DeprecationWarning")

REPOSITORY = "tester/micro"
PULL = """
import json, sys
sys.modules["arbprob_hf"] = None
from pathlib import Path
import torch
from huggingface_hub import hf_hub_download
from transformers import AutoModelForCausalLM

repository, commit = sys.argv[1:]
try:
    AutoModelForCausalLM.from_pretrained(repository, revision=commit, trust_remote_code=True, token=False)
except OSError as error:
    refusal = [type(error).__name__, str(error)]
card = Path(hf_hub_download(repository, "README.md")).read_text(encoding="utf-8")
blocks = [part.split("```")[0] for part in card.split("```python\\n")[1:]]
for block in blocks:
    exec(block)
torch.manual_seed(0)
ids = torch.arange(20)[None] * 7919 % model.config.vocab_size
ask = model.ask(given=[0, 5, 6, 19], target=[3, 4, 9, 18], order=[9, 3, 18, 4])
print("REPORT" + json.dumps({
    "refusal": refusal,
    "blocks": len(blocks),
    "source": [source, revision],
    "module": type(model).__module__,
    "log_prob": model.log_prob(ids, ask).double().tolist(),
    "generated": model.generate(ids[:, :8], max_new_tokens=8, do_sample=False, pad_token_id=0).tolist(),
}))
"""


def command(*words: object) -> Result:
    return CliRunner().invoke(app, ["publish", *map(str, words)])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of questions; nobody changes it."""
    folder = tmp_path_factory.mktemp("runs")
    train_micro(folder, folder / "micro", task="uniform")
    return folder / "micro"


@pytest.fixture(scope="module")
def broken_off(hub: HubHere, finished: Path) -> str:
    """What is said of a first upload whose connection breaks after the weights have arrived."""
    hub.handler.breaks = True
    try:
        with pytest.raises(ValueError, match="not published") as caught:
            upload(run_files(finished), REPOSITORY)
    finally:
        hub.handler.breaks = False
    return str(caught.value)


@pytest.fixture(scope="module")
def published(hub: HubHere, finished: Path, broken_off: str) -> str:
    """What the second attempt, which succeeds, prints."""
    ran = command(finished, REPOSITORY, "--message", "Publish the micro model")
    if ran.exception and not isinstance(ran.exception, SystemExit):
        raise ran.exception
    assert ran.exit_code == 0, ran.stderr
    return ran.stdout


@pytest.fixture(scope="module")
def commit(published: str) -> str:
    """The commit that the command tells to pin."""
    return re.search(r'pin revision="([0-9a-f]{40})"$', published, flags=re.MULTILINE)[1]


@pytest.fixture(scope="module")
def pulled(hub: HubHere, commit: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a process without the package and with empty caches makes of the repository."""
    place = tmp_path_factory.mktemp("elsewhere")
    (place / "empty").mkdir()
    done = subprocess.run(
        [sys.executable, "-I", "-c", PULL, REPOSITORY, commit],
        cwd=place / "empty",
        env=client_environment(hub.address, place / "home"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (report,) = [line for line in done.stdout.splitlines() if line.startswith("REPORT")]
    return json.loads(report.removeprefix("REPORT"))


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A copy of the run without its checkpoints, to be damaged."""
    shutil.copytree(finished, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoint-*"))
    return tmp_path / "run"


def test_a_broken_upload_is_reported_in_one_line_with_what_to_do(broken_off: str) -> None:
    assert broken_off.startswith(f"{REPOSITORY}: not published: ")
    assert broken_off.endswith("once that is solved, publish it again: what arrived is not sent a second time")
    assert "\n" not in broken_off


def test_the_weights_are_sent_once_though_the_upload_was_made_twice(hub: HubHere, published: str) -> None:
    weights = hub.api.get_paths_info(REPOSITORY, ["model.safetensors"])[0].lfs.sha256
    sent = [path for method, path, status in hub.requests() if method == "PUT" and path.startswith(f"/_lfs/{weights}")]
    assert len(sent) == 1


def test_a_new_repository_is_private(hub: HubHere, published: str) -> None:
    assert hub.api.model_info(REPOSITORY).private is True
    with pytest.raises(RepositoryNotFoundError):
        HfApi(token=False).model_info(REPOSITORY)


def test_the_repository_holds_what_a_model_needs_and_nothing_else(hub: HubHere, finished: Path, published: str) -> None:
    names = set(hub.api.list_repo_files(REPOSITORY))
    code = {path.name for path in finished.glob("*_arbprob.py")}
    assert len(code) == 5
    assert names == code | {
        ".gitattributes",
        "README.md",
        "config.json",
        "fingerprint.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "logs/mask.png",
        "logs/samples.txt",
        "logs/training_curves.png",
        "logs/training_log.csv",
    }
    # what was there to be sent
    assert (finished / "training_args.bin").exists()
    assert (finished / "checkpoint-2" / "optimizer.pt").exists()


def test_no_content_holds_the_token_or_a_path_of_this_machine(hub: HubHere, finished: Path, published: str) -> None:
    needles = [TOKEN.encode(), str(finished).encode(), str(finished.parent).encode(), f"{Path.home()}/".encode()]
    contents = hub.received()
    assert len(contents) > 10
    assert [name for name, content in contents.items() if any(needle in content for needle in needles)] == []


def test_the_card_has_metadata_and_a_result_for_each_mode(hub: HubHere, published: str) -> None:
    info = hub.api.model_info(REPOSITORY)
    assert (info.library_name, info.pipeline_tag, info.card_data.license) == ("transformers", "text-generation", None)
    assert {"arbprob", "custom_code", "attention-mask", "safetensors"} <= set(info.tags)
    losses = [one.metric_name for one in info.card_data.eval_results if one.metric_type == "loss"]
    assert losses == [f"loss, {mode}" for mode in MODES]
    card = ModelCard.load(REPOSITORY)
    assert "(logs/mask.png)\n\nA question of each part of the task" in card.text
    for said in ("## Environmental impact", "energy that it took was not measured", "## Citation", "## Limits"):
        assert said in card.text


def test_the_card_pins_the_commit_of_the_weights(hub: HubHere, commit: str, finished: Path) -> None:
    card = ModelCard.load(REPOSITORY).content
    assert f'source, revision = "{REPOSITORY}", "{commit}"\n' in card
    assert "the folder of this file" not in card
    titles = [one.title for one in hub.api.list_repo_commits(REPOSITORY)]
    assert titles == ["Publish the micro model: the card", "Publish the micro model", "initial commit"]
    at_commit = hub.api.list_repo_files(REPOSITORY, revision=commit)
    assert "model.safetensors" in at_commit
    # the local card is as the run left it
    assert 'source, revision = ".", "main"' in (finished / "README.md").read_text(encoding="utf-8")


def test_publishing_the_same_again_changes_nothing(hub: HubHere, finished: Path, commit: str) -> None:
    before = hub.api.list_repo_commits(REPOSITORY)
    again = upload(run_files(finished), REPOSITORY)
    assert again.commit == commit
    assert hub.api.list_repo_commits(REPOSITORY) == before


def test_without_a_token_the_private_model_is_refused_by_the_client(pulled: dict[str, Any]) -> None:
    kind, message = pulled["refusal"]
    assert kind == "OSError"
    assert f"{REPOSITORY} is not a local folder and is not a valid model identifier" in message


def test_the_code_of_the_card_runs_where_it_is_pulled(pulled: dict[str, Any], commit: str) -> None:
    assert pulled["blocks"] == 2
    assert pulled["source"] == [REPOSITORY, commit]
    assert pulled["module"].startswith(f"transformers_modules.tester.micro._{commit}.") or commit in pulled["module"]


def test_what_is_pulled_gives_the_numbers_it_gave_at_home(pulled: dict[str, Any], finished: Path) -> None:
    home = ArbProbForCausalLM.from_pretrained(finished)
    ids = torch.arange(20)[None] * 7919 % home.config.vocab_size
    ask = home.ask(given=[0, 5, 6, 19], target=[3, 4, 9, 18], order=[9, 3, 18, 4])
    scores = home.log_prob(ids, ask)
    assert scores.sum().item() < -10
    assert pulled["log_prob"] == scores.double().tolist()
    generated = home.generate(ids[:, :8], max_new_tokens=8, do_sample=False, pad_token_id=0)
    assert pulled["generated"] == generated.tolist()


@pytest.mark.long
def test_a_branch_gets_the_new_shards_without_the_old_file_and_the_pin_keeps_the_old_one(
    hub: HubHere, copied: Path, commit: str
) -> None:
    model = ArbProbForCausalLM.from_pretrained(copied)
    model.transformer.wte.weight.data.mul_(0.5)
    (copied / "model.safetensors").unlink()
    model.save_pretrained(copied, max_shard_size="2MB")
    (copied / "notes.txt").write_text("Embeddings half as large.", encoding="utf-8")
    ran = command(copied, REPOSITORY, "--revision", "second", "--public", "--also", "notes.*")
    assert ran.exit_code == 0, ran.stderr
    second = set(hub.api.list_repo_files(REPOSITORY, revision="second"))
    assert {"model.safetensors.index.json", "notes.txt"} <= second
    assert "model.safetensors" not in second
    assert hub.api.model_info(REPOSITORY).private is False
    first = Path(hub.api.hf_hub_download(REPOSITORY, "model.safetensors", revision=commit))
    assert load_file(first)["transformer.wte.weight"].equal(model.transformer.wte.weight.data * 2)
    assert "model.safetensors" in hub.api.list_repo_files(REPOSITORY)
    upload(run_files(copied), REPOSITORY, revision="second", private=True)
    assert hub.api.model_info(REPOSITORY).private is True


IDS = "folder config weights card also token pickle path foreign license"


def _append(name: str, text: str) -> Callable[[Path], object]:
    def append(folder: Path) -> None:
        with (folder / name).open("a", encoding="utf-8") as file:
            file.write(text.format(folder=folder))

    return append


def _foreign(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["auto_map"]["AutoModelForCausalLM"] = "other/repo--modeling.Model"
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def _license(folder: Path) -> None:
    card = (folder / "README.md").read_text(encoding="utf-8")
    (folder / "README.md").write_text(card.replace("---\n", "---\nlicense: mine\n", 1), encoding="utf-8")


@pytest.mark.parametrize(
    ("damage", "also", "message"),
    [
        (lambda folder: shutil.rmtree(folder), (), r": no such folder; name the output folder of a finished run$"),
        (lambda folder: (folder / "config.json").unlink(), (), r": holds no config.json; name the output folder"),
        (lambda folder: (folder / "model.safetensors").unlink(), (), r": holds no weights \(model.safetensors\); name"),
        (lambda folder: (folder / "README.md").unlink(), (), ": holds no README.md, which a run writes last; resume"),
        (lambda folder: None, ("notes/*",), r"^also: 'notes/\*' matches no file in .*; give a pattern such as"),
        (_append("logs/samples.txt", TOKEN), (), "^logs/samples.txt: holds a Hub token; nothing was uploaded: remove"),
        (_append("training_args.bin", f"x{TOKEN[:3]} {TOKEN}"), ("*.bin",), "^training_args.bin: holds a Hub token;"),
        (_append("README.md", "see {folder}/logs"), (), "^README.md: holds a path of this machine; nothing was"),
        (
            _foreign,
            (),
            "^config.json: auto_map takes code from another repository, other/repo--model",
        ),
        (_license, (), '^tester/no: not published: README.md: the Hub does not take its metadata: .*"license.* must'),
    ],
    ids=IDS.split(),
)
def test_what_must_not_be_published_is_refused_in_one_line_before_anything_is_sent(
    hub: HubHere, copied: Path, damage: Callable[[Path], object], also: tuple[str, ...], message: str
) -> None:
    damage(copied)
    with pytest.raises(ValueError, match=message) as refused:
        publish(copied, "tester/no", also=also)
    assert "\n" not in str(refused.value)
    assert TOKEN not in str(refused.value)
    assert not hub.api.repo_exists("tester/no")


@pytest.mark.long
def test_a_license_given_to_publish_is_in_both_cards(hub: HubHere, copied: Path) -> None:
    app(["publish", str(copied), "tester/licensed", "--license", "apache-2.0"], standalone_mode=False)
    assert hub.api.model_info("tester/licensed").card_data.license == "apache-2.0"
    assert ModelCard.load(copied / "README.md").data.license == "apache-2.0"


def test_without_a_token_nothing_is_published(hub: HubHere, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(
        ValueError, match="^tester/no: not published: no Hub token here; log in with `hf auth login`, or"
    ):
        publish(finished, "tester/no")


def test_a_name_that_cannot_be_is_refused_before_the_folder_is_proven(
    hub: HubHere, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # what would come first
    monkeypatch.setattr("arbprob_hf.publishing.hub.refuse_secrets", None)
    with pytest.raises(
        ValueError, match=r"^a/b/c: not published: Repo id must .*; give a name such as somebody/my-model$"
    ):
        publish(finished, "a/b/c")


def test_a_path_is_no_secret_in_a_file_that_was_asked_for(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text(f"in {tmp_path}")
    files = {"notes.txt": tmp_path / "notes.txt"}
    with pytest.raises(ValueError, match="^notes.txt: holds a path of this machine"):
        refuse_secrets(files, folder=tmp_path, token=None)
    refuse_secrets(files, folder=tmp_path, token=None, may_hold_paths=["notes.txt"])


def test_a_token_of_any_form_is_found_if_it_is_the_one_in_use(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(b"\0" * 100 + b"secret-of-mine" + b"\0" * 100)
    files = {"weights.bin": tmp_path / "weights.bin"}
    refuse_secrets(files, folder=tmp_path, token=None)
    with pytest.raises(ValueError, match="^weights.bin: holds a Hub token"):
        refuse_secrets(files, folder=tmp_path, token="secret-of-mine")


def test_a_folder_that_does_not_load_without_the_package_is_not_published(hub: HubHere, copied: Path) -> None:
    # the package has the file, so here it loads
    (copied / "masks_arbprob.py").unlink()
    ArbProbForCausalLM.from_pretrained(copied)
    ran = command(copied, "tester/no")
    assert ran.exit_code == 1
    assert re.match(
        r"arbprob publish: error: .*/run: does not work where arbprob_hf is not installed, so it is not published: .*"
        r"No such file or directory: '.*/run/masks_arbprob.py'$",
        ran.stderr.splitlines()[-1],
    )
    assert not hub.api.repo_exists("tester/no")


def test_weights_that_give_no_finite_loss_do_not_pass_the_proof(copied: Path) -> None:
    weights = load_file(copied / "model.safetensors")
    weights["transformer.h.0.ln_1.bias"][0] = torch.nan
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="so it is not published: ValueError: the loss on one batch is nan$"):
        prove(copied)


def test_the_commands_of_the_documentation_are_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[2] / "docs" / "publishing.md").read_text(encoding="utf-8")
    lines = [shlex.split(line) for line in page.splitlines() if line.startswith("arbprob publish ")]
    assert len(lines) == 2
    monkeypatch.chdir(tmp_path)
    for _, _, folder, *words in lines:
        ran = command(folder, *words)
        assert ran.exit_code == 1
        assert ran.stderr.startswith(f"arbprob publish: error: {folder}: no such folder; ")
