"""Train the small network of the pictures and the demo: `python docs/train_demo.py outputs/demo`, half a core-hour.

It is `configs/conditional_tiny.yaml` with a vocabulary of 4,096 tokens made for the text that comes with Python, the
layout in which so small a network looks ahead soonest, and a task with more questions that ask for it. Further options
go to train_hf.py.
"""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from arbprob_hf.data.embedded import embedded_documents

ROOT = Path(__file__).parents[1]
END = "<|endoftext|>"
TASK = "0.5 * uniform(given=0.3..0.9, asked=0.2..1) + 0.3 * spans(1..8) + 0.2 * causal"
OPTIONS: Sequence[str] = (
    *("--layout", "sigma", "--target_positions", "true", "--task", TASK),
    *("--block_size", "64", "--max_steps", "6000", "--learning_rate", "2e-3", "--eval_steps", "1000"),
)


def make_tokenizer(size: int = 4096) -> PreTrainedTokenizerFast:
    """A byte-level BPE of `size` tokens, as GPT-2's, of the embedded text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=[END], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(embedded_documents(), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END, eos_token=END)


def main(argv: Sequence[str]) -> None:
    if not argv:
        sys.exit("usage: python docs/train_demo.py OUTPUT_FOLDER [options of train_hf.py]")
    folder = Path(argv[0]).resolve()
    vocabulary = folder.with_name(f"{folder.name}-tokenizer")
    make_tokenizer().save_pretrained(vocabulary)
    command = [sys.executable, str(ROOT / "train_hf.py"), "--config", str(ROOT / "configs" / "conditional_tiny.yaml")]
    command += ["--output_dir", str(folder), "--tokenizer", str(vocabulary), *OPTIONS, *argv[1:]]
    sys.exit(subprocess.run(command, check=False).returncode)


if __name__ == "__main__":
    main(sys.argv[1:])
