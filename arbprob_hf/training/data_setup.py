"""What a run is fed: blocks for next-token training, or blocks and questions about them where it has a task."""

from dataclasses import dataclass, field
from pathlib import Path

from datasets import Dataset
from transformers import PreTrainedTokenizerFast, TrainerCallback

from ..data import BlockCollator, Blocks, StreamedBlocks
from ..data.collators import QuestionCollator, number_blocks
from ..data.tasks import Task
from ..errors import UsageError
from .arguments import Arguments, ModelArguments
from .callbacks import SaveEvalSetsCallback, SetEpochCallback
from .eval_modes import FOLDER, answered, bytes_per_scored_token, bytes_per_text_token, drawn_modes
from .question_options import refuse_short_documents


@dataclass(frozen=True)
class RunData:
    """Sets, collator and callbacks of a run.

    Attributes:
        validation: one set, or one for each mode that the layout answers, by name.
        bytes_per_token: bytes of text per scored token of the validation set, or of each mode by name.
        asking: what `identity.describe_text` notes of a task; empty without one.
        callbacks: what tells the collator its epoch, and keeps the questions of evaluation.
        left_out: the modes that the layout does not answer.
    """

    train: Dataset | StreamedBlocks
    validation: Dataset | dict[str, Dataset]
    collator: BlockCollator | QuestionCollator
    bytes_per_token: float | dict[str, float]
    asking: dict[str, str] = field(default_factory=dict)
    callbacks: tuple[TrainerCallback, ...] = ()
    left_out: tuple[str, ...] = ()


def build_run_data(arguments: Arguments, blocks: Blocks, tokenizer: PreTrainedTokenizerFast) -> RunData:
    """What a run on `blocks`, which `tokenizer` made, is fed.

    Raises UsageError where a document is too short for a question of the task.
    """
    asking = question_options(arguments.model)
    if not asking:
        return RunData(blocks.train, blocks.validation, BlockCollator(), blocks.validation_bytes_per_token)
    task, layout = Task.parse(asking["task"]), asking["layout"]
    try:
        # a stream is not read ahead: a document of it that is too short ends the run
        known = [rows for rows in (blocks.train, blocks.validation) if isinstance(rows, Dataset)]
        refuse_short_documents(task, known)
    except ValueError as error:
        raise UsageError(str(error)) from error
    collator = QuestionCollator(
        layout,
        given_sees=asking["given_sees"],
        names_target=layout == "sigma",
        task=task,
        seed=arguments.training.seed,
    )
    questions = drawn_modes(blocks.validation, task)
    validation = {mode: questions[mode] for mode in answered(layout)}
    average = bytes_per_text_token(blocks.validation, blocks.validation_bytes_per_token)
    return RunData(
        # those of a stream are numbered as they come
        train=number_blocks(blocks.train) if isinstance(blocks.train, Dataset) else blocks.train,
        validation=validation,
        collator=collator,
        bytes_per_token=bytes_per_scored_token(validation, tokenizer, otherwise=average),
        asking=asking,
        callbacks=(SetEpochCallback(collator), SaveEvalSetsCallback(questions, Path(arguments.folder) / FOLDER)),
        left_out=tuple(mode for mode in questions if mode not in validation),
    )


def question_options(model_args: ModelArguments) -> dict[str, str]:
    """`task`, `layout` and `given_sees` by name; empty without a task."""
    if model_args.task is None or model_args.layout is None or model_args.given_sees is None:
        return {}
    return {"task": model_args.task, "layout": model_args.layout, "given_sees": model_args.given_sees}
