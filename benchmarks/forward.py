"""Time of one call of a small network, where Python and checks weigh, against transformers' GPT-2 of the same weights.

    python benchmarks/forward.py [--quick] [--rounds 7] [--preset nano]

`forward` is `model(ids)` without gradients, `scored` is `model(ids, labels=ids)` without them, `step` the same with
them and their way back. The rows without the head's share have 100 token ids in place of GPT-2's 50,257.
"""

import argparse
from collections.abc import Callable, Iterator
from typing import Any

import torch
from measure import Row, in_turns, parser, ratio, report, spread
from peers import twins

from arbprob_hf import ArbProbConfig

GOAL = "<= 1.05"
# batch and length of the rows, and how many calls are timed together
SHAPES = {(1, 16): 20, (8, 16): 5, (1, 256): 4, (8, 256): 1}


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--preset", default="nano")
    report(measure, made.parse_args())


def measure(options: argparse.Namespace) -> Iterator[Row]:
    for vocabulary in (50257, 100):
        sizes = dict(vocab_size=vocabulary, dropout=0.0, bos_token_id=0, eos_token_id=0)
        stock, ours = twins(ArbProbConfig.preset(options.preset, **sizes), device=options.device)
        networks = {"ours": ours, "stock": stock}
        for (batch, length), calls in SHAPES.items():
            is_goal = (batch, length) == (1, 16)
            if options.quick and not is_goal:
                continue
            ids = torch.randint(100, (batch, length), device=options.device)
            for kind, call in KINDS.items():
                seconds = timed(networks, call, ids, calls=calls, options=options)
                times = {name: spread([1e6 * one / calls for one in taken], 0) for name, taken in seconds.items()}
                yield Row(
                    f"{kind} {options.preset} {batch} x {length}, {vocabulary} token ids",
                    ratio(seconds["ours"], seconds["stock"]),
                    GOAL if is_goal else "",
                    f"{times['ours']} us, stock {times['stock']} us",
                )


def timed(
    networks: dict[str, Any],
    call: Callable[[Any, torch.Tensor], None],
    ids: torch.Tensor,
    *,
    calls: int,
    options: argparse.Namespace,
) -> dict[str, list[float]]:
    """Seconds of `calls` calls of each network, in turns."""

    def repeat(network: Any) -> Callable[[], None]:
        def work() -> None:
            for _ in range(calls):
                call(network, ids)

        return work

    works = {name: repeat(network) for name, network in networks.items()}
    return in_turns(works, rounds=5 if options.quick else options.rounds, device=options.device)


@torch.no_grad()
def forward(network: Any, ids: torch.Tensor) -> None:
    network.eval()
    network(ids)


@torch.no_grad()
def scored(network: Any, ids: torch.Tensor) -> None:
    network.eval()
    network(ids, labels=ids)


def step(network: Any, ids: torch.Tensor) -> None:
    network.train()
    network(ids, labels=ids).loss.backward()
    network.zero_grad()


KINDS: dict[str, Callable[[Any, torch.Tensor], None]] = {"forward": forward, "scored": scored, "step": step}


if __name__ == "__main__":
    main()
