"""Text that a trained model writes, reproducibly."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedTokenizerBase

from ..model.modeling_arbprob import ArbProbForCausalLM
from .arguments import RunArguments
from .options import UsageError


def check_sample_length(run_args: RunArguments, tokenizer: PreTrainedTokenizerBase, n_positions: int) -> None:
    """Raise UsageError when prompt and new tokens exceed `n_positions`: asked before hours of training."""
    prompt = len(_prompt_ids(run_args, tokenizer))
    if run_args.sample_count and prompt + run_args.sample_tokens > n_positions:
        raise UsageError(
            f"sample_tokens: {run_args.sample_tokens} after a prompt of {prompt} tokens exceed the model's "
            f"{n_positions} positions; expected at most {max(n_positions - prompt, 0)}"
        )


def write_samples(
    model: ArbProbForCausalLM, tokenizer: PreTrainedTokenizerBase, run_args: RunArguments, *, seed: int
) -> list[str]:
    """`sample_count` continuations of `sample_prompt`, prompt included; the same `seed` gives the same text.

    The prompt is read as the start of a document. Random state and train mode are left as they were.
    """
    if not run_args.sample_count:
        return []
    ids = torch.tensor([_prompt_ids(run_args, tokenizer)], device=model.device)  # (1, T)
    choice = {"do_sample": True, "temperature": run_args.sample_temperature, "top_k": 50}
    if run_args.sample_temperature == 0:
        choice = {"do_sample": False}
    with _evaluating(model), torch.random.fork_rng():
        torch.manual_seed(seed)
        written = model.generate(
            ids.expand(run_args.sample_count, -1),
            attention_mask=torch.ones_like(ids).expand(run_args.sample_count, -1),
            max_new_tokens=run_args.sample_tokens,
            pad_token_id=tokenizer.eos_token_id,
            **choice,
        )  # (sample_count, T + new)
    return [str(tokenizer.decode(row, skip_special_tokens=True)) for row in written]


def _prompt_ids(run_args: RunArguments, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    # every document of the training text starts with this token
    return [tokenizer.eos_token_id, *tokenizer.encode(run_args.sample_prompt, add_special_tokens=False)]


@contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
