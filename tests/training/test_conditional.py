"""Runs that train on questions: their options, what they leave, and that their figures are those of the model."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

from arbprob_hf import ArbProbConfig, ArbProbForCausalLM
from arbprob_hf.comparison.compare import compare
from arbprob_hf.data import load_tokenizer
from arbprob_hf.data.eval_sets import GAINS, MODES, load_modes
from arbprob_hf.errors import UsageError
from arbprob_hf.model.questions.conditional import Conditional
from arbprob_hf.runs.log import COLUMNS, read_log
from arbprob_hf.training.arguments import ModelArguments, parse
from arbprob_hf.training.eval_modes import COLUMNS as MODE_COLUMNS
from arbprob_hf.training.mask_picture import question_sheets
from arbprob_hf.training.model_setup import build_model, warn_of_other_questions
from arbprob_hf.training.run import Outcome, train

PROSE = "a mask says which key a query may see and no other so that nothing leaks from what comes later"
TASK = "uniform(given=0..0.8, asked=0.3..1) + spans(1..4)"


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of forty documents of regular prose, some shorter than a block."""
    folder = tmp_path_factory.mktemp("text")
    words = PROSE.split()
    for number in range(40):
        turned = words[number % 7 :] + words[: number % 7]
        (folder / f"{number:02}.txt").write_text(" ".join(turned * (1 + number % 4)), encoding="utf-8")
    return folder


def options(text: Path, output: Path, **changes: object) -> list[str]:
    fields = {
        "source": text,
        "output_dir": output,
        "task": TASK,
        "n_embd": 16,
        "n_positions": 32,
        "validation_share": 0.2,
        "max_steps": 4,
        "batch_size": 4,
        "learning_rate": "3e-2",
        "logging_steps": 2,
        "eval_steps": 2,
        "save_steps": 2,
        "sample_count": 1,
        "sample_tokens": 4,
        "use_cpu": "true",
        "disable_tqdm": "true",
        **changes,
    }
    return [f"--{name}={value}" for name, value in fields.items() if value is not None]


def run(text: Path, output: Path, **changes: object) -> Outcome:
    return train(*parse(options(text, output, **changes)))


@pytest.fixture(scope="module")
def done(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """A finished run; nobody changes its folder."""
    return run(text, tmp_path_factory.mktemp("runs") / "done")


def log_of(outcome: Outcome) -> list[dict[str, float | None]]:
    return read_log(outcome.folder / "logs" / "training_log.csv")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--layout", "sigma"], "layout: got 'sigma' without a task; give one"),
        (["--given_sees", "all"], "given_sees: got 'all' without a task; give one"),
        (["--task", "unifrom"], "task: cannot read 'unifrom': unknown task"),
        (["--task", "uniform(given=2)"], "uniform(given): expected"),
        (["--task", "uniform", "--layout", "two"], "layout: expected one of two_stream, prefix, sigma, masked, causal"),
        (["--task", "uniform", "--given_sees", "some"], "given_sees: expected one of all, earlier, got 'some'"),
        (["--task", "uniform(random=1)", "--layout", "prefix"], "layout: prefix asks from left to right only, and the"),
        (["--task", "causal(random=1)", "--layout", "causal"], "layout: causal asks from left to right only, and the"),
        (["--task", "uniform", "--layout", "causal"], "task: uniform cannot be asked, layout: causal only continues"),
        (["--task", "prefix", "--layout", "causal"], "task: prefix cannot be asked, layout: causal only continues"),
        (["--task", "0.999*causal + 0.001*spans(2)", "--layout", "causal"], "task: spans(2) cannot be asked, layout:"),
        (["--task", "uniform", "--mask", "window(3)"], "mask: got 'window(3)' together with a task"),
        (["--task", "uniform", "--mask", "[causal, full]"], "mask: got 'full' together with a task"),
        (["--task", "uniform", "--patterns", "x.py"], "patterns: got 'x.py' together with a task"),
        (["--task", "uniform", "--layout", "masked", "--given_sees", "earlier"], "given_sees: got 'earlier' with"),
    ],
)
def test_options_that_cannot_be_are_reported_in_one_line(given: list[str], message: str) -> None:
    with pytest.raises(UsageError) as error:
        parse(given)
    assert message in str(error.value)
    assert len(str(error.value)) <= 300
    assert len(str(error.value).splitlines()) == 1


def test_a_task_has_defaults_and_one_spelling() -> None:
    found = parse(["--task", "0.5*uniform( given = 0..1 )+0.5*causal", "--mask", "causal"]).model
    assert (found.task, found.layout, found.given_sees) == ("uniform + causal", "two_stream", "all")


def test_the_masked_layout_takes_the_default_of_a_file_on_what_given_tokens_see() -> None:
    found = parse(["--config", "configs/conditional_nano.yaml", "--layout", "masked"]).model
    assert (found.layout, found.given_sees) == ("masked", "all")


def test_what_the_causal_layout_can_continue_is_taken() -> None:
    given = ["--task", "prefix + causal", "--layout", "causal", "--given_sees", "earlier"]
    assert parse(given).model.layout == "causal"


def test_positions_that_a_document_lacks_are_reported_before_training(text: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^task: the text has documents of \d+ tokens, and fixed\(given\): no pos"):
        run(text, tmp_path / "out", task="fixed(given=[30])")
    assert not (tmp_path / "out").exists()


def test_the_log_and_compare_agree_on_bits_per_byte(done: Outcome) -> None:
    last = [row for row in read_log(done.folder / "logs" / "training_log.csv") if row["task_loss"] is not None][-1]
    found = {figure.question_set: figure for figure in compare([done.folder]).figures}
    for mode in MODES:
        assert last[f"{mode}_bits_per_byte"] == pytest.approx(found[mode].bits_per_byte, rel=1e-3)


def test_the_network_is_built_for_its_questions(done: Outcome) -> None:
    config = ArbProbForCausalLM.from_pretrained(done.folder).config
    assert (config.layout, config.given_sees, config.mask) == ("two_stream", "all", "causal")
    assert (config.mask_token, config.target_positions) == (True, False)


def test_the_vector_of_an_unknown_token_is_trained(done: Outcome) -> None:
    assert load_file(done.folder / "model.safetensors")["transformer.wme.weight"].abs().sum() > 0


def test_the_questions_of_evaluation_lie_beside_the_model(done: Outcome) -> None:
    names = [path.name for path in (done.folder / "evaluation").iterdir()]
    assert sorted(names) == sorted(f"{mode}.parquet" for mode in MODES)


def test_another_seed_is_evaluated_on_the_same_questions(done: Outcome, text: Path, tmp_path: Path) -> None:
    other = run(text, tmp_path / "other", seed=7, max_steps=1, layout="prefix", sample_count=0)
    for mode, questions in load_modes(done.folder / "evaluation").items():
        theirs = load_modes(other.folder / "evaluation")[mode]
        assert all(
            np.array_equal(one[name], two[name]) for one, two in zip(questions, theirs, strict=True) for name in one
        )


def test_an_evaluation_is_one_line_with_all_modes(done: Outcome) -> None:
    evaluated = [row for row in log_of(done) if row["eval_loss"] is not None]
    assert [row["step"] for row in evaluated] == [2, 4]
    assert list(evaluated[0]) == [*COLUMNS, *MODE_COLUMNS]
    assert [name for name in MODE_COLUMNS if evaluated[-1][name] is None] == []


def test_the_loss_of_the_run_is_that_of_its_task(done: Outcome) -> None:
    last = log_of(done)[-1]
    for whole, mode in (("eval_loss", "loss"), ("perplexity", "perplexity"), ("bits_per_byte", "bits_per_byte")):
        assert last[whole] == last[f"task_{mode}"] == getattr(done, whole)


def test_the_gains_are_differences_of_losses(done: Outcome) -> None:
    last = log_of(done)[-1]
    for name, (blind, seeing) in GAINS.items():
        assert last[name] == pytest.approx(last[f"{blind}_loss"] - last[f"{seeing}_loss"], abs=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_the_logged_loss_is_that_of_log_prob_document_by_document(done: Outcome, mode: str) -> None:
    model = ArbProbForCausalLM.from_pretrained(done.folder).eval()
    nats, count, several = 0.0, 0, False
    for row in load_modes(done.folder / "evaluation")[mode]:
        ids = row["document_ids"]
        several = several or len(set(ids.tolist())) > 1
        for document in set(ids.tolist()):
            here = torch.from_numpy(ids == document)
            tokens, given, target, step, scored = (
                torch.from_numpy(row[name].copy())[here][None]
                for name in ("input_ids", "given", "target", "step", "scored")
            )
            if not scored.any():
                continue
            with torch.no_grad():
                found = model.log_prob(tokens.long(), Conditional(given=given, target=target, order=step))
            nats, count = nats - float(found[scored].sum()), count + int(scored.sum())
    assert several, "the text should have blocks of several documents"
    assert log_of(done)[-1][f"{mode}_loss"] == pytest.approx(nats / count, rel=1e-5)


def test_an_interrupted_run_leaves_the_same_log_and_model(done: Outcome, text: Path, tmp_path: Path) -> None:
    # killed after step 4 was logged and evaluated, and before it was saved
    shutil.copytree(done.folder, tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "checkpoint-4")
    again = run(text, tmp_path / "again", resume="true")
    lines = [[{**row, "tokens_per_second": None} for row in log_of(outcome)] for outcome in (again, done)]
    assert lines[0] == lines[1]
    first, second = (load_file(outcome.folder / "model.safetensors") for outcome in (again, done))
    assert all(first[name].equal(second[name]) for name in first)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"task": "causal"},
            r"^task: checkpoint-4 was trained with uniform\(given=0..0.8, asked=0.3..1\).*, this run has causal",
        ),
        ({"task": None}, r"^task: checkpoint-4 was trained with uniform.*, this run has None: give the same"),
        ({"layout": "prefix"}, "^layout: checkpoint-4 was trained with two_stream, this run has prefix: give the same"),
        ({"given_sees": "earlier"}, "^given_sees: checkpoint-4 was trained with all, this run has earlier: give the"),
    ],
    ids=["task", "no task", "layout", "given_sees"],
)
def test_a_run_is_not_resumed_with_other_questions(
    done: Outcome, text: Path, changes: dict[str, object], message: str
) -> None:
    before = (done.folder / "logs" / "training_log.csv").read_bytes()
    with pytest.raises(ValueError, match=message):
        run(text, done.folder, resume="true", **changes)
    assert (done.folder / "logs" / "training_log.csv").read_bytes() == before


def test_the_card_has_the_task_and_the_table_of_modes(done: Outcome) -> None:
    card = ModelCard.load(done.folder / "README.md")
    last = log_of(done)[-1]
    for said in (TASK, "`two_stream`", "given tokens see one another", "slots seen"):
        assert said in card.text
    for mode, meaning in MODES.items():
        assert f"| {meaning} | {last[f'{mode}_loss']:.3f} | " in card.text
    assert f"mode 4 - mode 2 = {last['infilling_gain']:+.3f} nats per token" in card.text
    assert f"mode 5 - mode 3 = {last['task_gain']:+.3f} nats per token" in card.text
    for unsaid in ("{{", "{%", "None"):
        assert unsaid not in card.content


@pytest.mark.parametrize("layout", ["two_stream", "prefix", "sigma"])
def test_the_picture_of_a_task_has_a_question_of_each_part(layout: str) -> None:
    asked = ModelArguments(task="0.4 * uniform(given=0.5) + 0.3 * fixed([20, 21]) + 0.3 * causal", layout=layout)
    drawn, count = question_sheets(asked, 32, seed=3)
    assert [sheet.caption for sheet in drawn] == ["uniform(given=0.5)", "fixed(given=[20, 21])", "causal"]
    assert count == 3
    # a triangle for the last alone, whatever the seed
    assert [bool(sheet.later.any()) for sheet in drawn] == [True, True, False]
    # as short as the positions of each part allow
    assert len(drawn[2].depth) < len(drawn[1].depth)


def test_of_many_parts_the_first_nine_are_drawn() -> None:
    drawn, count = question_sheets(ModelArguments(task=" + ".join(f"spans({n})" for n in range(1, 12))), 32, seed=3)
    assert (len(drawn), count) == (9, 11)


@pytest.mark.long
def test_the_code_of_the_card_runs_without_the_package(done: Outcome, tmp_path: Path) -> None:
    blocks = (done.folder / "README.md").read_text(encoding="utf-8").split("```python\n")[1:]
    assert len(blocks) == 2
    code = "\n".join(block.split("```")[0] for block in blocks)
    ran = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.modules['arbprob_hf'] = None\n{code}"],
        cwd=done.folder,
        env={"PATH": "", "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    # log_prob of the question, and two samples of the blanks
    assert "tensor([[" in ran.stdout
    assert ran.stdout.count(" of it ") >= 2


def test_the_model_index_names_each_mode(done: Outcome) -> None:
    results = ModelCard.load(done.folder / "README.md").data.eval_results
    losses = {result.metric_name: result.metric_value for result in results if result.metric_type == "loss"}
    assert losses.keys() == {f"loss, {mode}" for mode in MODES}
    assert losses["loss, infilling"] == pytest.approx(log_of(done)[-1]["infilling_loss"], abs=1e-5)


@pytest.mark.parametrize(
    ("layout", "task", "left_out"),
    [
        ("masked", TASK, {"left_to_right", "infilling", "infilling_left_to_right", "task_left_to_right"}),
        ("causal", "causal", {"infilling"}),
    ],
)
def test_modes_that_a_layout_cannot_answer_are_left_empty(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], layout: str, task: str, left_out: set[str]
) -> None:
    outcome = run(text, tmp_path / "out", task=task, layout=layout, max_steps=2)
    last = log_of(outcome)[-1]
    assert {mode for mode in MODES if last[f"{mode}_loss"] is None} == left_out
    assert last["infilling_gain"] is None
    assert f"not evaluated, as the layout {layout} cannot: " in capsys.readouterr().out
    card = (outcome.folder / "README.md").read_text(encoding="utf-8")
    assert all(f"| {MODES[mode]} |  |  |  |" in card for mode in left_out)
    # a network that does not read text from left to right writes none
    assert len(outcome.samples) == (layout == "causal")


def test_random_orders_are_trained_in_the_layout_sigma(text: Path, tmp_path: Path) -> None:
    outcome = run(text, tmp_path / "out", task="causal(random=0.5)", layout="sigma", max_steps=2)
    weights = load_file(outcome.folder / "model.safetensors")
    assert weights["transformer.wtpe.weight"].abs().sum() > 0
    assert [mode for mode in MODES if log_of(outcome)[-1][f"{mode}_loss"] is None] == []


def saved_network(folder: Path, **options: object) -> Path:
    sizes = {"n_embd": 16, "n_positions": 32, "bos_token_id": 50256, "eos_token_id": 50256}
    ArbProbForCausalLM(ArbProbConfig.preset("nano", **sizes, **options)).save_pretrained(folder)
    return folder


def test_published_weights_get_vectors_that_start_at_zero(tmp_path: Path) -> None:
    saved = saved_network(tmp_path)
    given = ["--init_from", str(saved), "--task", "uniform", "--layout", "sigma"]
    model = build_model(parse(given).model, load_tokenizer("gpt2"))
    assert (model.config.layout, model.config.given_sees, model.config.target_positions) == ("sigma", "all", True)
    fresh = model.state_dict()
    assert all(bool((fresh[f"transformer.{name}.weight"] == 0).all()) for name in ("wme", "wtpe"))
    assert all(fresh[name].equal(value) for name, value in load_file(saved / "model.safetensors").items())


def test_vectors_that_were_trained_are_gone_on_with(tmp_path: Path) -> None:
    saved = saved_network(tmp_path, mask_token=True)
    weights = load_file(saved / "model.safetensors")
    weights["transformer.wme.weight"] += 1
    save_file(weights, saved / "model.safetensors", metadata={"format": "pt"})
    model = build_model(parse(["--init_from", str(saved), "--task", "uniform"]).model, load_tokenizer("gpt2"))
    assert bool((model.transformer.wme.weight == 1).all())


def test_published_weights_under_another_mask_are_not_taken_silently(tmp_path: Path) -> None:
    given = ["--init_from", str(saved_network(tmp_path, mask="window(3)")), "--task", "uniform"]
    with pytest.raises(ValueError, match=r"^init_from: .* has the mask window\(3\), which a task would overrule; add"):
        build_model(parse(given).model, load_tokenizer("gpt2"))
    assert build_model(parse([*given, "--mask", "causal"]).model, load_tokenizer("gpt2")).config.mask == "causal"


def test_a_run_without_a_task_has_no_questions(text: Path, tmp_path: Path) -> None:
    plain = run(text, tmp_path / "plain", task=None, max_steps=2, sample_count=0)
    assert not (plain.folder / "evaluation").exists()
    assert list(log_of(plain)[0]) == list(COLUMNS)
    record = json.loads((plain.folder / "checkpoint-2" / "run.json").read_text())
    assert not {"task", "layout", "given_sees"} & record.keys()


def test_scoring_other_questions_than_the_weights_were_trained_on_is_told_of(
    done: Outcome, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def scored_with(*changed: str) -> str:
        caplog.clear()
        given = parse(["--init_from", str(done.folder), *changed]).model
        warn_of_other_questions(given, build_model(given, load_tokenizer("gpt2")))
        return caplog.text

    told = scored_with()
    assert all(said in told for said in ("layout: ", "task: ", "scored with next tokens alone"))
    own = json.loads((done.folder / "checkpoint-2" / "run.json").read_text())["task"]
    assert scored_with("--task", own) == ""
    told = scored_with("--task", "boundary", "--layout", "prefix", "--given_sees", "earlier")
    assert f"task: {done.folder} was trained with {own}, and is scored with boundary" in told
    assert "with two_stream, and is scored with prefix" in told
    assert "given_sees: " in scored_with("--task", own, "--given_sees", "earlier")


def test_without_training_all_modes_are_evaluated(done: Outcome, text: Path, tmp_path: Path) -> None:
    given = options(text, tmp_path / "new", init_from=done.folder, n_embd=None, n_positions=None)
    outcome = train(*parse([*given, "--block_size=32", "--do_train=false"]))
    logged = next(row for row in reversed(log_of(done)) if row["eval_loss"] is not None)
    line = json.loads((tmp_path / "new" / "logs" / "evaluations.jsonl").read_text())
    assert outcome.eval_loss == pytest.approx(logged["eval_loss"], rel=1e-6)
    for mode in MODES:
        assert line[f"eval_{mode}_loss"] == pytest.approx(logged[f"{mode}_loss"], rel=1e-6)
