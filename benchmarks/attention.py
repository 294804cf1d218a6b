"""Time of attention alone under each kind of mask, against torch's kernel with a dense bool mask, and its causal one.

    python benchmarks/attention.py [--length 1024] [--batch 2] [--rounds 7] [--threads 1] [--dtype float32]
    python benchmarks/attention.py --device cuda --backend flex_attention --dtype bfloat16

They take turns round by round; a figure is the median of the per-round ratios of process CPU time (wall time on an
accelerator), with the smallest and largest: above 1, ours is faster. flex_attention has no backward on the CPU; there
its figures are of the forward alone. Queries, keys and values are views of one
projection, as in the network. `path` is how the mask is computed. Preparing the mask is a cost that a forward pays once
for all its layers; its share is that of one layer's forward and backward.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from arbprob_hf import Mask, block_diffusion, causal, documents, order, prefix, sinks, window
from arbprob_hf.model.attention.backends import prepare_attention
from arbprob_hf.model.attention.plan import Plan
from arbprob_hf.model.masks.tiles import Sizes

DOCUMENTS = 8
BAND = 128


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    print(
        f"batch {arguments.batch} x {arguments.length} tokens, {arguments.heads} heads x {arguments.width}, "
        f"{arguments.dtype}, {arguments.threads} thread(s), torch {torch.__version__}, {arguments.device}, "
        f"{arguments.backend}"
    )
    print(
        "| mask | path | forward [min, max] | forward + backward [min, max] | both, against the causal kernel | "
        "preparing the mask, ms (share) |"
    )
    print("|---|---|---|---|---|---|")
    for name, mask in masks(arguments).items():
        # a bar would end the cell
        print(row(name.replace("|", "or"), mask, arguments), flush=True)


def masks(arguments: argparse.Namespace) -> dict[str, Mask]:
    """The masks of the table; rows of the batch have documents, orders and tensors of their own."""
    batch, length = arguments.batch, arguments.length
    generator = torch.Generator().manual_seed(0)
    square = torch.ones(length, length, dtype=torch.bool)
    random = (torch.rand(batch, length, length, generator=generator) < 0.5) | square.tril().triu()
    ranks = torch.stack([torch.randperm(length, generator=generator) for _ in range(batch)])
    starts = torch.zeros(batch, length, dtype=torch.long)
    for one in starts:
        # of any length: cut at random
        one[torch.randperm(length - 1, generator=generator)[: DOCUMENTS - 1] + 1] = 1
    made = {
        f"causal & window({BAND})": causal() & window(BAND),
        f"packed, {DOCUMENTS} documents of any length": causal() & documents(starts.cumsum(1)),
        "causal": causal(),
        "causal, as a tensor": Mask.of(square.tril()),
        "any order": order(ranks),
        f"causal | prefix({length // 2})": causal() | prefix(length // 2),
        f"causal & (window({BAND}) | sinks(4))": causal() & (window(BAND) | sinks(4)),
        f"block_diffusion({length // 2}, {BAND // 2})": block_diffusion(length // 2, BAND // 2),
        "random tensor, half allowed": Mask.of(random),
    }
    return made


def row(name: str, mask: Mask, arguments: argparse.Namespace) -> str:
    """Measure one line: the kernel with the mask written out, and ours, take turns."""
    device, dtype = torch.device(arguments.device), getattr(torch, arguments.dtype)
    sizes = Sizes(arguments.batch, arguments.heads, arguments.length, arguments.length, 0, device)
    scaling = arguments.width**-0.5
    allowed = mask.dense(arguments.length, device=device)

    def prepare() -> Plan:
        return prepare_attention(mask, sizes, backend=arguments.backend, dtype=dtype)

    plan = prepare()

    def dense(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=allowed, scale=scaling)

    def causal_kernel(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling)

    def ours(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return plan.attend(query, key, value, scaling=scaling, dropout=0.0)[0]

    peers = {"dense": dense, "causal": causal_kernel, "ours": ours}
    forward = compare(peers, arguments, backward=False)
    has_backward = arguments.backend != "flex_attention" or arguments.device != "cpu"
    both = compare(peers, arguments, backward=True) if has_backward else forward
    preparing = statistics.median(timed(prepare, arguments.device) for _ in range(arguments.rounds))
    layer = statistics.median(both["ours"])
    return (
        f"| {name} | {plan.path} | {ratio(forward, 'dense')} | {ratio(both, 'dense') if has_backward else 'none'} | "
        f"{ratio(both, 'causal')} | {1e3 * preparing:.1f} ({100 * preparing / layer:.0f} %) |"
    )


def compare(
    peers: dict[str, Callable[..., Tensor]], arguments: argparse.Namespace, *, backward: bool
) -> dict[str, list[float]]:
    """Seconds of each round, by peer; one round before those counted."""
    torch.manual_seed(1)
    batch, length, width = arguments.batch, arguments.length, arguments.heads * arguments.width
    options = {"dtype": getattr(torch, arguments.dtype), "device": arguments.device}
    projected = torch.randn(batch, length, 3 * width, **options).requires_grad_(backward)
    upstream = torch.randn(batch, length, width, **options)

    def step(attend: Callable[..., Tensor]) -> None:
        split = (x.view(batch, length, arguments.heads, arguments.width) for x in projected.chunk(3, dim=-1))
        out = attend(*(x.transpose(1, 2) for x in split)).transpose(1, 2).flatten(2)  # (B, T, H * D)
        if backward:
            torch.autograd.grad(out, projected, upstream)

    times: dict[str, list[float]] = {name: [] for name in peers}
    for _ in range(arguments.rounds + 1):
        for name, attend in peers.items():
            times[name].append(timed(lambda attend=attend: step(attend), arguments.device))  # type: ignore[misc]
    return {name: seconds[1:] for name, seconds in times.items()}


def ratio(times: dict[str, list[float]], peer: str) -> str:
    """The median of the per-round ratios of a peer's time to ours, and their range."""
    ratios = [a / b for a, b in zip(times[peer], times["ours"], strict=True)]
    return f"{statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]"


def timed(work: Callable[[], object], device: str) -> float:
    """Seconds of process CPU time; wall time where the work is done elsewhere."""
    if device == "cpu":
        start = time.process_time()
        work()
        return time.process_time() - start
    module = torch.get_device_module(device)
    module.synchronize()
    start = time.perf_counter()
    work()
    module.synchronize()
    return time.perf_counter() - start


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--width", type=int, default=64, help="features of a head")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float64"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--backend", default="sdpa", choices=["sdpa", "flex_attention", "eager"])
    return parser.parse_args()


if __name__ == "__main__":
    main()
