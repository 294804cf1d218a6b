"""Attention alone under masks, how it grows under a window, and what planning a mask costs; one pinned thread.

    python benchmarks/attention.py [--quick] [--rounds 7] [--batch 2] [--dtype float32]
    python benchmarks/attention.py --device cuda --backend flex_attention --dtype bfloat16

Speed: forward and backward of one layer against torch's kernel with the mask as a dense bool tensor, in turns; above 1,
ours is faster. flex_attention has no backward on the CPU; there its figures are of the forward alone. Queries, keys and
values are views of one projection, as in the network. Growth: how many times the time, and the memory above the inputs,
of a length that is twice as long; 2 is linear, 4 quadratic. Planning is what a forward pays once for all its layers, in
milliseconds of this processor: a goal in milliseconds holds for a processor like it. A mask that a text says in full is
planned once for a length and found again later; the first time is a row of its own.
"""

import argparse
import json
from collections.abc import Callable, Iterator

import torch
from measure import Row, in_turns, parser, ratio, report, spread
from memory import peak_above, peak_in_a_process
from torch import Tensor
from torch.nn import functional as F

from arbprob_hf import Mask, block_diffusion, causal, documents, heads, order, prefix, sinks, window
from arbprob_hf.model.attention.backends import prepare_attention
from arbprob_hf.model.attention.plan import Plan
from arbprob_hf.model.attention.plan_cache import PLANS
from arbprob_hf.model.masks.arguments import MaskArguments, resolve_mask
from arbprob_hf.model.masks.tiles import Sizes

HEADS, WIDTH = 12, 64
DOCUMENTS, BAND = 8, 128
ROWS_PLANNED = 8
# by length, batch 2 at 1024 and 1 at 4096: the goals of a layer's speed
WINDOW_GOALS = {1024: ">= 2.5", 4096: ">= 11"}
PACKED_GOALS = {1024: ">= 2.5", 4096: ">= 7"}
PLANNING_GOALS = {
    "8 documents a row": {1024: "<= 4", 4096: "<= 20"},
    "heads, 12 windows": {1024: "<= 1", 4096: "<= 1"},
    "any order within 8 documents": {1024: "<= 8", 4096: "<= 40"},
}


def main() -> None:
    options = _options()
    if options.memory_at:
        print(json.dumps(window_memory(options.memory_at, options)))
        return
    report(measure, options)


def measure(options: argparse.Namespace) -> Iterator[Row]:
    """The rows of the table."""
    rounds = 3 if options.quick else options.rounds
    for length in options.length:
        batch = max(1, options.batch * 1024 // length)
        goals = {"window": WINDOW_GOALS.get(length, ""), "packed": PACKED_GOALS.get(length, "")}
        for name, mask in masks(batch, length).items():
            if name in goals or not options.quick:
                yield speed(name, mask, goals.get(name, ""), (batch, length, rounds), options)
    if options.backend == "sdpa" and options.device == "cpu":
        yield from growth(rounds, options)
    for length in options.length:
        for name, (mask, given) in planned(length).items():
            goal = PLANNING_GOALS.get(name, {}).get(length, "")
            if goal or not options.quick:
                yield from planning(name, mask, given, (goal, length), options)


def masks(batch: int, length: int) -> dict[str, Mask]:
    """The masks of the table of speed; rows of the batch have documents, orders and tensors of their own."""
    generator = torch.Generator().manual_seed(0)
    square = torch.ones(length, length, dtype=torch.bool)
    random = (torch.rand(batch, length, length, generator=generator) < 0.5) | square.tril().triu()
    return {
        "window": causal() & window(BAND),
        "packed": causal() & documents(document_ids(batch, length, generator)),
        "causal": causal(),
        "causal, as a tensor": Mask.of(square.tril()),
        "any order": order(ranks_of(batch, length, generator)),
        f"causal or prefix({length // 2})": causal() | prefix(length // 2),
        f"causal & (window({BAND}) or sinks(4))": causal() & (window(BAND) | sinks(4)),
        f"block_diffusion({length // 2}, {BAND // 2})": block_diffusion(length // 2, BAND // 2),
        "random tensor, half allowed": Mask.of(random),
    }


def planned(length: int) -> dict[str, tuple[Mask, MaskArguments]]:
    """Masks whose planning is timed, for ROWS_PLANNED rows: the configuration's and the arguments of forward."""
    generator = torch.Generator().manual_seed(0)
    ids, ranks = document_ids(ROWS_PLANNED, length, generator), ranks_of(ROWS_PLANNED, length, generator)
    padded = torch.arange(length) >= 17 * torch.arange(ROWS_PLANNED)[:, None]
    random = torch.rand(length, length, generator=generator) < 0.5
    band = causal() & window(BAND)
    return {
        "8 documents a row": (causal(), MaskArguments(document_ids=ids)),
        "heads, 12 windows": (heads(*(causal() & window(16 * (i + 1)) for i in range(HEADS))), MaskArguments()),
        "any order within 8 documents": (causal(), MaskArguments(ranks=ranks, document_ids=ids)),
        f"window({BAND})": (band, MaskArguments()),
        f"window({BAND}), rows padded": (band, MaskArguments(attention_mask=padded)),
        "any order": (causal(), MaskArguments(ranks=ranks)),
        "random tensor, one for all rows": (causal(), MaskArguments(mask=random)),
    }


def document_ids(batch: int, length: int, generator: torch.Generator) -> Tensor:
    """Documents of any length, cut at random: long (batch, length)."""
    starts = torch.zeros(batch, length, dtype=torch.long)
    for one in starts:
        one[torch.randperm(length - 1, generator=generator)[: DOCUMENTS - 1] + 1] = 1
    return starts.cumsum(1)


def ranks_of(batch: int, length: int, generator: torch.Generator) -> Tensor:
    """An order for each row: long (batch, length)."""
    return torch.stack([torch.randperm(length, generator=generator) for _ in range(batch)])


def speed(name: str, mask: Mask, goal: str, shape: tuple[int, int, int], options: argparse.Namespace) -> Row:
    """One layer, forward and backward, against the kernel with the mask written out; `shape`: batch, length, rounds."""
    batch, length, rounds = shape
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    plan = prepare_attention(mask, Sizes(batch, HEADS, length, length, 0, device), backend=options.backend, dtype=dtype)
    allowed = mask.dense(length, device=device)

    def dense(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=allowed)

    has_backward = options.backend != "flex_attention" or options.device != "cpu"
    peers = {"dense": dense, "ours": attending(plan)}
    states = projected(batch, length, options, has_backward=has_backward)
    works = {name: layer(attend, states, has_backward=has_backward) for name, attend in peers.items()}
    times = in_turns(works, rounds=rounds, device=options.device)
    title = f"{name}, {batch} x {length}" + ("" if has_backward else ", forward")
    title = title.replace("window,", f"causal & window({BAND}),").replace("packed,", f"{DOCUMENTS} documents a row,")
    note = f"by {plan.path}; {1e3 * min(times['ours']):.0f} ms, dense {1e3 * min(times['dense']):.0f} ms"
    return Row(f"attention: {title}", ratio(times["dense"], times["ours"]), goal, note)


def growth(rounds: int, options: argparse.Namespace) -> Iterator[Row]:
    """Time and memory of a window from 4096 to 8192 tokens, where linear is 2."""
    mask, works = causal() & window(BAND), {}
    for length in (4096, 8192):
        sizes = Sizes(1, HEADS, length, length, 0, torch.device("cpu"))
        plan = prepare_attention(mask, sizes, backend="sdpa", dtype=getattr(torch, options.dtype))
        works[str(length)] = layer(attending(plan), projected(1, length, options, has_backward=True), has_backward=True)
    times = in_turns(works, rounds=rounds)
    note = f"{1e3 * min(times['4096']):.0f} and {1e3 * min(times['8192']):.0f} ms"
    yield Row(f"window({BAND}), 4096 to 8192 tokens: time", ratio(times["8192"], times["4096"]), "<= 2.4", note)
    words = [["--memory-at", str(length), "--dtype", options.dtype] for length in (4096, 8192)]
    taken = [peak_in_a_process(__file__, one) for one in words]
    note = f"{taken[0]:.0f} and {taken[1]:.0f} MiB above the inputs, planning included"
    yield Row(f"window({BAND}), 4096 to 8192 tokens: memory", f"{taken[1] / taken[0]:.2f}", "<= 2.4", note)


def window_memory(length: int, options: argparse.Namespace) -> float:
    """MiB that a layer under a window takes at most, above its inputs: planning, forward and backward; Linux only."""

    def work(size: int, states: Tensor) -> None:
        sizes = Sizes(1, HEADS, size, size, 0, torch.device("cpu"))
        plan = prepare_attention(causal() & window(BAND), sizes, backend="sdpa", dtype=getattr(torch, options.dtype))
        layer(attending(plan), states, has_backward=True)()

    # what torch loads at a first use
    work(512, projected(1, 512, options, has_backward=True))
    states = projected(1, length, options, has_backward=True)
    return peak_above(lambda: work(length, states))


def planning(
    name: str, mask: Mask, given: MaskArguments, case: tuple[str, int], options: argparse.Namespace
) -> Iterator[Row]:
    """Milliseconds from the arguments of forward to a plan; `case`: goal and length."""
    goal, length = case
    device = torch.device(options.device)
    sizes = Sizes(ROWS_PLANNED, HEADS, length, length, 0, device)

    def prepare() -> Plan:
        resolved = resolve_mask(mask, given, sizes)
        return prepare_attention(resolved, sizes, backend=options.backend, dtype=getattr(torch, options.dtype))

    def prepare_anew() -> None:
        PLANS.clear()
        prepare()

    path, title = prepare().path, f"planning, ms: {name}, {ROWS_PLANNED} x {length}"
    is_kept = prepare() is prepare()
    times = in_turns({"plan": prepare}, rounds=5, device=options.device)["plan"]
    yield Row(title, spread([1e3 * one for one in times]), goal, f"by {path}; on this processor")
    if is_kept:
        times = in_turns({"plan": prepare_anew}, rounds=5, device=options.device)["plan"]
        yield Row(f"{title}, the first time", spread([1e3 * one for one in times]), note=f"by {path}")


def attending(plan: Plan) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Attention by a plan, as the network calls it."""
    return lambda query, key, value: plan.attend(query, key, value, scaling=WIDTH**-0.5, dropout=0.0)[0]


def projected(batch: int, length: int, options: argparse.Namespace, *, has_backward: bool) -> Tensor:
    """What a layer's projection gives: (batch, length, 3 * HEADS * WIDTH)."""
    torch.manual_seed(1)
    kind = {"dtype": getattr(torch, options.dtype), "device": options.device}
    return torch.randn(batch, length, 3 * HEADS * WIDTH, **kind).requires_grad_(has_backward)


def layer(
    attend: Callable[[Tensor, Tensor, Tensor], Tensor], states: Tensor, *, has_backward: bool
) -> Callable[[], None]:
    """The attention of one layer, forward and, where there is one, backward."""
    upstream = torch.randn_like(states[..., : HEADS * WIDTH], requires_grad=False)

    def step() -> None:
        split = (part.unflatten(2, (HEADS, WIDTH)).transpose(1, 2) for part in states.chunk(3, dim=-1))
        out = attend(*split).transpose(1, 2).flatten(2)  # (B, T, H * D)
        if has_backward:
            torch.autograd.grad(out, states, upstream)

    return step


def _options() -> argparse.Namespace:
    made = parser(__doc__)
    made.add_argument("--batch", type=int, default=2, help="rows of 1024 tokens; of longer ones fewer")
    made.add_argument("--length", type=int, nargs="+", default=[1024, 4096])
    made.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float64"])
    made.add_argument("--backend", default="sdpa", choices=["sdpa", "flex_attention", "eager"])
    made.add_argument("--memory-at", type=int, help=argparse.SUPPRESS)
    return made.parse_args()


if __name__ == "__main__":
    main()
