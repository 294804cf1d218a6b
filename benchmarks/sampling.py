"""Time of the samplers on a trained network against one target a pass, and of one target against a decoded token.

    python benchmarks/sampling.py [--quick] [--run FOLDER] [--rounds 3]

Nine tenths of a text in random places are masked, and filled from left to right or in random order. How many drafts a
network keeps depends on what it has learned, so one is trained first: configs/conditional_nano.yaml, 200 steps on the
text that comes with Python, about two minutes, kept in the cache folder for as long as the configuration and options
are the same. `--run` takes a run of your own, made with a task of questions. Each method has drawn before it is timed;
a figure is sequential's time over that of the method, with the same texts and seeds: CPU time of the process, which on
one thread is the wall time of a processor that does nothing else; wall time on an accelerator.
"""

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from measure import Row, in_turns, parser, ratio, report

from arbprob_hf import ArbProbForCausalLM, Conditional, __version__
from arbprob_hf.data.eval_sets import load_modes

ROOT = Path(__file__).parents[1]
# how the network is trained: a configuration, and what differs from it
CONFIG = "configs/conditional_nano.yaml"
TRAINING = (
    *("--sample_count", "0", "--disable_tqdm", "true"),
    *("--eval_steps", "200", "--save_steps", "200", "--num_val_samples", "32"),
)
METHODS = ("speculative", "fused", "auto")
SHARE = 0.9
GOALS = {"temporal": ">= 1.3", "random": ">= 3"}
NAMES = {"temporal": "left to right", "random": "random order"}


def main() -> None:
    made = parser(__doc__, rounds=5)
    made.add_argument("--run", type=Path, help="a folder of train_hf.py whose task is questions")
    made.add_argument("--texts", type=int, default=4, help="validation blocks that are filled in, each by itself")
    report(measure, made.parse_args())


def measure(options: argparse.Namespace) -> Iterator[Row]:
    """The rows of the table."""
    run = options.run or trained_run()
    model = ArbProbForCausalLM.from_pretrained(run).eval().to(options.device)
    texts, rounds = (2, 3) if options.quick else (options.texts, options.rounds)
    asked = questions(run, texts)
    for order in GOALS:
        yield from compare(model, asked, order, rounds, options)
    yield decoded(model, asked[0], rounds, options)


def compare(
    model: ArbProbForCausalLM,
    asked: list[tuple[torch.Tensor, torch.Tensor]],
    order: str,
    rounds: int,
    options: argparse.Namespace,
) -> Iterator[Row]:
    """Each method against `sequential` in one order; `asked`: ids and which are asked, long and bool (1, T)."""
    passes: dict[str, int] = {}

    def fill(method: str) -> Callable[[], None]:
        def work() -> None:
            passes[method] = 0
            for seed, (ids, target) in enumerate(asked):
                ids = ids.to(options.device)
                generator = torch.Generator(options.device).manual_seed(seed)
                torch.manual_seed(seed)
                found = model.sample(ids, Conditional(~target, target, order), method=method, generator=generator)
                passes[method] += found.forward_passes

        return work

    times = in_turns({name: fill(name) for name in ("sequential", *METHODS)}, rounds=rounds, device=options.device)
    count = sum(int(target.sum()) for _, target in asked)
    speeds = {name: ratio(times["sequential"], times[name]) for name in METHODS}
    best = max(METHODS, key=lambda name: float(speeds[name].split()[0]))
    yield Row(f"best sampler, {NAMES[order]}", speeds[best], GOALS[order], best)
    for name in METHODS:
        note = f"{passes[name] / count:.3f} passes a token"
        yield Row(f"{name}, {NAMES[order]}", speeds[name], ">= 0.9", note)


def decoded(
    model: ArbProbForCausalLM, asked: tuple[torch.Tensor, torch.Tensor], rounds: int, options: argparse.Namespace
) -> Row:
    """A target of `sequential` against a token that `generate` samples from the same prompt length."""
    ids, target = (part.to(options.device) for part in asked)
    count = int(target.sum())
    prompt = ids[:, : ids.shape[1] - count]
    assert model.generation_config is not None
    model.generation_config.eos_token_id = None
    usual = dict(max_new_tokens=count, do_sample=True, top_k=0, pad_token_id=0)
    works = {
        "sequential": lambda: model.sample(ids, Conditional(~target, target, "random")),
        "generate": lambda: model.generate(prompt, **usual),  # type: ignore[arg-type]
    }
    times = in_turns(works, rounds=rounds, device=options.device)
    return Row(
        "time of a target of sequential / of a token that generate samples",
        ratio(times["sequential"], times["generate"]),
        "<= 1.3",
        f"{1e3 * min(times['sequential']) / count:.2f} ms a target",
    )


def questions(run: Path, texts: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Validation blocks, long (1, T), and which nine tenths of their tokens are asked, bool (1, T)."""
    found = []
    for number, row in enumerate(load_modes(run / "evaluation")["task"].select(range(texts))):
        ids = torch.as_tensor(row["input_ids"]).long()[None]
        target = torch.rand(ids.shape, generator=torch.Generator().manual_seed(number)) < SHARE
        target[:, 0] = False
        found.append((ids, target))
    return found


def trained_run() -> Path:
    """The folder of the network that is sampled from, trained if it is not there."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    # another configuration is another network
    key = hashlib.sha256((ROOT / CONFIG).read_bytes() + repr((__version__, *TRAINING)).encode()).hexdigest()[:12]
    run = Path(cache) / "arbprob_benchmarks" / f"conditional_nano-{key}"
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError:
        run = Path(tempfile.gettempdir()) / "arbprob_benchmarks" / run.name
    if not (run / "README.md").exists():
        print(f"sampling: training the network, once, into {run}", file=sys.stderr, flush=True)
        command = [sys.executable, "train_hf.py", "--config", CONFIG, "--output_dir", str(run), *TRAINING]
        command += ["--resume_from_checkpoint", "true"]
        made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if made.returncode:
            raise SystemExit(f"sampling: the network was not trained: {(made.stderr or made.stdout).strip()[-300:]}")
    return run


if __name__ == "__main__":
    main()
