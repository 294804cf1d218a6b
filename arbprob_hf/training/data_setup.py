"""The data of a run: blocks for next-token training, or blocks and questions about them where it has a task."""

from dataclasses import dataclass, field
from pathlib import Path

from datasets import Dataset
from transformers import PreTrainedTokenizerFast, TrainerCallback

from ..data import BlockCollator, Blocks, StreamedBlocks
from ..data.collators import QuestionCollator, number_blocks
from ..data.tasks import Task
from ..errors import UsageError
from ..runs.record import Record, describe_stream, describe_text
from .arguments import Arguments
from .callbacks import SaveEvalSetsCallback, SetEpochCallback
from .eval_modes import FOLDER, bytes_per_scored_token, bytes_per_text_token, draw_eval_modes, modes_of_layout, summary
from .question_options import refuse_short_documents
from .trainer import Summary


@dataclass(frozen=True)
class RunData:
    """Sets, collator and callbacks of a run.

    Attributes:
        validation: one set, or one for each mode that the layout answers, by name.
        bytes_per_token: bytes of text per scored token of the validation set, or of each mode by name.
        notes: what `runs.record.describe_text` notes beside the text.
        callbacks: what gives the collator its epoch, and saves the questions of evaluation.
        summary: what sums up several sets of evaluation; None for one.
        left_out: the modes that the layout does not answer.
    """

    train: Dataset | StreamedBlocks
    validation: Dataset | dict[str, Dataset]
    collator: BlockCollator | QuestionCollator
    bytes_per_token: float | dict[str, float]
    notes: dict[str, str] = field(default_factory=dict)
    callbacks: tuple[TrainerCallback, ...] = ()
    summary: Summary | None = None
    left_out: tuple[str, ...] = ()


def build_run_data(arguments: Arguments, blocks: Blocks, tokenizer: PreTrainedTokenizerFast) -> RunData:
    """The data of a run on `blocks`, which `tokenizer` made.

    Raises UsageError where a document is too short for a question of the task.
    """
    notes, model = _notes(arguments, blocks), arguments.model
    if model.task is None or model.layout is None or model.given_sees is None:
        return RunData(blocks.train, blocks.validation, BlockCollator(), blocks.validation_bytes_per_token, notes)
    task = Task.parse(model.task)
    try:
        # a stream is not read ahead: a document of it that is too short ends the run
        known = [rows for rows in (blocks.train, blocks.validation) if isinstance(rows, Dataset)]
        refuse_short_documents(task, known)
    except ValueError as error:
        raise UsageError(str(error)) from error
    collator = QuestionCollator(
        model.layout,
        given_sees=model.given_sees,
        names_target=model.layout == "sigma",
        task=task,
        seed=arguments.training.seed,
    )
    questions = draw_eval_modes(blocks.validation, task)
    validation = {mode: questions[mode] for mode in modes_of_layout(model.layout)}
    average = bytes_per_text_token(blocks.validation, blocks.validation_bytes_per_token)
    return RunData(
        # those of a stream are numbered as they come
        train=number_blocks(blocks.train) if isinstance(blocks.train, Dataset) else blocks.train,
        validation=validation,
        collator=collator,
        bytes_per_token=bytes_per_scored_token(validation, tokenizer, otherwise=average),
        notes=notes,
        callbacks=(SetEpochCallback(collator), SaveEvalSetsCallback(questions, Path(arguments.folder) / FOLDER)),
        summary=summary,
        left_out=tuple(mode for mode in questions if mode not in validation),
    )


def describe_data(arguments: Arguments, blocks: Blocks, data: RunData) -> Record:
    """What the run's record says of its text: all of `blocks` is read, except of a stream."""
    if isinstance(blocks.train, StreamedBlocks):
        workers = arguments.training.dataloader_num_workers
        return describe_stream(blocks.train, blocks.source, data.notes, workers=workers)
    return describe_text(blocks.train, blocks.source, data.notes)


def _notes(arguments: Arguments, blocks: Blocks) -> dict[str, str]:
    model = arguments.model
    notes = {
        "task": model.task,
        "layout": model.layout,
        "given_sees": model.given_sees,
        # how GPT-2's positions start is not noted
        "position_init": model.position_init if model.position_init == "sinusoidal" else None,
        "source_revision": blocks.origin.commit,
    }
    return {name: value for name, value in notes.items() if value is not None}
