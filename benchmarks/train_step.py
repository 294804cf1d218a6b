"""Time and memory of one training step against transformers' GPT-2: same weights, same inputs, same optimiser.

    python benchmarks/train_step.py [--preset tiny] [--batch 8] [--length 256] [--rounds 7] [--threads 1]

The two models take turns round by round; the figure is the median of the per-round ratios of process CPU time (wall
time on an accelerator), which holds on a shared, noisy machine. Peak memory is that of a fresh process per model,
above the built model, its gradients and Adam states included.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from arbprob_hf import ArbProbConfig, ArbProbForCausalLM

PEERS = ("hf", "ours")


@dataclass(frozen=True)
class Work:
    """One line of the table."""

    name: str
    scored: float = 1.0
    bf16: bool = False


WORK = (
    Work("fp32, all scored"),
    Work("fp32, a quarter scored", scored=0.25),
    Work("bf16 autocast, all scored", bf16=True),
    Work("bf16 autocast, a quarter scored", scored=0.25, bf16=True),
)


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    if arguments.memory_of:
        print(json.dumps(peak_memory(arguments)))
        return
    print(
        f"{arguments.preset}, batch {arguments.batch} x {arguments.length} tokens, {arguments.threads} thread(s), "
        f"torch {torch.__version__}, {arguments.device}"
    )
    print("| step | ours / HF speed, same precision [min, max] | against HF fp32 | peak memory HF -> ours, MiB |")
    print("|---|---|---|---|")
    for work in WORK:
        print(row(work, arguments), flush=True)


def row(work: Work, arguments: argparse.Namespace) -> str:
    """Measure one line: HF in the same precision, ours, and, where that is another, HF in fp32 take turns."""
    steps = {"hf": make_step("hf", work, arguments), "ours": make_step("ours", work, arguments)}
    if work.bf16:
        steps["hf fp32"] = make_step("hf", Work("", work.scored), arguments)
    for step in steps.values():
        step()
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(arguments.rounds):
        for name, step in steps.items():
            times[name].append(timed(step, arguments.device))
    same = [a / b for a, b in zip(times["hf"], times["ours"], strict=True)]
    full = [a / b for a, b in zip(times.get("hf fp32", times["hf"]), times["ours"], strict=True)]
    peaks = [measured_peak(peer, work, arguments) for peer in PEERS]
    return (
        f"| {work.name} | {statistics.median(same):.2f} [{min(same):.2f}, {max(same):.2f}] | "
        f"{statistics.median(full):.2f} | {peaks[0]:.0f} -> {peaks[1]:.0f} |"
    )


def make_step(peer: str, work: Work, arguments: argparse.Namespace) -> Callable[[], float]:
    """A closure that runs one optimiser step and returns its loss."""
    torch.manual_seed(0)
    preset = ArbProbConfig.preset(arguments.preset, n_positions=max(arguments.length, 256), dropout=0.0)
    if peer == "hf":
        names = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head")
        sizes = {name: getattr(preset, name) for name in names}
        model = GPT2LMHeadModel(GPT2Config(**sizes, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0))
    else:
        model = ArbProbForCausalLM(preset)
    model = model.to(arguments.device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, preset.vocab_size, (arguments.batch, arguments.length), generator=generator)
    labels = ids.masked_fill(torch.rand(ids.shape, generator=generator) >= work.scored, -100).to(arguments.device)
    ids = ids.to(arguments.device)
    options = {} if peer == "hf" else {"return_logits": False}

    def step() -> float:
        with torch.autocast(torch.device(arguments.device).type, torch.bfloat16, enabled=work.bf16):
            loss = model(input_ids=ids, labels=labels, use_cache=False, **options).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step


def timed(step: Callable[[], float], device: str) -> float:
    """Seconds of process CPU time of one step; wall time where the work is done elsewhere."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    start = clock()
    step()
    return clock() - start


def measured_peak(peer: str, work: Work, arguments: argparse.Namespace) -> float:
    """Peak memory in MiB of three steps in a process of their own."""
    command = [
        sys.executable,
        __file__,
        "--memory_of",
        peer,
        "--scored",
        str(work.scored),
        "--device",
        arguments.device,
    ]
    command += ["--bf16"] if work.bf16 else []
    for name in ("preset", "batch", "length", "threads"):
        command += [f"--{name}", str(getattr(arguments, name))]
    return float(
        json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    )


def peak_memory(arguments: argparse.Namespace) -> float:
    work = Work("", arguments.scored, arguments.bf16)
    step = make_step(arguments.memory_of, work, arguments)
    if arguments.device != "cpu":
        step(), step()
        return torch.cuda.max_memory_allocated() / 2**20
    before = memory("VmRSS")
    for _ in range(3):
        step()
    return memory("VmHWM") - before


def memory(field: str) -> float:
    """A field of this process's status in MiB; Linux only, like the peak it is compared with."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return float(next(line for line in lines if line.startswith(field)).split()[1]) / 2**10


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--memory_of", choices=PEERS, help=argparse.SUPPRESS)
    parser.add_argument("--scored", type=float, default=1.0, help=argparse.SUPPRESS)
    parser.add_argument("--bf16", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
