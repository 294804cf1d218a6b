"""Whether a saved model is whole: its files, its weights, that it loads, and that it says what it said when saved."""

import contextlib
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars
from safetensors import safe_open
from transformers import AutoTokenizer, PreTrainedModel
from transformers.utils import logging

from ..errors import check_folder, one_line
from ..model import classifiers, modeling_arbprob
from ..model_folder import load_network, read_config
from ..runs.checkpoints import MANIFEST_NAME, numbered, unlisted_names
from ..runs.checkpoints import verify as verify_seal
from ..runs.fingerprint import (
    FINGERPRINT_NAME,
    changed_files,
    compare_figures,
    fixed_batch,
    measure,
    new_files,
    read_fingerprint,
    write_fingerprint,
)
from .load_test import prove

_KNOWN = ("arbprob", "gpt2")


@dataclass(frozen=True)
class Finding:
    """What one check found: `ok`, `fail`, or a `note` of what could not be checked."""

    status: Literal["ok", "note", "fail"]
    check: str
    text: str

    def __str__(self) -> str:
        return f"{self.status:<4}  {self.check}: {self.text}"


def verify(folder: Path, *, trust_remote_code: bool = False) -> list[Finding]:
    """Check a run's folder, a checkpoint, or the folder of a model: one finding a check.

    Hashes of `manifest.json` and `fingerprint.json` (or of the Hub's cache), weights that are not finite, that the
    model loads by this package's classes and, where it is trusted, by its own code, its tokenizer, and that it gives
    the figures of its fingerprint. Once a hash fails, no code of the folder is run, trusted or not.

    Raises:
        ValueError: no folder, or one that holds no model of this package's kind and never did; one line.
    """
    check_folder(folder, "name a run's folder, a checkpoint, or the folder of a model")
    has_model = any((folder / name).exists() for name in ("config.json", MANIFEST_NAME, FINGERPRINT_NAME))
    if not has_model and not numbered(folder):
        raise ValueError(f"{folder}: holds no model (no config.json); name a run's folder, a checkpoint, or a model's")
    findings = [*_files(folder)]
    # weights without a configuration are no run that has yet to finish
    if not has_model and not new_files(folder, {}):
        text = "none yet: the run is not finished, --resume_from_checkpoint true goes on with it"
        return [*findings, Finding("note", "model", text)]
    saved = _saved(folder, findings)
    if trust_remote_code and any(finding.status == "fail" for finding in findings):
        trust_remote_code = False
        findings.append(Finding("note", "remote code", "not run, as files are not what they were"))
    with _without_bars():
        for check, work in (
            ("weights", lambda: _weights(folder)),
            ("model", lambda: _loads(folder, saved, trust_remote_code=trust_remote_code)),
            ("tokenizer", lambda: _tokenizer(folder, trust_remote_code=trust_remote_code)),
        ):
            findings += _guarded(check, work)
    return findings


def record(folder: Path, *, trust_remote_code: bool = False) -> None:
    """Write a fingerprint of the model in `folder` as it is now, to verify it by later.

    Raises ValueError, in one line, for a sealed checkpoint, which it would break, and where a check of `verify` fails:
    the new fingerprint would call whole what is damaged.
    """
    if (folder / MANIFEST_NAME).exists():
        raise ValueError(
            f"record: {folder} is a sealed checkpoint, which another {FINGERPRINT_NAME} would break; verify it by its "
            f"{MANIFEST_NAME}, or record a copy without that file"
        )
    failed = next((one for one in verify(folder, trust_remote_code=trust_remote_code) if one.status == "fail"), None)
    if failed is not None:
        advice = f"; if the change was yours, remove {FINGERPRINT_NAME} first" * (folder / FINGERPRINT_NAME).exists()
        raise ValueError(f"record: {folder} is not whole, {failed.check}: {failed.text}{advice}")
    write_fingerprint(folder, _network(folder, {}, trust_remote_code=trust_remote_code))


@contextlib.contextmanager
def _without_bars() -> Iterator[None]:
    shown = logging.is_progress_bar_enabled(), not are_progress_bars_disabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        # the first switches the second, too
        if shown[0]:
            logging.enable_progress_bar()
        if not shown[1]:
            disable_progress_bars()


def _guarded(check: str, work: Callable[[], list[Finding]]) -> list[Finding]:
    try:
        return work()
    except Exception as error:
        # what a damaged file raises differs from one to the next
        return [Finding("fail", check, f"{one_line(error):.300}")]


def _files(folder: Path) -> Iterator[Finding]:
    own = [("files", folder)] if (folder / MANIFEST_NAME).exists() else []
    for check, sealed in [*own, *((checkpoint.name, checkpoint) for checkpoint in numbered(folder))]:
        problem = verify_seal(sealed)
        yield Finding("fail" if problem else "ok", check, problem or f"as sealed in {MANIFEST_NAME}")
        others = [] if problem else unlisted_names(sealed)
        yield from (Finding("note", check, f"{name} was not there when it was sealed") for name in others)
    cached = _cached_blobs(folder)
    if cached:
        wrong = [path.name for path, digest in cached if _blob_digest(path, digest) != digest]
        yield from (Finding("fail", "download", f"{name} is not the file the Hub holds") for name in wrong)
        if not wrong:
            yield Finding("ok", "download", f"{len(cached)} files as the Hub names them")


def _saved(folder: Path, findings: list[Finding]) -> dict[str, Any]:
    """The fingerprint, empty where there is none to go by; what it says of the files is added to `findings`."""
    try:
        saved = read_fingerprint(folder)
    except ValueError as error:
        findings.append(Finding("fail", "fingerprint", str(error)))
        return {}
    if saved is None:
        text = f"no {FINGERPRINT_NAME}: a change that leaves weights finite and files readable is not seen"
        findings.append(Finding("note", "fingerprint", text))
        return {}
    problems = changed_files(folder, saved["files"])
    findings += [Finding("fail", "fingerprint", problem) for problem in problems]
    new = new_files(folder, saved["files"])
    findings += [Finding("note", "fingerprint", f"{name} was not there when the model was saved") for name in new]
    if not problems:
        findings.append(Finding("ok", "fingerprint", f"{len(saved['files'])} files as they were saved"))
    return saved


def _weights(folder: Path) -> list[Finding]:
    count, bad = 0, []
    for name, value in _tensors(folder):
        count += 1
        lost = int((~torch.isfinite(value)).sum()) if value.is_floating_point() else 0
        if lost:
            bad.append(f"{name} has {lost} of {value.numel()} numbers that are not finite")
    if not count:
        return [Finding("fail", "weights", "no model.safetensors and no pytorch_model.bin")]
    return [Finding("fail", "weights", one) for one in bad] or [
        Finding("ok", "weights", f"{count} tensors, all finite")
    ]


def _tensors(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    whole = sorted([*folder.glob("model.safetensors"), *folder.glob("model-*-of-*.safetensors")])
    for path in whole:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                yield name, file.get_tensor(name)
    for path in [] if whole else sorted([*folder.glob("pytorch_model.bin"), *folder.glob("pytorch_model-*-of-*.bin")]):
        yield from torch.load(path, map_location="cpu", weights_only=True).items()


def _loads(folder: Path, saved: dict[str, Any], *, trust_remote_code: bool) -> list[Finding]:
    figures = saved.get("figures")
    model = _network(folder, figures["made_by"] if figures else {}, trust_remote_code=trust_remote_code)
    findings = [Finding("ok", "model", f"loads as {type(model).__name__}")]
    if trust_remote_code and (folder / "modeling_arbprob.py").exists():
        findings.append(
            Finding("ok", "remote code", f"loads without this package; {prove(folder):.4f} nats on a batch")
        )
    findings.append(_figures(model, figures, folder))
    return findings


def _network(folder: Path, made_by: dict[str, Any], *, trust_remote_code: bool) -> PreTrainedModel:
    config = read_config(folder)
    names = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("architectures") or []
    kind = next(
        (found for name in names for room in (modeling_arbprob, classifiers) if (found := getattr(room, name, None))),
        None,
    )
    attention = made_by.get("attention")
    options = {"attn_implementation": attention} if attention in ("eager", "sdpa") else {}
    if kind in (None, modeling_arbprob.ArbProbForCausalLM):
        if config.model_type not in _KNOWN:
            raise ValueError(f"config.json: expected model_type {' or '.join(_KNOWN)}, got {config.model_type!r:.60}")
        model: PreTrainedModel = load_network(folder, trust_remote_code=trust_remote_code, **options)
    else:
        model, found = kind.from_pretrained(
            folder, trust_remote_code=trust_remote_code, output_loading_info=True, **options
        )
        lacking = sorted(map(str, [*found["missing_keys"], *found["mismatched_keys"]]))
        if lacking:
            raise ValueError(f"lacks {len(lacking)} of its weights, such as {lacking[0]}")
    for value in model.parameters():
        # weights mapped from a file lie where they lie there, and a product may round by where its numbers lie
        value.data = value.data.clone()
    return model.eval()


def _figures(model: PreTrainedModel, figures: dict[str, Any] | None, folder: Path) -> Finding:
    if not figures:
        with torch.no_grad():
            output = model(input_ids=fixed_batch(model.config.vocab_size, model.config.max_position_embeddings))
        is_finite = bool(torch.isfinite(output[0]).all())
        text = "nothing to compare with: " + (
            "finite figures on a batch" if is_finite else "figures that are not finite"
        )
        return Finding("note" if is_finite else "fail", "figures", text)
    threads, wanted = torch.get_num_threads(), figures["made_by"]["threads"]
    torch.set_num_threads(wanted if figures["made_by"]["device"] == "cpu" else threads)
    try:
        found = compare_figures(figures, measure(model))
    finally:
        torch.set_num_threads(threads)
    return Finding("ok" if found.is_same else "fail", "figures", found.text)


def _tokenizer(folder: Path, *, trust_remote_code: bool) -> list[Finding]:
    path = folder / "tokenizer_config.json"
    if not path.exists():
        return [Finding("note", "tokenizer", "none in the folder")]
    if not trust_remote_code and "auto_map" in json.loads(path.read_text(encoding="utf-8")):
        return [Finding("note", "tokenizer", "has code of its own, which runs with --trust-remote-code alone")]
    config = read_config(folder)
    # without its configuration, and where nothing says whether it is trusted, it would ask whether code may run
    tokenizer = AutoTokenizer.from_pretrained(folder, config=config, trust_remote_code=trust_remote_code)
    size = config.vocab_size
    text = "A mask says who may see whom, 1 < 2."
    ids = tokenizer(text)["input_ids"]
    if max(ids) >= size:
        return [Finding("fail", "tokenizer", f"makes token {max(ids)}, the network knows {size}")]
    if str(tokenizer.decode(ids, skip_special_tokens=True)).strip() != text:
        return [Finding("fail", "tokenizer", "does not give back a text that it cut into tokens")]
    return [Finding("ok", "tokenizer", f"{len(tokenizer)} tokens")]


def _cached_blobs(folder: Path) -> list[tuple[Path, str]]:
    # the Hub's client keeps files under their hash, and a snapshot of links to these
    links = [path for path in folder.iterdir() if path.is_symlink() and path.exists()]
    named = [(path, path.resolve().name) for path in links]
    return [(path, name) for path, name in named if re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", name)]


def _blob_digest(path: Path, name: str) -> str:
    content = path.read_bytes()
    if len(name) == 64:
        return hashlib.sha256(content).hexdigest()
    # as git names a file
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
