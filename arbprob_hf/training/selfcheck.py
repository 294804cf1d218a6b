"""Quick proof that an installation works: model and masks (M0), text and tokenizer (M1), a short run (M2)."""

import contextlib
import io
import math
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..analysis.audit.reference_gpt2 import Reference
from ..model.configuration_arbprob import ArbProbConfig
from ..model.modeling_arbprob import ArbProbForCausalLM

_STEPS = 40


@dataclass(frozen=True)
class Result:
    """One check: what was checked, whether it holds, and the figure that shows it."""

    name: str
    passed: bool
    figure: str


def run_checks() -> Iterator[Result]:
    """Run every check, yielding each result as it is known; a check that breaks off is a failed one."""
    for name, check in CHECKS.items():
        try:
            passed, figure = check()
        except Exception as error:  # a report must go on to the next check
            passed, figure = False, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        yield Result(name, passed, figure)


def _model(mask: str = "causal", *, backend: str = "sdpa") -> ArbProbForCausalLM:
    torch.manual_seed(0)
    config = ArbProbConfig.preset("nano", n_layer=2, vocab_size=512, mask=mask, bos_token_id=0, eos_token_id=0)
    return ArbProbForCausalLM._from_config(config, attn_implementation=backend).eval()


def _ids(length: int = 24) -> Tensor:
    return torch.randint(1, 512, (2, length), generator=torch.Generator().manual_seed(1))  # (2, T)


@torch.no_grad()
def _forward_is_finite() -> tuple[bool, str]:
    texts = ("causal", "full", "window(4)", "causal & window(4)", "prefix(5)", "causal | prefix(5)")
    ids = _ids()
    losses = [float(_model(text)(input_ids=ids, labels=ids).loss) for text in texts]
    # random weights cannot know better than a uniform guess
    worst = max(losses, key=lambda loss: abs(loss - math.log(512)))
    uniform = abs(worst - math.log(512)) < 0.5
    return uniform, f"{len(texts)} masks, loss {worst:.2f} against ln 512 = {math.log(512):.2f}"


@torch.no_grad()
def _masked_forward_agrees() -> tuple[bool, str]:
    ids = _ids()
    shape = (2, ids.shape[1], ids.shape[1])
    allowed = torch.rand(shape, generator=torch.Generator().manual_seed(2)) < 0.4  # (B, T, T)
    # a query with nothing to see must output zero, not the mean of what is forbidden
    allowed[:, 3] = False
    model = _model()
    keeps = [allowed[:, None].expand(-1, model.config.n_head, -1, -1)] * model.config.n_layer  # (B, H, T, T) each
    expected = Reference(model).logits(ids, keeps)
    logits = [_model(backend=backend)(input_ids=ids, attention_mask=allowed).logits for backend in ("sdpa", "eager")]
    gaps = [float((found - expected).abs().max()) for found in logits]
    agrees = max(gaps) < 1e-5
    return agrees, f"largest difference of logits, random (B, T, T) mask: sdpa {gaps[0]:.1e}, eager {gaps[1]:.1e}"


@torch.no_grad()
def _nothing_leaks() -> tuple[bool, str]:
    # two layers of a window of 4 reach 6 tokens back; farther ones and later ones must not matter at all
    model, ids = _model("causal & window(4)"), _ids()
    query, changed = 12, ids.clone()
    changed[:, : query - 6] = 7
    changed[:, query + 1 :] = 7
    near = ids.clone()
    near[:, query - 6] = 7
    before, after, seen = (model(input_ids=x).logits[:, query] for x in (ids, changed, near))  # (B, V)
    leak, reach = float((before - after).abs().max()), float((before - seen).abs().max())
    tight = leak == 0.0 and reach > 0.0
    return (
        tight,
        f"logits change by {leak:.1f} for unseen tokens, by {reach:.1e} for the farthest seen one",
    )


def _tokenizer_is_gpt2s() -> tuple[bool, str]:
    from ..data import load_tokenizer

    tokenizer = load_tokenizer("gpt2")
    ids = tokenizer.encode("Hello world")
    text = "Any mask, any order: \u00e4\u00f6\u00fc \u2014 \U0001f600\n\tx = 1"
    same = tokenizer.decode(tokenizer.encode(text)) == text
    right = ids == [15496, 995] and len(tokenizer) == 50257 and same
    return right, f"{len(tokenizer)} tokens, 'Hello world' -> {ids}"


def _blocks_hold_documents() -> tuple[bool, str]:
    from ..data import BlockCollator, DataArguments, load_blocks, load_tokenizer

    tokenizer = load_tokenizer("gpt2")
    arguments = DataArguments(num_train_samples=64, num_val_samples=16)
    # one line a check: no progress bars between them
    with contextlib.redirect_stderr(io.StringIO()):
        blocks = load_blocks(arguments, tokenizer, block_size=64, seed=0)
    batch = BlockCollator()([blocks.train[i] for i in range(8)])
    ids, documents, positions = batch["input_ids"], batch["document_ids"], batch["position_ids"]  # (8, 64)
    starts = torch.ones_like(ids, dtype=torch.bool)
    starts[:, 1:] = documents[:, 1:] != documents[:, :-1]
    right = bool((ids[starts] == tokenizer.eos_token_id).all() and (positions[starts] == 0).all())
    return (
        right and ids.shape == (8, 64),
        f"{blocks.amount} + {len(blocks.validation)} for validation, {int(starts.sum())} documents in 8 of them",
    )


def _training_lowers_the_loss() -> tuple[bool, str]:
    # imported here: the checks above say more when training cannot even be imported
    from ..runs.log import read_log
    from .arguments import parse
    from .run import train

    with tempfile.TemporaryDirectory() as folder:
        options = {
            "output_dir": f"{folder}/run",
            "preset": "nano",
            "n_positions": "64",
            "num_train_samples": "512",
            "num_val_samples": "16",
            "max_steps": f"{_STEPS}",
            "learning_rate": "5e-3",
            "logging_steps": "5",
            "save_steps": f"{_STEPS}",
            "sample_count": "1",
            "sample_tokens": "8",
            # the figures above are the CPU's too
            "use_cpu": "true",
            "disable_tqdm": "true",
        }
        arguments = parse([f"--{name}={value}" for name, value in options.items()])
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            outcome = train(*arguments)
        log = [row["loss"] for row in read_log(Path(folder) / "run" / "logs" / "training_log.csv")]
    losses = [loss for loss in log if loss is not None]
    figure = f"loss {losses[0]:.2f} -> {losses[-1]:.2f} in {outcome.steps} steps"
    return losses[-1] < losses[0] - 1.5, f"{figure}, perplexity {outcome.perplexity:,.0f}"


CHECKS: dict[str, Callable[[], tuple[bool, str]]] = {
    "M0 forward is finite": _forward_is_finite,
    "M0 masked forward agrees with a float64 reference": _masked_forward_agrees,
    "M0 nothing leaks through two layers": _nothing_leaks,
    "M1 the tokenizer is GPT-2's": _tokenizer_is_gpt2s,
    "M1 blocks hold whole documents' starts": _blocks_hold_documents,
    "M2 a short run lowers the loss": _training_lowers_the_loss,
}
