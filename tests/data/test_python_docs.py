"""The embedded corpus: text of the library's sources, parsed and never run, in a fixed order."""

import sys
from pathlib import Path

import pytest

from arbprob_hf.data.python_docs import embedded_documents


@pytest.fixture(scope="module")
def documents() -> list[str]:
    before = set(sys.modules)
    found = embedded_documents()
    assert set(sys.modules) == before, "a module of the library was imported"
    return found


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """A library of a few modules, one of which must not be run."""
    sources = {
        "b.py": '"""Module b."""\nraise SystemExit("this code ran")\n',
        "a.py": (
            '"""Module a."""\nclass Kettle(list):\n    """Boils."""\n'
            '    def fill(self, water=1):\n        """Fill it."""\n'
            "    def plain(self): pass\n"
        ),
        "c/__init__.py": '"""Package c."""\ndef again():\n    """Fill it."""\n',
        "pydoc_data/topics.py": "topics = {'z': 'Topic z.\\n', 'y': 'Topic y.', 'x': 'Topic z.'}\n",
        "d_escape.py": '"""A stray \\d backslash."""\n',
        "empty.py": "",
        "test/t.py": '"""A test."""\n',
        "test_a.py": '"""Another test."""\n',
        "site-packages/p.py": '"""An installed package."""\n',
    }
    for name, source in sources.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(source)
    return tmp_path


def test_one_document_a_topic_and_a_module(library: Path) -> None:
    assert embedded_documents(library) == [
        "Topic z.",
        "Topic y.",
        "Module a.\n\nclass Kettle\n\nBoils.\n\nKettle.fill(self, water=1)\n\nFill it.",
        "Module b.",
        # "Fill it." is left out here: no docstring occurs twice
        "Package c.",
        "A stray \\d backslash.",
    ]


def test_a_library_without_sources_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^no documentation found in .* give a file, a folder or") as refused:
        embedded_documents(tmp_path)
    assert len(str(refused.value)) <= 300


def test_there_are_megabytes_of_it(documents: list[str]) -> None:
    assert len(documents) > 200
    assert 1e6 < sum(map(len, documents)) < 4e6


def test_documentation_topics_and_docstrings_are_in_it(documents: list[str]) -> None:
    assert any(document.startswith('The "with" statement') for document in documents)
    assert any("dumps(obj, *, skipkeys=False" in document for document in documents)


def test_no_document_occurs_twice(documents: list[str]) -> None:
    assert len(set(documents)) == len(documents)
