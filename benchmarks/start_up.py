"""Time until something happens: a checkpoint loaded by its own code, an import, a command's answer.

    python benchmarks/start_up.py [--quick] [--rounds 5] [--presets nano tiny]

Loading in one process is against stock GPT-2 of equal sizes, when transformers has loaded one before: `cold`, the first
load by a checkpoint's own code, into an empty cache of modules; `warm`, loading it again. What transformers takes with
anybody's code is shown beside it: its own file of GPT-2, published once more as a checkpoint's own code. What the first
of all such loads costs once, for either, is borne by ours in one round and by the other in the next. The rest are fresh
interpreters, whose CPU time is that of the process, user and system.
"""

import argparse
import gc
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from measure import Row, in_turns, parser, ratio, report, spread

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
# the first is what the others are held against
IMPORTS = {
    "from transformers import GPT2LMHeadModel": "from transformers import GPT2LMHeadModel",
    "import arbprob_hf": "import arbprob_hf",
    "from arbprob_hf import ArbProbForCausalLM": "from arbprob_hf import ArbProbForCausalLM",
}
LOAD = "from transformers import AutoModelForCausalLM; AutoModelForCausalLM.from_pretrained({!r}, trust_remote_code={})"
COLD, WARM = ("<= 3", "<= 1.1")


@dataclass(frozen=True)
class Line:
    """A process to start: arguments of the interpreter, its statuses, and variables made anew for each round."""

    words: Sequence[str]
    statuses: Sequence[int] = (0,)
    variables: Callable[[], Mapping[str, str]] = dict


def main() -> None:
    made = parser(__doc__, rounds=5)
    made.add_argument("--presets", nargs="+", help="sizes of the checkpoints (default: nano tiny distilgpt2)")
    # one process of it, as a round of the rows on loading
    made.add_argument("--loads", nargs=2, metavar=("PRESET", "FIRST"), help=argparse.SUPPRESS)
    options = made.parse_args()
    if options.loads:
        print(json.dumps(loads(*options.loads)))
        return
    report(measure, options)


def measure(options: argparse.Namespace) -> Iterator[Row]:
    rounds = 4 if options.quick else options.rounds
    presets = options.presets or (["nano", "distilgpt2"] if options.quick else ["nano", "tiny", "distilgpt2"])
    with tempfile.TemporaryDirectory() as folder:
        inside = Path(folder)
        for preset in presets:
            write_checkpoints(preset, inside)
            yield from loading_rows(preset, inside, rounds)
        if options.quick:
            return
        yield from saving_rows(presets, inside, rounds)
        yield from fresh_rows(_loads(presets[0], inside), inside, rounds, f"a fresh process loads {presets[0]}: ")
        yield from fresh_rows({name: Line(("-c", code)) for name, code in IMPORTS.items()}, inside, rounds, "")
        (inside / "broken.yaml").write_text("a: [1\n", encoding="utf-8")
        (inside / "unknown.yaml").write_text("sede: 1\n", encoding="utf-8")
        commands = {name: Line(words, (0, 1, 2)) for name, words in COMMANDS.items()}
        for name, seconds in cpu_times(commands, inside, rounds).items():
            yield Row(f"`{name}`", f"{spread(seconds)} s", note="CPU time")


def write_checkpoints(preset: str, inside: Path) -> None:
    """Three checkpoints of equal sizes with random weights: ours, stock GPT-2's, and stock GPT-2's as its own code."""
    # not above: the processes whose loads are timed must have imported as little as a user's
    from peers import twins

    from arbprob_hf import ArbProbConfig

    stock, ours = twins(ArbProbConfig.preset(preset))
    ours.save_pretrained(inside / f"{preset}-ours")
    stock.save_pretrained(inside / f"{preset}-stock")
    stock.save_pretrained(inside / f"{preset}-theirs")
    republish(inside / f"{preset}-theirs")


def republish(folder: Path) -> None:
    """Turn a folder of stock GPT-2 into one that carries transformers' own files of it."""
    import transformers

    for name in ("configuration_gpt2.py", "modeling_gpt2.py"):
        code = (Path(transformers.__file__).parent / "models" / "gpt2" / name).read_text(encoding="utf-8")
        code = re.sub(r"from \.\.\.(\w)", r"from transformers.\1", code).replace(
            "from ... import", "from transformers import"
        )
        code = code.replace("GPT2", "TheirGPT2").replace('model_type = "gpt2"', 'model_type = "their_gpt2"')
        (folder / name).write_text(code, encoding="utf-8")
    path = folder / "config.json"
    fields = json.loads(path.read_text(encoding="utf-8"))
    fields |= {"model_type": "their_gpt2", "architectures": ["TheirGPT2LMHeadModel"]}
    fields["auto_map"] = {
        "AutoConfig": "configuration_gpt2.TheirGPT2Config",
        "AutoModelForCausalLM": "modeling_gpt2.TheirGPT2LMHeadModel",
    }
    path.write_text(json.dumps(fields), encoding="utf-8")


def loading_rows(preset: str, inside: Path, rounds: int) -> Iterator[Row]:
    """First and later loads by a checkpoint's own code; each round is a process of its own, and takes both kinds."""
    seen: list[dict[str, float]] = []
    for number in range(rounds):
        modules = tempfile.mkdtemp(dir=inside)
        command = [sys.executable, __file__, "--loads", preset, ("ours", "theirs")[number % 2]]
        done = subprocess.run(
            command, cwd=inside, env={**_environment(), "HF_MODULES_CACHE": modules}, capture_output=True, check=True
        )
        seen.append(json.loads(done.stdout.splitlines()[-1]))
    stock = [one["stock"] for one in seen]
    for kind, goal in (("cold", COLD), ("warm", WARM)):
        own, theirs = ([one[f"{which} {kind}"] for one in seen] for which in ("ours", "theirs"))
        times = f"{spread(own, 0)} ms, stock {spread(stock, 0)} ms; transformers' own GPT-2 as remote code: "
        times += ratio(theirs, stock)
        if kind == "cold":
            times += f"; ours where it came first {ratio(own[::2], stock[::2])}"
        yield Row(f"load {preset} by its own code, {kind}", ratio(own, stock), goal, times)


def loads(preset: str, first: str) -> dict[str, float]:
    """CPU milliseconds of each kind of load, in this process; `first`: whose own code is loaded first."""
    from transformers import AutoModelForCausalLM

    def load(which: str) -> float:
        # Python's own housekeeping comes when it comes
        gc.collect()
        start = time.process_time()
        AutoModelForCausalLM.from_pretrained(f"{preset}-{which}", trust_remote_code=which != "stock")
        return 1000 * (time.process_time() - start)

    load("stock")
    load("stock")
    order = sorted(("ours", "theirs"), key=lambda which: which != first)
    found = {f"{which} cold": load(which) for which in order}
    later = [{which: load(which) for which in ("stock", *order)} for _ in range(9)]
    middle = {which: sorted(one[which] for one in later)[4] for which in later[0]}
    return {**found, "stock": middle["stock"], "ours warm": middle["ours"], "theirs warm": middle["theirs"]}


def saving_rows(presets: Sequence[str], inside: Path, rounds: int) -> Iterator[Row]:
    """A save over an earlier one, code included, against stock GPT-2's."""
    from transformers import GPT2LMHeadModel

    from arbprob_hf import ArbProbForCausalLM

    for preset in presets:
        ours = ArbProbForCausalLM.from_pretrained(inside / f"{preset}-ours")
        stock = GPT2LMHeadModel.from_pretrained(inside / f"{preset}-stock")
        works = {
            "ours": lambda model=ours: model.save_pretrained(inside / "saved-ours"),
            "stock": lambda model=stock: model.save_pretrained(inside / "saved-stock"),
        }
        times = in_turns(works, rounds=rounds)
        milliseconds = {name: spread([1000 * one for one in taken], 0) for name, taken in times.items()}
        note = f"{milliseconds['ours']} ms, stock {milliseconds['stock']} ms"
        yield Row(f"save {preset}", ratio(times["ours"], times["stock"]), note=note)


def fresh_rows(lines: Mapping[str, Line], inside: Path, rounds: int, what: str) -> Iterator[Row]:
    """CPU time of fresh processes, each against the first of them."""
    times = cpu_times(lines, inside, rounds)
    (first, base), *others = times.items()
    for name, seconds in others:
        note = f"{spread(seconds)} s, `{first}` {spread(base)} s"
        yield Row(f"{what}`{name}`", ratio(seconds, base), note=note)


def cpu_times(lines: Mapping[str, Line], inside: Path, rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each line, measured in turns after one turn that fills the caches of the disk."""
    times: dict[str, list[float]] = {name: [] for name in lines}
    for turn in range(rounds + 1):
        for name, line in lines.items():
            seconds = cpu_seconds(line, inside)
            if turn > 0:
                times[name].append(seconds)
    return times


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
    # compiled code is kept, as it is for a user
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def _loads(preset: str, inside: Path) -> dict[str, Line]:
    ours = ("-c", LOAD.format(f"{preset}-ours", True))
    return {
        "stock GPT-2": Line(("-c", LOAD.format(f"{preset}-stock", False))),
        "own code, cache of modules full": Line(ours, variables=lambda: {"HF_MODULES_CACHE": str(inside / "full")}),
        "own code, cache of modules empty": Line(
            ours, variables=lambda: {"HF_MODULES_CACHE": tempfile.mkdtemp(dir=inside)}
        ),
    }


if __name__ == "__main__":
    main()
