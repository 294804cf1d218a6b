"""The options of a run in four groups, and `parse`, which fills them from file and command line."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from ..data.arguments import DataArguments, refuse_missing_source
from ..errors import UsageError, check_source, one_line
from ..lazy import lazy_names
from ..pattern_file import pattern_bytes
from .options.command_line import COMMAND_LINE, Option, coerce, read_options, refuse_missing, resume_choice
from .options.fields import Field, own_fields, training_fields
from .options.help import help_text
from .options.validation import refuse_numbers

if TYPE_CHECKING:
    from .defaults import TrainingArguments
else:
    # the fourth group of options inherits from transformers, which takes seconds to import
    __getattr__, __dir__ = lazy_names(__name__, {"arbprob_hf.training.defaults": ("TrainingArguments",)})

_Group = TypeVar("_Group")


@dataclass
class ModelArguments:
    """The network a run trains. Raises ValueError where two options contradict each other."""

    preset: str | None = field(default=None, metadata={"help": "size: nano, tiny, distilgpt2 or gpt2 (default nano)"})
    mask: str | list[str] | None = field(
        default=None,
        metadata={"help": "attention mask, such as 'causal & window(32)', or a list of one per layer"},
    )
    patterns: str | None = field(
        default=None,
        metadata={"help": "python file of @pattern functions that the mask uses; it is executed"},
    )
    task: str | None = field(
        default=None,
        metadata={"help": "questions to train on, such as '0.5 * uniform + 0.5 * causal' (default: the next token)"},
    )
    layout: str | None = field(
        default=None,
        metadata={
            "help": "how a task is put to the network: two_stream, prefix, sigma, masked or causal (default two_stream)"
        },
    )
    given_sees: str | None = field(
        default=None,
        metadata={"help": "what given tokens of a task see: all given ones, or earlier ones (default all)"},
    )
    init_from: str | None = field(
        default=None,
        metadata={"help": "folder or Hub name of GPT-2 weights to start from, instead of a preset"},
    )
    init_revision: str | None = field(default=None, metadata={"help": "branch, tag or commit of init_from on the Hub"})
    trust_remote_code: bool = field(
        default=False, metadata={"help": "run the custom patterns that come with the weights of init_from"}
    )
    attn_implementation: str | None = field(
        default=None, metadata={"help": "eager, sdpa or flex_attention, for GPUs (default: sdpa)"}
    )
    n_layer: int | None = field(default=None, metadata={"help": "number of blocks, instead of the preset's"})
    n_head: int | None = field(default=None, metadata={"help": "attention heads, instead of the preset's"})
    n_embd: int | None = field(default=None, metadata={"help": "width, instead of the preset's"})
    n_positions: int | None = field(
        default=None, metadata={"help": "longest sequence in tokens, instead of the preset's"}
    )
    dropout: float | None = field(default=None, metadata={"help": "all three dropout probabilities"})
    initializer_range: float | None = field(
        default=None,
        metadata={"help": "standard deviation of the initial weights (default 0.02; narrow networks want more)"},
    )
    position_init: str | None = field(
        default=None,
        metadata={"help": "how position embeddings start: normal, as GPT-2's, or sinusoidal (default normal)"},
    )

    def __post_init__(self) -> None:
        if self.attn_implementation not in (None, "eager", "sdpa", "flex_attention"):
            raise ValueError(
                f"attn_implementation: expected eager, sdpa or flex_attention, got {self.attn_implementation!r:.60}"
            )
        if self.position_init not in (None, "normal", "sinusoidal"):
            raise ValueError(f"position_init: expected normal or sinusoidal, got {self.position_init!r:.60}")
        if (self.task, self.layout, self.given_sees) != (None, None, None):
            # imported here: reading a task needs torch
            from .question_options import read_question_options, refuse_mask_options

            questions = read_question_options(self.task, self.layout, self.given_sees)
            if questions is not None:
                self.task, self.layout, self.given_sees = questions
                refuse_mask_options(self.mask, self.patterns)
        if self.init_from is None:
            if self.init_revision is not None:
                raise ValueError(f"init_revision: got {self.init_revision!r} without init_from; name its weights")
            return
        for name in ("preset", "n_layer", "n_head", "n_embd", "n_positions", "initializer_range", "position_init"):
            if getattr(self, name) is not None:
                raise ValueError(
                    f"{name}: got {getattr(self, name)!r} together with init_from={self.init_from!r:.80}, "
                    f"whose weights decide it; leave {name} out"
                )


@dataclass
class RunArguments:
    """What a run does beside training: the text it writes at the end, the card, and how it fails."""

    sample_prompt: str = field(default="The", metadata={"help": "text that the samples at the end continue"})
    sample_count: int = field(default=3, metadata={"help": "samples written at the end; 0 for none"})
    sample_tokens: int = field(default=64, metadata={"help": "new tokens of each sample"})
    sample_temperature: float = field(default=0.8, metadata={"help": "0 takes the likeliest token each time"})
    model_name: str | None = field(
        default=None, metadata={"help": "title of the model card (default: the output folder's name)"}
    )
    license: str | None = field(
        default=None, metadata={"help": "license of the weights, as the Hub spells it (default: the card names none)"}
    )
    language: str | None = field(
        default=None, metadata={"help": "language of the text, such as en, for the model card"}
    )
    traceback: bool = field(default=False, metadata={"help": "show where in the code an error happened"})

    def __post_init__(self) -> None:
        for name, least in (("sample_count", 0), ("sample_tokens", 1), ("sample_temperature", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected at least {least}, got {getattr(self, name)}")


class Arguments(NamedTuple):
    """The four groups, in the order `train` takes them."""

    model: ModelArguments
    data: DataArguments
    training: TrainingArguments
    run: RunArguments

    @property
    def folder(self) -> Path:
        """Where everything the run writes goes."""
        return Path(str(self.training.output_dir))


# a token in the options would be stored with every checkpoint, so it is no option
_WITHHELD = ("hub_token", "local_rank")
# of `log_level`: nothing but errors
QUIET_LEVELS = ("error", "critical")
# a sample may start as a document does
_MAY_BE_EMPTY = ("sample_prompt",)


def parse(argv: Sequence[str], *, announce: Callable[[str], None] | None = None) -> Arguments:
    """Arguments of a run from `--config FILE` and `--field value` pairs; the pairs win over the file.

    `announce` is called with what to say meanwhile, in one line, before the imports that take seconds: on the main
    process, unless `log_level` asks for errors alone.

    Raises UsageError, one line, for anything that cannot be understood, and ValueError for a source that is not
    there; prints the options and exits for `--help`. torch and transformers are imported once names, numbers and
    paths are known to be good.
    """
    trainer = {name: field for name, field in training_fields().items() if name not in _WITHHELD}
    model, data, run = map(own_fields, (ModelArguments, DataArguments, RunArguments))
    if any(word in ("--help", "-h") for word in argv):
        sys.stdout.write(help_text({"Model": model, "Data": data, "Training": trainer, "Run": run}))
        raise SystemExit(0)
    options = read_options(argv, {*model, *data, *trainer, *run})
    _refuse_nothing(options)
    _refuse_idle_epochs(options)
    given = _values(options, trainer)
    run_args, data_args = _group(RunArguments, options), _group(DataArguments, options)
    _refuse_numbers(given, trainer, options)
    _refuse_missing_paths({**given, **_values(options, model), "source": data_args.source})
    place = given.get("output_dir", trainer["output_dir"].default)
    if announce is not None and os.environ.get("RANK", "0") == "0" and given.get("log_level") not in QUIET_LEVELS:
        announce(f"training on {data_args.source}, into {place}: loading torch and transformers ...")
    model_args = _group(ModelArguments, options)
    _refuse_missing_gpu(options)
    from .defaults import TrainingArguments

    training_args = _group(TrainingArguments, options)
    training_args.note_typed([name for name, option in options.items() if option.where == COMMAND_LINE])
    return Arguments(model_args, data_args, training_args, run_args)


def _group(group: type[_Group], options: dict[str, Option]) -> _Group:
    values = _values(options, own_fields(group))
    try:
        with warnings.catch_warnings():
            # one release warns of a name whose successor the other does not know yet
            warnings.filterwarnings("ignore", message="`gradient_checkpointing", category=FutureWarning)
            return group(**values)
    except (ValueError, TypeError, ImportError) as error:
        raise UsageError(one_line(error)[:300]) from error


def _values(options: dict[str, Option], fields: dict[str, Field]) -> dict[str, Any]:
    # without the options whose type only transformers knows
    return {
        name: coerce(name, option.value, fields[name].hint, fields[name].default)
        for name, option in options.items()
        if name in fields and fields[name].hint is not None
    }


def _refuse_numbers(given: dict[str, Any], fields: dict[str, Field], options: dict[str, Option]) -> None:
    values = {name: field.default for name, field in fields.items()} | given
    strategies = {name: option.value for name, option in options.items() if name.endswith("_strategy")}
    try:
        refuse_numbers(SimpleNamespace(**values | strategies))
    except ValueError as error:
        raise UsageError(str(error)) from None


def _refuse_missing_paths(given: dict[str, Any]) -> None:
    """Refuse what `train` would refuse, too, but only after seconds of imports."""
    refuse_missing(resume_choice(given.get("resume_from_checkpoint")))
    try:
        if given.get("patterns") is not None and given.get("task") is None:
            pattern_bytes(given["patterns"])
    except ValueError as error:
        raise UsageError(str(error)) from None
    try:
        if given.get("init_from") is not None:
            check_source(given["init_from"])
    except ValueError as error:
        raise UsageError(f"init_from: {error}") from None
    refuse_missing_source(given["source"])


def _refuse_nothing(options: dict[str, Option]) -> None:
    for name, option in options.items():
        # in a file, a field without a value is YAML's null; on the command line it is a variable that was not set
        counts = option.where == COMMAND_LINE or name == "output_dir"
        if counts and isinstance(option.value, str) and not option.value.strip() and name not in _MAY_BE_EMPTY:
            raise UsageError(f"{name}: got an empty value {option.where}; give one, or leave {name} out")


def _refuse_idle_epochs(options: dict[str, Option]) -> None:
    steps, epochs = options.get("max_steps"), options.get("num_train_epochs")
    if steps is None or epochs is None or str(steps.value).strip().startswith("-"):
        return
    # a file may hold both; whoever types epochs on top of a file's max_steps expects them to count
    if epochs.where == COMMAND_LINE != steps.where:
        ignored = f"no effect beside max_steps {steps.value} {steps.where}"
        raise UsageError(f"num_train_epochs: {ignored}; add --max_steps -1")


def _refuse_missing_gpu(options: dict[str, Option]) -> None:
    option = options.get("use_cpu")
    # a file may say it: the shipped ones are for machines with a GPU and for others
    if option is None or option.where != COMMAND_LINE or coerce("use_cpu", option.value, bool):
        return
    import torch

    if not torch.accelerator.is_available():
        raise UsageError("use_cpu: false asked for, but torch finds no GPU; leave it out, or give --device auto")
