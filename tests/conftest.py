"""What every test stands on: no network, one thread a process, fixed seeds, a cache of its own."""

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

# read by the libraries when they are imported, so set before the first of them is
CACHE = tempfile.mkdtemp(prefix="arbprob-tests-")
atexit.register(shutil.rmtree, CACHE, ignore_errors=True)
# one folder for all processes of this session: those that pytest-xdist starts inherit it
os.environ.setdefault("ARBPROB_TESTS_SHARED", CACHE)
os.environ.update(
    HF_HUB_OFFLINE="1",
    # what is in a user's cache must not decide a test
    HF_HOME=CACHE,
    HF_DATASETS_CACHE=os.path.join(CACHE, "datasets"),
    # bit-equality holds for one number of threads
    OMP_NUM_THREADS="1",
    TOKENIZERS_PARALLELISM="false",
)

import pytest  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402

from arbprob_hf.model.masks.mask import PATTERNS  # noqa: E402

torch.set_num_threads(1)


def pytest_configure(config: pytest.Config) -> None:
    """Draw the same examples every time, whatever they take: the first may include an import or a compilation."""
    # without hypothesis installed, the tests that do not use it still run
    if config.pluginmanager.hasplugin("hypothesispytest"):
        import hypothesis

        hypothesis.settings.register_profile("house", deadline=None, derandomize=True)
        hypothesis.settings.load_profile("house")


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    """Every test starts from the same random state, whatever ran before it."""
    transformers.set_seed(0)


@pytest.fixture(autouse=True)
def registered_for_one_test() -> Iterator[None]:
    """A pattern that a test registers is gone after it."""
    kept = dict(PATTERNS)
    yield
    PATTERNS.clear()
    PATTERNS.update(kept)


@pytest.fixture(scope="session")
def session_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this test session, the same in all its processes."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
