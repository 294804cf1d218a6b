"""Everything that needs a GPU, checked and measured by one command in at most eight minutes, printed as one table.

    python benchmarks/gpu.py                    GPT-2 of 124M weights, 1024 tokens, bfloat16
    python benchmarks/gpu.py --toy              the same rows at toy sizes; what happens without a GPU
    python benchmarks/gpu.py --only waits storm some of the parts, by name

Parts: agreement (backends among each other and with transformers' GPT-2), waits (no wait for the device), storm (100
batches of varying length and documents; equal gradients), training (tokens/s, MFU, memory), flash (flex_attention by
FlashAttention-4), losses (ours, Liger's, cut cross entropy), decoding, questions, tests (tests/devices, in the time
left). A part that fails is a row that says why, and the exit status is 1. What is not installed is left out:
pip install liger-kernel cut-cross-entropy.

Speeds are wall time between two waits for the device, medians of several runs, an untimed one before the first. MFU is
6 N + 12 L T D operations a token (N without the position embeddings, as nanoGPT counts) over the dense bfloat16 peak of
the GPU by its name.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from gpu_bench import (
    BACKENDS,
    FULL,
    TOY,
    Bench,
    Measured,
    compilations,
    device_name,
    exact_products,
    far,
    gradients,
    masks_of,
    measured,
    no_waiting,
    questions_batch,
    rate,
    speed_of,
    step,
)
from measure import ROW, Row, machine, table_head, table_line, timed
from torch import Tensor

from arbprob_hf import ArbProbConfig, Conditional
from arbprob_hf.model.attention import flex
from arbprob_hf.model.lm_head import causal_loss


def main() -> int:
    options = _options()
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    device = "cpu" if found is None else found.type
    is_toy = options.toy or device == "cpu"
    if options.part:
        transformers.logging.set_verbosity_error()
        warnings.simplefilter("ignore")
        bench = Bench(device, TOY if is_toy else FULL, time.perf_counter() + options.seconds)
        for row in PARTS[options.part](bench):
            print(json.dumps(asdict(row)), flush=True)
        return 0
    print(f"{device_name(device)}; {machine()}{'; toy sizes, so no speed here means anything' if is_toy else ''}\n")
    print(*table_head(), sep="\n", flush=True)
    end, failed, names = time.perf_counter() + options.seconds, 0, list(options.only or PARTS)
    for done, name in enumerate(names):
        # what is left is shared by the parts that are left
        left = (end - time.perf_counter()) * SHARES[name] / sum(SHARES[one] for one in names[done:])
        for row in _rows_of(name, ["--toy"] if is_toy else [], left):
            failed += row.figure == "failed" or (name in CHECKS and row.is_met() is False)
            # a goal of speed is one of the full size
            print(table_line(replace(row, goal="") if is_toy and name not in CHECKS else row), flush=True)
    return 1 if failed else 0


def _rows_of(name: str, more: list[str], seconds: float) -> Iterator[Row]:
    """The rows of one part, run in a process of its own: an error of the GPU spoils all that comes after it there."""
    if seconds < LEAST_SECONDS:
        yield Row(name, "not run", note="the time was up")
        return
    command = [sys.executable, str(Path(__file__)), "--part", name, "--seconds", str(seconds - LEAST_SECONDS), *more]
    with tempfile.TemporaryFile("w+") as out:
        try:
            # a part stops by itself; one that hangs is stopped
            code = subprocess.run(command, stdout=out, stderr=subprocess.STDOUT, timeout=2 * seconds).returncode
        except subprocess.TimeoutExpired:
            code = -1
        out.seek(0)
        lines = [line.strip() for line in out if line.strip()]
    yield from (Row(**json.loads(line)) for line in lines if line.startswith(ROW))
    if code:
        said = [line for line in lines if not line.startswith(ROW)] or [f"exit status {code}"]
        yield Row(name, "failed", note="it hung" if code == -1 else said[-1][:300])


def agreement(bench: Bench) -> Iterator[Row]:
    """Largest differences of logits in float32: each backend against eager, and ours against transformers'."""
    ids = bench.tokens(2, bench.size.small)
    stock, ours = bench.model(hf=True), bench.model()
    with torch.no_grad(), exact_products():
        theirs = stock(ids).logits
        yield Row("logits against transformers' GPT-2, causal", f"{far(ours(ids).logits, theirs):.1e}", "<= 1e-3")
        for label, mask in masks_of(bench, 2, bench.size.small).items():
            found = {}
            for backend in BACKENDS:
                ours.set_attn_implementation(backend)
                found[backend] = ours(ids, mask=mask).logits
            worst = max(far(found[backend], found["eager"]) for backend in BACKENDS[1:])
            yield Row(f"backends against eager, {label}", f"{worst:.1e}", "<= 1e-3")


def waits(bench: Bench) -> Iterator[Row]:
    """Whether forward, loss, step and a question wait for the device: an error where they do."""
    model = bench.model(train=True, layout="two_stream", mask_token=True, given_sees="all")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=bench.is_gpu)
    ids, ask = bench.tokens(2, bench.size.small), Conditional([0, 1, 2], list(range(5, 20)))
    packed = (torch.arange(bench.size.small, device=bench.device) // 20)[None].expand(2, -1)
    asked = {name: value.to(bench.device) for name, value in questions_batch(bench, 2, bench.size.small).items()}
    passes: dict[str, Callable[[], Any]] = {
        "forward": lambda: model(ids, use_cache=False),
        "forward, packed documents": lambda: model(ids, document_ids=packed, use_cache=False),
        "step, all scored": lambda: step(model, optimizer, bench, input_ids=ids, labels=ids),
        "step, two_stream": lambda: step(model, optimizer, bench, **asked),
        "log_prob": lambda: model.log_prob(ids, ask),
        "log_prob of two questions": lambda: model.log_prob(ids, [ask, Conditional([0, 3], [7])]),
    }
    for name, work in passes.items():
        work()
        try:
            with no_waiting(bench.device):
                work()
            # a step asks for one number before the network runs, and reads it after: that torch does not call a wait
            yield Row(f"waits for the device: {name}", "0", "<= 0", "" if bench.is_gpu else "never waits on a CPU")
        except RuntimeError as error:
            yield Row(f"waits for the device: {name}", "1", "<= 0", str(error)[:120])


def storm(bench: Bench) -> Iterator[Row]:
    """Batches of varying length and documents, padded to a multiple as collators do, and gradients run after run."""
    random, step_by = torch.Generator().manual_seed(0), bench.size.small // 4
    for backend in ("flex_attention", "sdpa") if bench.is_gpu else ("sdpa",):
        model = bench.model(train=True)
        model.set_attn_implementation(backend)
        before, bad, count = compilations(), 0, 0
        while count < bench.size.batches and time.perf_counter() < bench.end:
            length = step_by * int(torch.randint(1, 5, (), generator=random))
            packed = (torch.rand(4, length, generator=random) < 0.05).cumsum(1).to(bench.device)
            found = gradients(bench, model, bench.tokens(4, length, count), packed)
            bad += not all(bool(one.isfinite().all()) for one in found)
            count += 1
        name = f"{count} batches of 4 lengths and other documents, {backend}"
        yield Row(f"{name}: gradients that are not finite", str(bad), "<= 0")
        # forward and backward of each length
        yield Row(f"{name}: compilations", str(compilations() - before), "<= 8")
        yield _repeated(bench, model, packed, backend)


def _repeated(bench: Bench, model: Any, packed: Tensor, backend: str) -> Row:
    ids = bench.tokens(4, packed.shape[1])
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        first, other, runs = gradients(bench, model, ids, packed), 0, 1
        while runs < 20 and time.perf_counter() < bench.end:
            other += not all(map(torch.equal, gradients(bench, model, ids, packed), first))
            runs += 1
    finally:
        torch.use_deterministic_algorithms(False)
    return Row(f"runs of {runs} with other gradients, deterministic mode, {backend}, bf16", str(other), "<= 0")


def training(bench: Bench) -> Iterator[Row]:
    """Tokens a second, MFU and memory of a bfloat16 step, as it is and with its blocks compiled."""
    size = bench.size
    peer = speed_of(bench, bench.model(hf=True, train=True), mask_4d=True)
    yield rate(bench, "transformers' GPT-2 under a 4-D mask", peer)
    yield rate(bench, "transformers' GPT-2, causal", speed_of(bench, bench.model(hf=True, train=True)))
    if bench.is_gpu:
        stock = bench.model(hf=True, train=True)
        for block in stock.transformer.h:
            block.compile()
        yield rate(bench, "transformers' GPT-2, causal, compiled", speed_of(bench, stock))
    packed = (torch.arange(size.length, device=bench.device) // (size.length // 8))[None].expand(size.batch, -1)
    inputs: dict[str, dict[str, Any]] = {
        "causal": {},
        "3-D mask": {"mask": masks_of(bench, size.batch, size.length)["a tensor for each row"]},
        "causal & window(256)": {"mask": "causal & window(256)"},
        "8 documents": {"document_ids": packed},
    }
    found: dict[tuple[str, str, bool], Measured] = {}
    for label, backend, is_compiled in _cases(bench, list(inputs)):
        name = f"{label}, {backend}{', compiled' if is_compiled else ''}"
        if time.perf_counter() > bench.end:
            yield Row(name, "not run", note="the time was up")
            continue
        try:
            found[label, backend, is_compiled] = one = speed_of(
                bench, _trained(bench, backend, is_compiled), **inputs[label]
            )
            yield rate(bench, name, one)
            if (label, backend) == ("causal", "sdpa"):
                yield _two_stream(bench, one, is_compiled)
        except Exception as error:
            yield Row(name, "failed", note=f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
    best = {label: max((one.tokens for key, one in found.items() if key[0] == label), default=0.0) for label in inputs}
    yield Row("causal, the best of them, thousand tokens/s", f"{best['causal'] / 1e3:.0f}", ">= 500")
    yield Row("3-D mask, the best of them / transformers', 4-D", f"{best['3-D mask'] / peer.tokens:.2f}", ">= 2.5")


def _cases(bench: Bench, labels: list[str]) -> list[tuple[str, str, bool]]:
    # mask, backend, whether blocks are compiled: those with goals first; flex_attention has no backward on a CPU
    if not bench.is_gpu:
        return [(label, backend, False) for backend in BACKENDS[:2] for label in labels] + [("causal", "sdpa", True)]
    compiled = [(label, backend, True) for label in labels for backend in BACKENDS[1:]]
    return (
        compiled
        + [(label, backend, False) for label in labels for backend in BACKENDS[1:]]
        + [("causal", "eager", False)]
    )


def _two_stream(bench: Bench, causal_step: Measured, is_compiled: bool) -> Row:
    on_device = {
        name: value.to(bench.device)
        for name, value in questions_batch(bench, bench.size.batch, bench.size.length).items()
    }
    model = _trained(bench, "sdpa", is_compiled, layout="two_stream", mask_token=True, given_sees="all")
    found = speed_of(bench, model, **on_device)
    slots = on_device["input_ids"].shape[1]
    note = f"{slots} slots for {bench.size.length} tokens; {found.memory / 2**30:.1f} GiB"
    name = f"step of two_stream / causal step, sdpa{', compiled' if is_compiled else ''}"
    return Row(name, f"{found.seconds / causal_step.seconds:.2f}", "<= 1.7", note)


def _trained(bench: Bench, backend: str, is_compiled: bool, **fields: Any) -> Any:
    torch.compiler.reset()
    model = bench.model(train=True, **fields)
    model.set_attn_implementation(backend)
    if is_compiled:
        # one by one: they are alike, so one compilation serves all
        for block in model.transformer.h:
            block.compile()
    return model


def flash(bench: Bench) -> Iterator[Row]:
    """flex_attention by FlashAttention-4's kernels, where they are installed, against Triton's."""
    try:
        import flash_attn.cute  # noqa: F401
    except ImportError:
        yield Row("flex_attention by FlashAttention-4", "not installed", note="pip install flash-attn-4")
        return
    packed = (torch.arange(bench.size.length, device=bench.device) // 128)[None].expand(bench.size.batch, -1)
    for label, more in {
        "causal & window(256)": {"mask": "causal & window(256)"},
        "documents": {"document_ids": packed},
    }.items():
        triton = speed_of(bench, _trained(bench, "flex_attention", True), **more)
        flex.KERNEL_OPTIONS["BACKEND"] = "FLASH"
        try:
            found = speed_of(bench, _trained(bench, "flex_attention", True), **more)
        finally:
            del flex.KERNEL_OPTIONS["BACKEND"]
        yield Row(f"step, {label}, FlashAttention-4 / Triton", f"{triton.seconds / found.seconds:.2f}")


def losses(bench: Bench) -> Iterator[Row]:
    """The head and its loss alone, forward and backward: whole logits, ours, and the kept libraries'."""
    size = bench.size
    config = ArbProbConfig.preset(size.preset)
    hidden = torch.randn(1, size.batch * size.length, config.n_embd, device=bench.device, requires_grad=True)
    weight = (torch.randn(config.vocab_size, config.n_embd, device=bench.device) * 0.02).requires_grad_()
    labels = bench.tokens(1, size.batch * size.length)

    def whole() -> Tensor:
        with bench.autocast():
            logits = torch.nn.functional.linear(hidden, weight)
        return torch.nn.functional.cross_entropy(logits[0].float(), labels[0])

    def chunked() -> Tensor:
        with bench.autocast():
            return causal_loss(hidden, weight, None, shift_labels=labels)

    ways: dict[str, Callable[[], Tensor]] = {
        "whole logits": whole,
        "ours": chunked,
        **_libraries(hidden, weight, labels),
    }
    first = None
    for name, loss in ways.items():
        try:
            found = measured(bench, partial(_backward, loss), size.batch * size.length)
        except Exception as error:
            yield Row(f"loss: {name}", "failed", note=f"{type(error).__name__}: {str(error)[:200]}")
            continue
        first = first or found
        note = f"{found.seconds * 1e3:.1f} ms; {found.memory / 2**30:.2f} GiB"
        yield Row(f"loss: {name}, speed against whole logits", f"{first.seconds / found.seconds:.2f}", note=note)


def _backward(loss: Callable[[], Tensor]) -> None:
    loss().backward()


def _libraries(hidden: Tensor, weight: Tensor, labels: Tensor) -> dict[str, Callable[[], Tensor]]:
    found: dict[str, Callable[[], Tensor]] = {}
    half = torch.bfloat16
    try:
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        liger = LigerFusedLinearCrossEntropyLoss()
        found["Liger"] = lambda: liger(weight.to(half), hidden[0].to(half), labels[0])
    except ImportError:
        pass
    try:
        from cut_cross_entropy import linear_cross_entropy

        found["cut cross entropy"] = lambda: linear_cross_entropy(hidden[0].to(half), weight.to(half), labels[0])
    except ImportError:
        pass
    return found


def decoding(bench: Bench) -> Iterator[Row]:
    """Tokens a second of greedy generation in bfloat16, against transformers' GPT-2."""
    models = {"HF": bench.model(hf=True).to(torch.bfloat16), "ours": bench.model().to(torch.bfloat16)}
    for batch in (1, 32):
        ids = bench.tokens(batch, min(128, bench.size.small))
        for cache in ("dynamic", "static") if bench.is_gpu else ("dynamic",):
            options: dict[str, Any] = dict(max_new_tokens=bench.size.new, do_sample=False, pad_token_id=0)
            options |= {"cache_implementation": "static"} if cache == "static" else {}
            seconds = {}
            for name, model in models.items():
                work = partial(model.generate, ids, attention_mask=torch.ones_like(ids), **options)
                # the first compiles
                work()
                seconds[name] = timed(work, bench.device)
            note = " -> ".join(f"{batch * bench.size.new / seconds[name]:.0f}" for name in models) + " tokens/s"
            label = f"generate, batch {batch}, {cache} cache, ours / HF"
            yield Row(label, f"{seconds['HF'] / seconds['ours']:.2f}", note=note)


def questions(bench: Bench) -> Iterator[Row]:
    """Wall time of questions and of the samplers; weights are random, so drafts are seldom kept."""
    model = bench.model(layout="two_stream", mask_token=True, given_sees="all").to(torch.bfloat16)
    length, count = min(128, bench.size.small), bench.size.questions
    ids = bench.tokens(1, length)
    asks = [Conditional([0, 1 + i % 11], [20 + i % (length - 21)]) for i in range(count)]
    with torch.no_grad():
        model.log_prob(ids, asks)
        seconds = timed(partial(model.log_prob, ids, asks), bench.device)
    yield Row(
        f"log_prob of {count} questions about a text, seconds", f"{seconds:.3f}", note=f"{count / seconds:.0f} a second"
    )
    given = torch.arange(length) % 10 == 0
    ask = Conditional(given, ~given)
    found = {}
    for method in ("sequential", "speculative", "fused", "auto"):
        model.sample(ids, ask, method=method)
        found[method] = timed(partial(model.sample, ids, ask, method=method), bench.device)
        ratio = f"{found['sequential'] / found[method]:.2f}"
        yield Row(
            f"sample, {method}, speed against sequential", ratio, note=f"{found[method]:.2f} s, 90 % of {length} tokens"
        )


def tests(bench: Bench) -> Iterator[Row]:
    """tests/devices, as long as there is time."""
    left = max(10.0, bench.end - time.perf_counter())
    root = Path(__file__).resolve().parents[1]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "tests/devices"]
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False, timeout=left)
    except subprocess.TimeoutExpired:
        yield Row("tests/devices", "not finished", note=f"stopped after {left:.0f} s; run: pytest tests/devices")
        return
    last = (done.stdout.strip().splitlines() or [done.stderr.strip()[-200:]])[-1].strip("= ")
    yield Row("tests/devices", "passed" if done.returncode == 0 else "failed", note=last)


PARTS: dict[str, Callable[[Bench], Iterator[Row]]] = {
    part.__name__: part for part in (agreement, waits, storm, training, flash, losses, decoding, questions, tests)
}


CHECKS = ("agreement", "waits", "storm", "tests")
# of the time that there is
SHARES = {name: {"training": 8, "storm": 3, "decoding": 3}.get(name, 1) for name in PARTS}
LEAST_SECONDS = 1.0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--toy", action="store_true", help="toy sizes, to see that it runs")
    parser.add_argument("--seconds", type=float, default=450, help="of all parts together; each is given its share")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--only", nargs="+", choices=PARTS, metavar="PART", help=", ".join(PARTS))
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
