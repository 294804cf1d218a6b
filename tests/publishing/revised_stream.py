"""What test_revisions.py runs in a process of its own: a streaming run, commits to its data set, and the run resumed.

Prints one JSON object: the commits, the errors, the digests of weights, the texts of both commits.
"""

import hashlib
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import datasets
from huggingface_hub import HfApi

from arbprob_hf.data import DataArguments
from arbprob_hf.data.sources import load_texts
from arbprob_hf.training.arguments import parse
from arbprob_hf.training.run import train

NAME = "some/texts"


def run(output: Path, **changes: object) -> str:
    """Train four steps, a checkpoint after two; the digest of the weights."""
    fields = {
        **dict(source=NAME, streaming="true", shuffle_buffer=8, num_val_samples=4, validation_share=0.2),
        **dict(output_dir=output, n_embd=16, n_positions=32, max_steps=4, save_steps=2, eval_steps=4, batch_size=2),
        **dict(sample_count=0, use_cpu="true", disable_tqdm="true"),
        **changes,
    }
    train(*parse([f"--{name}={value}" for name, value in fields.items()]))
    return hashlib.sha256((output / "model.safetensors").read_bytes()).hexdigest()


def error_of(work: Callable[[], object]) -> str:
    """What `work` is refused with."""
    try:
        work()
    except ValueError as error:
        return str(error)
    return "not refused"


def main(folder: Path) -> None:
    """All of it, below `folder`."""
    datasets.disable_progress_bars()
    api, whole, cut = HfApi(), folder / "whole", folder / "cut"
    commits = [api.dataset_info(NAME).sha]
    weights = run(whole)
    shutil.copytree(whole, cut)
    shutil.rmtree(cut / "checkpoint-4")
    card = {"path_or_fileobj": b"What these texts are.\n", "path_in_repo": "README.md"}
    commits.append(api.upload_file(**card, repo_id=NAME, repo_type="dataset").oid)
    refused = error_of(lambda: run(cut, resume="true"))
    resumed = run(cut, resume="true", source_revision=commits[0])
    other = {"path_or_fileobj": b'{"text": "another"}\n{"text": "text"}\n', "path_in_repo": "train.jsonl"}
    api.upload_file(**other, repo_id=NAME, repo_type="dataset")
    old, new = (load_texts(DataArguments(source=NAME, source_revision=one)) for one in (commits[0], "main"))
    missing = error_of(lambda: load_texts(DataArguments(source=NAME, source_revision="v1")))
    found = {
        "commits": commits,
        "weights": weights,
        "resumed": resumed,
        "refused": refused,
        "missing": missing,
        "record": json.loads((whole / "checkpoint-2" / "run.json").read_text()),
        "card": (whole / "README.md").read_text(encoding="utf-8"),
        **{name: len(texts.train) + len(texts.validation) for name, texts in (("old", old), ("new", new))},
        "read": old.origin.commit,
    }
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
