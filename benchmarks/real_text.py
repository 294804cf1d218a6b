"""Trains a causal network and three that answer any question on the same text, and compares them on the same questions.

    python benchmarks/real_text.py --source FILE.txt --out outputs/real_text --steps 900 --vocabulary 1024

Every run has the same blocks in the same order, steps, seed and sizes: configs/conditional_tiny.yaml without dropout,
as hardly any text is seen twice, with larger initial weights and positions that start as sinusoids. On a CPU nine
tenths of the time of so small a network go into GPT-2's 50257 tokens; `--vocabulary` trains a byte-level tokenizer of
so many tokens on the same file instead. A run that is finished is not made again: give other options another --out.
Options that are not named here go to every run, as train_hf.py takes them; on a GPU, at the size of DistilGPT-2:

    python benchmarks/real_text.py --source FILE.txt --out outputs/distilgpt2 --at-once --steps 3000 --batch 32 \\
        --initializer-range 0.02 --preset distilgpt2 --learning_rate 6e-4 --dropout 0.1 --bf16 true

Leaves a folder for each run, `comparison/` with the five modes side by side, and `sampling.md`: forward passes per
token of the three samplers where 90 % of a text is masked.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from arbprob_hf import ArbProbForCausalLM, Conditional
from arbprob_hf.data.eval_sets import load_modes

START = "<|endoftext|>"
ROOT = Path(__file__).parents[1]
# everything that is not given is asked, so that each target has all tokens before it and some of those after it
TASK = "0.4 * uniform(given=0..0.9) + 0.3 * spans(1..3) + 0.3 * causal"
# how each run differs from configs/conditional_tiny.yaml; the first has the questions
RUNS = {
    "two_stream": ["--task", TASK],
    "prefix": ["--task", TASK, "--layout", "prefix"],
    "sigma": ["--task", TASK, "--layout", "sigma"],
    "causal": ["--task", "causal", "--layout", "causal"],
}


def main(argv: Sequence[str]) -> None:
    """Train what is missing, compare, and count passes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default="embedded", help="text, as train_hf.py takes it")
    parser.add_argument("--out", type=Path, default=Path("outputs/real_text"))
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--batch", type=int, default=16, help="blocks a step")
    parser.add_argument("--block-size", type=int, default=256, help="tokens of a block, at most 256")
    parser.add_argument(
        "--vocabulary", type=int, default=0, help="tokens of a tokenizer trained on --source; 0: GPT-2's"
    )
    parser.add_argument("--initializer-range", type=float, default=0.06, help="of so narrow a network; GPT-2 has 0.02")
    parser.add_argument("--position-init", choices=("normal", "sinusoidal"), default="sinusoidal")
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS))
    parser.add_argument("--rows", type=int, default=8, help="validation blocks that are sampled")
    parser.add_argument("--at-once", action="store_true", help="train all runs at the same time, as a GPU can")
    parser.add_argument("--train-only", action="store_true", help="leave the comparison to another call")
    options, more = parser.parse_known_args(argv)
    tokenizer = "gpt2"
    if options.vocabulary:
        tokenizer = str(train_tokenizer(Path(options.source), options.vocabulary, options.out / "tokenizer"))
    missing = [name for name in options.runs if not (options.out / name / "README.md").exists()]
    with ThreadPoolExecutor(len(RUNS) if options.at_once else 1) as pool:
        list(pool.map(lambda name: train(name, tokenizer, options, more), missing))
    if options.train_only:
        return
    runs = [str(options.out / name) for name in RUNS if (options.out / name / "README.md").exists()]
    compare = [sys.executable, "-m", "arbprob_hf", "compare", *runs, "--force"]
    compare += ["--out", str(options.out / "comparison")]
    subprocess.run(compare, check=True, cwd=ROOT)
    table = count_passes(options.out / "two_stream", rows=options.rows)
    (options.out / "sampling.md").write_text(table, encoding="utf-8")
    print(table)


def train_tokenizer(text: Path, size: int, folder: Path) -> Path:
    """A byte-level BPE tokenizer of `size` tokens, trained on a file; the one in `folder` if it is there."""
    if not (folder / "tokenizer.json").exists():
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=[START], initial_alphabet=alphabet)
        tokenizer.train([str(text)], trainer)
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=START, eos_token=START).save_pretrained(folder)
    return folder.resolve()


def train(name: str, tokenizer: str, options: argparse.Namespace, more: Sequence[str]) -> None:
    """One run of `train_hf.py`; `more` are options of its own."""
    asked = dict(zip(RUNS[name][::2], RUNS[name][1::2], strict=True))
    usual = {
        "--dropout": "0",
        "--initializer_range": str(options.initializer_range),
        "--position_init": options.position_init,
        # as much text whatever the blocks
        "--num_val_samples": str(64 * 256 // options.block_size),
        "--per_device_eval_batch_size": "8",
        "--disable_tqdm": "true",
        "--eval_steps": str(max(1, options.steps // 2)),
        "--save_steps": str(options.steps),
        "--num_train_epochs": "1",
        "--resume_from_checkpoint": "true",
        "--sample_count": "0",
    }
    own = {
        "--source": options.source,
        "--tokenizer": tokenizer,
        "--max_steps": str(options.steps),
        "--per_device_train_batch_size": str(options.batch),
        "--block_size": str(options.block_size),
        "--output_dir": str((options.out / name).resolve()),
    }
    known = {option: value for option, value in usual.items() if option not in more}
    words = [word for pair in {**asked, **known, **own}.items() for word in pair]
    words = ["--config", "configs/conditional_tiny.yaml", *words, *more]
    subprocess.run([sys.executable, "train_hf.py", *words], check=True, cwd=ROOT)


def count_passes(run: Path, *, rows: int, share: float = 0.9, seed: int = 0) -> str:
    """Forward passes of each sampler, each row by itself, with `share` of its tokens asked in random positions."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = ArbProbForCausalLM.from_pretrained(run).eval().to(device)
    blocks = load_modes(run / "evaluation")["task"].select(range(rows))
    generator = torch.Generator(device).manual_seed(seed)
    lines = ["| sampler | order | passes per token | mean log P of a sampled token |", "|---|---|---|---|"]
    for order in ("temporal", "random"):
        for method, width in (("sequential", 1), ("speculative", 1), ("fused", 4), ("fused", 8)):
            passes = targets = 0
            nats = 0.0
            for row in blocks:
                ids = torch.as_tensor(row["input_ids"]).long()[None]
                asked = torch.rand(ids.shape, generator=torch.Generator().manual_seed(int(row["input_ids"][1]))) < share
                asked[:, 0] = False
                torch.manual_seed(seed)
                found = model.sample(
                    ids.to(device), Conditional(~asked, asked, order), method=method, width=width, generator=generator
                )
                passes, targets = passes + found.forward_passes, targets + int(asked.sum())
                nats += float(found.log_probs.sum())
            name = method if method != "fused" else f"fused, {width} drafts"
            lines.append(f"| {name} | {order} | {passes / targets:.3f} | {nats / targets:.3f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main(sys.argv[1:])
