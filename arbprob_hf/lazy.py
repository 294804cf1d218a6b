"""Public names of a package that are imported when they are first used (PEP 562)."""

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any


def lazy_names(
    package: str, homes: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of `package`: `homes` lists names by the module that holds them.

    A module is named whole, or by a leading dot where `package` is one. Any other name is looked for among the modules
    in `package`. Assign both where `not TYPE_CHECKING`: a type checker would take any other name for one of the
    package's.
    """
    home_of = {name: home for home, names in homes.items() for name in names}
    space = vars(sys.modules[package])

    def find(name: str) -> Any:
        if name in home_of:
            space[name] = getattr(import_module(home_of[name], package), name)
            return space[name]
        # names that Python itself looks for, such as __wrapped__, are never modules: __main__ would run
        if not name.startswith("_"):
            whole = f"{package}.{name}"
            try:
                return import_module(whole)
            except ModuleNotFoundError as error:
                # one that is there but lacks an extra says so itself
                if error.name != whole:
                    raise
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return find, lambda: sorted({*space, *home_of})
