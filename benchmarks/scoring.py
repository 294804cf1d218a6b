"""Time of `log_prob` against transformers' GPT-2, which makes all logits, their log-softmax and a gather of it.

    python benchmarks/scoring.py [--quick] [--rounds 7] [--threads 1]

Both answer the same questions about the same texts with the same weights: three quarters of each text are given and the
rest is asked, or every token but the first is. Where a quarter is asked there is a second peer, GPT-2 that makes the
logits of the asked rows alone. The answers agree, or the benchmark ends with an error.
"""

import argparse
from collections.abc import Callable, Iterator

import torch
from measure import Row, in_turns, parser, ratio, report
from peers import took, twins
from torch import Tensor
from transformers import GPT2LMHeadModel

from arbprob_hf import ArbProbConfig, Conditional

ROWS, LENGTH = 8, 256
# the first target of each row, and the goal
WORK = {"a quarter asked": (LENGTH * 3 // 4, ">= 4.5"), "all asked": (1, ">= 1.5")}


@torch.no_grad()
def measure(options: argparse.Namespace) -> Iterator[Row]:
    config = ArbProbConfig.preset("tiny", n_positions=LENGTH)
    theirs, ours = twins(config, device=options.device)
    ids = torch.randint(config.vocab_size, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))
    ids = ids.to(options.device)
    for precision in ("fp32",) if options.quick else ("fp32", "bf16"):
        with torch.autocast(torch.device(options.device).type, torch.bfloat16, enabled=precision == "bf16"):
            for name, (first, goal) in WORK.items():
                work = f"log_prob, tiny, {ROWS} x {LENGTH}, {name}, {precision}"
                ask = Conditional(range(first), range(first, LENGTH))
                works = {
                    "hf": lambda first=first: usual(theirs, ids, first),
                    "asked rows": lambda first=first: asked_rows(theirs, ids, first),
                    "ours": lambda ask=ask: ours.log_prob(ids, ask, layout="causal"),
                    "two_stream": lambda ask=ask: ours.log_prob(ids, ask, layout="two_stream"),
                }
                if first == 1:
                    # all rows are asked
                    del works["asked rows"]
                check_answers(work, works, first, 1e-4 if precision == "fp32" else 0.2)
                rounds = 3 if options.quick else options.rounds
                times = in_turns(works, rounds=rounds, device=options.device)
                held = goal if precision == "fp32" else ""
                yield Row(f"{work}, layout causal", ratio(times["hf"], times["ours"]), held, took(times))
                if "asked rows" in works:
                    note = f"GPT-2 {min(times['asked rows']) * 1000:.0f} ms at least"
                    frugal = ratio(times["asked rows"], times["ours"])
                    yield Row(f"{work}, layout causal / GPT-2's logits of the asked rows alone", frugal, note=note)
                yield Row(f"{work}, layout two_stream", ratio(times["hf"], times["two_stream"]))


def check_answers(work: str, works: dict[str, Callable[[], Tensor]], first: int, within: float) -> None:
    """Raise RuntimeError where a log-probability from `first` on is further from GPT-2's than so many nats."""
    answers = {name: answer()[:, first - LENGTH :] for name, answer in works.items()}
    for name, answer in answers.items():
        apart = float((answer - answers["hf"]).abs().max())
        if not apart <= within:
            raise RuntimeError(f"{work}, {name}: log-probabilities {apart:.2g} nats apart from GPT-2's")


def usual(model: GPT2LMHeadModel, ids: Tensor, first: int) -> Tensor:
    """log P of the tokens from `first`, (B, T - first), as people compute it."""
    nats = model(ids, use_cache=False).logits[:, :-1].float().log_softmax(-1)
    return nats.gather(2, ids[:, 1:, None]).squeeze(2)[:, first - 1 :]


def asked_rows(model: GPT2LMHeadModel, ids: Tensor, first: int) -> Tensor:
    """As `usual`, of logits that are made where somebody asked."""
    kept = torch.arange(first - 1, ids.shape[1] - 1, device=ids.device)
    nats = model(ids, use_cache=False, logits_to_keep=kept).logits.float().log_softmax(-1)
    return nats.gather(2, ids[:, first:, None]).squeeze(2)


if __name__ == "__main__":
    report(measure, parser(__doc__, rounds=7).parse_args())
