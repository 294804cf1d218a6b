"""Custom patterns for the commands: a Python file of `@pattern` functions, executed before masks are read."""

import hashlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType


def pattern_bytes(path: Path | str) -> bytes:
    """The content of the file of patterns at `path`. Raises ValueError, one line, where it cannot be read."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"patterns: cannot read {str(path)!r:.100}: {error.strerror or error}") from None


def read_patterns(path: Path | str) -> None:
    """Execute the file at `path`, the user's own code, which registers patterns with `@pattern`.

    The `custom_arbprob.py` of a checkpoint is such a file too.

    It becomes a module under a name made of its path, so that files of one name stay apart and reading one again
    replaces its patterns. Nothing is written beside it.

    Raises:
        ValueError: no such file, one that cannot be executed, or one that registers nothing; one line.
    """
    # imported here: they need torch, which a file that is not there does not wait for
    from .model.masks.mask import PATTERNS
    from .model.saved_patterns import register_rules

    content = pattern_bytes(path)
    file, before = Path(path).resolve(), dict(PATTERNS)
    module = ModuleType(f"own_patterns_{hashlib.sha256(bytes(file)).hexdigest()[:12]}")
    module.__file__ = str(file)
    sys.modules[module.__name__] = module
    try:
        text = importlib.util.decode_source(content)
        exec(compile(text, str(file), "exec", dont_inherit=True), vars(module))
        register_rules(module)
    except (Exception, SystemExit) as error:
        said = " ".join(str(error).split())
        raise ValueError(f"patterns: {str(path)!r:.100} raised {type(error).__name__}: {said:.120}") from error
    if all(before.get(name) is kind for name, kind in PATTERNS.items()):
        raise ValueError(f"patterns: {str(path)!r:.100} registers no pattern; write @pattern above a def")
