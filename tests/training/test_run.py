"""A whole run, small: what it leaves, and that an interruption leaves the same."""

import hashlib
import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from arbprob_hf import ArbProbConfig, ArbProbForCausalLM
from arbprob_hf.data import load_tokenizer
from arbprob_hf.errors import UsageError
from arbprob_hf.publishing import CardFacts, template, write_card
from arbprob_hf.publishing.card import set_license
from arbprob_hf.runs.log import COLUMNS, read_log
from arbprob_hf.training.arguments import parse
from arbprob_hf.training.card_facts import short_title
from arbprob_hf.training.model_setup import build_model, fill_with_sinusoids, refuse_flex, warn_of_visible_answers
from arbprob_hf.training.run import Outcome, train

ROOT = Path(__file__).parents[2]
PROSE = "a mask says which key a query may see and no other so that nothing leaks from what comes later"


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of forty documents of regular prose."""
    folder = tmp_path_factory.mktemp("text")
    words = PROSE.split()
    for number in range(40):
        turned = words[number % 7 :] + words[: number % 7]
        (folder / f"{number:02}.txt").write_text(" ".join(turned * 6), encoding="utf-8")
    return folder


def options(text: Path, output: Path, **changes: object) -> list[str]:
    """Command line of a run of 12 steps: a line every 2, an evaluation every 4, a checkpoint every 6."""
    fields = {
        "source": text,
        "output_dir": output,
        "mask": "causal & window(8)",
        "n_embd": 16,
        "n_positions": 32,
        "validation_share": 0.2,
        "max_steps": 12,
        "batch_size": 4,
        "learning_rate": "3e-2",
        "logging_steps": 2,
        "eval_steps": 4,
        "save_steps": 6,
        "sample_count": 2,
        "sample_tokens": 8,
        "use_cpu": "true",
        "disable_tqdm": "true",
        **changes,
    }
    return [f"--{name}={value}" for name, value in fields.items()]


def run(text: Path, output: Path, **changes: object) -> Outcome:
    return train(*parse(options(text, output, **changes)))


@pytest.fixture(scope="module")
def done(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """A finished run; nobody changes its folder."""
    return run(text, tmp_path_factory.mktemp("runs") / "done")


def comparable(folder: Path) -> list[dict[str, float | None]]:
    """The log without the one column that depends on the clock."""
    return [{**row, "tokens_per_second": None} for row in read_log(folder / "logs" / "training_log.csv")]


def test_the_folder_holds_everything_promised(done: Outcome) -> None:
    names = {path.relative_to(done.folder).as_posix() for path in done.folder.rglob("*")}
    assert names >= {
        "config.json",
        "fingerprint.json",
        "model.safetensors",
        "generation_config.json",
        "modeling_arbprob.py",
        "configuration_arbprob.py",
        "tokenizer.json",
        "tokenizer_config.json",
        "README.md",
        "checkpoint-6",
        "checkpoint-12",
        "logs/training_log.csv",
        "logs/training_curves.png",
        "logs/mask.png",
        "logs/samples.txt",
    }
    assert [name for name in names if name.endswith(".tmp")] == []


def test_the_saved_tokenizer_truncates_to_the_models_positions(done: Outcome) -> None:
    for folder in (done.folder, done.folder / "checkpoint-12"):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        assert tokenizer.model_max_length == 32
        assert len(tokenizer(PROSE * 9, truncation=True)["input_ids"]) == 32


def test_the_loss_falls(done: Outcome) -> None:
    losses = [row["loss"] for row in read_log(done.folder / "logs" / "training_log.csv") if row["loss"]]
    assert losses[0] > 10
    assert losses[-1] < 8


def test_the_log_has_a_line_per_log_step_and_evaluation(done: Outcome) -> None:
    log = read_log(done.folder / "logs" / "training_log.csv")
    assert [row["step"] for row in log if row["loss"] is not None] == [1, 2, 4, 6, 8, 10, 12]
    assert [row["step"] for row in log if row["eval_loss"] is not None] == [4, 8, 12]
    trained, evaluated = log[-2], log[-1]
    assert [name for name in COLUMNS if trained[name] is None] == ["eval_loss", "perplexity", "bits_per_byte"]
    assert evaluated["tokens_seen"] == 12 * 4 * 32


def test_the_outcome_is_the_last_evaluation(done: Outcome) -> None:
    last = read_log(done.folder / "logs" / "training_log.csv")[-1]
    assert (done.steps, done.eval_loss, done.perplexity) == (12, last["eval_loss"], last["perplexity"])
    assert f"perplexity {done.perplexity:.1f}" in str(done)


def test_the_saved_model_is_the_trained_one_under_its_mask(done: Outcome) -> None:
    model = ArbProbForCausalLM.from_pretrained(done.folder)
    assert model.config.mask == "causal & window(8)"
    last = load_file(done.folder / "checkpoint-12" / "model.safetensors")
    saved = load_file(done.folder / "model.safetensors")
    assert saved.keys() == last.keys()
    assert all(saved[name].equal(last[name]) for name in last)


def test_the_figures_are_those_of_the_best_weights_when_they_are_kept(text: Path, tmp_path: Path) -> None:
    # a learning rate that rises to ruin
    best = run(
        text,
        tmp_path / "best",
        load_best_model_at_end="true",
        eval_steps=6,
        learning_rate=2,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=12,
    )
    rows = {r["step"]: r["eval_loss"] for r in read_log(best.folder / "logs" / "training_log.csv") if r["eval_loss"]}
    assert rows[6] < rows[12]
    assert (best.steps, best.saved_step, best.eval_loss) == (12, 6, rows[6])
    assert str(best).startswith("12 steps, the best kept, of step 6, validation loss")
    saved, kept = (load_file(best.folder / name / "model.safetensors") for name in (".", "checkpoint-6"))
    assert all(saved[name].equal(kept[name]) for name in kept)
    card = ModelCard.load(best.folder / "README.md")
    assert "these weights are of step 6, the best evaluation" in card.text
    losses = [result.metric_value for result in card.data.eval_results if result.metric_type == "loss"]
    assert losses == [pytest.approx(rows[6], abs=1e-6)]


@pytest.mark.parametrize("changes", [{"eval_steps": 5}, {"eval_delay": 100}], ids=["between", "delayed"])
def test_the_figures_are_those_of_the_last_weights(text: Path, tmp_path: Path, done: Outcome, changes) -> None:
    last = run(text, tmp_path / "last", sample_count=0, **changes)
    assert (last.saved_step, last.eval_loss) == (12, done.eval_loss)


def test_samples_are_written_and_returned(done: Outcome) -> None:
    written = (done.folder / "logs" / "samples.txt").read_text(encoding="utf-8")
    assert len(done.samples) == 2
    assert all(sample in written and sample.startswith("The") for sample in done.samples)


def test_an_interrupted_run_leaves_the_same_log_model_and_samples(text: Path, done: Outcome, tmp_path: Path) -> None:
    # killed after step 12 was logged and before it was saved, in the middle of a line
    shutil.copytree(done.folder, tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "checkpoint-12")
    (tmp_path / "again" / "README.md").unlink()
    with (tmp_path / "again" / "logs" / "training_log.csv").open("a") as log:
        log.write("13,0.5,3.1")
    again = run(text, tmp_path / "again", resume="true")
    assert comparable(again.folder) == comparable(done.folder)
    assert (again.samples, again.eval_loss) == (done.samples, done.eval_loss)
    first, second = (load_file(folder / "model.safetensors") for folder in (done.folder, again.folder))
    assert all(first[name].equal(second[name]) for name in first)
    assert (again.folder / "README.md").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask": "causal"}, r"^mask: checkpoint-12 was trained with causal & window\(8\), this run has causal: give"),
        ({"num_train_samples": 9}, r"^text: checkpoint-12 was trained with \d+ blocks of .*, this run has 9 blocks of"),
        ({"block_size": 16}, "^block_size: checkpoint-12 was trained with 32, this run has 16: give the same"),
        ({"n_embd": 32}, "^n_embd: checkpoint-12 was trained with 16, this run has 32: give the same"),
        ({"seed": 1}, "^seed: checkpoint-12 was trained with 42, this run has 1: give the same"),
    ],
    ids=["mask", "text", "block size", "sizes", "seed"],
)
def test_a_run_is_not_resumed_as_another(text: Path, done: Outcome, changes: dict[str, object], message: str) -> None:
    before = (done.folder / "logs" / "training_log.csv").read_bytes()
    with pytest.raises(ValueError, match=message):
        run(text, done.folder, resume="true", **changes)
    assert (done.folder / "logs" / "training_log.csv").read_bytes() == before


def test_a_folder_with_another_run_is_refused_before_anything_is_loaded(text: Path, done: Outcome) -> None:
    with pytest.raises(ValueError, match=r"already holds a run .*--resume_from_checkpoint true"):
        run(text, done.folder, tokenizer="/no/such/tokenizer")


def test_a_checkpoint_that_is_not_there_is_refused_before_anything_is_loaded(text: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"resume_from_checkpoint: .*/checkpoint-9 does not exist; name a checkpoint"):
        run(text, tmp_path / "out", tokenizer="/no/such/tokenizer", resume=tmp_path / "checkpoint-9")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block_size": 64}, "block_size: expected at most the model's 32 positions, got 64"),
        ({"sample_tokens": 100}, r"sample_tokens: 100 after a prompt of 2 tokens .* expected at most 30"),
        ({"mask": "windo(3)"}, "windo"),
        ({"preset": "huge"}, "preset: expected one of nano"),
        ({"mask": "block_diffusion(8, 4)"}, r"^block_diffusion.*; blocks have block_size=32 tokens$"),
        ({"attn_implementation": "flex_attention"}, "^attn_implementation: flex_attention .* on the CPU; give sdpa$"),
    ],
)
def test_what_cannot_work_is_refused_before_training(
    text: Path, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        run(text, tmp_path / "refused", **changes)
    assert not (tmp_path / "refused").exists()


def test_the_initial_weights_are_as_large_as_asked_for(text: Path) -> None:
    model = build_model(parse(options(text, Path("unused"), initializer_range=0.25)).model, load_tokenizer("gpt2"))
    assert model.config.initializer_range == 0.25
    assert model.transformer.h[0].mlp.c_fc.weight.std().item() == pytest.approx(0.25, rel=0.1)


def test_position_embeddings_may_start_as_sinusoids(text: Path) -> None:
    options_of_run = options(text, Path("unused"), initializer_range=0.25, position_init="sinusoidal")
    table = build_model(parse(options_of_run).model, load_tokenizer("gpt2")).transformer.wpe.weight.detach()
    assert table.square().mean().sqrt().item() == pytest.approx(0.25, rel=1e-5)
    # the inner product of two rows depends on their distance alone
    products = table @ table.T
    for distance in (0, 1, 5):
        along = products.diagonal(distance)
        assert (along - along[0]).abs().max().item() < 1e-5
    assert products[3, 3] > products[3, 4] > products[3, 5]


def test_sinusoids_of_an_odd_width_leave_out_a_cosine() -> None:
    table = torch.zeros(4, 5)
    fill_with_sinusoids(table, 1.0)
    assert table[0].tolist() == pytest.approx([0, math.sqrt(2), 0, math.sqrt(2), 0])


def test_flex_attention_trains_on_accelerators_without_dropout() -> None:
    model = ArbProbForCausalLM(ArbProbConfig.preset("nano", vocab_size=8, dropout=0.1))
    refuse_flex(model, torch.device("cpu"))
    model.set_attn_implementation("flex_attention")
    with pytest.raises(ValueError, match=r"^dropout: flex_attention drops .* got attn_pdrop=0.1; give --dropout 0, or"):
        refuse_flex(model, torch.device("cuda"))
    model.config.attn_pdrop = 0.0
    refuse_flex(model, torch.device("cuda"))
    with pytest.raises(ValueError, match="^attn_implementation: flex_attention has no backward on the CPU; give sdpa$"):
        refuse_flex(model, torch.device("cpu"))


@pytest.mark.parametrize(
    ("mask", "warned"),
    [("causal", []), ("window(4)", ["window(4)"]), (["causal", "full"], ["full"]), ("causal | prefix(5)", ["causal"])],
    ids=["causal", "window", "one layer", "prefix"],
)
def test_a_mask_that_shows_the_answers_is_warned_of(
    mask: str | list[str], warned: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    model = ArbProbForCausalLM(ArbProbConfig.preset("nano", vocab_size=8, n_layer=2, mask=mask))
    warn_of_visible_answers(model, 8)
    assert [record.getMessage().split()[1] for record in caplog.records] == warned


def test_a_run_may_go_on_from_weights_of_another(text: Path, done: Outcome, tmp_path: Path) -> None:
    argv = options(text, tmp_path / "tuned", init_from=done.folder, max_steps=1, mask="causal", dropout=0.25)
    kept = [word for word in argv if not word.startswith(("--n_embd", "--n_positions"))]
    tuned = train(*parse(kept))
    config = ArbProbForCausalLM.from_pretrained(tuned.folder).config
    assert (config.mask, config.n_embd, config.resid_pdrop) == ("causal", 16, 0.25)
    first = read_log(tuned.folder / "logs" / "training_log.csv")[0]["loss"]
    assert first is not None
    assert first < 9
    # a folder of this machine is no base model that others could find, but its weights have a hash
    card = ModelCard.load(tuned.folder / "README.md")
    digest = hashlib.sha256((done.folder / "model.safetensors").read_bytes()).hexdigest()
    assert card.data.base_model is None
    assert f"| weights at the start | done, weights of SHA-256 {digest} |" in card.text
    assert str(done.folder.parent) not in card.content
    record = json.loads((tuned.folder / "checkpoint-1" / "run.json").read_text(encoding="utf-8"))
    assert (record["init_from"], record["init_revision"]) == ("done", f"weights of SHA-256 {digest}")


@pytest.mark.long
def test_the_card_of_a_resumed_run_names_the_weights_that_the_first_part_read(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = {"init_from": "somebody/model", "init_revision": "commit 0123"}
    with monkeypatch.context() as first:
        first.setattr("arbprob_hf.training.run.starting_weights", lambda *_: start)
        run(text, tmp_path, max_steps=1, sample_count=0)
    run(text, tmp_path, max_steps=2, sample_count=0, resume_from_checkpoint="true")
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.base_model == "somebody/model"
    assert "| weights at the start | somebody/model, commit 0123 |" in card.text


def test_weights_that_know_fewer_tokens_than_the_tokenizer_are_refused(text: Path, tmp_path: Path) -> None:
    config = ArbProbConfig.preset("nano", vocab_size=300, bos_token_id=0, eos_token_id=0)
    ArbProbForCausalLM(config).save_pretrained(tmp_path / "small")
    argv = [f"--init_from={tmp_path / 'small'}", f"--source={text}", f"--output_dir={tmp_path / 'out'}"]
    with pytest.raises(ValueError, match="knows 300 tokens, the tokenizer has 50257"):
        train(*parse(argv))


def _without(name: str):
    return lambda weights: weights.pop(name)


def _narrower(weights: dict[str, torch.Tensor]) -> None:
    weights["transformer.wpe.weight"] = weights["transformer.wpe.weight"][:5].clone()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            _without("transformer.h.0.ln_1.weight"),
            r"lacks 1 of the .*weights, such as transformer\.h\.0\.ln_1\.weight;",
        ),
        (
            _without("lm_head.weight"),
            r"^init_from: .*small: lacks 1 of the network's weights, such as lm_head\.weight; name",
        ),
        (
            _narrower,
            r"n_positions: expected 5 as in the saved weights, where wpe.weight is \(5, 64\), got 128 in the config",
        ),
    ],
    ids=["network", "output layer", "size"],
)
def test_weights_that_are_not_whole_are_refused(text: Path, tmp_path: Path, change, message: str) -> None:
    small = tmp_path / "small"
    fields = {"vocab_size": 300, "bos_token_id": 0, "eos_token_id": 0, "tie_word_embeddings": False}
    ArbProbForCausalLM(ArbProbConfig.preset("nano", **fields)).save_pretrained(small)
    weights = load_file(small / "model.safetensors")
    change(weights)
    save_file(weights, small / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=message):
        train(*parse([f"--init_from={small}", f"--source={text}", f"--output_dir={tmp_path / 'out'}"]))


def test_weights_of_another_kind_of_model_are_refused(text: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ValueError, match="model_type: expected gpt2 or arbprob in config.json, got 'llama'"):
        train(*parse([f"--init_from={tmp_path}", f"--source={text}", f"--output_dir={tmp_path / 'out'}"]))


def test_the_card_is_valid_and_complete(done: Outcome) -> None:
    card = ModelCard.load(done.folder / "README.md")
    assert card.data.license is None
    assert "No licence was given for its weights" in card.text
    assert (card.data.library_name, card.data.pipeline_tag) == ("transformers", "text-generation")
    # text from elsewhere is no data set of the Hub
    assert card.data.datasets is None
    metrics = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert metrics["loss"] == pytest.approx(done.eval_loss, abs=1e-6)
    assert metrics["perplexity"] == pytest.approx(done.perplexity, abs=1e-6)
    # without a split of its own, validation is on a share of the training split
    assert {result.dataset_split for result in card.data.eval_results} == {"train"}
    assert "| measured on documents held out of the split train (20% of them) | |" in card.text
    assert "model-index" in yaml.safe_load(card.content.split("---")[1])
    pictures = ("(logs/training_curves.png)", "(logs/mask.png)")
    for said in ("causal & window(8)", "trust_remote_code=True", "revision", *pictures):
        assert said in card.text
    # once: the size, the text and what was held out of it
    for once in ("32 positions", "1 layer", "local text", "documents held out"):
        assert card.text.count(once) <= 1
    for unsaid in ("More Information Needed", "{{", "{%", "None", str(done.folder.parent)):
        assert unsaid not in card.content


def test_the_card_says_what_each_file_of_code_holds_and_how_long_it_is(done: Outcome) -> None:
    card = (done.folder / "README.md").read_text(encoding="utf-8")
    lines = re.findall(r"^- `(\w+\.py)` \((\d+) lines\): \S.*$", card, flags=re.MULTILINE)
    found = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in done.folder.glob("*.py")}
    assert {name: int(length) for name, length in lines} == found
    assert len(lines) == len(found) == 5


def test_a_split_of_its_own_is_named_in_the_card(tmp_path: Path) -> None:
    fields = dict(title="t", mask="causal", parameters="1", shape="1 layer", n_positions=8, source="x", start="")
    facts = CardFacts(
        **fields, prompt="The", license="mit", results={"loss": 1.0}, split="dev", dataset_commit="a" * 40
    )
    card = ModelCard.load(write_card(tmp_path, facts))
    assert "| measured on the split dev | |" in card.text
    (result,) = card.data.eval_results
    assert (result.dataset_split, result.dataset_revision) == ("dev", "a" * 40)


def test_figures_that_count_shown_answers_are_no_result_and_marked_in_the_table(text: Path, tmp_path: Path) -> None:
    shown = run(text, tmp_path / "shown", mask="causal | window(2) & full | prefix(9)", max_steps=1, sample_count=0)
    card = ModelCard.load(shown.folder / "README.md")
    assert "(20% of them) | **answers were shown** |" in card.text
    assert "these figures do not say how well it predicts" in card.text
    assert (card.data.eval_results, card.data.metrics) == (None, None)


def test_a_license_given_later_takes_the_place_of_none(done: Outcome, tmp_path: Path) -> None:
    before = (done.folder / "README.md").read_text(encoding="utf-8")
    (tmp_path / "README.md").write_text(before, encoding="utf-8")
    for license in ("apache-2.0", "mit"):
        set_license(tmp_path, license)
        card = ModelCard.load(tmp_path / "README.md")
        assert card.data.license == license
        assert "No licence" not in card.text
    assert len(before.splitlines()) == len(card.content.splitlines())
    with pytest.raises(ValueError, match="license: .* holds no README.md to name it in; name the output folder of a"):
        set_license(tmp_path / "nowhere", "mit")


def test_the_title_of_curves_names_the_sizes_that_are_not_the_presets(text: Path, tmp_path: Path) -> None:
    arguments = parse(options(text, tmp_path / "x", n_layer=2, n_embd=64))
    config = ArbProbConfig.preset("nano", vocab_size=300, n_layer=2, n_positions=32)
    title = short_title(arguments, ArbProbForCausalLM(config))
    assert title.startswith("nano, 2 layers, 32 positions, 121,")
    assert title.endswith(" parameters, mask: causal")


def test_a_finished_run_that_is_extended_says_that_its_rate_rises_again(
    text: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    short = dict(max_steps=4, save_steps=4, eval_strategy="no", sample_count=0, lr_scheduler_type="cosine")
    run(text, tmp_path / "run", **short)
    assert "rises again" not in caplog.text
    run(text, tmp_path / "run", **{**short, "max_steps": 8}, resume="true")
    said = [record.getMessage() for record in caplog.records if "rises again" in record.getMessage()]
    assert said == [
        "the learning rate rises again at step 4, from 0 to 0.015: its schedule (cosine) is now one of 8 steps, and a "
        "run of so many from the start would not have fallen so low here"
    ]


def test_the_cards_code_runs_without_the_package(done: Outcome, tmp_path: Path) -> None:
    code = ModelCard.load(done.folder / "README.md").text.split("```python\n")[1].split("```")[0]
    blocked = "import sys; sys.modules['arbprob_hf'] = None\n"
    ran = subprocess.run(
        [sys.executable, "-c", blocked + code],
        cwd=done.folder,
        env={"PATH": "", "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("The")


def test_the_packaged_card_template_is_the_one_at_the_top() -> None:
    assert template() == (ROOT / "model_card.md").read_text(encoding="utf-8")


def test_tensorboard_gets_the_losses_on_request(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    run(text, tmp_path / "run", report_to="tensorboard", max_steps=2, eval_steps=2)
    events = EventAccumulator(str(tmp_path / "board")).Reload()
    assert {"train/loss", "eval/loss"} <= set(events.Tags()["scalars"])


def test_without_evaluations_and_samples_the_card_says_so(text: Path, tmp_path: Path) -> None:
    bare = run(text, tmp_path / "bare", max_steps=1, eval_strategy="no", sample_count=0)
    assert (bare.eval_loss, bare.samples) == (None, ())
    assert str(bare).startswith("1 step; ")
    card = ModelCard.load(tmp_path / "bare" / "README.md")
    assert "this run made no evaluation" in card.text
    assert "samples.txt" not in card.text
    assert card.data.eval_results is None


@pytest.mark.long
def test_two_processes_give_the_losses_of_one(text: Path, done: Outcome, tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", str(ROOT / "train_hf.py")]
    argv += options(text, tmp_path / "two", batch_size=2)
    ran = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    one, two = (
        [[-1 if value is None else value for value in row.values()] for row in comparable(folder)]
        for folder in (done.folder, tmp_path / "two")
    )
    assert len(one) == len(two)
    for single, double in zip(one, two, strict=True):
        assert double == pytest.approx(single, rel=1e-5)
    # only the main process talks
    assert ran.stdout.count("12 steps, validation loss") == 1


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_without_training_the_model_of_the_folder_is_evaluated_and_left_as_it_is(
    text: Path, done: Outcome, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(done.folder, folder)
    before = files_in(folder)
    outcome = run(text, folder, do_train="false", do_eval="true")
    assert outcome.eval_loss == pytest.approx(done.eval_loss, rel=1e-6)
    assert (outcome.perplexity, outcome.bits_per_byte) == pytest.approx((done.perplexity, done.bits_per_byte))
    assert f"{folder} evaluated, validation loss" in str(outcome)
    # a second evaluation adds to the first: here in half precision
    rounded = run(text, folder, do_train="false", do_eval="true", bf16_full_eval="true", batch_size=2)
    assert 1e-5 < abs(rounded.eval_loss - outcome.eval_loss) < 0.1
    after = files_in(folder)
    lines = [json.loads(line) for line in after.pop("logs/evaluations.jsonl").decode().splitlines()]
    assert after == before
    assert [line["eval_loss"] for line in lines] == [outcome.eval_loss, rounded.eval_loss]
    assert lines[0]["weights"] == str(folder)
    assert lines[0]["mask"] == "causal & window(8)"


def test_without_training_other_weights_are_evaluated(text: Path, done: Outcome, tmp_path: Path) -> None:
    changes = {"init_from": done.folder / "checkpoint-6", "do_train": "false", "do_eval": "true"}
    given = [one for one in options(text, tmp_path / "new", **changes) if not one.startswith(("--n_", "--mask"))]
    outcome = train(*parse([*given, "--block_size=32"]))
    logged = {row["step"]: row["eval_loss"] for row in read_log(done.folder / "logs" / "training_log.csv")}
    assert outcome.eval_loss is not None
    assert outcome.eval_loss != pytest.approx(logged[12], rel=1e-3)
    assert files_in(tmp_path / "new").keys() == {"logs/evaluations.jsonl"}


def test_scoring_under_another_mask_than_the_weights_own_is_told_of(
    text: Path, done: Outcome, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(done.folder, folder)
    run(text, folder, do_train="false", do_eval="true", mask="causal&window( 8 )")
    assert "was trained with" not in caplog.text
    run(text, folder, do_train="false", do_eval="true", mask="causal")
    assert f"mask: {folder} was trained with causal & window(8), and is scored with causal, as this" in caplog.text
    assert caplog.text.count("was trained with") == 1


def test_one_step_is_no_steps() -> None:
    assert str(Outcome(Path("x"), 1, 1)).startswith("1 step; ")
    assert str(Outcome(Path("x"), 2, 2)).startswith("2 steps; ")


def test_without_training_and_weights_there_is_nothing_to_evaluate(text: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"^do_train: without training, init_from or output_dir is evaluated; .*no conf"
    ):
        run(text, tmp_path / "nowhere", do_train="false", do_eval="true")


def test_an_evaluation_that_is_asked_for_comes_at_the_end_where_none_comes_before(text: Path, tmp_path: Path) -> None:
    outcome = run(text, tmp_path / "a", do_eval="true", eval_strategy="no", max_steps=2)
    assert outcome.eval_loss is not None
    assert run(text, tmp_path / "b", do_eval="false", max_steps=2).eval_loss is None
