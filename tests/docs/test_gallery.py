"""The pictures of the pages are those that the code draws now, hold every pattern, and are small."""

import importlib.util
import re
from types import ModuleType

import pytest
from PIL import Image

from arbprob_hf.model.masks.custom import BUILT_IN
from arbprob_hf.model.masks.mask import PATTERNS
from tests.docs.pages import PAGES, README, ROOT, read

NAMES = ["heads.png", "masks.png", "reach.png"]
# by docs/take_screenshot.py and docs/draw_network.py, from a trained model
TAKEN = ["app.png", "attention.png", "conditionals.png", "curves.png"]


def is_shown(name: str) -> bool:
    return any(f"]({name})" in read(page) for page in PAGES if page != README)


@pytest.fixture(scope="module")
def gallery() -> ModuleType:
    spec = importlib.util.spec_from_file_location("draw_gallery", ROOT / "docs" / "draw_gallery.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_picture_has_its_drawing(gallery: ModuleType) -> None:
    assert sorted(gallery.DRAWINGS) == NAMES
    assert sorted(path.name for path in (ROOT / "docs").glob("*.png")) == sorted([*NAMES, *TAKEN])


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_is_what_the_code_draws(name: str, gallery: ModuleType) -> None:
    # `python docs/draw_gallery.py` brings it up to date
    figure = gallery.DRAWINGS[name]()
    with Image.open(ROOT / "docs" / name) as picture:
        assert picture.info["Drawn"] == gallery.digest(figure)
        assert picture.width == round(figure.get_figwidth() * figure.dpi)


def test_another_mask_is_another_digest(gallery: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    before = gallery.digest(gallery.draw_masks())
    monkeypatch.setattr(gallery, "TEXTS", ["causal", *gallery.TEXTS[1:-1], "block_diffusion(6, 3)"])
    assert gallery.digest(gallery.draw_masks()) != before


def test_every_pattern_is_in_a_picture(gallery: ModuleType) -> None:
    captions = " ".join([*gallery.TEXTS, *gallery.TABLES, gallery.HEADS])
    own = {name for name, kind in PATTERNS.items() if kind in BUILT_IN}
    assert own <= set(re.findall(r"\w+", captions))


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_is_small_and_shown(name: str) -> None:
    assert (ROOT / "docs" / name).stat().st_size < 200_000
    assert is_shown(name)


@pytest.mark.parametrize("name", TAKEN)
def test_a_picture_of_a_model_is_legible_small_and_shown(name: str) -> None:
    with Image.open(ROOT / "docs" / name) as picture:
        assert 1200 <= picture.width <= 1400
    assert (ROOT / "docs" / name).stat().st_size < 300_000
    assert is_shown(name)
