"""What of a folder may travel: a list of what a model needs, and a search of it for tokens and local paths."""

import json
import mmap
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

CARD = "README.md"
# a list of what may, not of what may not: a folder also holds checkpoints, pickles, locks and notes
_MODEL = (
    *("config.json", "generation_config.json", "model.safetensors", "model-*-of-*.safetensors"),
    *("model.safetensors.index.json", "*_arbprob.py", "fingerprint.json"),
)
_TOKENIZER = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "chat_template.jinja"),
)
_ABOUT = (*(CARD, "LICENSE", "logs/training_log.csv", "logs/training_curves.png", "logs/mask.png", "logs/samples.txt"),)
# a Hub token, as it stands in a text, a pickle or anywhere else
_TOKEN = re.compile(rb"(?<![A-Za-z0-9_])hf_[A-Za-z0-9]{30,}")
# what is not text has no path in it that anybody wrote down
_TEXT_SUFFIXES = {".json", ".md", ".py", ".txt", ".csv", ".jinja", ".yaml", ""}


def model_files(folder: Path) -> dict[str, Path]:
    """The files in `folder` that a model is loaded from, tokenizer included, by their names."""
    return dict(_matching(folder, (*_MODEL, *_TOKENIZER)))


def about_files(folder: Path) -> dict[str, Path]:
    """The files in `folder` that describe its run: card, license, logs and pictures, by their names."""
    return dict(_matching(folder, _ABOUT))


def run_files(folder: Path, also: Sequence[str] = ()) -> dict[str, Path]:
    """The files of the run in `folder` that are published, by their names in the repository.

    Args:
        also: patterns of further ones, such as `evaluation/*`.

    Raises:
        ValueError: a folder that holds no finished model with its card, or a pattern that matches nothing.
    """
    files = {**model_files(folder), **about_files(folder)}
    weights = [name for name in files if name.endswith(".safetensors")]
    for what, found in (("config.json", "config.json" in files), ("weights (model.safetensors)", bool(weights))):
        if not found:
            raise ValueError(f"{folder}: holds no {what}; name the output folder of a finished run")
    if CARD not in files:
        raise ValueError(f"{folder}: holds no {CARD}, which a run writes last; resume the run, or write the card")
    for pattern in also:
        further = dict(_matching(folder, (pattern,)))
        if not further:
            raise ValueError(
                f"also: {pattern!r:.80} matches no file in {folder}; give a pattern such as 'evaluation/*'"
            )
        files.update(further)
    return files


def is_of_a_model(name: str) -> bool:
    """Whether a file of this name at the top of a repository belongs to the weights or the code of a model."""
    return "/" not in name and any(Path(name).match(pattern) for pattern in _MODEL)


def refuse_secrets(
    files: Mapping[str, Path], *, folder: Path, token: str | None, may_hold_paths: Sequence[str] = ()
) -> None:
    """Raise ValueError, without quoting it, where one of `files` holds a Hub token or a path of this machine.

    Args:
        folder: the run's; its path and that of the user's home are looked for in texts.
        token: the one in use, whatever its form.
        may_hold_paths: names of files in which a path is no secret, as the user named them.
    """
    paths = [path.encode() for path in _local_paths(folder)]
    for name, path in files.items():
        if path.stat().st_size == 0:
            continue
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if _TOKEN.search(content) or (token and content.find(token.encode()) >= 0):
                raise ValueError(f"{name}: holds a Hub token; nothing was uploaded: remove it, and revoke the token")
            if name in may_hold_paths or path.suffix not in _TEXT_SUFFIXES:
                continue
            if any(content.find(local) >= 0 for local in paths):
                raise ValueError(f"{name}: holds a path of this machine; nothing was uploaded: take it out of the file")


def refuse_foreign_code(config: Path) -> None:
    """Raise ValueError where `config`, a config.json, has code loaded from a repository other than its own."""
    named = json.loads(config.read_text(encoding="utf-8")).get("auto_map") or {}
    # transformers writes such code as owner/name--module.Class
    foreign = [str(value) for value in named.values() if "--" in str(value)]
    if foreign:
        raise ValueError(
            f"{config.name}: auto_map takes code from another repository, {foreign[0]:.80}; save the model from this "
            "package, so that its own code lies beside it"
        )


def _local_paths(folder: Path) -> list[str]:
    home = Path.home()
    # a home of / is in every address
    return [str(folder.resolve()), *([f"{home}/"] if len(home.parts) > 1 else [])]


def _matching(folder: Path, patterns: Sequence[str]) -> Iterator[tuple[str, Path]]:
    for pattern in patterns:
        for path in sorted(folder.glob(pattern)):
            if path.is_file():
                yield path.relative_to(folder).as_posix(), path
