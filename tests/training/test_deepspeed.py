"""What DeepSpeed's configuration would do in place of the run's options is refused, and so is its state elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from arbprob_hf.runs.record import compare
from arbprob_hf.training.arguments import TrainingArguments
from arbprob_hf.training.options import checks
from arbprob_hf.training.options.checks import refuse_combinations
from arbprob_hf.training.options.validation import refuse_options

# what Accelerate and transformers make of the files in docs/training.md
GOOD: dict[str, Any] = {
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": 1,
    "gradient_clipping": "auto",
    "zero_optimization": {"stage": 2, "offload_optimizer": {"device": "none"}, "offload_param": {"device": "none"}},
    "fp16": {"enabled": False},
    "bf16": {"enabled": False},
    "steps_per_print": float("inf"),
}

NETWORK = {"initializer_range": 0.02}


def engine(args: TrainingArguments, **changed: Any) -> TrainingArguments:
    """`args` as transformers leaves them for a configuration of DeepSpeed, which need not be installed."""
    config = {name: value for name, value in {**GOOD, **changed}.items() if value is not None}
    args.deepspeed_plugin = SimpleNamespace(hf_ds_config=SimpleNamespace(config=config))
    return args


def made(**options: Any) -> TrainingArguments:
    return TrainingArguments(output_dir="nowhere", **options)


def test_the_configuration_of_the_page_is_taken() -> None:
    args = engine(made(max_grad_norm=0.5), gradient_clipping=0.5)
    refuse_options(args)
    refuse_combinations(args)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (None, "the package is not installed; install it with pip install deepspeed"),
        (object(), "expected a JSON file or names with values in braces, got 'no.json'"),
    ],
    ids=["no package", "no file"],
)
def test_what_it_needs_is_asked_for_first(monkeypatch: pytest.MonkeyPatch, spec: object, message: str) -> None:
    monkeypatch.setattr(checks, "find_spec", lambda name: spec)
    with pytest.raises(ValueError, match=f"^deepspeed: {message}$"):
        made(deepspeed="no.json")


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"optimizer": {"type": "AdamW"}}, "its configuration has optimizer, and the run's is that of optim: leave it out"),
    ({"scheduler": {"type": "WarmupLR"}}, "its configuration has scheduler, and the run's is that of lr_scheduler_ty"),
    ({"curriculum_learning": {}}, "its configuration has curriculum_learning, and it was not tried here: leave it out"),
    ({"zero_optimization": {"stage": 3}}, "expected zero_optimization of stage 1 or 2, got 3"),
    ({"zero_optimization": None}, "expected zero_optimization of stage 1 or 2, got None"),
    (
        {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}},
        "its configuration has offload_optimizer, and it was not tried here",
    ),
    ({"bf16": {"enabled": True}}, "it keeps and saves the weights in the precision that it computes in; expected fl"),
    ({"gradient_clipping": None}, r"it clips gradients by gradient_clipping of its configuration, 0, not 1\.0: give"),
    ({"gradient_clipping": 0.3}, r"it clips gradients by gradient_clipping of its configuration, 0\.3, not 1\.0: gi"),
]


@pytest.mark.parametrize(("changed", "message"), REFUSED, ids=lambda value: " ".join(value)[:30].strip())
def test_what_it_would_do_otherwise_than_the_run_says_is_refused(changed: dict[str, Any], message: str) -> None:
    args = engine(made(), **changed)
    with pytest.raises(ValueError, match=f"^deepspeed: {message}") as refused:
        refuse_options(args)
    assert len(str(refused.value).splitlines()) == 1
    assert str(refused.value).endswith("; FSDP2 has no such limit, see docs/training.md")


def test_the_precision_of_the_run_is_refused_as_that_of_the_file() -> None:
    with pytest.raises(ValueError, match="^deepspeed: it keeps and saves the weights in the precision"):
        refuse_options(engine(made(bf16=True)))


def test_an_evaluation_without_training_is_refused() -> None:
    with pytest.raises(ValueError, match="^deepspeed: it evaluates in a run that trains alone; without training"):
        refuse_combinations(engine(made(do_train=False, do_eval=True)))


@pytest.mark.parametrize(("saved", "now"), [(2, None), (2, 3), (None, 2)], ids=["without", "three processes", "with"])
def test_its_state_of_the_optimizer_is_not_left_behind_in_silence(
    tmp_path: Path, saved: int | None, now: int | None
) -> None:
    (tmp_path / "run.json").write_text(json.dumps({**NETWORK, "deepspeed_processes": saved}))
    with pytest.raises(ValueError, match=f"^deepspeed_processes: .* was trained with {saved}, this run has {now}: "):
        compare(tmp_path, {**NETWORK, "deepspeed_processes": now})


def test_shards_of_a_checkpoint_that_does_not_note_them_are_seen(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps(NETWORK))
    compare(tmp_path, {**NETWORK, "deepspeed_processes": None})
    (tmp_path / "global_step4").mkdir()
    with pytest.raises(ValueError, match="^deepspeed_processes: .* was trained with some, this run has None: give"):
        compare(tmp_path, {**NETWORK, "deepspeed_processes": None})
