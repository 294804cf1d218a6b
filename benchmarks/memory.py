"""Peak memory of a work above what its process held before, measured in a process of its own; Linux only."""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path


def peak_in_a_process(script: str, words: Sequence[str]) -> float:
    """MiB that a script prints on its last line, run in a process that did nothing before, on this one's processors."""
    done = subprocess.run([sys.executable, script, *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{Path(script).name} {' '.join(words)}: {done.stderr.strip()[-300:]}")
    return float(json.loads(done.stdout.splitlines()[-1]))


def peak_above(work: Callable[[], object]) -> float:
    """MiB that this process takes at most during the work, above what it holds now."""
    # the peak of what came before, imports and building above all, is forgotten
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident("VmRSS")
    work()
    return _resident("VmHWM") - before


def _resident(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024
