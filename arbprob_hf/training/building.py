"""The network of a run: a preset with random weights, or GPT-2 weights to go on from."""

from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from arbprob_hf.model.configuration_arbprob import ArbProbConfig
from arbprob_hf.model.modeling_arbprob import ArbProbForCausalLM
from arbprob_hf.training.arguments import ModelArguments

_DROPOUTS = ("resid_pdrop", "embd_pdrop", "attn_pdrop")


def build_model(model_args: ModelArguments, tokenizer: PreTrainedTokenizerBase) -> ArbProbForCausalLM:
    """The float32 network that `model_args` describes, with `tokenizer`'s vocabulary.

    Random weights come from torch's global generator. Raises ValueError when loaded weights know fewer tokens
    than `tokenizer` has.
    """
    if model_args.init_from is not None:
        return _loaded(model_args, tokenizer)
    names = ("mask", "n_layer", "n_head", "n_embd", "n_positions", "dropout")
    given = {name: getattr(model_args, name) for name in names if getattr(model_args, name) is not None}
    special = {"bos_token_id": tokenizer.eos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = ArbProbConfig.preset(model_args.preset or "nano", vocab_size=len(tokenizer), **special, **given)
    return ArbProbForCausalLM._from_config(config, dtype=torch.float32, **_attention(model_args))


def _loaded(model_args: ModelArguments, tokenizer: PreTrainedTokenizerBase) -> ArbProbForCausalLM:
    changed: dict[str, Any] = {} if model_args.mask is None else {"mask": model_args.mask}
    if model_args.dropout is not None:
        changed.update(dict.fromkeys(_DROPOUTS, model_args.dropout))
    model = ArbProbForCausalLM.from_pretrained(
        model_args.init_from,
        revision=model_args.init_revision or "main",
        # a checkpoint saved in half precision would be trained in it
        dtype=torch.float32,
        **_attention(model_args),
        **changed,
    )
    if len(tokenizer) > model.config.vocab_size:
        raise ValueError(
            f"init_from: {model_args.init_from!r:.80} knows {model.config.vocab_size} tokens, "
            f"the tokenizer has {len(tokenizer)}; give the tokenizer these weights were trained with"
        )
    return model


def _attention(model_args: ModelArguments) -> dict[str, Any]:
    return {} if model_args.attn_implementation is None else {"attn_implementation": model_args.attn_implementation}
