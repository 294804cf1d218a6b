"""Speed of greedy decoding under masks against transformers' GPT-2: same weights, same prompts, a key-value cache.

    python benchmarks/decoding.py [--preset tiny] [--prompt 32] [--new 192] [--rounds 7] [--threads 1]

HF's GPT2LMHeadModel, which decodes under the plain causal mask only, our plain causal mask and our row's mask take
turns round by round; figures are medians of the per-round ratios of process CPU time (wall time on an accelerator),
which holds on a shared, noisy machine. Weights are random: what is measured is time.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from arbprob_hf import ArbProbConfig, ArbProbForCausalLM

SIZES = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head")


@dataclass(frozen=True)
class Work:
    """One line of the table: a mask of ours, or None for a random 3-D tensor over the prompt."""

    name: str
    mask: str | None = "causal"
    batch: int = 1
    padded: bool = False


WORK = (
    Work("causal"),
    Work("causal & window(64)", "causal & window(64)"),
    Work("causal & window(64), or sinks(4)", "causal & window(64) | sinks(4)"),
    Work("tensor over the prompt", None),
    Work("causal, batch 8, left-padded", batch=8, padded=True),
    Work("causal & window(64), batch 8, left-padded", "causal & window(64)", batch=8, padded=True),
)


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    theirs, ours = make_models(arguments)
    print(
        f"{arguments.preset}, {arguments.prompt} prompt + {arguments.new} new tokens, {arguments.threads} thread(s), "
        f"torch {torch.__version__}, {arguments.device}"
    )
    print("| mask of ours | speed, ours / HF causal [min, max] | ours / our causal [min, max] | tokens/s, HF -> ours |")
    print("|---|---|---|---|")
    for work in WORK[: arguments.rows]:
        print(row(work, theirs, ours, arguments), flush=True)


def row(work: Work, theirs: GPT2LMHeadModel, ours: ArbProbForCausalLM, arguments: argparse.Namespace) -> str:
    """Measure one line: HF, our causal mask and our row's mask take turns."""
    ids, keep, prompt_mask = make_prompt(work, arguments)
    options = dict(max_new_tokens=arguments.new, do_sample=False, attention_mask=keep, pad_token_id=0)
    mask = prompt_mask if work.mask is None else work.mask
    decoders: dict[str, Callable[[], object]] = {
        "hf": lambda: theirs.generate(ids, **options),
        "causal": lambda: ours.generate(ids, **options),
        "ours": lambda: ours.generate(ids, mask=mask, **options),
    }
    for decode in decoders.values():
        decode()
    times: dict[str, list[float]] = {name: [] for name in decoders}
    for _ in range(arguments.rounds):
        for name, decode in decoders.items():
            times[name].append(timed(decode, arguments.device))
    speeds = [work.batch * arguments.new / statistics.median(times[name]) for name in ("hf", "ours")]
    return (
        f"| {work.name} | {ratio(times['hf'], times['ours'])} | {ratio(times['causal'], times['ours'])} | "
        f"{speeds[0]:.0f} -> {speeds[1]:.0f} |"
    )


def ratio(slower: list[float], faster: list[float]) -> str:
    """Median, smallest and largest of the per-round ratios."""
    found = [a / b for a, b in zip(slower, faster, strict=True)]
    return f"{statistics.median(found):.2f} [{min(found):.2f}, {max(found):.2f}]"


def make_models(arguments: argparse.Namespace) -> tuple[GPT2LMHeadModel, ArbProbForCausalLM]:
    """HF's GPT-2 with random weights, and ours with the same ones; neither ever draws an end token."""
    torch.manual_seed(0)
    preset = ArbProbConfig.preset(arguments.preset)
    theirs = GPT2LMHeadModel(GPT2Config(**{name: getattr(preset, name) for name in SIZES}))
    theirs.set_attn_implementation("sdpa")
    ours = ArbProbForCausalLM(preset)
    ours.load_state_dict(theirs.state_dict())
    for model in (theirs, ours):
        model.to(arguments.device).eval()
        model.generation_config.eos_token_id = None
    return theirs, ours


def make_prompt(work: Work, arguments: argparse.Namespace) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Token ids and which exist, (B, P), and a random causal mask, bool (B, P, P)."""
    generator = torch.Generator().manual_seed(1)
    shape = (work.batch, arguments.prompt)
    ids = torch.randint(1, 5000, shape, generator=generator)
    keep = torch.ones(shape, dtype=torch.long)
    if work.padded:
        lengths = torch.linspace(1, arguments.prompt, work.batch).long()
        keep = (torch.arange(arguments.prompt) >= arguments.prompt - lengths[:, None]).long()
    mask = (torch.rand(*shape, arguments.prompt, generator=generator) < 0.5).tril()
    return tuple(x.to(arguments.device) for x in (ids, keep, mask | torch.eye(arguments.prompt, dtype=torch.bool)))  # type: ignore[return-value]


def timed(work: Callable[[], object], device: str) -> float:
    """Seconds of process CPU time; wall time where the work is done elsewhere."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    start = clock()
    work()
    return clock() - start


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--prompt", type=int, default=32)
    parser.add_argument("--new", type=int, default=192)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rows", type=int, default=len(WORK), help="only the first so many lines of the table")
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


if __name__ == "__main__":
    main()
