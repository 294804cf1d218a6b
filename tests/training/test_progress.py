"""What a run says while it goes: readable lines, whole on a terminal and in a file; nothing where that is asked."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import datasets.utils
import huggingface_hub.utils
import pytest
import transformers.utils.logging
from transformers import TrainerState

from arbprob_hf.training.arguments import TrainingArguments, parse
from arbprob_hf.training.progress import loudness, progress_line

ROOT = Path(__file__).parents[2]
STEP = re.compile(
    r"step \d+/10 \| epoch [\d.]+ \| loss [\d.]+ \| learning rate [\d.e-]+( \| [\d,]+ tokens/s)?( \| \d+:\d\d left)?"
)
EVALUATION = re.compile(r"step \d+/10 \| epoch [\d.]+ \| evaluation \| loss [\d.]+ \| perplexity [\d.,]+ \| .*scored")


def state(step: int = 20) -> TrainerState:
    return TrainerState(global_step=step, max_steps=2000, epoch=0.5, num_train_epochs=3)


def test_a_logging_step_is_one_line_for_people() -> None:
    logs = {"loss": 9.63512, "grad_norm": 1.4, "learning_rate": 3e-4, "epoch": 0.5, "train_tokens_per_second": 9.0}
    line = progress_line(logs, state(), speed=12345.6, seconds_left=3671)
    assert line == ("step 20/2,000 | epoch 0.50 | loss 9.635 | learning rate 0.0003 | 12,346 tokens/s | 1:01:11 left")


def test_an_evaluation_is_one_line_with_its_perplexity_and_what_else_was_measured() -> None:
    logs = {"eval_task_loss": 2.0, "eval_task_scored_tokens": 3810, "eval_runtime": 3.0, "eval_accuracy": 0.25}
    assert progress_line(logs, state()).endswith(
        "| evaluation | task loss 2 | perplexity 7.389 | 3,810 tokens scored | accuracy 0.25"
    )


def test_an_epoch_that_no_stream_has_is_not_counted() -> None:
    endless = TrainerState(global_step=20, max_steps=2000, epoch=0.01, num_train_epochs=sys.maxsize)
    assert progress_line({"loss": 1.0}, endless) == "step 20/2,000 | loss 1"


@pytest.mark.parametrize("has_bar", [False, True], ids=["no bar", "bar"])
def test_a_trainer_prints_lines_and_no_dictionaries(tmp_path, micro_trainer, rows, capsys, has_bar: bool) -> None:
    options = dict(disable_tqdm=not has_bar, eval_strategy="steps", eval_steps=5, prediction_loss_only=True)
    micro_trainer(tmp_path, eval_dataset=rows(4), **options).train()
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert sum(bool(STEP.fullmatch(line)) for line in lines) == 10
    assert sum(bool(EVALUATION.fullmatch(line)) for line in lines) == 2
    assert lines[-1].startswith("10 steps done, this time in ")
    assert len(lines) == 13
    assert "{" not in said.out + said.err
    assert ("10/10 [" in said.err) == has_bar


def test_errors_alone_are_said_where_the_log_level_asks_for_it(tmp_path, micro_trainer, capsys) -> None:
    before = transformers.utils.logging.get_verbosity()
    try:
        micro_trainer(tmp_path, log_level="error").train()
    finally:
        transformers.utils.logging.set_verbosity(before)
    assert capsys.readouterr().out == ""


def test_bars_are_for_those_who_watch(tmp_path) -> None:
    # pytest's stderr is no terminal
    assert TrainingArguments(output_dir=str(tmp_path)).disable_tqdm is True
    assert TrainingArguments(output_dir=str(tmp_path), disable_tqdm=False).disable_tqdm is False


@pytest.mark.parametrize("is_silent", [True, False])
def test_one_option_silences_the_bars_of_every_library_until_the_run_ends(tmp_path, is_silent: bool) -> None:
    libraries = datasets.utils, huggingface_hub.utils
    with loudness(TrainingArguments(output_dir=str(tmp_path), disable_tqdm=is_silent)):
        assert [library.are_progress_bars_disabled() for library in libraries] == [is_silent] * 2
        assert not transformers.utils.logging.is_progress_bar_enabled()
    assert [library.are_progress_bars_disabled() for library in libraries] == [False] * 2
    assert transformers.utils.logging.is_progress_bar_enabled()


@pytest.mark.parametrize(
    ("variables", "words", "count"),
    [({}, [], 1), ({"RANK": "1"}, [], 0), ({}, ["--log_level", "error"], 0)],
    ids=["main process", "another process", "errors alone"],
)
def test_what_is_to_come_is_said_once(monkeypatch, variables, words, count) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    said: list[str] = []
    parse(["--output_dir", "outputs/x", "--source", "embedded", "--use_cpu", "true", *words], announce=said.append)
    assert said == ["training on embedded, into outputs/x: loading torch and transformers ..."] * count


def command(folder: Path, *words: str) -> list[str]:
    text = folder / "text.txt"
    text.write_text(
        "<|endoftext|>".join(f"Story {number}: " + "one two three. " * 40 for number in range(20)), encoding="utf-8"
    )
    options = {
        **dict(source=text, output_dir=folder / "run", n_embd=8, n_layer=1, n_head=1, n_positions=16, block_size=16),
        **dict(max_steps=10, logging_steps=1, eval_steps=5, sample_count=0, per_device_train_batch_size=2),
    }
    pairs = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    return [sys.executable, "train_hf.py", *pairs, *words]


@pytest.mark.long
def test_on_a_terminal_the_bar_tears_no_line(tmp_path) -> None:
    main, other = pty.openpty()
    # rows, columns, and pixels that nobody counts
    fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 160, 0, 0))
    process = subprocess.Popen(command(tmp_path), cwd=ROOT, stdout=other, stderr=other, stdin=other)
    os.close(other)
    shown = b""
    while True:
        try:
            part = os.read(main, 4096)
        except OSError:
            # the other end is closed
            break
        shown += part
    assert process.wait() == 0, shown.decode()
    # what a line of a terminal shows is what was written last
    seen = [line.split("\r")[-1] for line in shown.decode().replace("\r\n", "\n").splitlines()]
    assert sum(bool(STEP.fullmatch(line.strip())) for line in seen) == 10
    assert "{'" not in shown.decode()
    assert b"10/10 [" in shown


@pytest.mark.long
def test_without_a_terminal_no_bar_is_written(tmp_path) -> None:
    ran = subprocess.run(command(tmp_path), cwd=ROOT, capture_output=True, text=True, check=True)
    assert "\r" not in ran.stdout + ran.stderr
    assert "examples/s" not in ran.stderr
    assert f"reading {tmp_path / 'text.txt'} ..." in ran.stdout.splitlines()[1]


def test_the_first_line_does_not_wait_for_torch(tmp_path) -> None:
    (tmp_path / "torch.py").write_text("raise SystemExit('torch is imported')")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    ran = subprocess.run(command(tmp_path), cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert ran.stdout.startswith(f"training on {tmp_path / 'text.txt'}")
    assert ran.stderr.strip() == "torch is imported"
