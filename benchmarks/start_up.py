"""CPU time until something happens: a command's answer, an import, a checkpoint that is loaded by remote code.

    python benchmarks/start_up.py [--rounds 5]

Each line is a fresh interpreter; what is measured is the CPU time of that process, user and system, which holds on a
shared, noisy machine. The lines of a table take turns round by round; a ratio is of two lines of one round. Figures are
medians with [least, most]. One thread each; nothing is asked of a network.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ARBPROB = ("-m", "arbprob_hf")
TRAIN = (str(ROOT / "train_hf.py"),)

# by what a user types; the folder that they run in holds broken.yaml and unknown.yaml
COMMANDS: dict[str, tuple[str, ...]] = {
    "arbprob --help": (*ARBPROB, "--help"),
    "arbprob compare --help": (*ARBPROB, "compare", "--help"),
    "arbprob compare nowhere1 nowhere2": (*ARBPROB, "compare", "nowhere1", "nowhere2"),
    "arbprob publish nowhere a/b": (*ARBPROB, "publish", "nowhere", "a/b"),
    "arbprob export-gpt2 nowhere x": (*ARBPROB, "export-gpt2", "nowhere", "x"),
    "arbprob oracles --source nosuch": (*ARBPROB, "oracles", "--source", "nosuch"),
    "arbprob mask causal --patterns nowhere.py": (*ARBPROB, "mask", "causal", "--patterns", "nowhere.py"),
    "arbprob mask causal --out x.gif": (*ARBPROB, "mask", "causal", "--out", "x.gif"),
    "train_hf.py --help": (*TRAIN, "--help"),
    "train_hf.py --learnign_rate 1": (*TRAIN, "--learnign_rate", "1"),
    "train_hf.py --seed 1 --seed 2": (*TRAIN, "--seed", "1", "--seed", "2"),
    "train_hf.py --max_steps few": (*TRAIN, "--max_steps", "few"),
    "train_hf.py --learning_rate -1": (*TRAIN, "--learning_rate", "-1"),
    "train_hf.py --max_steps 0": (*TRAIN, "--max_steps", "0"),
    "train_hf.py --batch_size 0": (*TRAIN, "--batch_size", "0"),
    "train_hf.py --resume_from_checkpoint /nowhere": (*TRAIN, "--resume_from_checkpoint", "/nowhere"),
    "train_hf.py --init_from ./nowhere": (*TRAIN, "--init_from", "./nowhere"),
    "train_hf.py --source ./nowhere.txt": (*TRAIN, "--source", "./nowhere.txt"),
    "train_hf.py --config nowhere.yaml": (*TRAIN, "--config", "nowhere.yaml"),
    "train_hf.py --config broken.yaml": (*TRAIN, "--config", "broken.yaml"),
    "train_hf.py --config unknown.yaml": (*TRAIN, "--config", "unknown.yaml"),
}
IMPORTS = {
    "from transformers import GPT2LMHeadModel": "from transformers import GPT2LMHeadModel",
    "import arbprob_hf": "import arbprob_hf",
    "from arbprob_hf import ArbProbForCausalLM": "from arbprob_hf import ArbProbForCausalLM",
}
LOAD = "from transformers import AutoModelForCausalLM; AutoModelForCausalLM.from_pretrained({!r}, trust_remote_code={})"
# builds the two checkpoints in the working folder: equal sizes, random weights
SAVE = """
from transformers import GPT2Config, GPT2LMHeadModel
from arbprob_hf import ArbProbConfig, ArbProbForCausalLM
ours = ArbProbForCausalLM(ArbProbConfig.preset("nano"))
ours.save_pretrained("ours")
names = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head")
GPT2LMHeadModel(GPT2Config(**{name: getattr(ours.config, name) for name in names})).save_pretrained("gpt2")
"""


@dataclass(frozen=True)
class Line:
    """A process to start: arguments of the interpreter, its statuses, and variables made anew for each round."""

    words: Sequence[str]
    statuses: Sequence[int] = (0,)
    variables: Callable[[], Mapping[str, str]] = dict
    seconds: list[float] = field(default_factory=list)


def main() -> None:
    parser = argparse.ArgumentParser(description="CPU time of commands, imports and loading.")
    parser.add_argument("--rounds", type=int, default=5, help="times that each line is measured (default: 5)")
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        inside = Path(folder)
        (inside / "broken.yaml").write_text("a: [1\n", encoding="utf-8")
        (inside / "unknown.yaml").write_text("sede: 1\n", encoding="utf-8")
        subprocess.run([sys.executable, "-c", SAVE], cwd=inside, env=_environment(), check=True)
        table("command", {name: Line(words, (0, 1, 2)) for name, words in COMMANDS.items()}, inside, rounds)
        table("import", {name: Line(("-c", code)) for name, code in IMPORTS.items()}, inside, rounds, paired=True)
        table("loading a nano checkpoint", _loads(inside), inside, rounds, paired=True)


def table(title: str, lines: Mapping[str, Line], inside: Path, rounds: int, *, paired: bool = False) -> None:
    """Measure `lines` in turns, after one turn that fills the caches of the disk; `paired` to the first of them."""
    for turn in range(rounds + 1):
        for line in lines.values():
            seconds = cpu_seconds(line, inside)
            if turn > 0:
                line.seconds.append(seconds)
    base = next(iter(lines.values())).seconds
    print(f"\n| {title} | CPU s |{' ratio to the first |' if paired else ''}\n|---|---|{'---|' if paired else ''}")
    for name, line in lines.items():
        ratios = [own / first for own, first in zip(line.seconds, base, strict=True)]
        print(f"| `{name}` | {_spread(line.seconds)} |{f' {_spread(ratios)} |' if paired else ''}", flush=True)


def cpu_seconds(line: Line, inside: Path) -> float:
    """User and system time of one process. Raises RuntimeError where it ends otherwise than expected."""
    with subprocess.Popen(
        [sys.executable, *line.words],
        cwd=inside,
        env={**_environment(), **line.variables()},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in line.statuses:
        raise RuntimeError(f"{' '.join(line.words)}: ended with status {process.returncode}")
    return used.ru_utime + used.ru_stime


def _environment() -> dict[str, str]:
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def _loads(inside: Path) -> dict[str, Line]:
    ours = ("-c", LOAD.format("ours", True))
    return {
        "stock GPT-2": Line(("-c", LOAD.format("gpt2", False))),
        "by remote code, module cache warm": Line(ours, variables=lambda: {"HF_MODULES_CACHE": str(inside / "warm")}),
        "by remote code, module cache cold": Line(
            ours, variables=lambda: {"HF_MODULES_CACHE": tempfile.mkdtemp(dir=inside)}
        ),
    }


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} [{min(values):.2f}, {max(values):.2f}]"


if __name__ == "__main__":
    main()
