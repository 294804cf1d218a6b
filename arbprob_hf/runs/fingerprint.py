"""The fingerprint of a saved model: the hashes of its files, and what the network says to a fixed batch.

`fingerprint.json` lies beside the weights and travels with them. Tied to their hash, it says nothing of other weights;
whoever loads them anywhere can see whether they give the numbers that they gave where they were saved.
"""

import hashlib
import json
import logging
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from ..atomic_write import replacing
from .checkpoints import sha256

logger = logging.getLogger(__name__)

FINGERPRINT_NAME = "fingerprint.json"
# what a model is loaded from; what else a save writes may stay behind when the model travels
TRAVELLING = (
    *("config.json", "generation_config.json", "model.safetensors", "model-*-of-*.safetensors"),
    *("model.safetensors.index.json", "*_arbprob.py", "adapter_config.json", "adapter_model.safetensors"),
    *("pytorch_model.bin", "pytorch_model-*-of-*.bin", "pytorch_model.bin.index.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "chat_template.jinja"),
)
_STAYING = ("training_args.bin",)
# how far log-probabilities may lie apart on another machine, backend or release of torch, as a share of the largest:
# about ten times what eager and sdpa, one thread and two were found to differ by
BOUNDS = {"torch.float32": 2e-5, "torch.float64": 1e-6, "torch.float16": 2e-3, "torch.bfloat16": 2e-2}
_LONGEST = 32


@dataclass(frozen=True)
class Comparison:
    """How figures compare with those that were saved; `is_same` is the verdict, `text` says why in a line."""

    is_same: bool
    text: str


def write_fingerprint(folder: Path, model: nn.Module | None) -> None:
    """Write the fingerprint of the model saved in `folder`, which is `model`; without one, of its files alone."""
    figures = None
    if model is not None:
        try:
            figures = measure(model)
        except (RuntimeError, ValueError, TypeError, NotImplementedError, AttributeError) as error:
            said = " ".join(str(error).split())
            logger.warning(
                "%s: no figures in it, as the network does not answer its batch: %.200s", FINGERPRINT_NAME, said
            )
    content = {
        "format": 1,
        "transformers": transformers.__version__,
        "files": {path.name: sha256(path) for path in _listed(folder)},
        "figures": figures,
    }
    with replacing(folder / FINGERPRINT_NAME) as beside:
        beside.write_text(_dumped({**content, "sha256": _digest(content)}), encoding="utf-8")


def read_fingerprint(folder: Path) -> dict[str, Any] | None:
    """The fingerprint in `folder`, None where there is none. Raises ValueError for one that was changed."""
    path = folder / FINGERPRINT_NAME
    if not path.is_file():
        return None
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text)
        digest = content.pop("sha256")
        is_whole = content["format"] == 1 and digest == _digest(content)
        is_whole = is_whole and text == _dumped({**content, "sha256": digest})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        is_whole = False
    if not is_whole:
        raise ValueError(f"{FINGERPRINT_NAME} is damaged: its own SHA-256 differs")
    found: dict[str, Any] = content
    return found


def changed_files(folder: Path, saved: Mapping[str, str]) -> list[str]:
    """What is wrong with the files of a fingerprint, a line each; a file that need not travel may be missing."""
    problems = []
    for name, digest in saved.items():
        path = folder / name
        if not path.is_file():
            problems += [] if name in _STAYING else [f"{name} is missing"]
        elif sha256(path) != digest:
            problems.append(f"{name} is not the file that was saved (its SHA-256 differs)")
    return problems


def new_files(folder: Path, saved: Mapping[str, str]) -> list[str]:
    """The files that a model is loaded from and that were not there when the fingerprint was made."""
    return [path.name for path in _listed(folder) if path.name not in saved and path.name not in _STAYING]


@torch.no_grad()
def measure(model: nn.Module) -> dict[str, Any]:
    """What `model` says to a fixed batch: a hash of all logits, log-probabilities of some, and where that was.

    The batch is (2, T) tokens, T at most 32. Train mode and random state are left as they were.
    """
    config: Any = model.config
    device = next(model.parameters()).device
    ids = fixed_batch(config.vocab_size, config.max_position_embeddings).to(device)
    was_training = model.training
    model.eval()
    try:
        output = model(input_ids=ids)
    finally:
        model.train(was_training)
    scores = output.logits if "logits" in output else output.last_hidden_state
    logits = scores.float().cpu().contiguous()
    return {
        "logits": hashlib.sha256(logits.numpy().tobytes()).hexdigest(),
        "log_probs": _some(logits),
        "made_by": {
            "torch": torch.__version__,
            "device": device.type,
            "processor": _processor(),
            "threads": torch.get_num_threads(),
            "attention": getattr(config, "_attn_implementation", None),
            "dtype": str(next(model.parameters()).dtype),
        },
    }


def fixed_batch(vocab_size: int, n_positions: int) -> Tensor:
    """Tokens that look like none in particular, long (2, T)."""
    length = min(_LONGEST, n_positions)
    return torch.arange(2 * length).reshape(2, length) * 7919 % vocab_size


def compare_figures(saved: Mapping[str, Any], now: Mapping[str, Any]) -> Comparison:
    """Whether a network says what it said: bit for bit where it was, else within BOUNDS of its number format."""
    before, here = saved["made_by"], now["made_by"]
    if saved["logits"] == now["logits"]:
        return Comparison(True, "the same logits, bit for bit, as when it was saved")
    one, other = torch.tensor(saved["log_probs"]), torch.tensor(now["log_probs"])
    if one.shape != other.shape or not bool(torch.isfinite(other).all()):
        return Comparison(False, "logits of another shape, or not finite, than when it was saved")
    apart = float((one - other).abs().max())
    differing = [name for name in before if before[name] != here.get(name)]
    if not differing and before["device"] == "cpu":
        return Comparison(
            False, f"other logits than when it was saved, by {apart:.2g} nats, on the same kind of machine"
        )
    bound = max(BOUNDS.get(made["dtype"], 0.0) for made in (before, here)) * max(1.0, float(one.abs().max()))
    where = ", ".join(f"{name} {before[name]} then, {here.get(name)} here" for name in differing) or "on a GPU"
    said = f"log-probabilities differ by {apart:.2g} nats at most; {bound:.2g} is allowed ({where})"
    return Comparison(apart <= bound, said)


def _listed(folder: Path) -> list[Path]:
    found = {path for pattern in (*TRAVELLING, *_STAYING) for path in folder.glob(pattern) if path.is_file()}
    return sorted(found)


def _some(logits: Tensor) -> list[float]:
    # of each row, the likeliest and another one: (N, C) -> 2 N
    rows = logits.reshape(-1, logits.shape[-1]).log_softmax(-1)
    chosen = (torch.arange(len(rows)) * 7919 + 13) % rows.shape[1]
    values: Sequence[float] = torch.cat([rows.amax(1), rows.gather(1, chosen[:, None])[:, 0]]).tolist()
    return list(values)


def _processor() -> str:
    name = platform.processor()
    try:
        found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), flags=re.MULTILINE)
        name = found[1].strip() if found else name
    except OSError:
        # not on Linux
        pass
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()} {name}".strip()


def _dumped(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=1, sort_keys=True)


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
