"""What stands around the network in a training run: the trainer, the collators, tokenising.

    python benchmarks/glue.py [--quick] [--rounds 5]

The trainer: milliseconds of a step of `ArbProbTrainer` above those of transformers' Trainer, on a network so small that
both are the time of a step; of each run the first steps are left out. The collators: their share, with the reading of
the blocks, of a step of `tiny`, 8 x 256 tokens. Tokenising: CPU time of the same text by one process, and by two that
share it, half of theirs each, which is the wall time where two processors are free. A process has one thread here; left
to itself a tokenizer takes as many as there are processors, and a second process gains little.
"""

import argparse
import io
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from measure import Row, in_turns, parser, report, spread, timed
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from arbprob_hf import ArbProbConfig, ArbProbForCausalLM
from arbprob_hf.data.arguments import DataArguments
from arbprob_hf.data.collators import BlockCollator, QuestionCollator
from arbprob_hf.data.dataset import _dataset, _tokenised
from arbprob_hf.data.packing import TokenDocuments, pack
from arbprob_hf.data.tasks import Task
from arbprob_hf.data.tokenizer import load_tokenizer
from arbprob_hf.training.trainer import ArbProbTrainer

BATCH, LENGTH = 8, 256
# steps of a short and of a long run; what lies between is steps alone
STEPS = 50, 350
# of a document, on average
DOCUMENT = 100


def main() -> None:
    options = parser(__doc__, rounds=5).parse_args()
    report(measure, options)


def measure(options: argparse.Namespace) -> Iterator[Row]:
    """The rows of the table."""
    rounds = 3 if options.quick else options.rounds
    yield trainer_row(rounds)
    yield from collator_rows(rounds)
    if not options.quick:
        yield tokenising_row(rounds)


def trainer_row(rounds: int) -> Row:
    """A step of the trainer above a step of transformers' own."""
    classes = {"hf": Trainer, "ours": ArbProbTrainer}
    taken: dict[str, list[float]] = {name: [] for name in classes}
    for _ in range(rounds + 1):
        for name, kind in classes.items():
            short, long = (run_of(kind, steps) for steps in STEPS)
            taken[name].append(1e3 * (long - short) / (STEPS[1] - STEPS[0]))
    # the first round loads what is loaded once
    above = [ours - hf for ours, hf in zip(taken["ours"][1:], taken["hf"][1:], strict=True)]
    note = (
        f"a step of a tiny network: {statistics.median(taken['ours']):.2f} ms, HF {statistics.median(taken['hf']):.2f}"
    )
    return Row("trainer, ms a step above transformers'", spread(above), "<= 0.5", note)


def run_of(kind: type[Trainer], steps: int) -> float:
    """Seconds of CPU time of a whole run of so many steps that saves and logs nothing."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "n_positions": 16, "n_embd": 8, "n_layer": 1, "n_head": 2}
    model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))
    tokens = torch.randint(40, (64, 12), generator=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=2,
            use_cpu=True,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            log_level="error",
        )
        data: Any = [{"input_ids": row, "labels": row} for row in tokens]
        trainer = kind(model=model, args=arguments, train_dataset=data)
        with redirect_stdout(io.StringIO()):
            # its last line, which is no row
            return timed(trainer.train)


def collator_rows(rounds: int) -> Iterator[Row]:
    """Reading and collating a batch, as a share of a step on it."""
    config = ArbProbConfig.preset("tiny", dropout=0.0, mask_token=True)
    blocks = packed_blocks(config.vocab_size)
    model = ArbProbForCausalLM(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    collators: dict[str, Callable[..., dict[str, torch.Tensor]]] = {
        "blocks": BlockCollator(),
        "questions drawn": QuestionCollator("two_stream", given_sees="all", task=Task.parse("uniform")),
    }
    for name, collate in collators.items():

        def read(collate: Callable[..., dict[str, torch.Tensor]] = collate) -> dict[str, torch.Tensor]:
            rows = blocks[:BATCH]
            return collate([{key: rows[key][number] for key in rows} for number in range(BATCH)])

        def step(batch: dict[str, torch.Tensor]) -> None:
            model(**batch, return_logits=False, use_cache=False).loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        batch = read()
        times = in_turns({"read": read, "step": lambda batch=batch: step(batch)}, rounds=rounds)
        shares = [100 * part / whole for part, whole in zip(times["read"], times["step"], strict=True)]
        note = f"{1e3 * min(times['read']):.2f} ms of {1e3 * min(times['step']):.0f} ms"
        yield Row(f"collator of {name}, % of a step", spread(shares), "<= 1", note)


def packed_blocks(vocab_size: int) -> Any:
    """Blocks as a run reads them: documents of about DOCUMENT tokens, packed."""
    draw = np.random.default_rng(0)
    lengths = draw.integers(DOCUMENT // 2, 2 * DOCUMENT, 100)
    tokens = draw.integers(vocab_size - 1, size=lengths.sum()).astype(np.uint16)
    packed = pack(TokenDocuments(tokens, lengths, lengths), block_size=LENGTH, separator=vocab_size - 1)
    return _dataset(packed).add_column("index", list(range(len(packed.input_ids)))).with_format("numpy")


def tokenising_row(rounds: int) -> Row:
    """The tokenising of a run's text by one process and by two."""
    # threads of its own would hide what a process gains
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    tokenizer, draw = load_tokenizer("gpt2"), np.random.default_rng(0)
    words = [token.lstrip("\u0120") for token in tokenizer.convert_ids_to_tokens(range(1000, 9000))]
    texts = Dataset.from_dict({"text": [" ".join(draw.choice(words, 600)) for _ in range(3000)]})
    taken: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(rounds):
        for workers, seconds in taken.items():
            own, children = cpu_seconds()
            _tokenised(texts, tokenizer, DataArguments(preprocessing_num_workers=workers), None)
            own, children = (now - before for now, before in zip(cpu_seconds(), (own, children), strict=True))
            seconds.append(own + children / workers)
    ratios = [one / two for one, two in zip(taken[1], taken[2], strict=True)]
    note = f"one {min(taken[1]):.1f} s, two {min(taken[2]):.1f} s"
    return Row("tokenising, two processes against one", spread(ratios), "", note)


def cpu_seconds() -> tuple[float, float]:
    """CPU time of this process, and of its children that have ended."""
    found = os.times()
    return found.user + found.system, found.children_user + found.children_system


if __name__ == "__main__":
    main()
