"""What the pages state is true: figures, tables, messages and versions are the code's."""

import ast
import functools
import re
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from arbprob_hf import ArbProbConfig, ArbProbForCausalLM
from arbprob_hf.cli import app
from arbprob_hf.data.tasks import TASKS
from arbprob_hf.model.masks.custom import BUILT_IN
from arbprob_hf.model.masks.mask import PATTERNS
from arbprob_hf.model.questions.layouts import LAYOUTS
from arbprob_hf.training.arguments import parse
from arbprob_hf.training.options.command_line import ALIASES
from arbprob_hf.training.run import Outcome
from tests.docs.pages import PAGES, README, ROOT, blocks, commands, printed, read, table

MASKS, QUESTIONS, LEAKS, TRAINING = (f"docs/{name}.md" for name in ("masks", "questions", "leaks", "training"))
MESSAGES = [row[0].replace("\\|", "|").strip("`") for row in table("docs/troubleshooting.md", "message")]
OUR_WORDS = ["given", "target", "rest", "slot", "rank", "limit", "layout", "reach", "seal"]
REFERENCES = {
    "AC-GPT": "Lu et al. 2026, *Simplifying the Modeling of Arbitrary Conditionals in Natural Language*, "
    "arXiv:2606.14943",
    "XLNet": "Yang et al. 2019, arXiv:1906.08237",
    "sigma-GPT": "Pannatier et al. 2024, arXiv:2404.09562",
    "ASARM": "Guo & Ermon 2025, arXiv:2504.20456",
    "AO-GPT": "Xue et al. 2025, arXiv:2506.19935",
    "A3": "Du et al. 2026, arXiv:2601.13228",
    "MDLM": "Sahoo et al. 2024, arXiv:2406.07524",
    "BD3-LM": "Arriola et al. 2025, arXiv:2503.09573",
    "Eso-LM": "Sahoo et al. 2025, arXiv:2506.01928",
}
# functions that take what a user reads
SPEAKERS = {"warn", "warning", "warning_once", "info", "error", "log", "print", "echo", "report", "write"}
RESULTS = "benchmarks/RESULTS.md"
TRUTH = (
    ("docs/questions.md", "How right are the answers?"),
    (RESULTS, "Conditional probabilities against the exact truth"),
)
SPEED = (RESULTS, "Said plainly")
AT_SIZE = (RESULTS, "On a GPU: longer, and at the size of DistilGPT-2")
# by how a row of README's results begins: the sections that its figures are from
MEASURED = {
    "training step": [SPEED],
    "the same at the size": [SPEED],
    "attention forward": [SPEED],
    "`log_prob`": [SPEED],
    "greedy decoding": [SPEED],
    "faults planted": [(RESULTS, "Seeded bugs")],
    "excess over": TRUTH,
    "what later tokens": [AT_SIZE],
    "what that costs": [AT_SIZE],
}
CLASSIC = [
    "config",
    "max_epochs",
    "num_train_samples",
    "num_val_samples",
    "batch_size",
    "learning_rate",
    "weight_decay",
    "warmup_steps",
    "log_interval",
    "eval_interval",
    "save_interval",
    "num_workers",
    "device",
    "resume",
]


def names(page: str, heading: str) -> list[str]:
    """The first word in backticks of each row of a table."""
    return [re.match(r"`(\w+)", row[0])[1] for row in table(page, heading)]


def largest(page: str) -> list[float]:
    """The differences that a page prints as tensors."""
    return [float(value) for value in re.findall(r"tensor\(([-+.e0-9]+)\)", printed(page))]


def test_the_mask_fact_is_as_stated() -> None:
    theirs, ours = largest(README)[:2]
    assert theirs > 0.1
    assert ours < 1e-5
    stated = re.search(r"The first line prints about (\d+\.\d+)", read(README))
    assert stated is not None
    assert theirs == pytest.approx(float(stated[1]), rel=0.05)


def test_samples_have_the_log_probability_that_is_scored() -> None:
    assert largest(QUESTIONS)[0] < 1e-5


@pytest.mark.parametrize(
    ("page", "shown"),
    [
        ("docs/publishing.md", "causal & window(32)"),
        (MASKS, "['tiled']"),
        ("docs/other-tools.md", "{'infill_match': 0.5}"),
    ],
)
def test_what_is_printed_is_as_the_page_says(page: str, shown: str) -> None:
    assert shown in "".join(blocks(page, "python") + blocks(page, "text"))
    assert shown in printed(page)


def test_what_the_mask_command_prints_is_as_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (words,) = [words for words in commands(LEAKS) if words[:2] == ["arbprob", "mask"] and "--help" not in words]
    ran = CliRunner().invoke(app, words[1:])
    assert ran.stdout == blocks(LEAKS, "text")[0]
    assert [path.name for path in tmp_path.iterdir()] == ["mask.png"]


def test_leaks_and_audits_are_as_shown() -> None:
    _, leaks, audited = blocks(LEAKS, "text")
    assert leaks in printed(LEAKS)
    summary, *lines = audited.splitlines()
    shown = printed(LEAKS).splitlines()
    begin = shown.index(summary) + 1
    # the figures behind a verdict are those of one machine
    assert [line[:44] for line in shown[begin : begin + len(lines)]] == [line[:44] for line in lines]


def test_every_pattern_is_in_the_table() -> None:
    named = set(names(MASKS, "pattern")) - {"Mask"}
    assert named == {name for name, kind in PATTERNS.items() if kind in BUILT_IN}


def test_every_layout_is_in_the_table() -> None:
    assert names(QUESTIONS, "layout") == list(LAYOUTS)


def test_every_task_is_in_the_table() -> None:
    assert set(names(TRAINING, "task")) == set(TASKS)


def test_each_of_our_words_is_defined_once() -> None:
    assert sorted(row[0] for row in table(QUESTIONS, "word")) == sorted(OUR_WORDS)


@pytest.mark.parametrize("work", REFERENCES)
def test_work_that_this_stands_on_is_cited(work: str) -> None:
    cited = " ".join(read(QUESTIONS).split())
    assert f"{work}: {REFERENCES[work]}" in cited or f"| {work} | {REFERENCES[work]} |" in cited


def test_readme_names_the_source_of_the_layout_prefix() -> None:
    assert "The layout `prefix` is that of AC-GPT (Lu et al. 2026, arXiv:2606.14943)" in read(README)


def test_classic_names_map_as_the_table_says() -> None:
    rows = {row[0].strip("`-"): re.match(r"`--(\w+)`", row[1])[1] for row in table(TRAINING, "classic")}
    assert list(rows) == CLASSIC
    assert rows == {name: ALIASES.get(name, name) for name in CLASSIC}


def test_a_command_in_classic_names_alone_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    values = ["configs/tiny.yaml", "2", "64", "8", "4", "1e-3", "0.01", "10", "5", "20", "20", "0", "cpu", "true"]
    options = [word for name, value in zip(CLASSIC, values, strict=True) for word in (f"--{name}", value)]
    training = parse(options).training
    assert (training.num_train_epochs, training.per_device_train_batch_size) == (2, 4)
    assert (training.logging_steps, training.eval_steps, training.save_steps) == (5, 20, 20)
    assert training.use_cpu
    assert training.resume_from_checkpoint in (True, "true")


def test_presets_have_the_sizes_of_the_table() -> None:
    for name, *cells in table(README, "preset"):
        config = ArbProbConfig.preset(name.strip("`"))
        assert [str(n) for n in (config.n_layer, config.n_head, config.n_embd, config.n_positions)] == cells[:4]


def test_parameters_are_those_of_the_table() -> None:
    for name, *_, stated in table(README, "preset"):
        # shapes alone: no memory, no random numbers
        with torch.device("meta"):
            model = ArbProbForCausalLM(ArbProbConfig.preset(name.strip("`")))
        assert f"{model.num_parameters() / 1e6:.1f}M" == stated


def test_every_configuration_is_in_the_table() -> None:
    named = {row[0].strip("`") for row in table(TRAINING, "file")}
    assert named == {path.relative_to(ROOT).as_posix() for path in (ROOT / "configs").glob("*.yaml")}


def toured() -> dict[str, list[str]]:
    """The files that the tour names, by room: in `model` by tables, in the others by a paragraph each."""
    tour = read("docs/architecture.md")
    texts = dict(re.findall(r"^\*\*`(\w+)/`\.\*\* (.*?)\n\n", tour, flags=re.MULTILINE | re.DOTALL))
    texts["model"] = "".join(re.findall(r"^\| `\w+\.py`", tour, flags=re.MULTILINE))
    texts[""] = tour.split("**Beside them.**")[1].split("\n\n")[0]
    return {room: sorted(re.findall(r"`(\w+\.py)`", text)) for room, text in texts.items()}


def test_every_file_is_in_the_tour_once() -> None:
    files: dict[str, list[str]] = {}
    for path in (ROOT / "arbprob_hf").rglob("*.py"):
        if not path.name.startswith("__"):
            *rooms, name = path.relative_to(ROOT / "arbprob_hf").parts
            files.setdefault(rooms[0] if rooms else "", []).append(name)
    assert toured() == {room: sorted(names) for room, names in files.items()}


def test_every_room_is_in_the_tour() -> None:
    rooms = {path.parent.name for path in (ROOT / "arbprob_hf").glob("*/__init__.py")}
    assert set(re.findall(r"^  (\w+)/ ", read("docs/architecture.md"), flags=re.MULTILINE)) >= rooms


@functools.cache
def said() -> list[str]:
    """Every text in the code of the package that is part of an error, a warning, or a line of output or of a log."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "arbprob_hf").rglob("*.py")]
    parts = (part for tree in trees for node in ast.walk(tree) if _is_said(node) for part in ast.walk(node))
    return [part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str)]


def _is_said(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        name = ast.unparse(node.func).rpartition(".")[2].lstrip("_")
        return name in SPEAKERS or name.endswith("Error")
    # a message that a function makes for its caller
    return isinstance(node, ast.Raise) or (isinstance(node, ast.Return) and isinstance(node.value, ast.JoinedStr))


@pytest.mark.parametrize("message", MESSAGES)
def test_quoted_messages_are_in_the_code(message: str) -> None:
    assert any(message in text for text in said())


def test_what_make_train_ends_with_is_what_the_code_says() -> None:
    (line,) = blocks(README, "text")
    steps, loss, perplexity, bits = map(float, re.findall(r"\d+(?:\.\d+)?", line))
    assert str(Outcome(Path("outputs/nano"), int(steps), int(steps), loss, perplexity, bits)) == line.strip()


def section(page: str, heading: str) -> str:
    """What stands under a heading, up to the next one of any level."""
    return re.split(rf"^#+ {re.escape(heading)}$", read(page), flags=re.MULTILINE)[1].split("\n#")[0]


def figures(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w.])\d+(?:\.\d+)?(?![.\d]*\d)", text))


def stated(beginning: str) -> str:
    (cell,) = (row[1] for row in table(README, "measured") if row[0].startswith(beginning))
    return cell


@pytest.mark.parametrize("beginning", MEASURED)
def test_figures_of_readme_are_among_the_results(beginning: str) -> None:
    known = figures(" ".join(section(*source) for source in MEASURED[beginning]))
    assert figures(stated(beginning)) - known == set()


def test_files_that_the_results_name_are_there() -> None:
    named = re.findall(r"(?:tests|benchmarks)/[\w/]+(?:\.py)?", read(RESULTS))
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_runs_killed_are_counted_as_in_the_results() -> None:
    killed = sum(int(row[1]) for row in table(RESULTS, "case"))
    equal = sum(int(row[4].partition("/")[0]) for row in table(RESULTS, "case"))
    assert stated("runs killed") == f"{equal} of {killed}"


def test_no_result_of_readme_is_without_a_source() -> None:
    known = (*MEASURED, "runs killed", "speed under custom masks on a GPU")
    assert [row[0] for row in table(README, "measured") if not row[0].startswith(known)] == []
    assert stated("speed under custom masks on a GPU") == "not measured"


def test_one_version_everywhere() -> None:
    import arbprob_hf

    version = re.escape(arbprob_hf.__version__)
    for name, pattern in {
        "setup.cfg": rf"^version = {version}$",
        "CITATION.cff": rf"^version: {version}$",
        "CHANGELOG.md": rf"^## \[{version}\]",
        "README.md": rf"^  version = {{{version}}},$",
    }.items():
        assert re.search(pattern, (ROOT / name).read_text(encoding="utf-8"), flags=re.MULTILINE), name


def test_pictures_of_readme_are_relative() -> None:
    assert [page for page in PAGES if re.search(r"!\[[^\]]*\]\((?:/|https?:)", read(page))] == []
