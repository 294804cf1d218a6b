"""Time of `log_prob` against transformers' GPT-2, which makes all logits, their log-softmax and a gather of it.

    python benchmarks/scoring.py [--quick] [--rounds 7] [--threads 1]

Both answer the same questions about the same texts with the same weights: three quarters of each text are given and the
rest is asked, or every token but the first is. The answers agree, or the benchmark ends with an error.
"""

import argparse
from collections.abc import Iterator

import torch
from measure import Row, in_turns, parser, ratio, report
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from arbprob_hf import ArbProbConfig, ArbProbForCausalLM, Conditional

SIZES = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head")
ROWS, LENGTH = 8, 256
# the first target of each row, and the goal
WORK = {"a quarter asked": (LENGTH * 3 // 4, ">= 4.5"), "all asked": (1, ">= 1.5")}


@torch.no_grad()
def measure(options: argparse.Namespace) -> Iterator[Row]:
    torch.manual_seed(0)
    ours = ArbProbForCausalLM(ArbProbConfig.preset("tiny", n_positions=LENGTH)).to(options.device).eval()
    sizes = {name: getattr(ours.config, name) for name in SIZES}
    theirs = GPT2LMHeadModel(GPT2Config(**sizes)).to(options.device).eval()
    theirs.load_state_dict(ours.state_dict())
    ids = torch.randint(ours.config.vocab_size, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))
    ids = ids.to(options.device)
    rounds = 3 if options.quick else options.rounds
    for precision in ("fp32",) if options.quick else ("fp32", "bf16"):
        with torch.autocast(torch.device(options.device).type, torch.bfloat16, enabled=precision == "bf16"):
            for name, (first, goal) in WORK.items():
                ask = Conditional(range(first), range(first, LENGTH))
                works = {
                    "hf": lambda first=first: usual(theirs, ids, first),
                    "ours": lambda ask=ask: ours.log_prob(ids, ask, layout="causal"),
                    "two_stream": lambda ask=ask: ours.log_prob(ids, ask, layout="two_stream"),
                }
                apart = float((works["hf"]() - works["ours"]()[:, first:]).abs().max())
                if apart > (1e-4 if precision == "fp32" else 0.2):
                    raise RuntimeError(f"{name}, {precision}: log-probabilities {apart:.2g} nats apart from GPT-2's")
                times = in_turns(works, rounds=rounds, device=options.device)
                work = f"log_prob, tiny, {ROWS} x {LENGTH}, {name}, {precision}"
                yield Row(work, ratio(times["hf"], times["ours"]), goal if precision == "fp32" else "", _took(times))
                yield Row(f"{work}, layout two_stream", ratio(times["hf"], times["two_stream"]))


def usual(model: GPT2LMHeadModel, ids: Tensor, first: int) -> Tensor:
    """log P of the tokens from `first`, (B, T - first), as people compute it."""
    nats = model(ids, use_cache=False).logits[:, :-1].float().log_softmax(-1)
    return nats.gather(2, ids[:, 1:, None]).squeeze(2)[:, first - 1 :]


def _took(times: dict[str, list[float]]) -> str:
    return f"{min(times['hf']) * 1000:.0f} and {min(times['ours']) * 1000:.0f} ms at least"


if __name__ == "__main__":
    report(measure, parser(__doc__, rounds=7).parse_args())
