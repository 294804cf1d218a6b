"""What the benchmarks share: runs that take turns, ratios with their spread, rows of a table with their goals.

A benchmark yields rows, and `report` makes a command of that:

    python benchmarks/NAME.py            the whole table
    python benchmarks/NAME.py --quick    the rows that have a goal, in few rounds

A figure is a ratio of two runs in one process, since times alone say little on a shared machine: one thread that stays
on one processor, CPU time (wall time on an accelerator), and before each timed run an untimed one of the same work, as
what ran before leaves memory and caches in its own state.
"""

import argparse
import json
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

# how a row begins among what libraries print
ROW = '{"work": '


@dataclass(frozen=True)
class Row:
    """One line of a table: what was measured, the figure with its spread, and the goal, where there is one.

    Attributes:
        figure: as printed, such as "2.03 [1.90, 2.10]"; the goal is held against its first number.
        goal: ">= 2" or "<= 1.3"; "" for a figure without one.
        note: what else a reader needs, such as the two times.
    """

    work: str
    figure: str
    goal: str = ""
    note: str = ""

    def is_met(self) -> bool | None:
        """Whether the figure meets the goal; None without one."""
        found = re.search(r"-?\d+(\.\d+)?(e-?\d+)?", self.figure)
        if not self.goal or found is None:
            return None
        sign, bound = self.goal.split()
        return float(found[0]) >= float(bound) if sign == ">=" else float(found[0]) <= float(bound)


def in_turns(works: Mapping[str, Callable[[], object]], *, rounds: int, device: str = "cpu") -> dict[str, list[float]]:
    """Seconds of each work, `rounds` of them: the works take turns, and each has an untimed run before a timed one."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            work()
            times[name].append(timed(work, device))
    return times


def timed(work: Callable[[], object], device: str = "cpu") -> float:
    """Seconds of this process's CPU time, all threads together; wall time where the work is done on an accelerator."""
    if device == "cpu":
        start = time.process_time()
        work()
        return time.process_time() - start
    import torch

    torch.accelerator.synchronize()
    start = time.perf_counter()
    work()
    torch.accelerator.synchronize()
    return time.perf_counter() - start


def ratio(slower: Sequence[float], faster: Sequence[float]) -> str:
    """How many times as long the first took as the second: median of the rounds' ratios, with [least, most]."""
    return spread([a / b for a, b in zip(slower, faster, strict=True)])


def spread(values: Sequence[float], digits: int = 2) -> str:
    """The median with [least, most]."""
    return f"{statistics.median(values):.{digits}f} [{min(values):.{digits}f}, {max(values):.{digits}f}]"


def machine() -> str:
    """The processor, its load and the releases that were measured, in one line."""
    import torch
    import transformers

    releases = f"torch {torch.__version__}, transformers {transformers.__version__}"
    return f"{processor()}; load {load()} on {os.cpu_count()} cores; {releases}"


def load() -> str:
    """Processes that wanted to run in the last minute."""
    return f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"


def processor() -> str:
    """The name of the processor, and which of the extensions that decide these figures it has."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return platform.processor() or platform.machine()
    text = path.read_text(encoding="utf-8")
    name = re.search(r"model name\s*:\s*(.*)", text)
    known = ("amx_bf16", "avx512_bf16", "avx512f", "avx2")
    has = [flag for flag in known if re.search(rf"\b{flag}\b", text)]
    return f"{name[1].strip() if name else platform.machine()} ({', '.join(has) or 'no AVX2'})"


def parser(description: str | None, *, rounds: int = 7) -> argparse.ArgumentParser:
    """Options that every benchmark has."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--rounds", type=int, default=rounds)
    made.add_argument("--threads", type=int, default=1)
    made.add_argument("--device", default="cpu")
    made.add_argument("--quick", action="store_true", help="only the rows that have a goal, in few rounds")
    made.add_argument("--json", action="store_true", help="one row a line, as JSON")
    return made


def report(measure: Callable[[argparse.Namespace], Iterator[Row]], options: argparse.Namespace) -> None:
    """Run a benchmark on one pinned thread and print its rows as they come."""
    import torch

    torch.set_num_threads(options.threads)
    if options.threads == 1 and options.device == "cpu" and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    if not options.json:
        print(machine(), "", *table_head(), sep="\n", flush=True)
    for row in measure(options):
        print(json.dumps(asdict(row)) if options.json else table_line(row), flush=True)


def table_head() -> list[str]:
    """The first two lines of a table of rows."""
    return ["| work | figure | goal | |", "|---|---|---|---|"]


def table_line(row: Row) -> str:
    """A row as a line of a table; a goal that is missed is said."""
    goal = row.goal + (" (missed)" if row.is_met() is False else "")
    return f"| {row.work} | {row.figure} | {goal} | {row.note} |"
