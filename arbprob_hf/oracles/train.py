"""How a network learns a source: fresh sequences, random questions, and an optimizer made for small networks."""

import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import check_integer
from ..model.configuration_arbprob import ArbProbConfig
from ..model.modeling_arbprob import ArbProbForCausalLM
from ..model.questions.conditional import Conditional
from ..model.questions.layouts import lay_out
from .muon import Muon
from .registry import Source

# of the sources that take more steps of reasoning than a neighbour or two
LAYERS = {"hmm": 3, "pcfg": 4, "ldpc": 4}


@dataclass(frozen=True)
class Recipe:
    """How a network is trained on a source.

    Attributes:
        layout: how questions are put; see the layouts of the model.
        minutes: wall time of training; the learning rate falls with it. steps: instead of that, a number of steps.
        random: probability that the targets of a row are asked in random order, otherwise from left to right.
        width, layers, heads: sizes of the network; without `layers`, those of LAYERS, or 2.
        rows: questions a step. learning_rate: its highest.
        average: decay of the average of the weights that is kept. initial: standard deviation of the initial weights;
            GPT-2's 0.02 is too small for so narrow a network to begin to attend.
        threads: share the rows of a step; sums of another number of parts are rounded differently.
    """

    layout: str = "two_stream"
    minutes: float = 3.0
    steps: int | None = None
    random: float = 0.0
    width: int = 64
    layers: int | None = None
    heads: int = 4
    rows: int = 64
    learning_rate: float = 4e-3
    initial: float = 0.1
    average: float = 0.995
    seed: int = 0
    threads: int = 1


@dataclass(frozen=True)
class Batch:
    """Texts and a question about each.

    Attributes:
        tokens: long (B, T), the start of the text in front. given, target: bool (B, T). order: long (B, T).
    """

    tokens: Tensor
    given: Tensor
    target: Tensor
    order: Tensor

    def ask(self) -> Conditional:
        """The questions."""
        return Conditional(self.given, self.target, self.order)

    def split(self, rows: int) -> "list[Batch]":
        """The same in parts of at most so many rows."""
        tables = (self.tokens, self.given, self.target, self.order)
        return [Batch(*parts) for parts in zip(*(table.split(rows) for table in tables), strict=True)]


def draw(source: Source, rows: int, generator: torch.Generator, *, random: float) -> Batch:
    """Sequences of `source` behind a start, and a question about each.

    The share that is given is uniform; of the others all are asked in half of the rows, a uniform share in the rest.
    """
    x = source.sample(rows, generator)
    tokens = torch.cat([torch.full((rows, 1), source.vocabulary), x], dim=1)  # (B, 1 + N)
    length = source.length
    score = torch.rand(rows, length, generator=generator)
    place = score.argsort(1).argsort(1)
    count = torch.randint(0, length, (rows, 1), generator=generator)
    asked = (torch.rand(rows, 1, generator=generator) * (length - count)).long() + 1
    asked = torch.where(torch.rand(rows, 1, generator=generator) < 0.5, length - count, asked)
    given = torch.cat([torch.ones(rows, 1, dtype=torch.bool), place < count], dim=1)
    target = torch.cat([torch.zeros(rows, 1, dtype=torch.bool), (place >= count) & (place < count + asked)], dim=1)
    temporal = torch.arange(1 + length).expand(rows, -1)
    shuffled = torch.rand(rows, 1 + length, generator=generator).argsort(1)
    is_shuffled = torch.rand(rows, 1, generator=generator) < random
    return Batch(tokens, given, target, torch.where(is_shuffled, shuffled, temporal))


def build(source: Source, recipe: Recipe) -> ArbProbForCausalLM:
    """The untrained network of a recipe, with a token more than the source has: the start of the text."""
    config = ArbProbConfig(
        vocab_size=source.vocabulary + 1,
        n_positions=source.length + 1,
        n_embd=recipe.width,
        n_layer=LAYERS.get(source.name, 2) if recipe.layers is None else recipe.layers,
        n_head=recipe.heads,
        initializer_range=recipe.initial,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=source.vocabulary,
        eos_token_id=source.vocabulary,
        layout=recipe.layout,
        given_sees="all",
        mask_token=True,
        target_positions=recipe.layout == "sigma",
    )
    return ArbProbForCausalLM(config)


def train_on(source: Source, recipe: Recipe, *, report: Callable[[str, int], None] | None = None) -> ArbProbForCausalLM:
    """Train a network on fresh sequences of `source` and random questions about them, for as long as `recipe` says.

    `report` is called every half minute, and at the end, with a line on progress and the number of steps so far.
    """
    check_integer("threads", recipe.threads, low=1)
    torch.manual_seed(recipe.seed)
    generator = torch.Generator().manual_seed(recipe.seed)
    model = build(source, recipe)
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    average = [weight.detach().clone() for weight in weights]
    optimizers = _optimizers(model, recipe)
    begun, step, reported, share = time.monotonic(), 0, 0.0, 0.0
    with Workers(model, recipe.threads) as workers:
        while share < 1:
            rate = min(1.0, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * share))
            for group in (group for optimizer in optimizers for group in optimizer.param_groups):
                group["lr"] = recipe.learning_rate * rate
            loss = workers.differentiate(draw(source, recipe.rows, generator, random=recipe.random))
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            for optimizer in optimizers:
                optimizer.step()
            step += 1
            decay = min(recipe.average, step / (step + 10))
            torch._foreach_lerp_(average, [weight.detach() for weight in weights], 1 - decay)
            elapsed = (time.monotonic() - begun) / 60
            share = elapsed / recipe.minutes if recipe.steps is None else step / recipe.steps
            if report is not None and (elapsed - reported > 0.5 or share >= 1):
                reported = elapsed
                report(f"{elapsed:.1f} min, step {step}, {loss:.4f} nats per target", step)
    with torch.no_grad():
        for weight, mean in zip(weights, average, strict=True):
            weight.copy_(mean)
    return model.eval()


class Workers:
    """Threads that share the rows of each step: kernels of so small a network are too short for threads of their own.

    Gradients are added in the order of the rows, so that results depend on the number of threads, not on their speed.
    """

    def __init__(self, model: ArbProbForCausalLM, threads: int) -> None:
        self.model, self.threads = model, threads
        self.weights = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def __enter__(self) -> "Workers":
        self.pool = ThreadPoolExecutor(self.threads, initializer=torch.set_num_threads, initargs=(1,))
        self.kernels = torch.get_num_threads()
        torch.set_num_threads(1)
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.shutdown()
        torch.set_num_threads(self.kernels)

    def differentiate(self, batch: Batch) -> float:
        """Put the gradients of the mean loss per target into the weights, and return that loss."""
        targets = int(batch.target.sum())

        def work(part: Batch) -> tuple[float, tuple[Tensor, ...]]:
            loss = _loss(self.model, part) * (int(part.target.sum()) / targets)
            return loss.item(), torch.autograd.grad(loss, self.weights)

        rows = math.ceil(len(batch.tokens) / self.threads)
        losses, gradients = zip(*self.pool.map(work, batch.split(rows)), strict=True)
        for weight, *found in zip(self.weights, *gradients, strict=True):
            weight.grad = torch.stack(found).sum(0)
        return float(sum(losses))


def _optimizers(model: ArbProbForCausalLM, recipe: Recipe) -> list[torch.optim.Optimizer]:
    # Muon for the matrices inside, AdamW for embeddings, norms and biases
    inner = [weight for weight in model.transformer.h.parameters() if weight.ndim == 2]
    outer = [weight for name, weight in model.named_parameters() if ".h." not in name or weight.ndim != 2]
    rate = recipe.learning_rate
    return [Muon(inner, lr=rate), torch.optim.AdamW(outer, lr=rate, betas=(0.9, 0.98), weight_decay=0.01)]


def _loss(model: ArbProbForCausalLM, batch: Batch) -> Tensor:
    question = batch.ask().resolve(*batch.tokens.shape, given_sees="all")
    slots = lay_out(question, model.config.layout)
    inputs = slots.fill(batch.tokens, names_target=model.config.target_positions)
    labels = slots.labels(batch.tokens)
    loss = model(**inputs, shift_labels=labels, use_cache=False, return_logits=False).loss
    assert isinstance(loss, Tensor)
    return loss
