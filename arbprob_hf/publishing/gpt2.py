"""A checkpoint as a stock GPT-2: for tools that know no other, where the weights mean the same there."""

import shutil
from pathlib import Path

import torch
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel

from ..atomic_write import replacing
from ..model.configuration_arbprob import ArbProbConfig
from ..model.masks.mask import Mask
from ..model.modeling_arbprob import ArbProbForCausalLM
from ..model_folder import load_network, read_config, read_saved_patterns
from ..pattern_file import read_patterns

# fields that GPT-2's configuration has under the same names, with the same meaning
SHARED = (
    *("vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "n_inner", "activation_function"),
    *("resid_pdrop", "embd_pdrop", "attn_pdrop", "layer_norm_epsilon", "initializer_range"),
    *("scale_attn_weights", "scale_attn_by_inverse_layer_idx", "use_cache", "tie_word_embeddings"),
    *("bos_token_id", "eos_token_id", "pad_token_id"),
)
# as transformers writes them; copied, as reading them with the folder's configuration asks to run its code
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "chat_template.jinja"),
)
# weights that answer questions, which GPT-2 is never asked
EXTRA = ("transformer.wme.weight", "transformer.wtpe.weight")
# logits of the two networks may differ by so much of the largest
TOLERANCE = 1e-2
CHECKED_TOKENS = 64


def why_not_gpt2(config: ArbProbConfig) -> str | None:
    """Why GPT-2 would misread a network's weights, in a few words; None where it reads them as they are meant.

    From the start of a text, left to right, the layouts two_stream, prefix and causal are GPT-2.
    """
    length = config.n_positions
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    for text in dict.fromkeys(config.mask_texts):
        if not bool((Mask.parse(text).dense(length, heads=config.n_head) == causal).all()):
            return f"it was trained under the mask {text:.80}, and GPT-2 knows none but causal"
    if config.layout == "sigma":
        return "its layout, sigma, tells each token what position to predict, for which GPT-2 has no input"
    if config.layout == "masked":
        return "its layout, masked, fills gaps from both sides and does not continue a text as GPT-2 does"
    return None


def export_gpt2(
    checkpoint: Path, out: Path, *, force: bool = False, patterns: Path | None = None, trust_remote_code: bool = False
) -> list[str]:
    """Write the model in the folder `checkpoint` into the new folder `out` as a `GPT2LMHeadModel`, with its tokenizer.

    The folder appears whole or not at all. Weights keep their precision.

    Args:
        force: also where GPT-2 would misread the weights.
        patterns, trust_remote_code: where the custom patterns of its mask are, as in `load_network`.

    Returns:
        What was left out or may surprise, a line each.

    Raises:
        ValueError: in one line, where there is no whole model, GPT-2 would misread it, or `out` is taken.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out}: exists and is not an empty folder; name another")
    config = read_config(checkpoint)
    if patterns is not None:
        read_patterns(patterns)
    read_saved_patterns(checkpoint, config, trust_remote_code=trust_remote_code)
    reason = why_not_gpt2(config)
    if reason is not None and not force:
        raise ValueError(f"{checkpoint}: GPT-2 would misread it: {reason}; --force exports it all the same")
    ours = load_network(checkpoint, dtype="auto")
    theirs = _as_gpt2(ours)
    if reason is None:
        _compare(ours, theirs, checkpoint)
    with replacing(out) as beside:
        theirs.save_pretrained(beside)
        for name in TOKENIZER_FILES:
            if (checkpoint / name).is_file():
                shutil.copyfile(checkpoint / name, beside / name)
    return _remarks(ours, reason)


def _as_gpt2(ours: ArbProbForCausalLM) -> GPT2LMHeadModel:
    config = GPT2Config(**{name: getattr(ours.config, name) for name in SHARED})
    # converters to other formats read it
    config.n_ctx = ours.config.n_positions
    theirs = GPT2LMHeadModel(config).eval()
    # transformers' own `to` hides what it takes from the type checker
    torch.nn.Module.to(theirs, ours.dtype)
    theirs.load_state_dict({name: weight for name, weight in ours.state_dict().items() if name not in EXTRA})
    if ours.generation_config is not None:
        theirs.generation_config = GenerationConfig.from_dict(ours.generation_config.to_dict())
    return theirs


@torch.no_grad()
def _compare(ours: ArbProbForCausalLM, theirs: GPT2LMHeadModel, checkpoint: Path) -> None:
    length = min(CHECKED_TOKENS, ours.config.n_positions)
    ids = torch.arange(length)[None] * 7919 % ours.config.vocab_size
    first, second = (model(ids, use_cache=False).logits.float() for model in (ours, theirs))
    apart, largest = (first - second).abs().max().item(), first.abs().max().item()
    if not apart <= TOLERANCE * largest:
        raise ValueError(f"{checkpoint}: GPT-2 with its weights gives other logits, by {apart:.3g} of {largest:.3g}")


def _remarks(ours: ArbProbForCausalLM, reason: str | None) -> list[str]:
    names = [name.split(".")[1] for name in EXTRA if name in ours.state_dict()]
    remarks = [f"left out, as GPT-2 has no such weights: {', '.join(names)}"] if names else []
    return [*remarks, f"GPT-2 misreads these weights: {reason}"] if reason else remarks
