"""The configuration in the table of transformers' AutoConfig, by which every Auto class finds this package.

`import arbprob_hf` is enough for `AutoModelForCausalLM.from_pretrained(folder)`, before transformers or after it, and
waits for neither torch nor transformers: `register` follows the import of the table, whoever imports that.
"""

import copyreg
from importlib import import_module
from typing import Any

# the module of the table; AutoConfig, every AutoModel and AutoTokenizer stand on it
TABLE = "transformers.models.auto.configuration_auto"


def register() -> None:
    """Enter the configuration into the table, which is there. The networks follow when the entry is used."""
    entry = _entry()
    import_module(TABLE).AutoConfig.register(entry.model_type, entry, exist_ok=True)


def _entry() -> Any:
    # Registered as it is, a class of a package is taken even where `trust_remote_code=True` asks for the code that came
    # with a checkpoint, whatever that code says. transformers lets a checkpoint's code go before its own classes, which
    # it knows by the name of their module. So the entry bears such a name, and makes configurations of this package:
    # with trust the checkpoint's code, without it the package's, and no question asked. The tables of networks are
    # keyed by the class of the configuration and follow by themselves.
    from .model.configuration_arbprob import ArbProbConfig

    space = {"__module__": "transformers.models.arbprob", "__new__": _make, "__doc__": ArbProbConfig.__doc__}
    return _Entry(ArbProbConfig.__name__, (ArbProbConfig,), space)


def _make(cls: type[Any], *args: Any, **fields: Any) -> Any:
    # the networks only now: while the table is imported, modules that they import are often half imported themselves
    from .auto_models import ArbProbConfig

    return ArbProbConfig(*args, **fields)


class _Entry(type):
    """A kind of class of its own, so that the table can be pickled: by how an entry is made, not by that module."""


copyreg.pickle(_Entry, lambda entry: (_entry, ()))
