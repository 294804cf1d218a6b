"""A Space of the Hub: what the documentation uploads is all it takes, and asks nobody for anything."""

import configparser
import json
import re
from pathlib import Path

import pytest
import yaml
from huggingface_hub import SpaceCard
from packaging.requirements import Requirement
from packaging.version import Version

from tests.demo.space_here import ROOT, Space, commands, fetch

# huggingface_hub's, about its own way of calling its HTTP client
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes:DeprecationWarning")


def listed(section: str, name: str) -> set[str]:
    read = configparser.ConfigParser()
    read.read(ROOT / "setup.cfg")
    return {line for line in read[section][name].splitlines() if line and not line.startswith("#")}


def test_a_space_is_the_package_its_script_and_two_files(space: Space) -> None:
    package = {path.relative_to(ROOT) for path in (ROOT / "arbprob_hf").rglob("*") if path.is_file()}
    wanted = {path for path in package if path.suffix != ".pyc"}
    wanted |= {Path(name) for name in ("app.py", "README.md", "requirements.txt", ".gitattributes")}
    found = {path.relative_to(space.folder) for path in space.folder.rglob("*") if path.is_file()}
    assert {path for path in found if path.parts[0] != ".cache" and path.suffix != ".pyc"} == wanted
    assert (space.folder / "README.md").read_bytes() == (ROOT / "space" / "README.md").read_bytes()


def test_a_space_serves_the_page_from_its_own_files(space: Space) -> None:
    assert "Ask it anything, under any mask" in fetch(space.address)
    page = json.loads(fetch(f"{space.address}config"))
    (text,) = [one["props"]["value"] for one in page["components"] if one["props"].get("elem_id") == "text"]
    assert text == "Return the [M] of [M] in the list."
    assert f"package {space.folder / 'arbprob_hf' / '__init__.py'}" in space.notes.read_text().splitlines()


def test_a_space_asks_no_other_machine(space: Space) -> None:
    fetch(space.address)
    assert [line for line in space.notes.read_text().splitlines() if line.startswith("elsewhere")] == []


def test_it_prints_its_model_and_its_address(space: Space, checkpoint: Path) -> None:
    assert f"{checkpoint}: {space.address}" in space.log.read_text().splitlines()


def test_a_space_installs_what_the_package_requires() -> None:
    lines = (ROOT / "space" / "requirements.txt").read_text().splitlines()
    assert {line for line in lines if not line.startswith("#")} == listed("options", "install_requires")


def test_a_space_runs_the_gradio_of_the_tests() -> None:
    version = yaml.safe_load((ROOT / "space" / "README.md").read_text().split("---")[1])["sdk_version"]
    (pinned,) = re.findall(r"^gradio==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert version == pinned
    (app,) = listed("options.extras_require", "app")
    assert Version(version) in Requirement(app).specifier


def test_the_card_of_a_space_is_whole() -> None:
    card = SpaceCard.load(ROOT / "space" / "README.md")
    assert (card.data.sdk, card.data.app_file, card.data.license) == ("gradio", "app.py", "mit")
    # the Hub refuses longer ones
    assert len(card.data.to_dict()["short_description"]) <= 60
    assert (ROOT / card.data.app_file).is_file()


def test_the_space_is_told_its_model() -> None:
    created = commands()[0]
    assert created[created.index("--env") + 1] == "ARBPROB_MODEL=somebody/my-model"
