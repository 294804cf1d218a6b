"""plot_curves: what is drawn is what runs logged."""

import csv
from pathlib import Path

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from arbprob_hf import plot_curves
from arbprob_hf.runs.log import COLUMNS, CURVES, LOSSES


def write_log(run: Path, rows: list[dict[str, float]]) -> Path:
    head = [*COLUMNS, *(CURVES if any(name in row for row in rows for name in LOSSES) else ())]
    (run / "logs").mkdir(parents=True)
    with (run / "logs" / "training_log.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, head, restval="")
        writer.writeheader()
        writer.writerows(rows)
    return run


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    rows = [{"step": step, "loss": 9 - step, "learning_rate": 0.1 * step, "grad_norm": 1.0} for step in (1, 2, 3)]
    return write_log(tmp_path / "plain", [*rows, {"step": 3, "eval_loss": 6.5, "perplexity": 665.1}])


@pytest.fixture
def asked(tmp_path: Path) -> Path:
    rows: list[dict[str, float]] = [{"step": step, "loss": 8 - step} for step in (1, 2)]
    losses = {name: 5.0 + number for number, name in enumerate(CURVES)}
    return write_log(tmp_path / "asked", [*rows, {"step": 2, "eval_loss": 7.0, **losses}])


def lines(axes: Axes) -> dict[str, list[tuple[float, float]]]:
    return {
        str(line.get_label()): list(zip(*line.get_data(), strict=True)) for line in axes.lines if len(line.get_xdata())
    }


def panel(figure: Figure, title: str) -> Axes:
    return next(axes for axes in figure.axes if axes.get_title() == title)


def test_one_run_is_drawn_with_rate_and_norm(plain: Path) -> None:
    figure = plot_curves(plain)
    loss, rate, norm = figure.axes
    assert lines(loss) == {
        "training": [(1, 8), (2, 7), (3, 6)],
        "validation, last 6.50 (perplexity 665)": [(3, 6.5)],
    }
    assert list(lines(rate).values()) == [[(1, 0.1), (2, 0.2), (3, pytest.approx(0.3))]]
    assert list(lines(norm).values()) == [[(1, 1), (2, 1), (3, 1)]]
    assert figure.get_suptitle() == "plain"


def test_a_run_with_a_task_has_all_its_modes(asked: Path) -> None:
    loss = plot_curves(asked).axes[0]
    assert set(lines(loss)) == {
        "training",
        *(f"{CURVES[name]}: {5 + number:.2f}" for number, name in enumerate(LOSSES)),
    }


def test_a_checkpoint_and_the_log_itself_are_as_good(plain: Path) -> None:
    (plain / "checkpoint-3").mkdir()
    wanted = lines(plot_curves(plain).axes[0])
    for run in (plain / "checkpoint-3", plain / "logs" / "training_log.csv", str(plain)):
        assert lines(plot_curves(run).axes[0]) == wanted


def test_a_log_named_from_inside_its_folder_is_titled_by_its_run(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(plain / "logs")
    assert plot_curves("training_log.csv").get_suptitle() == "plain"


def test_several_runs_lie_over_one_another_mode_by_mode(plain: Path, asked: Path) -> None:
    figure = plot_curves([plain, asked], title="two")
    assert figure.get_suptitle() == "two"
    assert [axes.get_title() for axes in figure.axes] == ["training", *(CURVES[name] for name in LOSSES)]
    training, first = panel(figure, "training"), panel(figure, "1 left to right")
    assert [list(zip(*line.get_data(), strict=True)) for line in training.lines] == [
        [(1, 8), (2, 7), (3, 6)],
        [(1, 7), (2, 6)],
    ]
    # a run without a task logs one loss, that of reading from left to right
    assert [list(zip(*line.get_data(), strict=True)) for line in first.lines] == [[(3, 6.5)], [(2, 5)]]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["plain", "asked"]


def test_runs_that_have_logged_nothing_yet_are_drawn_empty(tmp_path: Path) -> None:
    runs = [write_log(tmp_path / name, []) for name in "ab"]
    assert plot_curves(runs).axes == []
    assert lines(plot_curves(runs[0]).axes[0]) == {}


def test_long_names_take_no_room_from_the_panels(tmp_path: Path) -> None:
    runs = [
        write_log(tmp_path / f"run_with_a_long_name_{number}_lr3e-4_wd0.1", [{"step": 1, "loss": 2}])
        for number in range(10)
    ]
    figure = plot_curves(runs)
    figure.canvas.draw()
    assert figure.axes[0].get_position().height * figure.get_figheight() > 1.8


def test_it_is_written_whole(plain: Path, tmp_path: Path) -> None:
    plot_curves(plain, path=tmp_path / "x.svg")
    assert (tmp_path / "x.svg").read_bytes().startswith(b"<?xml")


def test_what_is_no_run_is_reported(plain: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"runs: '.*nowhere' holds no logs/training_log.csv; name the output folder"):
        plot_curves(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"plain: the same folder as .*plain; name each run once"):
        plot_curves([plain, plain])
    with pytest.raises(ValueError, match=r"expected at least one run, got none"):
        plot_curves([])
    with pytest.raises(ValueError, match=r"path: expected a name that ends in .png or .svg, got 'x'"):
        plot_curves(plain, path="x")
    (plain / "checkpoint-3").mkdir()
    with pytest.raises(ValueError, match=r"runs: two of .*plain/checkpoint-3 have one log; name each run once"):
        plot_curves([plain, plain / "checkpoint-3"])
    for wrong in (None, [None], 3):
        with pytest.raises(TypeError, match=r"runs: expected the folder of a run, or a list of them, got"):
            plot_curves(wrong)  # type: ignore[arg-type]
    (tmp_path / "x.png").mkdir()
    with pytest.raises(ValueError, match=r"path: '.*x.png' is a folder; name a file"):
        plot_curves(plain, path=tmp_path / "x.png")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"binary.csv: expected a training log whose first line is step,epoch,loss,"):
        plot_curves(tmp_path / "binary.csv")
    (tmp_path / "notes.csv").write_text("a,b\n")
    with pytest.raises(ValueError, match=r"notes.csv: expected a training log whose first line is step,epoch,loss,"):
        plot_curves(tmp_path / "notes.csv")
