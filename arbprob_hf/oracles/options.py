"""What `arbprob oracles` may be asked for; checked before anything heavy is imported."""

import math
from collections.abc import Sequence

SOURCE_NAMES = ("markov", "hmm", "tree", "ising", "pcfg", "ldpc")
LAYOUTS = ("two_stream", "prefix", "sigma")


def check_options(
    sources: Sequence[str], layouts: Sequence[str], *, minutes: float, random: float, threads: int, seed: int
) -> None:
    """Raise ValueError for an unknown name or a number out of range; see `oracle_rows`."""
    for name, given, known in (("source", sources, SOURCE_NAMES), ("layout", layouts, LAYOUTS)):
        unknown = [one for one in given if one not in known]
        if unknown:
            raise ValueError(f"{name}: expected one of {', '.join(known)}, got {unknown[0]!r:.40}")
    if not (math.isfinite(minutes) and minutes > 0):
        raise ValueError(f"minutes: expected a number above 0, got {minutes}")
    if not 0 <= random <= 1:
        raise ValueError(f"random: expected a share from 0 to 1, got {random}")
    if random > 0 and "prefix" in layouts:
        raise ValueError("random: the layout prefix asks from left to right only; leave it at 0, or leave prefix out")
    for name, number, least in (("threads", threads, 0), ("seed", seed, 0)):
        if not least <= number < 2**32:
            raise ValueError(f"{name}: expected a whole number from {least} to {2**32 - 1}, got {number}")
