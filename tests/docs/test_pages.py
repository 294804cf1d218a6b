"""What holds for README.md and every page of docs/: code runs, and commands, options and files exist."""

import dataclasses
import itertools
import re
from typing import Any, cast

import pytest
import typer.main

from arbprob_hf.cli import app
from arbprob_hf.training.arguments import parse
from arbprob_hf.training.options.command_line import ALIASES
from tests.docs.pages import PAGES, PROGRAMS, README, ROOT, blocks, commands, fences, printed, prose, read, spans

WITH_CODE = [page for page in PAGES if blocks(page, "python")]
TRAINING = [words for page in PAGES for words in commands(page) if "train_hf.py" in words and len(words) > 2]
# written by a run or by the code of a page
WRITTEN = {
    "a.txt",
    "config.json",
    "custom_arbprob.py",
    "fingerprint.json",
    "logs/mask.png",
    "logs/samples.txt",
    "logs/training_curves.png",
    "logs/training_log.csv",
    "attention_arbprob.py",
    "masks_arbprob.py",
    "manifest.json",
    "my_patterns.py",
    "questions_arbprob.py",
    "run.json",
}
# words of a private language, or of no language
FORBIDDEN = ["told", "settled", "settles", "of one's own", "is no folder", "asked of", "fed"]


@pytest.fixture
def in_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("page", WITH_CODE)
def test_the_python_of_a_page_runs_from_top_to_bottom(page: str) -> None:
    printed(page)


@pytest.mark.parametrize("page", WITH_CODE)
def test_sizes_are_printed_as_the_comments_say(page: str) -> None:
    stated = re.findall(r"^ *print\(.*\)  # (torch\.Size\(.*?\))$", "".join(blocks(page, "python")), re.MULTILINE)
    found = re.findall(r"torch\.Size\(.*?\)", printed(page))
    assert found == stated


@pytest.mark.parametrize("page", [page for page in WITH_CODE if page != "docs/leaks.md"])
def test_text_below_python_is_what_it_prints(page: str) -> None:
    order = fences(page)
    shown = [text for (before, _), (after, text) in itertools.pairwise(order) if (before, after) == ("python", "text")]
    assert [text for text in shown if text not in printed(page)] == []


@pytest.mark.parametrize("page", [page for page in PAGES if page != README])
def test_a_page_begins_with_what_it_is_for_and_its_imports(page: str) -> None:
    title, purpose, *_ = read(page).split("\n\n")
    assert re.fullmatch(r"# [A-Z].*", title)
    assert 1 <= len(re.findall(r"\.(?:\s|$)", purpose)) <= 2
    for block in blocks(page, "python")[:1]:
        assert re.match(r"(import|from) ", block)


def test_readme_is_at_most_200_lines() -> None:
    assert len(read(README).splitlines()) <= 200


def test_recipes_have_at_most_eight_lines() -> None:
    (recipes,) = re.findall(r"^## Three recipes$(.*?)^## ", read(README), flags=re.DOTALL | re.MULTILINE)
    found = re.findall(r"^```\w+\n(.*?)^```$", recipes, flags=re.DOTALL | re.MULTILINE)
    assert len(found) == 3
    assert [text for text in found if len([line for line in text.splitlines() if line]) > 8] == []


@pytest.mark.parametrize("page", [*PAGES, "CONTRIBUTING.md"])
def test_the_words_are_the_fields(page: str) -> None:
    assert [word for word in FORBIDDEN if re.search(rf"\b{word}\b", prose(page), flags=re.IGNORECASE)] == []


@pytest.mark.parametrize("page", [*PAGES, "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_lead_to_files_and_headings(page: str) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if "://" in link:
            continue
        name, _, heading = link.partition("#")
        target = (ROOT / page).parent / name if name else ROOT / page
        assert target.exists(), link
        if heading:
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert heading in {re.sub(r"[^\w\- ]", "", text).lower().replace(" ", "-") for text in headings}, link


def test_readme_leads_to_every_page() -> None:
    assert [page for page in PAGES if page != README and f"]({page})" not in read(README)] == []


@pytest.mark.parametrize("page", [*PAGES, "CONTRIBUTING.md"])
def test_make_targets_exist(page: str) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert {words[1] for words in commands(page) if words[0] == "make"} <= set(targets)


@pytest.mark.parametrize("words", TRAINING, ids=" ".join)
def test_training_commands_are_understood(words: list[str], in_root: None) -> None:
    options = words[words.index("train_hf.py") + 1 :]
    if "--help" not in options:
        assert "--config" in options
        assert parse([*options, "--use_cpu", "true"]).training.output_dir.startswith("outputs/")


@pytest.mark.parametrize("page", [*PAGES, "CONTRIBUTING.md"])
def test_every_command_is_a_known_program_with_known_options(page: str) -> None:
    for words in commands(page):
        assert words[0].removeprefix(".venv/bin/") in PROGRAMS, words
        if words[0] == "arbprob":
            assert {word for word in words if word.startswith("--")} <= _arbprob_options(words[1]), words
        elif words[0] == "python" and words[1] != "-m" and "train_hf.py" not in words:
            script = _source_of_script(words[1])
            assert [word for word in words if word.startswith("--") and f'"{word}"' not in script] == [], words
        elif words[0] == "source":
            # what `make` sets up
            assert f"VENV = {words[1].removesuffix('/bin/activate')}\n" in (ROOT / "Makefile").read_text()


@pytest.mark.parametrize("page", PAGES)
def test_options_in_the_text_exist(page: str, in_root: None) -> None:
    groups = parse(["--config", "configs/nano.yaml", "--use_cpu", "true"])
    known = {f"--{field.name}" for group in groups for field in dataclasses.fields(group)}
    known |= {f"--{name}" for name in ALIASES} | {"--config", "--help"}
    known |= {option for name in _subcommands() for option in _arbprob_options(name)}
    known |= set(re.findall(r'"(--\w+)"', "".join(path.read_text() for path in (ROOT / "benchmarks").glob("*.py"))))
    # spans that are whole commands have a test of their own
    alone = [span for span in spans(page) if span.split()[0] not in PROGRAMS]
    named = {option for span in alone for option in re.findall(r"(?<!\S)--[a-z][\w-]*", span)}
    # lm_eval's, and the page's
    assert named <= known | {"--model"}


@pytest.mark.parametrize("page", [*PAGES, "CONTRIBUTING.md"])
def test_files_in_the_text_exist(page: str) -> None:
    named = {
        span for span in spans(page) if re.fullmatch(r"[\w./-]+/|[\w./-]*\w\.(py|md|yaml|png|csv|txt|ipynb|json)", span)
    }
    assert [name for name in sorted(named - WRITTEN) if not _is_here(name, page)] == []


def _is_here(name: str, page: str) -> bool:
    if name.endswith("/") and (name.startswith("checkpoint") or name in ("evaluation/", "my_texts/")):
        return True
    places = [ROOT, (ROOT / page).parent, ROOT / "arbprob_hf", *(ROOT / "arbprob_hf").glob("**/")]
    return any((place / name).exists() for place in places)


def _source_of_script(name: str) -> str:
    path = ROOT / name
    text = path.read_text(encoding="utf-8")
    # where their options are read
    shared = {"app.py": "arbprob_hf/demo/main.py"} | {f"benchmarks/{path.name}": "benchmarks/measure.py"}
    return text + ((ROOT / shared[name]).read_text(encoding="utf-8") if name in shared else "")


def _subcommands() -> dict[str, Any]:
    return cast(Any, typer.main.get_command(app)).commands


def _arbprob_options(name: str) -> set[str]:
    command = typer.main.get_command(app) if name.startswith("--") else _subcommands()[name]
    return {option for one in command.params for option in [*one.opts, *one.secondary_opts]} | {"--help"}
