"""`arbprob compare`: its tables, files and picture, and how it ends where runs or questions do not fit."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from datasets import Dataset
from matplotlib.figure import Figure
from matplotlib.image import imread
from transformers import GPT2Tokenizer
from typer.testing import CliRunner, Result

from arbprob_hf.cli import app
from arbprob_hf.comparison import report as reports
from arbprob_hf.comparison.inputs import read_losses
from arbprob_hf.data.eval_sets import GAINS, MODES, load_modes, save_modes
from arbprob_hf.plotting import draw_comparison
from arbprob_hf.runs.log import COLUMNS

Save = Callable[..., Path]
CONDITIONAL = [f"{mode}_loss" for mode in MODES]
BLUE, ORANGE, GREEN = (0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00), (0x00, 0x9E, 0x73)


def command(*words: object) -> Result:
    return CliRunner().invoke(app, ["compare", *map(str, words)])


def write_log(run: Path, columns: list[str], *rows: list[object]) -> None:
    path = run / "logs" / "training_log.csv"
    path.parent.mkdir()
    head = list(dict.fromkeys([*COLUMNS, *columns]))
    lines = [head, *(_placed(row, columns, head) for row in rows)]
    path.write_text("\n".join(",".join(map(str, line)) for line in lines) + "\n")


def _placed(row: list[object], columns: list[str], head: list[str]) -> list[object]:
    cells = dict(zip(["step", *columns], row, strict=False))
    return [cells.get(name, "") for name in head]


def tables(text: str) -> list[dict[str, dict[str, str]]]:
    """Each Markdown table: by the first cell of a line, then by the heading of the column."""
    found = []
    for part in text.split("\n\n"):
        lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in part.splitlines() if line[0] == "|"]
        if lines:
            found.append({line[0]: dict(zip(lines[0][1:], line[1:], strict=True)) for line in lines[2:]})
    return found


def pixels(path: Path, colour: tuple[int, int, int]) -> int:
    return int((abs(imread(path)[..., :3] * 255 - colour).max(-1) < 2).sum())


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, save_run: Save, save_questions: Save) -> list[Path]:
    """Three runs, not to be changed: of questions, of questions in another layout, and of plain text."""
    folder = tmp_path_factory.mktemp("runs")
    made = [
        save_run(folder / "ours", given_sees="all"),
        save_run(folder / "theirs", seed=1, layout="prefix", given_sees="all"),
        save_run(folder / "plain", seed=2, layout="causal"),
    ]
    save_questions(made[0] / "evaluation")
    for run, loss in zip(made[:2], (4.0, 4.5), strict=True):
        lines = [[step, loss - step / 20, *(loss - step / 30 - mode / 9 for mode in range(5))] for step in (0, 10, 20)]
        write_log(run, ["eval_loss", *CONDITIONAL], *lines)
    write_log(made[2], ["loss", "eval_loss"], [0, "", 5], [5, 4.8, ""], [10, "", 4.2], [20, "", 3.9])
    return made


@pytest.fixture(scope="module")
def ran(runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Path]:
    """The command over the three runs, and the folder it wrote to."""
    out = tmp_path_factory.mktemp("out") / "new"
    return command(*runs, "--out", out), out


def test_tables_and_csv_say_the_same(ran: tuple[Result, Path]) -> None:
    result, out = ran
    assert (result.exit_code, result.exception) == (0, None)
    losses, differences, perplexities = tables(result.stdout)
    lines = list(csv.DictReader((out / "comparison.csv").read_text().splitlines()))
    assert [(line["run"], line["question_set"]) for line in lines] == [
        (run, name) for run in ("ours", "theirs", "plain") for name in (*MODES, *GAINS)
    ]
    for line in lines:
        run, name = line["run"], line["question_set"]
        assert losses["layout"][run] == line["layout"]
        assert losses[name]["targets"] == line["tokens"]
        if line["missing_because"]:
            assert losses[name][run] == "- [1]"
            assert f"\n- [1] {run}: {line['missing_because']}\n" in result.stdout
            continue
        value, error = float(line["nats_per_token"]), float(line["standard_error"])
        assert losses[name][run] == f"{value:.4f} ({error:.4f})"
        if name in MODES:
            assert perplexities[name][run] == f"{float(line['perplexity']):,.2f}"
        if run != "ours":
            value, error = float(line["difference"]), float(line["difference_standard_error"])
            assert differences[name][run] == f"{value:+.4f} ({error:.4f})"


def test_the_file_holds_what_the_terminal_shows(ran: tuple[Result, Path]) -> None:
    result, out = ran
    assert (out / "comparison.md").read_text() == (
        f"{result.stdout}\n![validation losses of the runs, as each logged them](comparison.png)\n"
    )
    assert sorted(path.name for path in out.iterdir()) == ["comparison.csv", "comparison.md", "comparison.png"]


def test_what_causal_cannot_answer_is_a_dash_with_a_note(ran: tuple[Result, Path]) -> None:
    result, _ = ran
    losses, differences, perplexities = tables(result.stdout)
    for name in ("infilling", "task", *GAINS):
        assert losses[name]["plain"] == "- [1]"
        assert differences[name]["plain"] == "-"
    assert perplexities["task"]["plain"] == "-"
    assert losses["left_to_right"]["plain"] != "- [1]"
    assert result.stdout.count("- [1] plain: causal only continues a text") == 1


def test_progress_is_not_part_of_the_table(ran: tuple[Result, Path]) -> None:
    result, _ = ran
    assert "ours: infilling\n" in result.stderr
    assert result.stdout.startswith("The questions in ")


def test_one_run_alone_has_no_differences(runs: list[Path]) -> None:
    result = command(runs[0])
    assert len(tables(result.stdout)) == 2
    assert "aired differences" not in result.stdout


def test_files_are_replaced_only_with_force(runs: list[Path], tmp_path: Path) -> None:
    (tmp_path / "comparison.csv").write_text("mine")
    result = command(runs[0], "--out", tmp_path)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        f"arbprob compare: error: --out: {tmp_path / 'comparison.csv'} exists; name another folder, or replace it with "
        "--force\n"
    )
    assert (tmp_path / "comparison.csv").read_text() == "mine"
    assert command(runs[0], "--out", tmp_path, "--force").exit_code == 0
    assert (tmp_path / "comparison.csv").read_text().startswith("run,layout,question_set,tokens,blocks,nats_per_token")


def test_runs_without_logs_get_no_picture(tmp_path: Path, sound: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "comparison.png").write_text("of another comparison")
    assert command(sound, "--out", tmp_path / "out", "--force").exit_code == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["comparison.csv", "comparison.md"]
    assert "comparison.png" not in (tmp_path / "out" / "comparison.md").read_text()


def test_every_run_is_in_the_picture(ran: tuple[Result, Path]) -> None:
    picture = ran[1] / "comparison.png"
    assert all(pixels(picture, colour) > 100 for colour in (BLUE, ORANGE, GREEN))


def test_marginals_are_reported_apart_from_joint_probabilities_in_the_picture(
    tmp_path: Path, save_run: Save, save_questions: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[str] = []
    monkeypatch.setattr(reports, "draw_comparison", lambda logs, **_: drawn.extend(logs) or Figure())
    run = save_run(tmp_path / "run", layout="masked")
    save_questions(run / "evaluation")
    write_log(run, ["task_loss"], [1, 2.5])
    assert command(run, "--out", tmp_path / "out").exit_code == 0
    assert drawn == ["run (masked, marginals)"]


def test_a_mode_that_nobody_logged_gets_no_panel(tmp_path: Path) -> None:
    rows = [{"step": 1.0, "x": 2.0, "y": None}, {"step": 2.0, "x": 1.0, "y": None}]
    one = draw_comparison({"a": rows}, titles={"x": "x", "y": "y"})
    two = draw_comparison({"a": [{**row, "y": 1.0} for row in rows]}, titles={"x": "x", "y": "y"})
    assert [axes.get_title() for axes in one.axes] == ["x"]
    assert [axes.get_title() for axes in two.axes] == ["x", "y"]


def test_the_loss_of_plain_text_is_that_from_left_to_right(runs: list[Path]) -> None:
    rows = [(row["step"], row["left_to_right_loss"]) for row in read_losses(runs[2])]
    assert rows == [(0, 5), (5, None), (10, 4.2), (20, 3.9)]
    assert [row["left_to_right_loss"] for row in read_losses(runs[0])] == pytest.approx([4, 4 - 1 / 3, 4 - 2 / 3])


def test_half_a_line_of_a_log_is_left_out(tmp_path: Path) -> None:
    write_log(tmp_path, ["eval_loss"], [1, 2.5], ["", 2.0], [2, "1.5,9"], [3, "1.e"])
    with (tmp_path / "logs" / "training_log.csv").open("a") as file:
        file.write("4,0.5")
    assert [row["step"] for row in read_losses(tmp_path)] == [1]


Spoil = Callable[[Path, Save, Save], list[object]]


def no_folder(run: Path, save_run: Save, save_questions: Save) -> list[object]:
    return [run, run.parent / "nowhere"]


def no_model(run: Path, save_run: Save, save_questions: Save) -> list[object]:
    (run / "config.json").unlink()
    return [run]


def no_weights(run: Path, save_run: Save, save_questions: Save) -> list[object]:
    (run / "model.safetensors").unlink()
    return [run]


def half_the_weights(run: Path, save_run: Save, save_questions: Save) -> list[object]:
    (run / "model.safetensors").write_bytes((run / "model.safetensors").read_bytes()[:5000])
    return [run]


def more_layers_than_weights(run: Path, save_run: Save, save_questions: Save) -> list[object]:
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, "n_layer": 3}))
    return [run]


def another_kind_of_model(run: Path, save_run: Save, save_questions: Save) -> list[object]:
    (run / "config.json").write_text('{"model_type": "bert"}')
    return [run]


def other_vocabulary(run: Path, save_run: Save, save_questions: Save) -> list[object]:
    return [run, save_run(run.parent / "other", vocab_size=31)]


def other_tokenizer(run: Path, save_run: Save, save_questions: Save) -> list[object]:
    other = save_run(run.parent / "other")
    for folder, last in ((run, "y"), (other, "z")):
        tokens = {token: index for index, token in enumerate([*"abc", last, "<|endoftext|>"])}
        GPT2Tokenizer(vocab=tokens, merges=[]).save_pretrained(folder)
    return [run, other]


def half_a_tokenizer(run: Path, save_run: Save, save_questions: Save) -> list[object]:
    (run / "tokenizer.json").write_text('{"version": ')
    return [run]


def short_positions(run: Path, save_run: Save, save_questions: Save) -> list[object]:
    return [run, save_run(run.parent / "other", n_positions=13)]


def large_tokens(run: Path, save_run: Save, save_questions: Save) -> list[object]:
    return [run, "--questions", save_questions(run.parent / "asked", tokens=1000)]


def no_questions(run: Path, save_run: Save, save_questions: Save) -> list[object]:
    shutil.rmtree(run / "evaluation")
    return [run]


def four_sets(run: Path, save_run: Save, save_questions: Save) -> list[object]:
    (run / "evaluation" / "task.parquet").unlink()
    return [run]


def sets_drawn_apart(run: Path, save_run: Save, save_questions: Save) -> list[object]:
    other = save_questions(run.parent / "asked", task="spans(1)")
    shutil.copy(other / "task.parquet", run / "evaluation")
    return [run]


def a_longer_block(run: Path, save_run: Save, save_questions: Save) -> list[object]:
    rows = load_modes(run / "evaluation")["task"]
    longer = {name: [*values[:-1], [*values[-1], values[-1][-1]]] for name, values in rows[:].items()}
    save_modes({"task": Dataset.from_dict(longer)}, run / "evaluation")
    return [run]


def scores_what_is_given(run: Path, save_run: Save, save_questions: Save) -> list[object]:
    modes = load_modes(run / "evaluation")
    save_modes({"task": modes["task"].map(lambda row: {"scored": row["given"]})}, run / "evaluation")
    return [run]


def twice(run: Path, save_run: Save, save_questions: Save) -> list[object]:
    return [run, run.parent / "x" / ".." / run.name]


def no_device(run: Path, save_run: Save, save_questions: Save) -> list[object]:
    return [run, "--device", "abacus"]


def out_is_a_file(run: Path, save_run: Save, save_questions: Save) -> list[object]:
    return [run, "--out", run / "config.json"]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory, save_run: Save, save_questions: Save) -> Path:
    """A run with questions and without a log, not to be changed."""
    run = save_run(tmp_path_factory.mktemp("sound") / "run")
    save_questions(run / "evaluation")
    return run


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (no_folder, "nowhere: no such folder; name the output folder of a run"),
        (no_model, "run: holds no model, as it has no config.json"),
        (no_weights, "run: its model cannot be loaded: "),
        (half_the_weights, "run: its model cannot be loaded: "),
        (more_layers_than_weights, "run: its model cannot be loaded: n_layer: expected at most 2, the layers that the"),
        (another_kind_of_model, "run: its config.json cannot be read: model_type: expected gpt2 or arbprob"),
        (other_vocabulary, "other: its vocabulary has 31 tokens, that of "),
        (other_tokenizer, "other: its tokenizer has other tokens than that of "),
        (half_a_tokenizer, "tokenizer.json: cannot be read: "),
        (short_positions, "other: takes texts of n_positions=13 tokens, but "),
        (large_tokens, "run: knows the tokens 0 to 29, but "),
        (no_questions, "run: no folder evaluation, where a run with a task keeps its questions"),
        (four_sets, "evaluation: no questions of task; expected task.parquet"),
        (sets_drawn_apart, "evaluation: task_left_to_right and task do not score the same tokens"),
        (a_longer_block, "evaluation: task has blocks of several lengths"),
        (scores_what_is_given, "evaluation: task scores tokens that are not targets"),
        (twice, "run: the same folder as "),
        (no_device, "device: 'abacus' cannot be used here: "),
        (out_is_a_file, "--out: "),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_what_cannot_be_compared_is_said_in_one_line(
    tmp_path: Path, sound: Path, save_run: Save, save_questions: Save, spoil: Spoil, said: str
) -> None:
    run = shutil.copytree(sound, tmp_path / "run")
    (tmp_path / "x").mkdir()
    result = command(*spoil(run, save_run, save_questions))
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = [line for line in result.stderr.splitlines() if "error" in line]
    assert line.startswith("arbprob compare: error: ")
    assert said in line
