"""TRL's GRPO, with a reference model that it loads by itself: ours takes the steps that GPT-2 takes."""

from pathlib import Path

import pytest
from datasets import Dataset
from transformers import AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

pytestmark = [
    pytest.mark.long,
    # TRL calls options of transformers that go by other names now
    pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed in v6:FutureWarning"),
]


def rewards(completions: list[str], **columns: object) -> list[float]:
    return [float(text.count("e") + len(text)) for text in completions]


def steps(folder: Path, output_dir: Path) -> list[list[float]]:
    """Loss, distance from the reference model and reward of each step."""
    arguments = GRPOConfig(
        output_dir=str(output_dir),
        max_steps=3,
        per_device_train_batch_size=4,
        num_generations=4,
        max_completion_length=8,
        beta=0.1,
        learning_rate=1e-2,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        bf16=False,
    )
    trainer = GRPOTrainer(
        # by name: the reference model is loaded from it once more, without trust
        model=str(folder),
        reward_funcs=rewards,
        args=arguments,
        train_dataset=Dataset.from_dict({"prompt": ["who sees", "a mask says"] * 4}),
        processing_class=AutoTokenizer.from_pretrained(folder),
    )
    assert type(trainer.ref_model) is type(trainer.model)
    trainer.train()
    return [[entry[name] for name in ("loss", "kl", "reward")] for entry in trainer.state.log_history if "kl" in entry]


def test_grpo_takes_the_steps_that_gpt2_takes(folders: dict[str, Path], tmp_path: Path) -> None:
    ours, theirs = steps(folders["ours"], tmp_path / "ours"), steps(folders["theirs"], tmp_path / "theirs")
    assert len(ours) == 3
    for own, stock in zip(ours, theirs, strict=True):
        assert own == pytest.approx(stock, rel=1e-3, abs=1e-6)
    # the reference stays where it was
    assert ours[0][1] == pytest.approx(0, abs=1e-6)
    assert ours[2][1] > 1e-3
