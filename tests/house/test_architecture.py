"""The rooms of the package and the arrows between them, read from the import statements."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "arbprob_hf"
MODEL = PACKAGE / "model"
MODEL_FILES = sorted(path for path in MODEL.glob("*.py") if path.name != "__init__.py")

TEXT_SUFFIXES = {".cff", ".cfg", ".md", ".py", ".toml", ".txt", ".yaml"}
TEXT_NAMES = {"Makefile", "LICENSE", "run", ".gitignore"}

# what each room may import beside itself; `model` is everybody's foundation
ARROWS = {
    "model": set(),
    "data": {"model"},
    "evaluation": {"model"},
    "depths": {"model"},
    "run_logs": set(),
    "plotting": {"model", "depths", "run_logs"},
    "describing_masks": {"model", "depths", "evaluation"},
    "metrics": set(),
    "publishing": {"model"},
    "exporting": {"model"},
    "own_patterns": {"model"},
    "training": {"model", "data", "plotting", "publishing", "own_patterns", "run_logs"},
    "comparing": {"model", "data", "plotting", "run_logs"},
    "demo": {"model", "data", "depths", "describing_masks", "plotting"},
    "sanity": {"model", "data", "training", "plotting", "publishing", "run_logs"},
    "cli": {
        "model",
        "data",
        "evaluation",
        "training",
        "comparing",
        "plotting",
        "publishing",
        "exporting",
        "sanity",
        "describing_masks",
        "own_patterns",
    },
    "__main__": {"cli"},
    "__init__": {"model", "evaluation", "plotting"},
}
# files of model/, each may import only those before it
MODEL_ORDER = [
    "custom_arbprob",
    "configuration_arbprob",
    "parsing_arbprob",
    "classes_arbprob",
    "tiling_arbprob",
    "reaching_arbprob",
    "masking_arbprob",
    "adopting_arbprob",
    "patterns_arbprob",
    "blocks_arbprob",
    "heads_arbprob",
    "tables_arbprob",
    "conditioning_arbprob",
    "layouts_arbprob",
    "registering_arbprob",
    "carrying_arbprob",
    "continuing_arbprob",
    "resolving_arbprob",
    "foreseeing_arbprob",
    "checking_arbprob",
    "losses_arbprob",
    "plans_arbprob",
    "products_arbprob",
    "tiled_arbprob",
    "stepping_arbprob",
    "structure_arbprob",
    "flex_arbprob",
    "attention_arbprob",
    "generating_arbprob",
    "branching_arbprob",
    "scoring_arbprob",
    "sampling_arbprob",
    "blanks_arbprob",
    "querying_arbprob",
    "labelling_arbprob",
    "modeling_arbprob",
]


def imports(path: Path) -> Iterator[tuple[ast.Import | ast.ImportFrom, str]]:
    """Each import statement of a file with the absolute name of the module it imports from."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = [*parts[: len(parts) - node.level]] if node.level else []
            prefix = ".".join([*base, *([node.module] if node.module else [])])
            # `from package import name` may import a module of that name
            yield from ((node, f"{prefix}.{alias.name}") for alias in node.names)


def room(module: str) -> str | None:
    """The room of a module of ours (`arbprob_hf.data.packing` is in `data`); None for everybody else's."""
    head, *rest = module.split(".")
    if head != "arbprob_hf":
        return None
    name = rest[0] if rest else "__init__"
    return name if name in ARROWS else "__init__"


SOURCES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_follow_the_arrows(path: Path) -> None:
    here = room(".".join(path.relative_to(ROOT).with_suffix("").parts))
    assert here is not None
    allowed = ARROWS[here] | {here}
    # the version is the one name that commands take from the package itself
    if here in ("cli", "training", "publishing"):
        allowed = allowed | {"__init__"}
    used = {name for _, module in imports(path) if (name := room(module)) is not None}
    assert used <= allowed, f"{path.name} in {here} imports from {sorted(used - allowed)}"


def test_every_file_of_the_package_is_in_a_known_room() -> None:
    entries = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert entries == set(ARROWS)


def test_the_script_imports_the_package_only_through_training() -> None:
    used = {room(module) for _, module in imports(ROOT / "train_hf.py")} - {None}
    assert used == {"training"}


def test_only_the_page_knows_gradio() -> None:
    users = {path for path in SOURCES for _, module in imports(path) if module.split(".")[0] == "gradio"}
    assert users == {PACKAGE / "demo" / "page.py"}


def test_only_plotting_draws() -> None:
    users = {path for path in SOURCES for _, module in imports(path) if module.startswith("matplotlib")}
    assert {path.parent for path in users} == {PACKAGE / "plotting"}


def test_model_is_flat() -> None:
    assert [path.name for path in MODEL.iterdir() if path.is_dir() and path.name != "__pycache__"] == []
    assert {path.stem for path in MODEL_FILES} == set(MODEL_ORDER)


@pytest.mark.parametrize("path", MODEL_FILES, ids=lambda path: path.stem)
def test_model_files_import_only_torch_transformers_the_standard_library_and_siblings(path: Path) -> None:
    allowed = {"torch", "transformers", *sys.stdlib_module_names}
    for node, module in imports(path):
        if isinstance(node, ast.ImportFrom) and node.level:
            continue
        is_strict = module == "huggingface_hub.dataclasses.strict"
        assert is_strict or module.split(".")[0] in allowed, f"line {node.lineno}: {module}"


@pytest.mark.parametrize("path", MODEL_FILES, ids=lambda path: path.stem)
def test_siblings_are_imported_the_one_way_the_remote_loader_follows(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    relative = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level]
    for node in relative:
        # the loader copies `from .x import y`, at the top level of a file, and nothing else
        assert node.level == 1, ast.unparse(node)
        assert node.module in MODEL_ORDER, ast.unparse(node)
        assert node in tree.body, f"line {node.lineno} is not at top level"


@pytest.mark.parametrize("path", MODEL_FILES, ids=lambda path: path.stem)
def test_model_files_import_only_earlier_siblings(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    used = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level]
    later = MODEL_ORDER[MODEL_ORDER.index(path.stem) :]
    assert [name for name in used if name in later] == []


def test_the_tour_lists_the_files_of_model_in_order() -> None:
    tour = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `(\w+_arbprob)\.py`", tour, flags=re.MULTILINE) == MODEL_ORDER


def test_only_the_network_sees_attention() -> None:
    users = {path.stem for path in MODEL_FILES for _, module in imports(path) if ".attention_arbprob." in module}
    assert users == {"modeling_arbprob"}


@pytest.mark.parametrize("path", MODEL_FILES, ids=lambda path: path.stem)
def test_no_text_of_a_model_file_reads_like_a_relative_import(path: Path) -> None:
    # the loader searches the file's text with a regular expression, docstrings included
    tree = ast.parse(path.read_text(encoding="utf-8"))
    strings = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    lines = [line.strip() for text in strings for line in text.splitlines()]
    assert [line for line in lines if line.startswith(("from .", "import ."))] == []


@pytest.mark.parametrize("path", MODEL_FILES, ids=lambda path: path.stem)
def test_model_files_keep_their_annotations_as_objects(path: Path) -> None:
    # transformers looks up the class that `config:` is annotated with; a string has no such thing
    assert [module for _, module in imports(path) if module.startswith("__future__.")] == []


def test_names_others_rely_on_are_public() -> None:
    import arbprob_hf

    network = {"ArbProbConfig", "ArbProbModel", "ArbProbForCausalLM"}
    masks = {"Mask", "pattern", "causal", "full", "window", "dilated", "strided", "prefix", "sinks", "blocks"}
    masks |= {"documents", "padding", "order", "block_diffusion", "tree", "heads"}
    questions = {"Conditional", "score_text"}
    assert network | masks | questions <= set(arbprob_hf.__all__)
    assert [name for name in arbprob_hf.__all__ if not hasattr(arbprob_hf, name)] == []
    assert arbprob_hf.ArbProbConfig.model_type == "arbprob"


def test_importing_only_defines() -> None:
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in SOURCES
        if path.name != "__main__.py"
    ]
    script = (
        "import os, random, sys, torch, transformers\n"
        "import numpy\n"
        # torch notes the folder of its compiler's cache in the environment when transformers' generation is imported
        "transformers.GenerationMixin\n"
        "state = lambda: (torch.get_rng_state().tolist(), random.getstate(), torch.get_num_threads(),\n"
        "                 torch.get_default_dtype(), torch.is_grad_enabled(), dict(os.environ))\n"
        "before = state()\n"
        f"for name in {modules!r}:\n"
        "    __import__(name)\n"
        "sys.exit('an import changed global state' if state() != before else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_no_file_names_a_path_of_some_machine() -> None:
    folders = ("arbprob_hf", "benchmarks", "configs", "docs", "space", "tests", ".ci")
    inside = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    top = [path for path in ROOT.iterdir() if path.is_file()]
    files = [path for path in [*inside, *top] if path.suffix in TEXT_SUFFIXES or path.name in TEXT_NAMES]
    assert ROOT / "Makefile" in files
    forbidden = [f"/{folder}/" for folder in ("root", "work", "opt", "home")]
    found = {
        f"{path.relative_to(ROOT)}: {word}"
        for path in files
        for word in forbidden
        if word in path.read_text(encoding="utf-8")
    }
    assert found == set()
