"""Time and memory of one training step against transformers' GPT-2: same weights, same inputs, same optimiser.

    python benchmarks/train_step.py [--quick] [--rounds 5] [--threads 1]

A step is forward, backward and fused AdamW, without dropout. GPT-2 is given the same mask as a 4-D tensor of floats in
the precision of the step, or none where it is causal; none is timed before both have the same loss in float32. Peak
memory is that of a fresh process, above the built model: gradients and Adam's two states included.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from measure import Row, in_turns, parser, ratio, report
from memory import peak_above, peak_in_a_process
from peers import SPREAD, check_same_loss, shared_weights, took, twins
from torch import Tensor

from arbprob_hf import ArbProbConfig
from arbprob_hf.data.collators import QuestionCollator
from arbprob_hf.data.tasks import Task

CONFIG = Path(__file__).parents[1] / "configs" / "conditional_tiny.yaml"
FP32, BF16 = "fp32", "bf16"


@dataclass(frozen=True)
class Batch:
    """What a step is made on: the arguments of our model, and what GPT-2 gets in place of those it does not know.

    `allowed` is bool (B, T, T), True where the query may see the key; None where GPT-2's own causal mask says the same.
    """

    ours: dict[str, Tensor]
    allowed: Tensor | None = None
    note: str = ""

    def theirs(self, precision: str) -> dict[str, Tensor]:
        """The arguments of GPT-2."""
        known = ("input_ids", "labels", "position_ids")
        inputs = {name: self.ours[name] for name in known if name in self.ours}
        inputs["input_ids"] = inputs["input_ids"].clamp(min=0)
        if self.allowed is not None:
            dtype = torch.float32 if precision == FP32 else torch.bfloat16
            blocked = torch.finfo(dtype).min
            scores = torch.zeros(self.allowed.shape, dtype=dtype).masked_fill(~self.allowed, blocked)
            inputs["attention_mask"] = scores[:, None]  # (B, 1, T, T)
        return inputs


class Networks:
    """transformers' GPT-2 ("hf") and ours in training, with the same weights whenever a row begins."""

    def __init__(self, preset: str, device: str, **fields: Any) -> None:
        config = ArbProbConfig.preset(preset, dropout=0.0, **{"initializer_range": SPREAD, **fields})
        self.device = device
        self.models = dict(zip(("hf", "ours"), twins(config, device=device), strict=True))
        ours: Any = self.models["ours"]
        if ours.transformer.wme is not None:
            # GPT-2 has no vector of a token that is not known, and is given token 0 there
            with torch.no_grad():
                ours.transformer.wme.weight.copy_(ours.transformer.wte.weight[:1])
        self.first = {name: value.clone() for name, value in ours.state_dict().items()}

    def check(self, work: str, batch: Batch) -> None:
        """Raise RuntimeError where the two have other losses on a batch, and so did not do the same."""
        self.restart()
        losses = [lambda peer=peer: self._loss(peer, self._inputs(peer, batch, FP32)) for peer in ("hf", "ours")]
        with torch.no_grad():
            check_same_loss(work, *losses)

    def restart(self) -> None:
        """Both have the weights they began with."""
        self.models["ours"].load_state_dict(self.first)
        self.models["hf"].load_state_dict(shared_weights(self.models["ours"]))

    def step(self, peer: str, batch: Batch, precision: str) -> Callable[[], float]:
        """A closure that makes one step of a new optimiser and returns its loss."""
        inputs, model = self._inputs(peer, batch, precision), self.models[peer].train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

        def step() -> float:
            with torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=precision == BF16):
                loss = self._loss(peer, inputs)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            return float(loss.detach())

        return step

    def _loss(self, peer: str, inputs: Mapping[str, Any]) -> Tensor:
        loss: Tensor = self.models[peer](**inputs, use_cache=False).loss
        return loss

    def _inputs(self, peer: str, batch: Batch, precision: str) -> dict[str, Any]:
        given = batch.theirs(precision) if peer == "hf" else batch.ours
        own: dict[str, Any] = {} if peer == "hf" else {"return_logits": False}
        return {name: value.to(self.device) for name, value in given.items()} | own


def measure(options: argparse.Namespace) -> Iterator[Row]:
    # in the quick table as many as three minutes allow: a step of distilgpt2 takes several seconds
    rounds, few, long_rounds = (
        (3, 2, 1) if options.quick else (options.rounds, options.rounds, max(1, options.rounds // 2))
    )
    tiny = Networks("tiny", options.device, n_positions=256)
    same, other = {FP32: ">= 2", BF16: ">= 2.4"}, {FP32: ">= 1.9", BF16: ">= 2.2"}
    yield from _same_precision("tiny, 8 x 256, all scored", tiny, causal(8, 256), same, rounds)
    yield from _same_precision("tiny, 8 x 256, any order (`ranks`)", tiny, any_order(8, 256), other, few)
    yield from _quarter(tiny, causal(8, 256, scored=0.25), rounds)
    asked = Networks("tiny", options.device, n_positions=256, mask_token=True)
    yield from _same_precision("tiny, 8 x 256, two_stream as trained", asked, two_stream(8, 256), other, few)
    del tiny, asked
    distil, long = Networks("distilgpt2", options.device), {FP32: ">= 1.2", BF16: ">= 1.2"}
    yield from _same_precision("distilgpt2, 1 x 1024, causal", distil, causal(1, 1024), long, long_rounds)
    packed = {BF16: ">= 1.3"}
    yield from _same_precision("distilgpt2, 1 x 1024, 8 documents", distil, documents(1, 1024), packed, long_rounds)
    yield from _peaks(options)


def _same_precision(work: str, networks: Networks, batch: Batch, goals: dict[str, str], rounds: int) -> Iterator[Row]:
    networks.check(work, batch)
    for precision, goal in goals.items():
        networks.restart()
        steps = {peer: networks.step(peer, batch, precision) for peer in ("hf", "ours")}
        times = in_turns(steps, rounds=rounds, device=networks.device)
        note = took(times) + batch.note
        yield Row(f"{work}: {precision} / GPT-2 in {precision}", ratio(times["hf"], times["ours"]), goal, note)


def _quarter(networks: Networks, batch: Batch, rounds: int) -> Iterator[Row]:
    work = "tiny, 8 x 256, a quarter scored"
    networks.check(work, batch)
    steps = {
        "hf": networks.step("hf", batch, FP32),
        FP32: networks.step("ours", batch, FP32),
        BF16: networks.step("ours", batch, BF16),
    }
    times = in_turns(steps, rounds=rounds, device=networks.device)
    for precision, goal in ((FP32, ">= 5.5"), (BF16, ">= 9")):
        found = {"hf": times["hf"], "ours": times[precision]}
        yield Row(f"{work}: {precision} / GPT-2 in fp32", ratio(times["hf"], times[precision]), goal, took(found))


def causal(rows: int, length: int, *, scored: float = 1.0) -> Batch:
    """Texts read from left to right, a share of whose tokens is scored."""
    ids = _ids(rows, length)
    generator = torch.Generator().manual_seed(1)
    labels = ids.masked_fill(torch.rand(ids.shape, generator=generator) >= scored, -100)
    return Batch({"input_ids": ids, "labels": labels})


def any_order(rows: int, length: int) -> Batch:
    """Texts in which each token sees those of lower rank, in an order of its own."""
    ids = _ids(rows, length)
    ranks = torch.rand(rows, length, generator=torch.Generator().manual_seed(1)).argsort(1)
    allowed = ranks[:, None, :] <= ranks[:, :, None]
    return Batch({"input_ids": ids, "labels": ids, "ranks": ranks}, allowed)


def two_stream(rows: int, length: int) -> Batch:
    """What a run of configs/conditional_tiny.yaml is fed: questions drawn from its task, laid out in two streams."""
    run = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    collate = QuestionCollator(run["layout"], given_sees=run["given_sees"], task=Task.parse(run["task"]))
    whole = torch.zeros(length, dtype=torch.long).numpy()
    texts = enumerate(_ids(rows, length).numpy())
    inputs = collate([{"input_ids": row, "document_ids": whole, "index": index} for index, row in texts])
    slots, scored = inputs["input_ids"].shape[1], int((inputs["labels"] >= 0).sum())
    note = f"; {rows} x {slots} slots: {scored} scored, GPT-2 makes the logits of all {rows * slots}"
    # (B, S, S); a slot sees itself whatever its limit
    allowed = inputs["ranks"][:, None, :] <= inputs["limits"][:, :, None]
    return Batch(inputs, allowed | torch.eye(slots, dtype=torch.bool), note)


def documents(rows: int, length: int, *, count: int = 8) -> Batch:
    """Rows of packed documents of one length, each seen only from within."""
    ids, packed = _ids(rows, length), (torch.arange(length) * count // length).expand(rows, length)
    allowed = (packed[:, None, :] == packed[:, :, None]).tril()
    return Batch({"input_ids": ids, "labels": ids, "document_ids": packed}, allowed)


def _ids(rows: int, length: int) -> Tensor:
    return torch.randint(0, ArbProbConfig().vocab_size, (rows, length), generator=torch.Generator().manual_seed(0))


def _peaks(options: argparse.Namespace) -> Iterator[Row]:
    for precision, goal in ((FP32, "<= 200"), (BF16, "<= 220")):
        peaks = {}
        for peer in ("ours",) if options.quick else ("ours", "hf"):
            words = ["--memory-of", peer, precision, "--device", options.device, "--threads", str(options.threads)]
            peaks[peer] = peak_in_a_process(__file__, words)
        note = "" if options.quick else f"GPT-2: {peaks['hf']:.0f} MiB"
        yield Row(f"tiny, 8 x 256: peak memory above the model, MiB, {precision}", f"{peaks['ours']:.0f}", goal, note)


def peak_memory(peer: str, precision: str, device: str) -> float:
    """Peak memory of three tiny steps in MiB above the built model, of this process."""
    networks = Networks("tiny", device, n_positions=256)
    step = networks.step(peer, causal(8, 256), precision)

    def work() -> None:
        for _ in range(3):
            step()

    if device == "cpu":
        return peak_above(work)
    before = torch.accelerator.memory_allocated()
    torch.accelerator.reset_peak_memory_stats()
    work()
    return (torch.accelerator.max_memory_allocated() - before) / 2**20


if __name__ == "__main__":
    made = parser(__doc__, rounds=5)
    made.add_argument("--memory-of", nargs=2, help=argparse.SUPPRESS)
    chosen = made.parse_args()
    if chosen.memory_of:
        torch.set_num_threads(chosen.threads)
        print(json.dumps(peak_memory(*chosen.memory_of, chosen.device)))
    else:
        report(measure, chosen)
