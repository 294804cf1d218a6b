"""The network of a run: a preset with random weights, or GPT-2 weights to go on from."""

import json
import logging
import math
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..analysis.layer_reach import shows_later
from ..model.configuration_arbprob import ArbProbConfig
from ..model.masks.mask import Mask
from ..model.modeling_arbprob import ArbProbForCausalLM
from ..model.saved_patterns import check_travels
from ..model_folder import load_network
from ..pattern_file import read_patterns
from ..runs.checkpoints import sha256
from ..runs.record import RECORD_NAME
from .arguments import ModelArguments

logger = logging.getLogger(__name__)

# weights that GPT-2 lacks
_ADDED_BY_A_TASK = ("transformer.wme.weight", "transformer.wtpe.weight")
_WEIGHTS = re.compile(r"(model|pytorch_model)(-\d+-of-\d+)?\.(safetensors|bin)")
_DROPOUTS = ("resid_pdrop", "embd_pdrop", "attn_pdrop")


def build_model(model_args: ModelArguments, tokenizer: PreTrainedTokenizerBase) -> ArbProbForCausalLM:
    """The float32 network that `model_args` describes, with `tokenizer`'s vocabulary.

    Random weights come from torch's global generator. Raises ValueError when loaded weights are not GPT-2's, not
    whole, or know fewer tokens than `tokenizer` has, when the file of patterns fails, and when the mask uses a pattern
    that cannot be saved.
    """
    if model_args.patterns is not None:
        read_patterns(model_args.patterns)
    if model_args.init_from is not None:
        return _loaded(model_args, tokenizer)
    names = ("mask", "n_layer", "n_head", "n_embd", "n_positions", "dropout", "initializer_range")
    given = {name: getattr(model_args, name) for name in names if getattr(model_args, name) is not None}
    given.update(_question_fields(model_args))
    special = {"bos_token_id": tokenizer.eos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = ArbProbConfig.preset(model_args.preset or "nano", vocab_size=len(tokenizer), **special, **given)
    check_travels(map(Mask.parse, config.mask_texts))
    model = ArbProbForCausalLM._from_config(config, dtype=torch.float32, **_attention(model_args))
    if model_args.position_init == "sinusoidal":
        fill_with_sinusoids(model.transformer.wpe.weight, config.initializer_range)
    return model


@torch.no_grad()
def fill_with_sinusoids(table: Tensor, deviation: float) -> None:
    """Start a table of positions (P, D) as sines and cosines, of wavelengths from 2 pi to 20000 pi, by turns.

    Neighbours are then alike from the first step, so that heads find "the token before" without learning it at each
    position by itself. Scaled to a root mean square of `deviation`. Vaswani et al., "Attention is all you need" (2017).
    """
    length, width = table.shape
    frequencies = 10000.0 ** (-torch.arange(0, width, 2) / width)
    angles = torch.arange(length)[:, None] * frequencies  # (P, ceil(D / 2))
    table[:, 0::2] = math.sqrt(2) * deviation * angles.sin()
    table[:, 1::2] = math.sqrt(2) * deviation * angles.cos()[:, : width // 2]


def warn_of_visible_answers(model: ArbProbForCausalLM, length: int) -> None:
    """Say so when the model's mask shows a token what it has to predict: its loss would mean little.

    Slot t predicts token t + 1, so what matters is whether any query sees a later key, in blocks of `length` tokens.
    """
    for text in masks_showing_answers(model, length):
        logger.warning("mask %s lets tokens see later ones, so the losses count answers that were shown", text)


def masks_showing_answers(model: ArbProbForCausalLM, length: int) -> list[str]:
    """Those masks of the model that let a token of blocks of `length` see a later one, each once."""
    return [text for text in dict.fromkeys(model.config.mask_texts) if shows_later(Mask.parse(text), length)]


def warn_of_other_questions(model_args: ModelArguments, model: ArbProbForCausalLM) -> None:
    """Say so where the weights of `init_from` were trained with another mask, layout or task than `model` is scored.

    A configuration file has a mask for the run that it trains: of other weights, the figures would be of no use.
    """
    source, config = str(model_args.init_from), model.config
    content, _ = ArbProbConfig.get_config_dict(source, revision=model_args.init_revision or "main")
    saved = ArbProbConfig.from_dict(content)
    layers = config.n_layer
    # one text stands for all layers
    own, given = (
        list(map(Mask.parse, texts * (layers // len(texts)))) for texts in (saved.mask_texts, config.mask_texts)
    )
    differ: dict[str, tuple[Any, Any]] = {}
    if own != given:
        differ["mask"] = saved.mask, config.mask
    if saved.layout != config.layout:
        differ["layout"] = saved.layout, config.layout
    if saved.layout == config.layout != "causal" and saved.given_sees != config.given_sees:
        differ["given_sees"] = saved.given_sees, config.given_sees
    task = _recorded_task(Path(source).expanduser())
    if task is not None and task != model_args.task:
        differ["task"] = task, model_args.task or "next tokens alone"
    for name, (before, now) in differ.items():
        logger.warning(
            "%s: %s was trained with %s, and is scored with %s, as this run's options say; for figures of its own "
            "%s give --%s '%s'",
            *(name, source, before, now, name, name, before),
        )


def _recorded_task(folder: Path) -> str | None:
    """The task that the weights in `folder`, a checkpoint or a run, were trained on; None where nothing says it."""
    records = [folder / RECORD_NAME, *sorted(folder.glob(f"checkpoint-*/{RECORD_NAME}"))]
    path = next((one for one in records if one.is_file()), None)
    return None if path is None else json.loads(path.read_text(encoding="utf-8")).get("task")


def hub_name(source: str | None) -> str | None:
    """`source`, unless it is a path here: a card names no folder of the machine it was made on."""
    return None if source is None or Path(source).expanduser().exists() else source


def starting_weights(model_args: ModelArguments, model: ArbProbForCausalLM) -> dict[str, str]:
    """What the record and the card say of the weights a run started from; empty where these were random.

    `init_from` is a name on the Hub or, of a folder, its last name alone, as the rest is this machine's;
    `init_revision` the commit, or the SHA-256 of the folder's weights, which finds them again wherever they lie.
    """
    source = model_args.init_from
    if source is None:
        return {}
    if hub_name(source) is not None:
        commit = getattr(model.config, "_commit_hash", None)
        return {"init_from": source, "init_revision": f"commit {commit or model_args.init_revision or 'main'}"}
    folder = Path(source).expanduser().resolve()
    # pickles of other things lie there, too
    weights = sorted(one for one in folder.iterdir() if _WEIGHTS.fullmatch(one.name))
    return {"init_from": folder.name, "init_revision": f"weights of SHA-256 {sha256(*weights)}"}


def refuse_flex(model: ArbProbForCausalLM, device: torch.device) -> None:
    """Raise ValueError where flex attention cannot train: on a CPU, or with dropout of attention weights."""
    if model.config._attn_implementation != "flex_attention":
        return
    if device.type == "cpu":
        raise ValueError("attn_implementation: flex_attention has no backward on the CPU; give sdpa")
    if model.config.attn_pdrop > 0:
        raise ValueError(
            f"dropout: flex_attention drops no attention weights, got attn_pdrop={model.config.attn_pdrop}; give "
            "--dropout 0, or attn_implementation sdpa"
        )


def _loaded(model_args: ModelArguments, tokenizer: PreTrainedTokenizerBase) -> ArbProbForCausalLM:
    changed: dict[str, Any] = {} if model_args.mask is None else {"mask": model_args.mask}
    changed.update(_question_fields(model_args))
    if model_args.dropout is not None:
        changed.update(dict.fromkeys(_DROPOUTS, model_args.dropout))
    try:
        model = load_network(
            str(model_args.init_from),
            trust_remote_code=model_args.trust_remote_code,
            # the vectors that a task adds start at zero
            may_lack=_ADDED_BY_A_TASK if model_args.task else (),
            revision=model_args.init_revision or "main",
            # a checkpoint saved in half precision would be trained in it
            dtype=torch.float32,
            **_attention(model_args),
            **changed,
        )
    except ValueError as error:
        raise ValueError(f"init_from: {error}") from error
    if model_args.task is not None and set(model.config.mask_texts) != {"causal"}:
        raise ValueError(
            f"init_from: {model_args.init_from!r:.80} has the mask {model.config.mask!s:.60}, which a task would "
            "overrule; add --mask causal to take its weights without it"
        )
    check_travels(map(Mask.parse, model.config.mask_texts))
    if len(tokenizer) > model.config.vocab_size:
        raise ValueError(
            f"init_from: {model_args.init_from!r:.80} knows {model.config.vocab_size} tokens, "
            f"the tokenizer has {len(tokenizer)}; give the tokenizer these weights were trained with"
        )
    return model


def _question_fields(model_args: ModelArguments) -> dict[str, Any]:
    """The fields of the configuration that say how the network answers questions: as it is trained."""
    if model_args.task is None:
        return {"layout": "causal", "given_sees": "earlier"}
    return {
        "layout": model_args.layout,
        "given_sees": model_args.given_sees,
        "mask_token": True,
        "target_positions": model_args.layout == "sigma",
    }


def _attention(model_args: ModelArguments) -> dict[str, Any]:
    return {} if model_args.attn_implementation is None else {"attn_implementation": model_args.attn_implementation}
