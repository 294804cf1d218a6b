"""TRL: SFTTrainer takes a step on a downloaded model, with its own data collation and its gradient checkpointing."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2LMHeadModel
from trl import SFTConfig, SFTTrainer

from tests.clients.micro import END

# TRL calls options of transformers that go by other names now
pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed in v6:FutureWarning")

TEXTS = [
    "the mask says who sees whom",
    "a longer text about a mask that says nothing at all",
    "short",
    "and more of it",
]


def mean_nats(model: GPT2LMHeadModel, tokenizer: Any) -> tuple[float, int]:
    """Nats per target of the texts, each by itself and ended, and the number of tokens."""
    nats, rows = [], [torch.tensor([tokenizer(text + END).input_ids]) for text in TEXTS]
    with torch.no_grad():
        for ids in rows:
            nats.append(F.cross_entropy(model(ids).logits[0, :-1], ids[0, 1:], reduction="none"))
    return torch.cat(nats).mean().item(), sum(ids.numel() for ids in rows)


def made(folder: Path, output_dir: Path, **options: Any) -> SFTTrainer:
    arguments = SFTConfig(
        output_dir=str(output_dir),
        max_steps=2,
        per_device_train_batch_size=len(TEXTS),
        learning_rate=1e-2,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        bf16=False,
        **{"max_length": 64, **options},
    )
    return SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True),
        args=arguments,
        train_dataset=Dataset.from_dict({"text": TEXTS}),
        processing_class=AutoTokenizer.from_pretrained(folder, trust_remote_code=True),
    )


def test_sft_takes_a_step_from_the_loss_that_gpt2_has(
    folders: dict[str, Path], theirs: GPT2LMHeadModel, tmp_path: Path
) -> None:
    trainer = made(folders["ours"], tmp_path)
    before = {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}
    blocks = trainer.model.transformer.h
    passes = []
    # counted where it is computed: a hook of the block itself is not called when it is recomputed
    for block in blocks:
        block.attn.register_forward_pre_hook(lambda *_: passes.append(torch.is_grad_enabled()))
    trainer.train()
    first, second = (entry for entry in trainer.state.log_history if "loss" in entry)
    loss, count = mean_nats(theirs, trainer.processing_class)
    assert (first["loss"], first["num_tokens"]) == (pytest.approx(loss, rel=1e-5), count)
    assert second["loss"] < first["loss"]
    assert [name for name, weight in trainer.model.named_parameters() if torch.equal(weight, before[name])] == []
    # TRL turns gradient checkpointing on: each block is passed through once more on the way back
    assert len(passes) == 2 * 2 * len(blocks)


@pytest.mark.parametrize(
    "options", [{"packing": True}, {"padding_free": True, "max_length": None}], ids=["packing", "flat"]
)
def test_packed_texts_have_the_loss_that_gpt2_gives_each_by_itself(
    folders: dict[str, Path], theirs: GPT2LMHeadModel, tmp_path: Path, options: dict[str, Any]
) -> None:
    trainer = made(folders["ours"], tmp_path, **options)
    assert {"cu_seq_lens_q", "max_length_q", "position_ids"} <= set(next(iter(trainer.get_train_dataloader())))
    trainer.train()
    first, second = (entry for entry in trainer.state.log_history if "loss" in entry)
    loss, count = mean_nats(theirs, trainer.processing_class)
    assert (first["loss"], first["num_tokens"]) == (pytest.approx(loss, rel=1e-5), count)
    assert second["loss"] < first["loss"]
