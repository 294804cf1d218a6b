"""The picture of a run's curves."""

import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib.image import imread

from arbprob_hf.plotting import draw_training_curves
from arbprob_hf.plotting.figures import save_whole
from arbprob_hf.runs.log import COLUMNS

EMPTY = dict.fromkeys(COLUMNS)
ROWS = [
    {**EMPTY, "step": 1.0, "loss": 10.8, "learning_rate": 1e-3, "grad_norm": 1.0},
    {**EMPTY, "step": 10.0, "loss": 8.0, "learning_rate": 2e-3, "grad_norm": 0.5},
    {**EMPTY, "step": 10.0, "eval_loss": 8.1, "perplexity": 3294.0},
]


@pytest.mark.parametrize("rows", [[], ROWS[:1], ROWS[2:], ROWS], ids=["none", "one", "evaluation", "all"])
def test_any_log_can_be_drawn(tmp_path: Path, rows: list[dict[str, float | None]]) -> None:
    save_whole(draw_training_curves(rows, title="a title"), tmp_path / "x.png")
    height, width, _ = imread(tmp_path / "x.png").shape
    assert width >= 1000
    assert height >= 500
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]


def test_the_curves_are_in_the_picture(tmp_path: Path) -> None:
    save_whole(draw_training_curves([], title="t"), tmp_path / "empty.png")
    save_whole(draw_training_curves(ROWS, title="t"), tmp_path / "full.png")
    empty, full = imread(tmp_path / "empty.png"), imread(tmp_path / "full.png")
    blue, orange = (0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)
    for colour in (blue, orange):
        near = [(abs(image[..., :3] * 255 - colour).max(-1) < 2).sum() for image in (empty, full)]
        assert near[1] > near[0] + 100


def test_drawing_leaves_matplotlibs_global_state_alone(tmp_path: Path) -> None:
    code = (
        "import sys; from arbprob_hf.plotting import draw_training_curves;"
        "assert 'matplotlib' not in sys.modules;"
        f"draw_training_curves([], title='t').savefig({str(tmp_path / 'x.png')!r});"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
