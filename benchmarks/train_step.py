"""Time and memory of one training step against transformers' GPT-2: same weights, same inputs, same optimiser.

    python benchmarks/train_step.py [--quick] [--rounds 5] [--threads 1]

A step is forward, backward and fused AdamW, without dropout. GPT-2 is given the same mask as a 4-D tensor of floats, or
none where it is causal. Peak memory is that of a fresh process, above the built model: gradients and Adam's two states
included.
"""

import argparse
import gc
import json
import pathlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from measure import Row, in_turns, parser, ratio, report
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from arbprob_hf import ArbProbConfig, ArbProbForCausalLM, Conditional
from arbprob_hf.model.questions.layouts import lay_out

SIZES = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head")


@dataclass(frozen=True)
class Batch:
    """What a step is made on: the arguments of our model and those of GPT-2."""

    preset: str
    ours: dict[str, Any]
    theirs: dict[str, Any]


def measure(options: argparse.Namespace) -> Iterator[Row]:
    rounds = 2 if options.quick else options.rounds
    long_rounds = 1 if options.quick else max(1, options.rounds // 2)
    same = {"fp32": ">= 2", "bf16": ">= 2.4"}
    yield from _same_precision("tiny, 8 x 256, all scored", causal("tiny", 8, 256), same, rounds, options)
    sorted_, streams = {"fp32": ">= 1.9", "bf16": ">= 2.2"}, {"fp32": ">= 1.9", "bf16": ">= 2.2"}
    yield from _same_precision(
        "tiny, 8 x 256, any order (`ranks`)", any_order("tiny", 8, 256), sorted_, long_rounds, options
    )
    yield from _same_precision("tiny, 4 x 256, two_stream", two_stream("tiny", 4, 256), streams, long_rounds, options)
    yield from _quarter(rounds, options)
    long = {"fp32": ">= 1.2", "bf16": ">= 1.2"}
    yield from _same_precision(
        "distilgpt2, 1 x 1024, causal", causal("distilgpt2", 1, 1024), long, long_rounds, options
    )
    packed = {"bf16": ">= 1.3"}
    yield from _same_precision(
        "distilgpt2, 1 x 1024, 8 documents", documents("distilgpt2", 1, 1024), packed, long_rounds, options
    )
    for precision, goal in (("fp32", "<= 200"), ("bf16", "<= 220")):
        peaks = {
            peer: _measured_peak(peer, precision, options) for peer in (("ours",) if options.quick else ("ours", "hf"))
        }
        note = "" if options.quick else f"GPT-2: {peaks['hf']:.0f} MiB"
        yield Row(f"tiny, 8 x 256: peak memory above the model, MiB, {precision}", f"{peaks['ours']:.0f}", goal, note)


def _same_precision(
    work: str, batch: Batch, goals: dict[str, str], rounds: int, options: argparse.Namespace
) -> Iterator[Row]:
    for precision, goal in goals.items():
        steps = {peer: make_step(peer, batch, precision, options.device) for peer in ("hf", "ours")}
        times = in_turns(steps, rounds=rounds, device=options.device)
        yield Row(f"{work}: {precision} / GPT-2 in {precision}", ratio(times["hf"], times["ours"]), goal, _took(times))
        del steps
        gc.collect()


def _quarter(rounds: int, options: argparse.Namespace) -> Iterator[Row]:
    batch = causal("tiny", 8, 256, scored=0.25)
    steps = {
        "hf": make_step("hf", batch, "fp32", options.device),
        "fp32": make_step("ours", batch, "fp32", options.device),
        "bf16": make_step("ours", batch, "bf16", options.device),
    }
    times = in_turns(steps, rounds=rounds, device=options.device)
    for precision, goal in (("fp32", ">= 5.5"), ("bf16", ">= 9")):
        found = {"hf": times["hf"], "ours": times[precision]}
        figure = ratio(times["hf"], times[precision])
        yield Row(f"tiny, 8 x 256, a quarter scored: {precision} / GPT-2 in fp32", figure, goal, _took(found))


def _took(times: dict[str, list[float]]) -> str:
    return f"{min(times['hf']) * 1000:.0f} and {min(times['ours']) * 1000:.0f} ms at least"


def causal(preset: str, rows: int, length: int, *, scored: float = 1.0) -> Batch:
    """Texts read from left to right, a share of whose tokens is scored."""
    generator = torch.Generator().manual_seed(1)
    ids = _ids(preset, rows, length)
    labels = ids.masked_fill(torch.rand(ids.shape, generator=generator) >= scored, -100)
    inputs = {"input_ids": ids, "labels": labels}
    return Batch(preset, inputs, inputs)


def any_order(preset: str, rows: int, length: int) -> Batch:
    """Texts in which each token sees those of lower rank, in an order of its own."""
    generator = torch.Generator().manual_seed(1)
    ids, ranks = _ids(preset, rows, length), torch.rand(rows, length, generator=generator).argsort(1)
    allowed = ranks[:, None, :] <= ranks[:, :, None]  # (B, T, T)
    inputs = {"input_ids": ids, "labels": ids}
    return Batch(preset, {**inputs, "ranks": ranks}, {**inputs, "attention_mask": _scores(allowed)})


def two_stream(preset: str, rows: int, length: int) -> Batch:
    """Texts whose every token but the first is asked for in a random order, in the layout of two streams."""
    ids = _ids(preset, rows, length)
    ask = Conditional([0], range(1, length), order="random")
    slots = lay_out(ask.resolve(rows, length, generator=torch.Generator().manual_seed(1)), "two_stream")
    inputs, labels = slots.fill(ids), slots.labels(ids)
    ranks, limits = inputs["ranks"], inputs["limits"]
    allowed = (ranks[:, None, :] <= limits[:, :, None]) | torch.eye(ranks.shape[1], dtype=torch.bool)  # (B, S, S)
    theirs = {
        "input_ids": inputs["input_ids"].clamp(min=0),
        "position_ids": inputs["position_ids"],
        "attention_mask": _scores(allowed),
        "labels": labels,
        "shift_labels": labels,
    }
    return Batch(preset, {**inputs, "shift_labels": labels}, theirs)


def documents(preset: str, rows: int, length: int, *, count: int = 8) -> Batch:
    """Rows of packed documents of one length, each seen only from within."""
    ids, packed = _ids(preset, rows, length), (torch.arange(length) * count // length).expand(rows, length)
    allowed = (packed[:, None, :] == packed[:, :, None]).tril()  # (B, T, T)
    inputs = {"input_ids": ids, "labels": ids}
    return Batch(preset, {**inputs, "document_ids": packed}, {**inputs, "attention_mask": _scores(allowed)})


def _ids(preset: str, rows: int, length: int) -> Tensor:
    vocabulary = ArbProbConfig.preset(preset).vocab_size
    return torch.randint(0, vocabulary, (rows, length), generator=torch.Generator().manual_seed(0))


def _scores(allowed: Tensor) -> Tensor:
    # (B, T, T) -> what GPT-2 adds to its scores, float (B, 1, T, T)
    return torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)[:, None]


def make_step(peer: str, batch: Batch, precision: str, device: str) -> Callable[[], float]:
    """A closure that makes one step of the optimiser and returns its loss."""
    torch.manual_seed(0)
    given = batch.ours if peer == "ours" else batch.theirs
    inputs = {name: value.to(device) for name, value in given.items()}
    length = max(batch.ours["input_ids"].shape[1], 256)
    config = ArbProbConfig.preset(batch.preset, n_positions=length, dropout=0.0, mask_token="ranks" in batch.ours)
    if peer == "hf":
        sizes = {name: getattr(config, name) for name in SIZES}
        model = GPT2LMHeadModel(GPT2Config(**sizes, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0))
    else:
        model = ArbProbForCausalLM(config)
        inputs["return_logits"] = False
    model = model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> float:
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bf16"):
            loss = model(**inputs, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step


def _measured_peak(peer: str, precision: str, options: argparse.Namespace) -> float:
    """Peak memory in MiB of three steps in a process of their own."""
    command = [sys.executable, __file__, "--memory_of", peer, precision]
    command += ["--device", options.device, "--threads", str(options.threads)]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(json.loads(said.splitlines()[-1]))


def peak_memory(peer: str, precision: str, device: str) -> float:
    """Peak memory of the tiny step in MiB above the built model, of this process."""
    step = make_step(peer, causal("tiny", 8, 256), precision, device)
    if device != "cpu":
        before = torch.cuda.memory_allocated()
        step(), step()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    before = _memory("VmRSS")
    for _ in range(3):
        step()
    return _memory("VmHWM") - before


def _memory(field: str) -> float:
    # a field of this process's status in MiB; Linux only, like the peak it is compared with
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return float(next(line for line in lines if line.startswith(field)).split()[1]) / 2**10


if __name__ == "__main__":
    made = parser(__doc__, rounds=5)
    made.add_argument("--memory_of", nargs=2, help=argparse.SUPPRESS)
    chosen = made.parse_args()
    if chosen.memory_of:
        torch.set_num_threads(chosen.threads)
        print(json.dumps(peak_memory(*chosen.memory_of, chosen.device)))
    else:
        report(measure, chosen)
