"""What the parts of gpu.py stand on: networks, masks and batches on the device, and the speed of a step there."""

import gc
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from measure import Row, spread, timed
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from arbprob_hf import ArbProbConfig, ArbProbForCausalLM, Mask, causal, documents, heads, window
from arbprob_hf.data.collators import QuestionCollator
from arbprob_hf.data.tasks import Task

# dense bfloat16 operations a second
PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "4090": 165e12, "3090": 71e12}
NAMES = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head")
BACKENDS = ("eager", "sdpa", "flex_attention")
TASK = "0.4 * uniform(given=0..0.9, asked=0.2..1) + 0.2 * spans(1..16) + 0.1 * boundary(start=0.1..0.4, end=0.1..0.4)"


@dataclass(frozen=True)
class Size:
    """What is measured at: the network, the batch, how often."""

    preset: str
    batch: int
    length: int
    runs: int
    new: int
    questions: int
    batches: int
    # of the parts that compare numbers, not speeds
    small: int


FULL = Size("gpt2", 16, 1024, 10, 128, 1000, 100, 256)
TOY = Size("nano", 2, 64, 2, 4, 8, 12, 48)


@dataclass(frozen=True)
class Bench:
    """The device, the sizes, and when the time is up."""

    device: str
    size: Size
    end: float

    @property
    def is_gpu(self) -> bool:
        return self.device != "cpu"

    def model(self, *, hf: bool = False, train: bool = False, **fields: Any) -> Any:
        """A network of random weights, the same for both families."""
        torch.manual_seed(0)
        preset = ArbProbConfig.preset(self.size.preset, **{"dropout": 0.0, **fields})
        made: Any = ArbProbForCausalLM(preset)
        if hf:
            config = GPT2Config(**{name: getattr(preset, name) for name in NAMES})
            config.resid_pdrop = config.embd_pdrop = config.attn_pdrop = 0.0
            stock = GPT2LMHeadModel(config)
            stock.load_state_dict(made.state_dict())
            made = stock
        made.generation_config.eos_token_id = None
        return made.to(self.device).train(train)

    def tokens(self, batch: int, length: int, seed: int = 0) -> Tensor:
        ids = torch.randint(1, 50000, (batch, length), generator=torch.Generator().manual_seed(seed))
        return ids.to(self.device)

    def autocast(self) -> Any:
        return torch.autocast(self.device, torch.bfloat16)


@dataclass(frozen=True)
class Measured:
    """Median seconds of a run, tokens a second, and peak bytes above the weights."""

    seconds: float
    tokens: float
    memory: float
    spread: str


def speed_of(bench: Bench, model: Any, *, mask_4d: bool = False, **more: Any) -> Measured:
    """The steps of one network; with `mask_4d` under an additive mask of four dimensions, as transformers takes it."""
    size = bench.size
    if "input_ids" not in more:
        more = {"input_ids": bench.tokens(size.batch, size.length), **more}
        more.setdefault("labels", more["input_ids"])
    if mask_4d:
        seen = masks_of(bench, size.batch, size.length)["a tensor for each row"].dense(size.length, size.length)  # type: ignore[call-arg]
        blocked = torch.finfo(torch.bfloat16).min
        more["attention_mask"] = torch.zeros(seen.shape, device=bench.device, dtype=torch.bfloat16).masked_fill(
            ~seen, blocked
        )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    return measured(bench, lambda: step(model, optimizer, bench, **more), size.batch * size.length)


def step(model: Any, optimizer: torch.optim.Optimizer, bench: Bench, **inputs: Any) -> None:
    options = {} if isinstance(model, GPT2LMHeadModel) else {"return_logits": False}
    with bench.autocast():
        loss = model(use_cache=False, **inputs, **options).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def measured(bench: Bench, work: Callable[[], object], tokens: int) -> Measured:
    gc.collect()
    held = torch.accelerator.memory_allocated() if bench.is_gpu else 0
    work()
    work()
    if bench.is_gpu:
        torch.accelerator.reset_peak_memory_stats()
    times = [timed(work, bench.device) for _ in range(bench.size.runs)]
    peak = torch.accelerator.max_memory_allocated() - held if bench.is_gpu else 0
    middle = statistics.median(times)
    return Measured(middle, tokens / middle, peak, spread([tokens / one / 1e3 for one in times], digits=0))


def gradients(bench: Bench, model: Any, ids: Tensor, document_ids: Tensor) -> list[Tensor]:
    """Those of one batch, every token scored, in bfloat16."""
    with bench.autocast():
        loss = model(ids, labels=ids, document_ids=document_ids, return_logits=False).loss
    loss.backward()
    found = [weight.grad.clone() for weight in model.parameters()]
    model.zero_grad()
    return found


def rate(bench: Bench, work: str, found: Measured) -> Row:
    """Thousands of tokens a second, the share of the device's peak, and memory."""
    config = ArbProbConfig.preset(bench.size.preset)
    weights = 12 * config.n_layer * config.n_embd**2 + config.vocab_size * config.n_embd
    operations = 6 * weights + 12 * config.n_layer * bench.size.length * config.n_embd
    peak = next((value for name, value in PEAKS.items() if name in device_name(bench.device)), None)
    mfu = f"MFU {100 * found.tokens * operations / peak:.0f} %; " if peak else ""
    return Row(work, found.spread, note=f"thousand tokens/s; {mfu}{found.memory / 2**30:.1f} GiB")


def masks_of(bench: Bench, batch: int, length: int) -> dict[str, Mask]:
    """Masks of each kind: text, per head, documents, a tensor for each row."""
    random = torch.Generator().manual_seed(0)
    free = (torch.rand(batch, length, length, generator=random) < 0.5).tril() | torch.eye(length, dtype=torch.bool)
    count = ArbProbConfig.preset(bench.size.preset).n_head
    packed = torch.arange(length)[None].expand(batch, -1) // (length // 4)
    return {
        "a window": causal() & window(32),
        "other windows per head": heads(*(causal() & window(4 + 8 * head) for head in range(count))),
        "packed documents": causal() & documents(packed.to(bench.device)),
        "a tensor for each row": Mask.of(free.to(bench.device)),
    }


def questions_batch(bench: Bench, batch: int, length: int) -> dict[str, Tensor]:
    """What the trainer feeds a network that learns questions in the layout two_stream; on the CPU."""
    collator = QuestionCollator("two_stream", given_sees="all", task=Task.parse(f"{TASK} + 0.3 * causal"))
    ids = bench.tokens(batch, length).cpu().numpy()
    zeros = torch.zeros(length, dtype=torch.long).numpy()
    return collator([{"input_ids": row, "document_ids": zeros, "index": i} for i, row in enumerate(ids)])


@contextmanager
def no_waiting(device: str) -> Iterator[None]:
    """Any wait of the CPU for the GPU is an error inside; torch can tell on CUDA alone."""
    if device == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("default")


@contextmanager
def exact_products() -> Iterator[None]:
    """float32 products without TF32 inside."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def compilations() -> int:
    """Graphs that torch has compiled in this process."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def far(found: Tensor, expected: Tensor) -> float:
    return float((found.float() - expected.float()).abs().max())


def device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else device
