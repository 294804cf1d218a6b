"""Pictures of masks: what is drawn is the mask, each colour is named, and files are whole or not there."""

import io
import itertools
import pickle
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.image import imread

from arbprob_hf import Mask, causal, full, heads, plot_mask, prefix, window
from arbprob_hf.plotting.masks import CARRIED, EARLIER, LATER, NOTHING


def colours(figure: Figure, number: int = 0) -> np.ndarray:
    """The square of one panel as texts like #FFFFFF, (T_q, T_kv)."""
    pixels = figure.axes[number].images[0].get_array()
    return np.array([["#" + bytes(pixel.tolist()).hex().upper() for pixel in row] for row in pixels])


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for box in figure.legends for text in box.get_texts()]


def luminance(colour: str) -> float:
    linear = [(c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4) for c in bytes.fromhex(colour[1:])]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize(
    "mask",
    ["causal", "causal & window(2)", full(), prefix(2), torch.eye(5)],
    ids=["causal", "window", "full", "prefix", "tensor"],
)
def test_what_is_drawn_is_the_mask(mask: Mask | str | torch.Tensor) -> None:
    drawn = colours(plot_mask(mask, 5))
    kept = Mask.parse(mask) if isinstance(mask, str) else Mask.of(mask) if isinstance(mask, torch.Tensor) else mask
    allowed = kept.dense(5)[0, 0].numpy()
    later = np.triu(np.ones((5, 5), dtype=bool), 1)
    assert (drawn == np.where(allowed, np.where(later, LATER[0], EARLIER[0]), NOTHING)).all()


def test_queries_go_down_and_keys_across() -> None:
    axes = plot_mask("causal", 5).axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("key", "query")
    bottom, top = axes.get_ylim()
    assert bottom > top


def test_the_title_is_the_text_of_the_mask_and_wraps() -> None:
    figure = plot_mask("causal & window(3) | prefix(2)", 5, layers=2)
    assert figure.get_suptitle() == "causal & window(3) | prefix(2), reach through 2 layers"
    long = " | ".join(["causal & window(3)"] * 7)
    assert plot_mask(long, 5).get_suptitle().replace("\n", " ") == long
    assert "\n" in plot_mask(long, 5).get_suptitle()
    longer = plot_mask(" | ".join(["causal & window(3)"] * 40), 5).get_suptitle()
    assert longer.endswith(" ...")
    assert longer.count("\n") == 3
    assert plot_mask("causal", 5, title="a $title$").get_suptitle() == "a $title$"


def test_reach_is_lighter_for_each_layer_it_takes() -> None:
    figure = plot_mask("causal & window(2)", 6, layers=4)
    drawn = list(colours(figure)[5])
    assert drawn[4] == drawn[5] == EARLIER[0]
    light = [luminance(colour) for colour in drawn]
    assert light == sorted(light, reverse=True)
    assert len(set(light[:5])) == 5
    assert legend(figure) == ["allowed", "through 2 layers", "through 3 layers", "through 4 layers"]


def test_many_layers_share_the_last_step() -> None:
    figure = plot_mask("causal & window(2)", 12, layers=9)
    assert legend(figure)[-2:] == ["through 4 layers", "through 5 to 9 layers"]


def test_later_keys_have_a_colour_and_a_hatch_of_their_own() -> None:
    figure = plot_mask("window(2)", 6, layers=2)
    assert legend(figure) == ["allowed", "through 2 layers", "later key, allowed", "later key, through 2 layers"]
    assert [patch.get_hatch() for patch in figure.legends[0].get_patches()] == [None, None, "////", "////"]
    drawn = colours(figure)
    assert drawn[0, 1] == LATER[0]
    assert drawn[0, 2] in LATER[1:]
    (cells,) = [item for item in figure.axes[0].collections if item.get_hatch()]
    assert (~np.ma.getmaskarray(cells.get_array())).sum() == 5 + 4


def test_a_token_that_carries_its_own_input_along_is_grey() -> None:
    figure = plot_mask(causal() & ~window(1), 4, layers=2)
    assert (np.diag(colours(figure)) == CARRIED).all()
    assert "own input, carried along" in legend(figure)


def test_steps_are_reported_apart_in_grey() -> None:
    for ramp in (EARLIER, LATER):
        levels = [luminance(colour) for colour in (*ramp, NOTHING)]
        assert all(later / earlier > 1.1 for earlier, later in itertools.pairwise(levels))


def test_a_causal_mask_needs_no_legend() -> None:
    assert legend(plot_mask("causal", 5)) == []


def test_different_heads_get_a_square_each() -> None:
    figure = plot_mask(heads(causal(), causal(), full()), 5)
    assert [axes.get_title() for axes in figure.axes] == ["heads 0-1: causal", "head 2: full"]
    assert (colours(figure, 1) != NOTHING).all()


def test_layers_get_a_square_each() -> None:
    figure = plot_mask(["causal", "causal & window(2)"], 5, layers=2)
    titles = ["layer 0: causal", "layer 1: causal & window(2)", "reach through 2 layers"]
    assert [axes.get_title() for axes in figure.axes] == titles


def test_tokens_are_written_on_both_axes() -> None:
    axes = plot_mask("causal", tokens=["The", " $5", "\n", "a" * 40]).axes[0]
    texts = ["The", " $5", "\\n", "aaaaaaaaaaaa.."]
    assert [label.get_text() for label in axes.get_xticklabels()] == texts
    assert [label.get_text() for label in axes.get_yticklabels()] == texts
    assert not axes.get_xticklabels()[1].get_parse_math()


@pytest.mark.parametrize("length", [1, 2, 40, 100, 1024])
def test_any_length_is_drawn_with_few_artists(length: int, tmp_path: Path) -> None:
    figure = plot_mask("causal & window(9) | prefix(3)", length, layers=3, path=tmp_path / "x.png")
    axes = figure.axes[0]
    assert axes.images[0].get_array().shape == (length, length, 3)
    assert len(axes.collections) + len(axes.patches) + len(axes.lines) < 10
    assert 1 <= len(axes.get_xticks()) <= 40


@pytest.mark.parametrize(("length", "share"), [(1024, 1.0), (2000, 0.5)], ids=["a pixel a cell", "less"])
def test_a_single_column_is_seen_among_thousands(length: int, share: float, tmp_path: Path) -> None:
    tensor = torch.zeros(length, length, dtype=torch.bool)
    tensor[:, length // 2] = True
    plot_mask(tensor, path=tmp_path / "x.png", title="")
    picture = imread(tmp_path / "x.png")[..., :3]
    near_the_end = picture[int(0.8 * len(picture))]
    # the strongest colour has no red at all, white has all of it
    red = min(pixel[0] for pixel in near_the_end if pixel[2] > pixel[0] + 0.05)
    assert 1 - red >= share * (1 - bytes.fromhex(EARLIER[0][1:])[0] / 255) - 0.01


@pytest.mark.parametrize(("suffix", "start"), [(".png", b"\x89PNG"), (".svg", b"<?xml")])
def test_the_file_is_what_its_suffix_says(suffix: str, start: bytes, tmp_path: Path) -> None:
    plot_mask("causal", 5, path=str(tmp_path / f"x{suffix}"))
    assert [path.name for path in tmp_path.iterdir()] == [f"x{suffix}"]
    assert (tmp_path / f"x{suffix}").read_bytes().startswith(start)


def test_a_file_is_left_alone_when_drawing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Figure, target: Path, **options: object) -> None:
        target.write_bytes(b"half")
        raise OSError("disk full")

    (tmp_path / "x.png").write_bytes(b"old")
    monkeypatch.setattr(Figure, "savefig", broken)
    with pytest.raises(OSError, match="disk full"):
        plot_mask("causal", 5, path=tmp_path / "x.png")
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]
    assert (tmp_path / "x.png").read_bytes() == b"old"


def test_a_notebook_shows_it() -> None:
    assert imread(io.BytesIO(plot_mask("causal", 5)._repr_png_())).shape[2] == 4


def test_a_figure_can_be_stored_and_shown_again() -> None:
    stored = pickle.loads(pickle.dumps(plot_mask("causal", 5)))
    assert imread(io.BytesIO(stored._repr_png_())).shape[2] == 4


def test_a_picture_is_as_flat_as_its_mask() -> None:
    width, height = plot_mask(torch.ones(2, 20)).get_size_inches()
    assert height < width / 2


@pytest.mark.long
def test_no_global_state_of_matplotlib_is_touched() -> None:
    before = dict(matplotlib.rcParams)
    plot_mask("window(2)", 5, layers=2)
    assert dict(matplotlib.rcParams) == before
    code = (
        "import sys, arbprob_hf; assert 'matplotlib' not in sys.modules;"
        "arbprob_hf.plot_mask('causal', 4); assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_wrong_paths_are_refused_before_anything_is_drawn(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="path: expected a name that ends in .png or .svg, got 'mask.gif'"):
        plot_mask("causal", 5, path="mask.gif")
    with pytest.raises(ValueError, match="path: the folder .* does not exist; make it first"):
        plot_mask("causal", 5, path=tmp_path / "none" / "x.png")


def test_wrong_tokens_are_refused() -> None:
    with pytest.raises(TypeError, match="tokens: expected a list of texts, one per token; decode the ids first"):
        plot_mask("causal", tokens=[1, 2])
    with pytest.raises(TypeError, match="tokens: expected a list of texts"):
        plot_mask("causal", tokens="text")
    with pytest.raises(ValueError, match="tokens: expected 1 to 64 texts, got 65; leave them out to draw more"):
        plot_mask("causal", tokens=["a"] * 65)
    with pytest.raises(ValueError, match="tokens: expected 3 texts, one per token, got 2"):
        plot_mask("causal", 3, tokens=["a", "b"])


def test_too_many_different_squares_are_refused() -> None:
    with pytest.raises(ValueError, match="mask: 65 different heads and layers, expected at most 64; draw fewer"):
        plot_mask([f"window({size})" for size in range(1, 66)], 70)
