"""Compiled decoding: how often it is compiled, and its speed against stock GPT-2 compiled and against not compiling.

    python benchmarks/compiled.py [--preset tiny] [--prompt 32] [--new 128] [--batch 1]

Compilations are counted over two calls of `generate` with a static cache on prompts of one shape (prefill is not
compiled there), and over a compiled forward on twenty lengths. Speeds are those of torch's inductor, which needs a C++
compiler on a CPU; weights are the same and random.
"""

import argparse
from collections.abc import Callable, Iterator
from typing import Any

import torch
from measure import Row, in_turns, parser, ratio, report, spread
from peers import SPREAD, endless, twins
from transformers import CompileConfig

from arbprob_hf import ArbProbConfig, ArbProbForCausalLM, Mask, documents

MASKS = {
    "causal": "causal",
    "window": "causal & window(8)",
    "window and sinks": "causal & (window(8) | sinks(2))",
    "per head": "causal & heads(window(4), full, prefix(2), dilated(8, 2))",
}
# batch, prompt and new tokens of what is counted
BATCH, PROMPT, NEW = 4, 12, 6
LENGTHS = range(10, 30)


def measure(options: argparse.Namespace) -> Iterator[Row]:
    yield from compilations(options.device)
    if not options.quick:
        yield from speeds(options)


def compilations(device: str) -> Iterator[Row]:
    """How many graphs are made, of networks of one layer that torch runs as they are."""
    for name, text in MASKS.items():
        yield Row(f"compilations, generate, {name}", str(count_of_generate(device, text)), "<= 1")
    padding = dict(attention_mask=(torch.arange(PROMPT) >= torch.arange(BATCH)[:, None]).long())
    table = dict(mask=(torch.rand(BATCH, PROMPT, PROMPT) < 0.5).tril() | torch.eye(PROMPT, dtype=torch.bool))
    for name, given in {"left-padded": padding, "3-D mask": table, "3-D mask, left-padded": padding | table}.items():
        yield Row(f"compilations, generate, {name}", str(count_of_generate(device, "causal", **given)), "<= 1")
    for name, arguments in VARYING.items():
        yield Row(f"compilations, forward, 20 lengths, {name}", str(count_of_forward(device, arguments)), "<= 2")


VARYING: dict[str, Callable[[int], dict[str, Any]]] = {
    "causal": lambda length: dict(),
    "window": lambda length: dict(mask=Mask.parse("causal & window(8)")),
    "3-D mask": lambda length: dict(mask=torch.ones(2, length, length, dtype=torch.bool).tril()),
    "packed documents": lambda length: dict(document_ids=packed(length)),
    "window and documents": lambda length: dict(mask=Mask.parse("causal & window(8)") & documents(packed(length))),
    "ranks": lambda length: dict(ranks=torch.arange(length).flip(0).expand(2, -1)),
}


def packed(length: int) -> torch.Tensor:
    """Long (2, length): documents, of other lengths at every length."""
    return (torch.arange(length) // (1 + length // 3)).expand(2, -1)


def count_of_generate(device: str, text: str, **given: Any) -> int:
    """Graphs of two calls of `generate` with a static cache, on other prompts of one shape."""
    model, graphs = small(device, text), 0

    def backend(graph: torch.fx.GraphModule, inputs: list[Any], **unused: Any) -> Any:
        nonlocal graphs
        graphs += 1
        return graph.forward

    torch.compiler.reset()
    for seed in (0, 1):
        ids = torch.randint(1, 100, (BATCH, PROMPT), generator=torch.Generator().manual_seed(seed))
        moved = {name: value.to(device) for name, value in given.items()}
        model.generate(ids.to(device), **static(NEW, backend=backend), **moved)
    return graphs


def count_of_forward(device: str, arguments: Callable[[int], dict[str, Any]]) -> int:
    """Graphs of a compiled network over twenty lengths."""
    graphs = 0

    def backend(graph: torch.fx.GraphModule, inputs: list[Any], **unused: Any) -> Any:
        nonlocal graphs
        graphs += 1
        return graph.forward

    torch.compiler.reset()
    with torch.device(device), torch.no_grad():
        compiled = torch.compile(small(device, "causal"), backend=backend, fullgraph=True)
        for length in LENGTHS:
            compiled(torch.ones(2, length, dtype=torch.long), use_cache=False, **arguments(length))
    return graphs


def speeds(options: argparse.Namespace) -> Iterator[Row]:
    """Compiled decoding under masks, stock GPT-2 and our own uncompiled decoding taking turns."""
    theirs, ours = twins(ArbProbConfig.preset(options.preset, initializer_range=SPREAD), device=options.device)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 5000, (options.batch, options.prompt), generator=generator).to(options.device)
    plain = dict(max_new_tokens=options.new, do_sample=False)
    for text in ("causal", "causal & window(64)"):
        torch.compiler.reset()
        works: dict[str, Callable[[], Any]] = {
            "stock": lambda: theirs.generate(ids, **plain),
            "stock compiled": lambda: theirs.generate(ids, **static(options.new)),
            "ours": lambda mask=text: ours.generate(ids, mask=mask, **plain),
            "compiled": lambda mask=text: ours.generate(ids, mask=mask, **static(options.new)),
        }
        assert works["ours"]().equal(works["compiled"]()), "compiled decoding gives other tokens"
        times = in_turns(works, rounds=options.rounds, device=options.device)
        name = f"{options.preset}, batch {options.batch}, {text}: compiled, against"
        speed = spread([options.batch * options.new / seconds for seconds in times["compiled"]], digits=0)
        for peer in ("stock compiled", "ours", "stock"):
            yield Row(f"{name} {peer}", ratio(times[peer], times["compiled"]), note=f"{speed} tokens/s")


def static(new: int, **compiler: Any) -> dict[str, Any]:
    """Arguments of `generate` for a static cache and a compiled step on any device."""
    once = CompileConfig(fullgraph=True, dynamic=False, **compiler)
    once._compile_all_devices = True
    return dict(max_new_tokens=new, do_sample=False, cache_implementation="static", compile_config=once)


def small(device: str, mask: str) -> ArbProbForCausalLM:
    """A network that is compiled in a second."""
    sizes = dict(vocab_size=100, n_positions=64, n_embd=32, n_layer=1, n_head=4)
    return endless(ArbProbForCausalLM(ArbProbConfig(**sizes, mask=mask)).to(device))


def _options() -> argparse.Namespace:
    made = parser(__doc__)
    made.add_argument("--preset", default="tiny")
    made.add_argument("--batch", type=int, default=1)
    made.add_argument("--prompt", type=int, default=32)
    made.add_argument("--new", type=int, default=128)
    return made.parse_args()


if __name__ == "__main__":
    report(measure, _options())
