"""Train the small network of the pictures and the screenshot: `python docs/train_demo.py outputs/stories`.

It takes minutes. The texts are stories of two sentences, of which the second tells who and what the first is about:
from left to right the first can only be guessed, given the rest it is certain. So a network of two layers shows in
minutes what looking ahead is worth. Further options go to train_hf.py.
"""

import json
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

ROOT = Path(__file__).parents[1]
END = "<|endoftext|>"
NAMES = (
    "Anna", "Ben", "Clara", "David", "Emma", "Felix", "Grace", "Henry",
    "Ida", "Jonas", "Kate", "Liam", "Mona", "Noah", "Olga", "Peter",
)  # fmt: skip
COLOURS = ("red", "green", "blue", "yellow", "white", "black")
THINGS = ("cup", "hat", "coat", "chair", "book", "lamp", "boat", "ball", "pen", "shoe")
VERBS = {"gave": "thanked {a} for the", "sold": "paid {a} for the", "lent": "returned to {a} the"}
TASK = "0.5 * uniform(given=0.3..0.95, asked=0.2..1) + 0.2 * spans(1..6) + 0.3 * causal"
OPTIONS: Sequence[str] = (
    *("--packing", "false", "--block_size", "32", "--task", TASK, "--max_steps", "800", "--learning_rate", "2e-3"),
    *("--per_device_train_batch_size", "32", "--eval_steps", "50", "--save_steps", "400", "--logging_steps", "10"),
    *("--n_positions", "64", "--dropout", "0", "--sample_prompt", "Anna", "--sample_tokens", "24"),
)


def stories(count: int, seed: int = 0) -> Iterator[str]:
    """Such stories, drawn at random."""
    drawn = random.Random(seed)
    for _ in range(count):
        (first, second), verb = drawn.sample(NAMES, 2), drawn.choice(list(VERBS))
        thing = f"{drawn.choice(COLOURS)} {drawn.choice(THINGS)}"
        yield f"{first} {verb} {second} the {thing}. Then {second} {VERBS[verb].format(a=first)} {thing}."


def make_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE, as GPT-2's, in which every word of the texts is one token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=1024, special_tokens=[END], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END, eos_token=END)


def main(argv: Sequence[str]) -> None:
    if not argv:
        sys.exit("usage: python docs/train_demo.py OUTPUT_FOLDER [options of train_hf.py]")
    folder = Path(argv[0]).resolve()
    text, vocabulary = folder.with_name(f"{folder.name}.jsonl"), folder.with_name(f"{folder.name}-tokenizer")
    texts = list(stories(20000))
    text.parent.mkdir(parents=True, exist_ok=True)
    text.write_text("".join(json.dumps({"text": story}) + "\n" for story in texts), encoding="utf-8")
    make_tokenizer(texts).save_pretrained(vocabulary)
    command = [sys.executable, str(ROOT / "train_hf.py"), "--config", str(ROOT / "configs" / "conditional_tiny.yaml")]
    command += ["--output_dir", str(folder), "--source", str(text), "--tokenizer", str(vocabulary), *OPTIONS, *argv[1:]]
    sys.exit(subprocess.run(command, check=False).returncode)


if __name__ == "__main__":
    main(sys.argv[1:])
