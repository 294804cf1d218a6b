"""What stock GPT-2 passes of transformers' own mixins, our classes pass too."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mixins.source import ROOT, unpack

# a test of the mixins that stock GPT-2 passes and ours do not, and why; each is a row in docs/other-tools.md
EXCEPTIONS: dict[str, str] = {}
# what ours passed with 5.23, mixin by mixin: fewer would mean that the mixins were not run
LEAST = {"TestModel": 99, "TestPipeline": 10, "TestTraining": 1, "TestConfiguration": 1}


def outcomes(family: str, mixins: Path, *names: str) -> dict[str, tuple[str, str]]:
    """How the tests ended on `family`, by name: passed, skipped or failed, and why; all of them, or those named."""
    tiny, report = mixins.parent / f"tiny-{family}", mixins.parent / f"{family}.json"
    command = [sys.executable, "-m", "tests.mixins.run", family, str(mixins), str(tiny), str(report), *names]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=900)
    assert report.exists(), done.stdout[-3000:] + done.stderr[-3000:]
    found = {name: (how, why) for name, (how, why) in json.loads(report.read_text()).items()}
    assert found, done.stdout[-3000:] + done.stderr[-3000:]
    return found


@pytest.mark.long
def test_what_stock_gpt2_passes_of_transformers_own_mixins_we_pass(tmp_path: Path) -> None:
    mixins = unpack(tmp_path)
    ours = outcomes("ours", mixins)
    passed = [name for name, (how, _) in ours.items() if how == "passed"]
    counted = {mixin: sum(name.startswith(f"{mixin}::") for name in passed) for mixin in LEAST}
    other = [name for name in ours if name not in passed]
    stock = outcomes("stock", mixins, *other)
    lost = {name: ours[name] for name in other if stock[name][0] == "passed"}
    assert {name: why for name, why in lost.items() if name not in EXCEPTIONS} == {}
    assert set(EXCEPTIONS) <= set(lost), "no exception any longer"
    failed = {name: why for name, (how, why) in ours.items() if how == "failed" and name not in EXCEPTIONS}
    assert failed == {}, "neither family passes these"
    assert {mixin: min(count, LEAST[mixin]) for mixin, count in counted.items()} == LEAST


def test_every_exception_is_a_row_of_the_documentation() -> None:
    page = (ROOT / "docs" / "other-tools.md").read_text()
    table = page.partition("## transformers' own tests")[2]
    assert [reason for reason in EXCEPTIONS.values() if reason not in table] == []
    for mixin, count in LEAST.items():
        name = {"TestConfiguration": "ConfigTester"}.get(mixin, f"{mixin.removeprefix('Test')}TesterMixin")
        (row,) = [line for line in table.splitlines() if line.startswith(f"| `{name}`")]
        assert f"| {count} |" in row
