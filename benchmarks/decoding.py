"""Speed of `generate` against transformers' GPT-2: same weights, same prompts, a key-value cache.

    python benchmarks/decoding.py [--quick] [--new 96] [--rounds 5] [--threads 1]

Greedy and sampled (as `generate` samples by default), in float32 and bfloat16, against the same call of transformers'
GPT-2 in the same precision. Masks, which GPT-2 has not, are compared with its causal decoding. Weights are random,
drawn wide enough that tokens vary; in float32 none is timed before both have said the same greedy tokens.
"""

import argparse
import functools
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from measure import Row, in_turns, parser, ratio, report
from peers import SPREAD, twins
from torch import Tensor
from transformers import GPT2LMHeadModel

from arbprob_hf import ArbProbConfig, ArbProbForCausalLM

PROMPT = 32


@dataclass(frozen=True)
class Work:
    """One line of the table; `mask` is None for a random 3-D tensor over the prompt."""

    preset: str
    batch: int
    goal: str = ""
    sampled: bool = False
    dtype: torch.dtype = torch.float32
    mask: str | None = "causal"
    padded: bool = False

    def __str__(self) -> str:
        way = "sampled" if self.sampled else "greedy"
        mask = "tensor over the prompt" if self.mask is None else self.mask
        named = f"{self.preset} {way}, batch {self.batch}, {str(self.dtype).removeprefix('torch.')}"
        return named + ("" if mask == "causal" else f", {mask}") + (", left-padded" if self.padded else "")


WORK = (
    *(Work("tiny", 1, ">= 1.8", sampled) for sampled in (False, True)),
    *(Work("tiny", 8, ">= 1.4", sampled) for sampled in (False, True)),
    *(Work("distilgpt2", 1, ">= 1.15", sampled) for sampled in (False, True)),
    *(Work("distilgpt2", 8, ">= 1.5", sampled) for sampled in (False, True)),
    *(Work("tiny", 1, ">= 2.3", sampled, torch.bfloat16) for sampled in (False, True)),
    Work("distilgpt2", 1, ">= 1.4", dtype=torch.bfloat16),
    Work("tiny", 1, mask="causal & window(64)"),
    Work("tiny", 1, mask="causal & window(64) | sinks(4)"),
    Work("tiny", 1, mask=None),
    Work("tiny", 8, padded=True),
    Work("tiny", 8, mask="causal & window(64)", padded=True),
)


def measure(options: argparse.Namespace) -> Iterator[Row]:
    """Each work against transformers' GPT-2, in turns."""
    rounds = min(options.rounds, 3) if options.quick else options.rounds
    for work in WORK:
        if options.quick and not work.goal:
            continue
        new = options.new if work.preset == "tiny" else max(options.new // 4, 2)
        theirs, ours = make_models(work.preset, work.dtype, options.device)
        ids, keep, table = make_prompt(work, options.device)
        given = dict(max_new_tokens=new, do_sample=work.sampled, attention_mask=keep, pad_token_id=0)
        mask: Any = table if work.mask is None else work.mask
        works = {
            "theirs": functools.partial(theirs.generate, ids, **given),
            "ours": functools.partial(ours.generate, ids, mask=mask, **given),
        }
        check_tokens(work, works)
        times = in_turns(works, rounds=rounds, device=options.device)
        each = [1000 * statistics.median(times[name]) / new for name in works]
        yield Row(
            str(work), ratio(times["theirs"], times["ours"]), work.goal, f"{each[0]:.2f} -> {each[1]:.2f} ms a step"
        )


@functools.cache
def make_models(preset: str, dtype: torch.dtype, device: str) -> tuple[GPT2LMHeadModel, ArbProbForCausalLM]:
    """transformers' GPT-2 with random weights under which tokens vary, and ours with the same ones."""
    config = ArbProbConfig.preset(preset, initializer_range=SPREAD)
    return twins(config, device=device, dtype=dtype)


def check_tokens(work: Work, works: dict[str, Callable[..., Tensor]]) -> None:
    """Raise RuntimeError where the two say other tokens, or one again and again; in bfloat16 rounding decides ties."""
    if work.mask != "causal" or work.dtype != torch.float32:
        return
    theirs, ours = (generate(do_sample=False)[:, PROMPT:] for generate in works.values())
    if not ours.equal(theirs):
        raise RuntimeError(
            f"{work}: greedy tokens differ from transformers' from {int((ours != theirs).any(0).int().argmax())}"
        )
    if min(len(row.unique()) for row in theirs) < 2:
        raise RuntimeError(f"{work}: a row says one token again and again, which shows nothing")


def make_prompt(work: Work, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids and which exist, (B, P), and a random causal mask, bool (B, P, P)."""
    generator = torch.Generator().manual_seed(1)
    shape = (work.batch, PROMPT)
    ids = torch.randint(1, 5000, shape, generator=generator)
    keep = torch.ones(shape, dtype=torch.long)
    if work.padded:
        lengths = torch.linspace(1, PROMPT, work.batch).long()
        keep = (torch.arange(PROMPT) >= PROMPT - lengths[:, None]).long()
    mask = (torch.rand(*shape, PROMPT, generator=generator) < 0.5).tril() | torch.eye(PROMPT, dtype=torch.bool)
    return ids.to(device), keep.to(device), mask.to(device)


if __name__ == "__main__":
    made = parser(__doc__, rounds=5)
    made.add_argument("--new", type=int, default=96, help="new tokens; a quarter of them for distilgpt2")
    report(measure, made.parse_args())
