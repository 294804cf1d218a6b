"""`arbprob verify`: what is damaged is found, what is whole passes, and what cannot be known is said."""

import hashlib
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel
from typer.testing import CliRunner

from arbprob_hf import ArbProbConfig, ArbProbForCausalLM
from arbprob_hf.cli import app
from arbprob_hf.model.classifiers import ArbProbForSequenceClassification
from arbprob_hf.publishing.files import model_files
from arbprob_hf.publishing.verification import record, verify
from arbprob_hf.runs.checkpoints import newest
from arbprob_hf.runs.fingerprint import FINGERPRINT_NAME, compare_figures, measure, write_fingerprint
from arbprob_hf.training.arguments import parse
from arbprob_hf.training.run import train

# of these, a run's folder holds more: its card and logs, which anybody may edit
NO_MODEL = ("README.md", "logs", "checkpoint-2")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small run, with a checkpoint; nobody changes it."""
    text = tmp_path_factory.mktemp("text")
    for number in range(12):
        (text / f"{number}.txt").write_text(f"{number} " + "a mask says which key may be seen " * 20, encoding="utf-8")
    fields = dict(source=text, output_dir=text / "run", n_embd=8, n_head=2, n_positions=32, block_size=32, max_steps=2)
    fields |= dict(save_steps=2, batch_size=2, eval_strategy="no", sample_count=0, validation_share=0.2, use_cpu="true")
    return train(*parse([f"--{name}={value}" for name, value in fields.items()])).folder


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def failures(folder: Path) -> list[str]:
    return [str(finding) for finding in verify(folder) if finding.status == "fail"]


def flip(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def missed_flips(finished: Path, place: Path, count: int) -> list[str]:
    """Flip `count` bits, one at a time, in files chosen at random of a run's model and its checkpoint."""
    chance, missed = random.Random(14), []
    folder = Path(shutil.copytree(finished, place / "run"))
    tops = [path for path in sorted(folder.iterdir()) if path.name not in NO_MODEL]
    files = [*tops, *sorted((folder / "checkpoint-2").iterdir())]
    for _ in range(count):
        path = chance.choice(files)
        bit = chance.randrange(8 * path.stat().st_size)
        flip(path, bit)
        if not failures(path.parent):
            missed.append(f"{path.relative_to(folder)} bit {bit}")
        flip(path, bit)
    assert failures(folder) == []
    return missed


def test_flipped_bits_are_found_wherever_they_are(finished: Path, tmp_path: Path) -> None:
    assert missed_flips(finished, tmp_path, 12) == []


@pytest.mark.long
def test_two_hundred_of_two_hundred_flipped_bits_are_found(finished: Path, tmp_path: Path) -> None:
    assert missed_flips(finished, tmp_path, 200) == []


def test_a_run_and_its_checkpoint_are_whole_and_say_what_they_said_bit_for_bit(finished: Path) -> None:
    for folder in (finished, finished / "checkpoint-2"):
        findings = verify(folder)
        assert {finding.status for finding in findings} == {"ok"}
        said = {finding.check: finding.text for finding in findings}
        assert said["figures"] == "the same logits, bit for bit, as when it was saved"
        assert said["model"] == "loads as ArbProbForCausalLM"


def edit(name: str, change: Callable[[str], str]) -> Callable[[Path], object]:
    def work(folder: Path) -> None:
        path = folder / name
        before = path.read_text(encoding="utf-8")
        assert change(before) != before
        path.write_text(change(before), encoding="utf-8")

    return work


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (edit("config.json", lambda text: text.replace('"n_head": 2', '"n_head": 4')), "figures: other logits"),
        (
            edit("config.json", lambda text: text.replace('"mask": "causal"', '"mask": "causal & window(3)"')),
            "figures: other logits",
        ),
        (edit("tokenizer.json", lambda text: text.replace('"ab"', '"aB"', 1)), "fingerprint: tokenizer.json is not"),
        (edit("attention_arbprob.py", lambda text: text + "\n# more\n"), "fingerprint: attention_arbprob.py is not"),
        (lambda folder: (folder / "masks_arbprob.py").unlink(), "fingerprint: masks_arbprob.py is missing"),
        (lambda folder: (folder / "config.json").unlink(), "fingerprint: config.json is missing"),
    ],
    ids=["heads", "mask", "tokenizer", "code", "no code", "no configuration"],
)
def test_a_change_is_found_and_named(copied: Path, damage: Callable[[Path], object], found: str) -> None:
    damage(copied)
    assert any(found in failure for failure in failures(copied))


def with_tokenizer_code(folder: Path, left: Path) -> None:
    """Give the tokenizer in `folder` code of its own, which leaves the file `left` where it is run."""
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | {"auto_map": {"AutoTokenizer": ["own.Own", "own.Own"]}}
    config["tokenizer_class"] = "Own"
    path.write_text(json.dumps(config), encoding="utf-8")
    code = "from transformers import PreTrainedTokenizerFast\n"
    code += f"open({str(left)!r}, 'w').close()\nclass Own(PreTrainedTokenizerFast):\n    pass\n"
    (folder / "own.py").write_text(code, encoding="utf-8")


def test_code_of_a_tokenizer_is_neither_run_nor_asked_about_unless_it_is_trusted(copied: Path, tmp_path: Path) -> None:
    with_tokenizer_code(copied, tmp_path / "left")
    (copied / FINGERPRINT_NAME).unlink()
    result = CliRunner().invoke(app, ["verify", str(copied)], input="y\n" * 9)
    note = "note  tokenizer: has code of its own, which runs with --trust-remote-code alone"
    assert (result.exit_code, result.output.splitlines()[-1]) == (0, note)
    assert not (tmp_path / "left").exists()


@pytest.mark.long
def test_trusted_code_of_a_tokenizer_is_run(copied: Path, tmp_path: Path) -> None:
    with_tokenizer_code(copied, tmp_path / "left")
    (copied / FINGERPRINT_NAME).unlink()
    assert [str(finding) for finding in verify(copied, trust_remote_code=True) if finding.status == "fail"] == []
    assert (tmp_path / "left").exists()


def test_once_a_hash_fails_trusted_code_is_not_run(copied: Path, tmp_path: Path) -> None:
    for name in ("modeling_arbprob.py", "masks_arbprob.py"):
        with (copied / name).open("a", encoding="utf-8") as file:
            file.write(f"\nopen({str(tmp_path / 'left')!r}, 'w').close()\n")
    with_tokenizer_code(copied, tmp_path / "left")
    findings = [str(finding) for finding in verify(copied, trust_remote_code=True)]
    assert "note  remote code: not run, as files are not what they were" in findings
    assert "fail  fingerprint: modeling_arbprob.py is not the file that was saved (its SHA-256 differs)" in findings
    assert not (tmp_path / "left").exists()


def test_the_folder_of_a_run_that_was_killed_is_held_against_its_seals(copied: Path, tmp_path: Path) -> None:
    killed = tmp_path / "killed"
    shutil.copytree(copied / "checkpoint-2", killed / "checkpoint-2")
    assert [str(finding) for finding in verify(killed)] == [
        "ok    checkpoint-2: as sealed in manifest.json",
        "note  model: none yet: the run is not finished, --resume_from_checkpoint true goes on with it",
    ]
    flip(killed / "checkpoint-2" / "optimizer.pt", 4000)
    assert CliRunner().invoke(app, ["verify", str(killed)]).exit_code == 1
    # of a run that was finished, a model is missing
    (copied / "config.json").unlink()
    (copied / FINGERPRINT_NAME).unlink()
    assert any(failure.startswith("fail  model: ") for failure in failures(copied))


def test_files_that_a_checkpoint_was_not_sealed_with_are_noted(copied: Path) -> None:
    (copied / "checkpoint-2" / "pytorch_model.bin").write_bytes(b"from elsewhere")
    for folder, check in ((copied, "checkpoint-2"), (copied / "checkpoint-2", "files")):
        notes = [str(finding) for finding in verify(folder) if finding.status == "note"]
        assert f"note  {check}: pytorch_model.bin was not there when it was sealed" in notes


def test_a_run_with_a_damaged_checkpoint_names_it(copied: Path) -> None:
    flip(copied / "checkpoint-2" / "optimizer.pt", 4000)
    assert failures(copied) == [
        "fail  checkpoint-2: optimizer.pt is not the file that was sealed (its SHA-256 differs)"
    ]


def test_the_fingerprint_travels_with_what_is_published(finished: Path) -> None:
    assert FINGERPRINT_NAME in model_files(finished)


def test_without_a_fingerprint_it_says_what_it_cannot_know(copied: Path) -> None:
    (copied / FINGERPRINT_NAME).unlink()
    notes = [str(finding) for finding in verify(copied) if finding.status == "note"]
    assert notes == [
        "note  fingerprint: no fingerprint.json: a change that leaves weights finite and files readable is not seen",
        "note  figures: nothing to compare with: finite figures on a batch",
    ]
    weights = load_file(copied / "model.safetensors")
    weights["transformer.ln_f.bias"][:3] = torch.nan
    save_file(weights, copied / "model.safetensors", {"format": "pt"})
    assert "fail  weights: transformer.ln_f.bias has 3 of 8 numbers that are not finite" in failures(copied)


@pytest.mark.long
def test_a_download_is_held_against_the_names_the_hub_gave_its_files(copied: Path, tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir()
    snapshot.mkdir()
    (copied / FINGERPRINT_NAME).unlink()
    for name, path in model_files(copied).items():
        content = path.read_bytes()
        git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        digest = hashlib.sha256(content).hexdigest() if path.suffix == ".safetensors" else git
        (blobs / digest).write_bytes(content)
        (snapshot / name).symlink_to(blobs / digest)
    assert failures(snapshot) == []
    for name in ("model.safetensors", "config.json"):
        flip((snapshot / name).resolve(), 8 * ((snapshot / name).stat().st_size - 2))
        assert f"fail  download: {name} is not the file the Hub holds" in failures(snapshot)


@pytest.mark.long
def test_a_model_saved_by_its_own_code_carries_no_fingerprint_of_other_weights(finished: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(finished, trust_remote_code=True)
    with torch.no_grad():
        model.transformer.ln_f.bias += 1
    model.save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new" / FINGERPRINT_NAME).exists()
    # over the old files: the fingerprint is not of these weights, and says so
    over = Path(shutil.copytree(finished, tmp_path / "over"))
    model.save_pretrained(over)
    assert any("fingerprint: model.safetensors is not the file that was saved" in one for one in failures(over))


def test_stock_gpt2_can_be_recorded_and_verified_later(tmp_path: Path) -> None:
    torch.manual_seed(0)
    stock = GPT2LMHeadModel(GPT2Config(vocab_size=90, n_positions=16, n_embd=8, n_layer=1, n_head=2))
    stock.save_pretrained(tmp_path)
    assert failures(tmp_path) == []
    record(tmp_path)
    assert "bit for bit" in str(verify(tmp_path)[-2])
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps(config | {"activation_function": "relu"}), encoding="utf-8")
    assert any("figures: other logits than when it was saved" in one for one in failures(tmp_path))


def test_a_sealed_checkpoint_is_not_recorded_and_stays_sealed(copied: Path) -> None:
    checkpoint = copied / "checkpoint-2"
    with pytest.raises(ValueError, match=r"^record: .*checkpoint-2 is a sealed checkpoint, .*; verify it by its manif"):
        record(checkpoint)
    assert newest(copied) == checkpoint


def test_damage_is_not_recorded_as_whole(copied: Path) -> None:
    before = (copied / FINGERPRINT_NAME).read_bytes()
    flip(copied / "model.safetensors", 80000)
    message = r"^record: .*run is not whole, fingerprint: model\.safetensors is .*; if the change was yours, remove "
    with pytest.raises(ValueError, match=message):
        record(copied)
    result = CliRunner().invoke(app, ["verify", str(copied), "--record"])
    assert (result.exit_code, "record: " in result.output) == (2, True)
    assert (copied / FINGERPRINT_NAME).read_bytes() == before
    # nor what no fingerprint is needed to see
    (copied / FINGERPRINT_NAME).unlink()
    save_file({"transformer.wpe.weight": torch.tensor([torch.nan])}, copied / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"^record: .*run is not whole, weights: transformer\.wpe\.weight has 1 of 1"):
        record(copied)
    assert not (copied / FINGERPRINT_NAME).exists()


def test_a_whole_model_may_be_recorded_again(copied: Path) -> None:
    record(copied)
    assert {finding.status for finding in verify(copied)} == {"ok"}


def test_a_classifier_is_verified_too(tmp_path: Path) -> None:
    config = ArbProbConfig.preset("nano", vocab_size=90, n_embd=8, num_labels=3, pad_token_id=0)
    model = ArbProbForSequenceClassification(config)
    model.save_pretrained(tmp_path)
    record(tmp_path)
    findings = verify(tmp_path)
    assert "loads as ArbProbForSequenceClassification" in findings[2].text
    assert "bit for bit" in findings[3].text


@pytest.mark.parametrize(("dtype", "allowed"), [("torch.float32", 1e-4), ("torch.bfloat16", 0.1)])
def test_on_another_machine_figures_may_differ_by_what_the_number_format_allows(dtype: str, allowed: float) -> None:
    torch.manual_seed(0)
    figures = measure(ArbProbForCausalLM(ArbProbConfig.preset("nano", vocab_size=90, n_embd=8)))
    saved = figures | {"made_by": figures["made_by"] | {"processor": "another", "dtype": dtype}}
    # log-probabilities of 90 equally likely tokens: 4.5 nats
    for factor, is_same in ((0.5, True), (2.0, False)):
        moved = [figures["log_probs"][0] + factor * allowed, *figures["log_probs"][1:]]
        now = figures | {"log_probs": moved, "logits": "other"}
        now["made_by"] = figures["made_by"] | {"dtype": dtype}
        found = compare_figures(saved, now)
        assert found.is_same == is_same
        assert "processor another then" in found.text


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_other_backends_and_threads_stay_within_the_bounds(dtype: torch.dtype) -> None:
    figures, threads = [], torch.get_num_threads()
    for attention, count in (("sdpa", 1), ("eager", 1), ("sdpa", 2)):
        torch.manual_seed(0)
        config = ArbProbConfig.preset("nano", vocab_size=300, n_layer=4)
        model = ArbProbForCausalLM._from_config(config, attn_implementation=attention).to(dtype)
        torch.set_num_threads(count)
        try:
            figures.append(measure(model))
        finally:
            torch.set_num_threads(threads)
    assert all(compare_figures(figures[0], other).is_same for other in figures[1:])


def test_measuring_leaves_train_mode_and_random_state_alone() -> None:
    model = ArbProbForCausalLM(ArbProbConfig.preset("nano", vocab_size=90, n_embd=8, dropout=0.5)).train()
    before = torch.get_rng_state()
    assert measure(model) == measure(model)
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)


def test_a_network_that_cannot_be_asked_still_has_its_files_noted(tmp_path: Path, caplog) -> None:
    class Odd(torch.nn.Linear):
        config = ArbProbConfig.preset("nano", vocab_size=90)

    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    write_fingerprint(tmp_path, Odd(2, 2))
    noted = json.loads((tmp_path / FINGERPRINT_NAME).read_text(encoding="utf-8"))
    assert (list(noted["files"]), noted["figures"]) == (["config.json"], None)
    assert "no figures in it, as the network does not answer its batch" in caplog.text


def test_the_command_ends_with_what_it_found(copied: Path, tmp_path: Path) -> None:
    def ran(*words: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, ["verify", *words])
        return result.exit_code, result.output

    assert ran(str(tmp_path / "nowhere"))[0] == 2
    (tmp_path / "empty").mkdir()
    code, said = ran(str(tmp_path / "empty"))
    assert (code, "holds no model (no config.json); name a run's folder, a checkpoint, or" in said) == (2, True)
    code, said = ran(str(copied), "--json")
    found = json.loads(said)
    assert (code, found["whole"], found["findings"][0]["status"]) == (0, True, "ok")
    flip(copied / "model.safetensors", 80000)
    code, said = ran(str(copied))
    assert (code, "fail  fingerprint: model.safetensors is not the file that was saved" in said) == (1, True)
