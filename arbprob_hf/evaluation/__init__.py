"""Old names of modules that moved to `oracles` and `analysis`; they work, with a warning, until release 0.2."""

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MOVED = {
    "auditing": "arbprob_hf.analysis.audit.audit",
    "consistency": "arbprob_hf.oracles.consistency",
    "leaking": "arbprob_hf.analysis.leakage",
    "learning": "arbprob_hf.oracles.train",
    "oracles": "arbprob_hf.oracles.score",
    "secrets": "arbprob_hf.analysis.question_leakage",
    "sources": "arbprob_hf.oracles.registry",
}


class _Moved(MetaPathFinder, Loader):
    """Finds a module of this package by its old name; the module found is the one at the new place itself."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, old = name.rpartition(".")
        return ModuleSpec(name, self) if package == __name__ and old in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        new = MOVED[module.__name__.rpartition(".")[2]]
        warnings.warn(
            f"{module.__name__} is now {new}; the old name goes with release 0.2", FutureWarning, stacklevel=2
        )
        sys.modules[module.__name__] = import_module(new)


sys.meta_path.append(_Moved())
