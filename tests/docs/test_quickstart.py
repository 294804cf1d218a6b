"""The notebook runs from top to bottom, and what is kept of an earlier run is what it says."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

PATH = Path(__file__).parents[2] / "notebooks" / "quickstart.ipynb"
Cells = list[dict[str, Any]]

pytestmark = pytest.mark.long


def code_cells(path: Path) -> Cells:
    return [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]


def printed(cells: Cells) -> str:
    outputs = (output for cell in cells for output in cell["outputs"] if output.get("name") == "stdout")
    return "".join(part for output in outputs for part in output["text"])


def pictures(cells: Cells) -> Iterator[bool]:
    for cell in cells:
        yield any("image/png" in output.get("data", {}) for output in cell["outputs"])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Cells:
    """The cells after a run in a kernel of their own, which stops at the first error."""
    copy = tmp_path_factory.mktemp("notebooks") / "executed.ipynb"
    code = (
        "import sys, nbformat; from nbclient import NotebookClient;"
        "notebook = nbformat.read(sys.argv[1], as_version=4);"
        "resources = {'metadata': {'path': sys.argv[3]}};"
        "NotebookClient(notebook, timeout=900, kernel_name='python3', resources=resources).execute();"
        "nbformat.write(notebook, sys.argv[2])"
    )
    subprocess.run([sys.executable, "-c", code, str(PATH), str(copy), str(PATH.parent)], check=True)
    return code_cells(copy)


def test_it_runs_and_draws_where_it_says(run: Cells) -> None:
    assert list(pictures(run)) == list(pictures(code_cells(PATH)))
    assert sum(pictures(run)) == 5


def test_what_it_prints_is_true(run: Cells) -> None:
    text = printed(run)
    assert all(float(found) < 1e-5 for found in re.findall(r"(?:largest difference|as the network does): (\S+)", text))
    assert "did you mean causal?" in text
    assert "6 leaks: 7 slots, 2 layers" in text
    assert "no leak: 7 slots, 100 layers" in text
    assert len(re.findall(r"'Return the.* of items in the", text)) == 3


def test_what_is_kept_is_whole_and_of_this_code() -> None:
    cells = code_cells(PATH)
    assert all(cell["execution_count"] == number for number, cell in enumerate(cells, 1))
    kept = PATH.read_text(encoding="utf-8")
    assert '"output_type": "error"' not in kept
    assert not re.search(r"/(home|tmp|root|work|Users)/", kept)
    assert len(kept) < 700_000
