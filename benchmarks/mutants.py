"""Seed every small change to the functions of the model that decide who sees whom, and tell what the audit misses.

    python benchmarks/mutants.py [--every N] [FILE ...]

The tests seed some of these; all of them take about ten minutes on one idle core.
"""

import argparse
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.analysis.comparing import judge
from tests.analysis.mutating import mutants_of
from tests.analysis.targets import TARGETS


def main() -> None:
    """Print a line per file, and each change that nothing caught."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", default=list(TARGETS), help="files of the model, as masks/patterns")
    parser.add_argument("--every", type=int, default=1, help="seed every so many changes only")
    parser.add_argument("--equivalent", action="store_true", help="name the equivalent changes too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    total: Counter[str] = Counter()
    for file in options.files:
        start, counts = time.perf_counter(), Counter[str]()
        mutants = [mutant for name in TARGETS[file] for mutant in mutants_of(file, name)]
        with tempfile.TemporaryDirectory() as folder:
            for mutant, verdict in judge(mutants[:: options.every], Path(folder)):
                counts[verdict] += 1
                if verdict == "missed" or (verdict == "equivalent" and options.equivalent):
                    print(f"  {verdict}: {mutant}", flush=True)
        total += counts
        print(f"{file:<24} {dict(counts)}, {time.perf_counter() - start:.0f} s", flush=True)
    print(f"{'all':<24} {dict(total)}")


if __name__ == "__main__":
    main()
