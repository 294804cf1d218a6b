"""What waits until it is needed: public names imported at their first use (PEP 562), work done after an import."""

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType
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


def after_import(module: str, action: Callable[[], object]) -> None:
    """Call `action` when `module` has been imported: at once where it is there already, else after its first import."""
    if module in sys.modules:
        action()
    else:
        sys.meta_path.insert(0, _Watch(module, action))


class _Watch:
    """Finds one module as the finders behind it would, and has an action follow its execution."""

    def __init__(self, module: str, action: Callable[[], object]) -> None:
        self._module = module
        self._action = action

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self._module:
            return None
        found = (finder.find_spec(fullname, path, target) for finder in sys.meta_path if finder is not self)
        spec = next((one for one in found if one is not None), None)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_act(module: ModuleType) -> None:
                execute(module)
                sys.meta_path.remove(self)
                self._action()

            # of this spec's own loader alone
            spec.loader.exec_module = execute_and_act  # type: ignore[method-assign]
        return spec
