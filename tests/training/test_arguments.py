"""Options of a run: types, names, files, and the one line each mistake is told in."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from transformers.trainer_utils import IntervalStrategy

from arbprob_hf import Mask
from arbprob_hf.data import DataArguments
from arbprob_hf.errors import UsageError
from arbprob_hf.training.arguments import ModelArguments, RunArguments, TrainingArguments, parse
from arbprob_hf.training.options.command_line import ALIASES, MOVED, coerce, read_options
from arbprob_hf.training.options.fields import own_fields, training_fields

GROUPS = (ModelArguments, DataArguments, TrainingArguments, RunArguments)
CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


def options_in(folder: Path, text: str) -> list[str]:
    file = folder / "run.yaml"
    file.write_text(text, encoding="utf-8")
    return ["--config", str(file)]


@pytest.mark.parametrize(
    ("text", "hint", "value"),
    [
        ("1e-4", float, 1e-4),
        ("3", float, 3.0),
        ("3", str, "3"),
        ("1e-4", str, "1e-4"),
        ("007", str | None, "007"),
        ("1e3", int, 1000),
        ("-1", int, -1),
        ("123456789012345678901", int, 123456789012345678901),
        ("yes", bool, True),
        ("off", bool, False),
        ("0", bool, False),
        ("true", str | bool | None, True),
        ("yes", str | bool | None, "yes"),
        ("null", float | None, None),
        ("", str | None, None),
        ("", str, ""),
        ("no", IntervalStrategy | str, "no"),
        ("{min_lr: 1e-5, name: x}", dict | str | None, {"min_lr": 1e-5, "name": "x"}),
        ("[causal, window(3)]", str | list[str] | None, ["causal", "window(3)"]),
        (["1", "2e-1"], list[float], [1.0, 0.2]),
        ({"a": {"b": ["1", "null", "true", "x"]}}, dict[str, Any], {"a": {"b": [1, None, True, "x"]}}),
    ],
)
def test_text_becomes_what_the_field_is_annotated_with(text: Any, hint: Any, value: Any) -> None:
    found = coerce("field", text, hint)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "hint", "expected"),
    [
        ("fast", float, "expected a finite number, got 'fast'"),
        ("nan", float, "expected a finite number"),
        ("2.5", int | None, "expected a whole number or null, got '2.5'"),
        ("maybe", bool, "expected true or false, got 'maybe'"),
        ("null", int, "expected a whole number"),
        ("sometimes", IntervalStrategy | str, "expected one of no, steps, epoch, got 'sometimes'"),
        (["1"], int, "expected a whole number, got"),
        ({"a": "1"}, str, "expected text, got"),
        ("{a: 1", dict | None, "not valid YAML"),
    ],
)
def test_text_of_a_wrong_type_is_refused_naming_field_and_value(text: Any, hint: Any, expected: str) -> None:
    with pytest.raises(UsageError, match=r"^field") as error:
        coerce("field", text, hint)
    assert expected in str(error.value)


@given(
    st.text(max_size=40),
    st.sampled_from([bool, int, float, int | None, str | None, dict | None, list[int] | None, IntervalStrategy]),
)
def test_any_text_is_read_or_refused_in_one_short_line(text: str, hint: Any) -> None:
    message = "read"
    try:
        coerce("field", text, hint)
    except UsageError as error:
        message = str(error)
    assert len(message) <= 300
    assert len(message.splitlines()) == 1


def test_none_stays_a_word_where_it_is_the_default() -> None:
    assert coerce("report_to", "none", str | list[str] | None, "none") == "none"


def test_the_fields_read_from_source_are_those_of_the_class() -> None:
    read, true = training_fields(), own_fields(TrainingArguments)
    assert list(read) == list(true)
    assert [name for name, field in read.items() if field.hint not in (None, true[name].hint)] == []
    written = {name for name in read if type(true[name].default) in (bool, int, float, str)}
    assert [name for name in sorted(written) if read[name].default != true[name].default] == ["optim"]
    numbers = ("max_steps", "learning_rate", "bf16", "eval_steps", "hub_training_state")
    assert [read[name].hint for name in numbers] == [int, float, bool, float | None, bool]
    assert (read["report_to"].default, read["eval_steps"].default) == ("none", 200)


def test_command_line_wins_over_file(tmp_path: Path) -> None:
    argv = [*options_in(tmp_path, "learning_rate: 1e-4\nseed: 3"), "--learning-rate=2e-4", "--save_only_model"]
    found = parse([*argv, "--device", "cpu"]).training
    assert (found.learning_rate, found.seed, found.save_only_model, found.use_cpu) == (2e-4, 3, True, True)


def test_a_mask_may_be_text_or_one_per_layer(tmp_path: Path) -> None:
    assert parse(options_in(tmp_path, "mask: causal & window(3)")).model.mask == "causal & window(3)"
    assert parse(options_in(tmp_path, "mask: [causal, full]")).model.mask == ["causal", "full"]
    assert parse(["--mask", '["causal", "full"]']).model.mask == ["causal", "full"]


@pytest.mark.parametrize("alias", ALIASES)
def test_a_classic_name_means_an_existing_field(alias: str, tmp_path: Path) -> None:
    fields = {field.name for group in GROUPS for field in dataclasses.fields(group)}
    assert ALIASES[alias] in fields - set(ALIASES)
    value = {"device": "cpu", "resume": "false"}.get(alias, "1")
    assert parse([f"--{alias}", value]) is not None
    assert parse(options_in(tmp_path, f"{alias}: {value}")) is not None


def test_a_gpu_that_is_not_there_is_not_replaced_silently(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="device: cuda asked for, but torch finds no CUDA device"):
        parse(["--device", "cuda"])


@pytest.mark.parametrize(("device", "name"), [("cuda:0", "CUDA"), ("mps", "MPS")])
def test_a_device_by_its_torch_name_is_told_the_same(device: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UsageError, match=f"device: {device} asked for, but torch finds no {name} device; use device"):
        parse(["--device", device])


def test_one_gpu_of_several_is_chosen_with_the_environment() -> None:
    with pytest.raises(UsageError, match=r"got 'cuda:1'; choose among several GPUs with CUDA_VISIBLE_DEVICES"):
        parse(["--device", "cuda:1"])


@pytest.mark.parametrize("device", ["cuda", "cuda:0", "mps", "auto"])
def test_a_device_that_is_there_is_taken(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for backend in (torch.cuda, torch.backends.mps):
        monkeypatch.setattr(backend, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    assert read_options(["--device", device], {"use_cpu"})["use_cpu"].value == "false"


def test_use_cpu_false_without_a_gpu_is_refused_on_the_command_line_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    with pytest.raises(UsageError, match="use_cpu: false asked for, but torch finds no GPU; leave it out"):
        parse(["--use_cpu", "no"])
    file = options_in(tmp_path, "use_cpu: false")
    assert parse(file).training.use_cpu
    assert parse([*file, "--device", "auto"]).training.use_cpu


def test_bfloat16_needs_no_word_about_the_cpu_where_there_is_nothing_else() -> None:
    arguments = parse(["--bf16"]).training
    assert arguments.use_cpu is not torch.accelerator.is_available()
    assert arguments.bf16


def test_resume_reaches_the_trainer_as_given(tmp_path: Path) -> None:
    assert parse(["--resume"]).training.resume_from_checkpoint == "true"
    assert parse(["--resume", str(tmp_path)]).training.resume_from_checkpoint == str(tmp_path)
    assert parse([]).training.resume_from_checkpoint is None


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["--learnign_rate", "1"],
            "learnign_rate: unknown option on the command line; did you mean learning_rate",
        ),
        (["--bach_size", "1"], "did you mean batch_size"),
        (["--qqqqqq", "1"], "--help lists them all"),
        (["--lr", "1", "--learning_rate", "1"], "given twice on the command line"),
        (["nano.yaml"], "expected an option such as"),
        (["--config", "a", "--config", "b"], "--config: given twice"),
        (["--config", "no/such.yaml"], "cannot read no/such.yaml: No such file"),
        (["--device", "abacus"], "expected one of cpu, auto, cuda, mps, got 'abacus'"),
        (["--report_to", "tensorbord"], "transformers has no integration 'tensorbord'; did you mean tensorboard?"),
        (["--report_to", "[qqqqqq]"], "transformers has no integration 'qqqqqq'; choose among none, all, "),
        (["--max_steps", "few"], "max_steps: expected a whole number"),
        (["--warmup_steps", "-1"], "warmup_steps"),
        (["--label_smoothing_factor", "0.1"], "label_smoothing_factor must be 0, got 0.1"),
        (["--batch_size", "0"], "per_device_train_batch_size: expected at least 1, got 0"),
        (["--per_device_eval_batch_size", "0"], "per_device_eval_batch_size: expected at least 1, got 0"),
        (["--gradient_accumulation_steps", "0"], "gradient_accumulation_steps: expected at least 1, got 0"),
        (["--num_workers", "-1"], "dataloader_num_workers: expected at least 0, got -1"),
        (["--learning_rate", "-1e-3"], "learning_rate: expected at least 0, got -0.001"),
        (["--mask", ""], "mask: got an empty value on the command line; give one, or leave mask out"),
        (["--output_dir", " "], "output_dir: got an empty value on the command line"),
        (["--resume="], "resume_from_checkpoint: got an empty value on the command line"),
        (["--max_steps", "0"], "max_steps: expected at least 1, or -1 to train num_train_epochs, got 0"),
        (["--max_steps", "-5"], "max_steps: expected at least 1, or -1 to train num_train_epochs, got -5"),
        (["--max_epochs", "0"], "num_train_epochs: expected more than 0 epochs, got 0"),
        (["--max_epochs", "-0.5"], "num_train_epochs: expected more than 0 epochs, got -0.5"),
        (["--log_interval", "0"], "logging_steps"),
        (["--eval_interval", "0"], "eval_steps: expected more than 0 steps, got 0; to do without, give eval_strategy"),
        (["--save_interval", "0"], "save_steps: expected more than 0 steps, got 0; to do without, give save_strategy"),
        (["--save_interval", "-5"], "save_steps: expected more than 0 steps, got -5"),
        (["--validation_share", "2"], "validation_share"),
        (["--sample_count", "-1"], "sample_count: expected at least 0, got -1"),
        (["--init_from", "x", "--n_layer", "3"], "n_layer: got 3 together with init_from='x'"),
        (["--position_init", "alibi"], "position_init: expected normal or sinusoidal, got 'alibi'"),
        (["--init_from", "x", "--position_init", "normal"], "position_init: got 'normal' together with init_from='x'"),
        (["--init_from", "x", "--initializer_range", "0.1"], "initializer_range: got 0.1 together with init_from='x'"),
        (["--init_revision", "x"], "without init_from"),
        (["--attn_implementation", "flash"], "expected eager, sdpa or flex_attention, got 'flash'"),
    ],
)
def test_a_mistake_on_the_command_line_is_told_in_one_line(argv: list[str], message: str) -> None:
    with pytest.raises(UsageError) as error:
        parse(argv)
    assert message in str(error.value)
    assert len(str(error.value)) <= 300
    assert len(str(error.value).splitlines()) == 1


def test_an_integration_that_is_not_installed_is_refused_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.integrations.integration_utils.is_wandb_available", lambda: False)
    with pytest.raises(UsageError, match=r"report_to: WandbCallback requires wandb .*pip install wandb`; without"):
        parse(["--report_to", "wandb"])


def test_an_integration_that_is_installed_is_taken() -> None:
    assert parse(["--report_to", "tensorboard"]).training.report_to == ["tensorboard"]
    assert "tensorboard" in parse(["--report_to", "all"]).training.report_to


@pytest.mark.parametrize("name", MOVED)
def test_a_name_of_older_versions_is_told_where_it_went(name: str) -> None:
    with pytest.raises(UsageError, match=f"{name}: unknown option") as error:
        parse([f"--{name}", "1"])
    assert MOVED[name] in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learnign_rate: 1", r"unknown option in .*run\.yaml; did you mean learning_rate"),
        ("seed: 1\nseed: 2", r"seed: given twice in .*run\.yaml"),
        ("batch_size: 1\nper_device_train_batch_size: 2", r"given twice in .*, as batch_size and per_device"),
        ("- seed", "expected lines of `field: value`, got list"),
        ("just words", "expected lines of `field: value`, got str"),
        ("a: [1", "line 1: not valid YAML"),
        ("a: !!python/object/apply:os.getcwd []", "unknown option"),
    ],
    ids=["unknown", "twice", "alias twice", "list", "text", "broken", "python tag"],
)
def test_a_mistake_in_a_file_names_the_file(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse(options_in(tmp_path, text))


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="not UTF-8"):
        parse(["--config", str(tmp_path / "x.yaml")])


def test_only_a_sample_prompt_may_be_empty_on_the_command_line(tmp_path: Path) -> None:
    assert parse(["--sample_prompt", ""]).run.sample_prompt == ""
    assert parse(options_in(tmp_path, "mask:")).model.mask is None
    with pytest.raises(UsageError, match=r"output_dir: got an empty value in .*run\.yaml; give one, or leave"):
        parse(options_in(tmp_path, "output_dir:"))


def test_an_empty_file_leaves_every_default(tmp_path: Path) -> None:
    assert parse(options_in(tmp_path, "")).model == ModelArguments()


def test_epochs_that_max_steps_would_silence_are_refused(tmp_path: Path) -> None:
    file = options_in(tmp_path, "max_steps: 10\nnum_train_epochs: 1")
    with pytest.raises(UsageError, match=r"num_train_epochs: no effect beside max_steps 10 in .*add --max_steps -1"):
        parse([*file, "--max_epochs", "3"])
    assert parse([*file, "--max_epochs", "3", "--max_steps", "-1"]).training.num_train_epochs == 3
    assert parse(file).training.max_steps == 10


def test_a_token_is_no_option() -> None:
    # it would be stored in clear in training_args.bin
    with pytest.raises(UsageError, match="hf auth login"):
        parse(["--hub_token", "hf_secret"])


def test_help_names_every_option_and_leaves_with_success(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        parse(["--config", "x", "--help"])
    shown = capsys.readouterr().out
    assert leaving.value.code == 0
    for group in (ModelArguments, RunArguments, TrainingArguments):
        for field in dataclasses.fields(group):
            assert field.name in shown or field.name in ("hub_token", "local_rank")


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_a_shipped_configuration_is_understood(config: Path) -> None:
    arguments = parse(["--config", str(config)])
    masks = arguments.model.mask if isinstance(arguments.model.mask, list) else [arguments.model.mask]
    assert [str(Mask.parse(text)) for text in masks if text] == [text for text in masks if text]
    # one of the two says what is trained
    assert (arguments.model.mask is None) is (arguments.model.task is not None)
    assert arguments.folder == Path("outputs") / config.stem


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_key_of_a_shipped_configuration_has_a_comment_above(config: Path) -> None:
    lines = config.read_text(encoding="utf-8").splitlines()
    keys = [i for i, line in enumerate(lines) if line and not line.startswith("#")]
    assert len(keys) == len(yaml.safe_load(config.read_text(encoding="utf-8")))
    assert [lines[i] for i in keys if not lines[i - 1].startswith("# ")] == []


def test_the_configurations_are_there() -> None:
    asking = ["conditional_distilgpt2", "conditional_nano", "conditional_tiny"]
    assert [path.stem for path in CONFIGS] == [*asking, "distilgpt2", "nano", "sliding_window", "tiny", "wikipedia"]
