"""Sources of sequences, by name, whose conditional probabilities are all computed exactly."""

import inspect
from typing import Any

from .chains import HiddenMarkovSource, MarkovSource
from .codes import ParityCheckSource
from .grammars import GrammarSource
from .graphs import IsingSource, TreeSource
from .source import Source

__all__ = ["SOURCES", "Source", "load_source"]

SOURCES: dict[str, type[Source]] = {
    kind.name: kind
    for kind in (MarkovSource, HiddenMarkovSource, TreeSource, IsingSource, GrammarSource, ParityCheckSource)
}


def load_source(name: str, *, seed: int = 0, **sizes: Any) -> Source:
    """The source of a name: "markov", "hmm", "tree", "ising", "pcfg" or "ldpc".

    Args:
        seed: what its parameters are drawn from. sizes: keyword parameters of its class, such as `length`.
    """
    if name not in SOURCES:
        raise ValueError(f"name: expected one of {', '.join(SOURCES)}, got {name!r}")
    kind = SOURCES[name]
    known = [size for size in inspect.signature(kind).parameters if size != "seed"]
    unknown = [size for size in sizes if size not in known]
    if unknown:
        raise TypeError(f"sizes: expected some of {', '.join(known)} for {name!r}, got {unknown[0]!r}")
    # the classes take what their signatures say, which the abstract class does not state
    build: Any = kind
    source: Source = build(seed, **sizes)
    return source
