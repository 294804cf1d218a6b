"""The source distribution of the installed transformers, which holds its test mixins: fetched by pip, kept, checked."""

import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import transformers

ROOT = Path(__file__).resolve().parents[2]
NAME = f"transformers-{transformers.__version__}"
KEPT = ROOT / ".cache" / f"{NAME}.tar.gz"
# files that must be those of the installed package
ALIKE = ("modeling_utils.py", "configuration_utils.py", "testing_utils.py", "models/gpt2/modeling_gpt2.py")


def unpack(folder: Path) -> Path:
    """Put the mixins into `folder`/tests, where they find the installed transformers; returns that folder."""
    if not KEPT.exists():
        _fetch()
    installed = Path(transformers.__file__).parent
    with tarfile.open(KEPT) as archive:
        for name in ALIKE:
            member = archive.extractfile(f"{NAME}/src/transformers/{name}")
            assert member is not None
            if member.read() != (installed / name).read_bytes():
                raise RuntimeError(f"{KEPT}: its {name} is not that of the installed transformers; remove the file")
        mixins = [member for member in archive.getmembers() if Path(member.name).parent == Path(NAME) / "tests"]
        for member in mixins:
            member.name = f"tests/{Path(member.name).name}"
            if member.isfile():
                archive.extract(member, folder, filter="data")
    # two of them import transformers by a path beside their own
    (folder / "tests" / "__init__.py").touch()
    (folder / "src").mkdir()
    (folder / "src" / "transformers").symlink_to(installed, target_is_directory=True)
    return folder / "tests"


def _fetch() -> None:
    KEPT.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=KEPT.parent) as folder:
        wanted = f"transformers=={transformers.__version__}"
        options = ("--no-binary", "transformers", "--no-deps", "--no-build-isolation", "--dest", folder)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", *options, wanted]
        # what tests keep from the network does not bind pip
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ))
        found = Path(folder) / KEPT.name
        if done.returncode or not found.exists():
            said = " ".join(done.stderr.split())[-400:]
            raise RuntimeError(
                f"the source distribution of {NAME}, whose tests are run here, is not to be had from pip ({said}); "
                f"put it there: {KEPT}"
            )
        shutil.move(found, KEPT)


def add_package(name: str, folder: Path) -> None:
    """Make the modules of `folder` importable as `name`.* under no other name."""
    spec = importlib.util.spec_from_loader(name, loader=None, is_package=True)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    module.__path__ = [str(folder)]
    sys.modules[name] = module
