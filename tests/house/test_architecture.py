"""The rooms of the package and the arrows between them, read from the import statements."""

import ast
import functools
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "arbprob_hf"
MODEL = PACKAGE / "model"
SOURCES = sorted(PACKAGE.rglob("*.py"))

TEXT_SUFFIXES = {".cff", ".cfg", ".md", ".py", ".toml", ".txt", ".yaml"}
TEXT_NAMES = {"Makefile", "LICENSE", "run", ".gitignore"}

# what each room may import beside itself; `model` and `errors` stand under everything
BASE = {"model", "errors", "machine_errors", "atomic_write"}
ARROWS = {
    "model": set(),
    "machine_errors": set(),
    "errors": {"machine_errors"},
    "version": set(),
    "evaluation": {"lazy"},
    "atomic_write": {"machine_errors"},
    "lazy": set(),
    "auto_config": {"auto_models", "model"},
    "auto_models": {"model"},
    "model_folder": BASE | {"pattern_file"},
    "pattern_file": BASE,
    "data": BASE | {"lazy"},
    "analysis": BASE,
    "oracles": BASE,
    "metrics": {"errors"},
    "runs": BASE | {"data"},
    "plotting": BASE | {"lazy", "analysis", "runs"},
    "publishing": BASE | {"model_folder", "pattern_file", "runs"},
    "comparison": BASE | {"model_folder", "pattern_file", "data", "analysis", "runs", "plotting"},
    "demo": BASE | {"model_folder", "pattern_file", "data", "analysis", "plotting"},
    "training": BASE | {"lazy", "model_folder", "pattern_file", "data", "analysis", "runs", "plotting", "publishing"},
    "cli": BASE
    | {"version"}
    | {"model_folder", "pattern_file", "data", "analysis", "oracles", "runs", "plotting", "publishing"}
    | {"comparison", "training"},
    "__main__": {"cli", "errors"},
    "__init__": BASE | {"version", "lazy", "auto_config", "auto_models", "model_folder", "analysis", "plotting"},
}

# the rooms of model/, each one file of a saved checkpoint, and what each may import beside itself
TRAVELLING = {
    "configuration": set(),
    "masks": set(),
    "attention": {"masks"},
    "questions": {"configuration", "masks"},
    "modeling": {"configuration", "masks", "attention", "questions"},
}
# the files of model/ that lie in no folder; those in no room stay at home
ROOMS_OF_FILES = {
    "configuration_arbprob": "configuration",
    **dict.fromkeys(["modeling_arbprob", "classifiers", "generation", "layers", "lm_head", "validation"], "modeling"),
    **dict.fromkeys(["saved_patterns", "saved_weights", "slot_passes", "lean_step"], "modeling"),
}
STAY_HOME = {"checkpoint_code"}


def _travelling_room(path: Path) -> str | None:
    relative = path.relative_to(MODEL)
    return relative.parts[0] if len(relative.parts) == 2 else ROOMS_OF_FILES.get(relative.stem)


MODEL_FILES = sorted(path for path in MODEL.rglob("*.py") if path.name != "__init__.py")
TRAVELLERS = [path for path in MODEL_FILES if _travelling_room(path) is not None]


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path) -> Iterator[tuple[ast.Import | ast.ImportFrom, str]]:
    """Each import statement of a file with the absolute name of what it imports, `module.name`."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # `from package import name` may import a module of that name
            yield from ((node, f"{_origin(path, node)}.{alias.name}") for alias in node.names)


def _origin(path: Path, node: ast.ImportFrom) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    base = parts[: len(parts) - node.level] if node.level else ()
    return ".".join([*base, *([node.module] if node.module else [])])


def room(module: str) -> str | None:
    """The room of a module of ours (`arbprob_hf.data.packing` is in `data`); None for everybody else's."""
    head, *rest = module.split(".")
    if head != "arbprob_hf":
        return None
    name = rest[0] if rest else "__init__"
    return name if name in ARROWS else "__init__"


def files_imported(path: Path) -> set[Path]:
    """The files of the package that a file imports from."""
    found = set()
    for _, name in imports(path):
        stem = ROOT.joinpath(*name.split("."))
        candidates = [c for part in (stem, stem.parent) for c in (part.with_suffix(".py"), part / "__init__.py")]
        found |= {next((c for c in candidates if c in SOURCES), path)}
    return found - {path}


def test_no_arrow_between_rooms_points_up() -> None:
    assert list(TopologicalSorter(ARROWS).static_order())
    assert list(TopologicalSorter(TRAVELLING).static_order())


def test_no_files_import_one_another_in_a_circle() -> None:
    assert list(TopologicalSorter({path: files_imported(path) for path in SOURCES}).static_order())


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_imports_follow_the_arrows(path: Path) -> None:
    here = room(module_of(path))
    assert here is not None
    allowed = ARROWS[here] | {here}
    if here == "model" and path.stem in STAY_HOME:
        allowed = allowed | {"version"}
    used = {name for _, module in imports(path) if (name := room(module)) is not None}
    assert used <= allowed, f"{path.name} in {here} imports from {sorted(used - allowed)}"


def test_every_file_of_the_package_is_in_a_known_room() -> None:
    entries = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert entries <= set(ARROWS)


def test_the_script_imports_the_package_only_through_training() -> None:
    used = {room(module) for _, module in imports(ROOT / "train_hf.py")} - {None}
    assert used <= {"errors", "training"}


def test_only_the_page_knows_gradio() -> None:
    users = {path for path in SOURCES for _, module in imports(path) if module.split(".")[0] == "gradio"}
    assert users == {PACKAGE / "demo" / "page.py"}


def test_only_plotting_draws() -> None:
    users = {path for path in SOURCES for _, module in imports(path) if module.startswith("matplotlib")}
    assert {path.parent for path in users} == {PACKAGE / "plotting"}


def test_every_file_of_model_is_in_a_room_or_stays_home() -> None:
    assert {path.stem for path in MODEL_FILES if _travelling_room(path) is None} <= STAY_HOME
    assert {_travelling_room(path) for path in TRAVELLERS} == set(TRAVELLING)


@pytest.mark.parametrize("path", TRAVELLERS, ids=relative)
def test_model_reaches_only_torch_transformers_and_the_standard_library(path: Path) -> None:
    allowed = {"torch", "transformers", *sys.stdlib_module_names}
    for node, module in imports(path):
        if module.startswith("arbprob_hf.model."):
            continue
        is_strict = module == "huggingface_hub.dataclasses.strict"
        assert is_strict or module.split(".")[0] in allowed, f"line {node.lineno}: {module}"


@pytest.mark.parametrize("path", TRAVELLERS, ids=relative)
def test_rooms_of_model_pass_data_down_once(path: Path) -> None:
    here = _travelling_room(path)
    used = {other: _travelling_room(other) for other in files_imported(path) if MODEL in other.parents}
    assert {name for name in used.values() if name} <= TRAVELLING[here] | {here}
    # what writes the bundle is found by its name where a model is saved: what is written holds nothing of it
    assert None not in used.values()


@pytest.mark.parametrize("path", TRAVELLERS, ids=relative)
def test_siblings_are_imported_in_a_way_that_can_be_gathered(path: Path) -> None:
    tree = parsed(path)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and _origin(path, node).split(".")[0] == "arbprob_hf":
            # by name, at the top of the file and under no other name: the files of a room become one
            assert node.level, ast.unparse(node)
            assert node.module, ast.unparse(node)
            assert all(alias.asname is None for alias in node.names), ast.unparse(node)
            assert node in tree.body or "checkpoint_code" in node.module, f"line {node.lineno} is not at top level"


def bindings(path: Path) -> Iterator[tuple[str, str]]:
    """Each name that a file binds at its top level, with where the thing comes from."""
    tree = parsed(path)
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name, f"{module_of(path)}.{node.name}"
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)]
            yield from ((name, f"{module_of(path)}.{name}") for name in names)
        elif isinstance(node, ast.Import):
            yield from (
                (a.asname or a.name.split(".")[0], a.name if a.asname else a.name.split(".")[0]) for a in node.names
            )
        elif isinstance(node, ast.ImportFrom):
            yield from ((a.asname or a.name, f"{_origin(path, node)}.{a.name}") for a in node.names)


@pytest.mark.parametrize("name", TRAVELLING)
def test_a_name_means_one_thing_in_a_room_that_travels(name: str) -> None:
    meanings = defaultdict(set)
    for path in TRAVELLERS:
        if _travelling_room(path) == name:
            for bound, origin in bindings(path):
                meanings[bound].add(origin)
    assert {bound for bound, origins in meanings.items() if len(origins) > 1} == set()


@pytest.mark.parametrize("path", TRAVELLERS, ids=relative)
def test_no_text_of_a_model_file_reads_like_a_relative_import(path: Path) -> None:
    # the remote loader searches the file's text with a regular expression, docstrings included
    tree = parsed(path)
    strings = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    lines = [line.strip() for text in strings for line in text.splitlines()]
    assert [line for line in lines if line.startswith(("from .", "import ."))] == []


@pytest.mark.parametrize("path", MODEL_FILES, ids=relative)
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
    # an old name of a module warns when it is imported, and is that module
    old = {path for path in SOURCES if path.parent.name == "evaluation" and path.name != "__init__.py"}
    modules = [module_of(path) for path in SOURCES if path.name != "__main__.py" and path not in old]
    script = (
        "import os, random, sys, torch, transformers\n"
        "import numpy\n"
        # torch notes the folder of its compiler's cache in the environment when transformers' generation is imported
        "transformers.GenerationMixin\n"
        # transformers' trainer imports torchao where it is installed, which reports what it lacks
        "transformers.Trainer\n"
        "print('ours:', file=sys.stderr)\n"
        "state = lambda: (torch.get_rng_state().tolist(), random.getstate(), torch.get_num_threads(),\n"
        "                 torch.get_default_dtype(), torch.is_grad_enabled(), dict(os.environ))\n"
        "before = state()\n"
        f"for name in {modules!r}:\n"
        "    __import__(name)\n"
        "sys.exit('an import changed global state' if state() != before else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.partition("ours:\n")[2]) == (0, "", ""), done.stderr


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
