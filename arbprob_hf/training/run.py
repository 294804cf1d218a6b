"""A whole run: text in, a trained, evaluated and described model in the output folder out."""

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast, set_seed
from transformers.trainer_utils import IntervalStrategy

from ..atomic_write import replacing
from ..data import Blocks, DataArguments, load_blocks, load_tokenizer
from ..errors import UsageError, check_source
from ..model.modeling_arbprob import ArbProbForCausalLM
from ..publishing import write_card
from ..runs.lock import lock_run_folder
from ..runs.log import Row, read_log
from ..runs.record import describe_text
from .arguments import Arguments, ModelArguments, RunArguments, TrainingArguments
from .callbacks import CsvLogCallback
from .card_facts import MASK_PICTURE, describe, saved_step, short_title
from .data_setup import build_run_data, describe_data
from .eval_modes import modes_of_layout
from .hub import refuse_destination
from .mask_picture import draw_mask
from .model_setup import (
    build_model,
    refuse_flex,
    starting_weights,
    warn_of_other_questions,
    warn_of_visible_answers,
)
from .options.checks import refuse_metric
from .options.command_line import refuse_missing, resume_choice
from .progress import is_quiet, loudness, say
from .question_options import continues_text
from .trainer import ArbProbTrainer

_SEPARATOR = "\n\n---\n\n"
# a line for each evaluation without training
EVALUATIONS = Path("logs", "evaluations.jsonl")
_TIMES = ("_runtime", "_per_second", "_preparation_time", "epoch")


@dataclass(frozen=True)
class Outcome:
    """What a run leaves: its folder, the steps made, the saved model's step, evaluation (None without one), samples.

    `evaluated` names the weights where nothing was trained.
    """

    folder: Path
    steps: int
    saved_step: int
    eval_loss: float | None = None
    perplexity: float | None = None
    bits_per_byte: float | None = None
    samples: tuple[str, ...] = ()
    evaluated: str | None = None

    def __str__(self) -> str:
        parts = [
            f"{self.steps} step{'s' * (self.steps != 1)}" if self.evaluated is None else f"{self.evaluated} evaluated"
        ]
        if self.saved_step != self.steps:
            parts += [f"the best kept, of step {self.saved_step}"]
        if self.eval_loss is not None:
            parts += [f"validation loss {self.eval_loss:.3f} nats/token", f"perplexity {self.perplexity:.1f}"]
            parts += [f"{self.bits_per_byte:.3f} bits/byte"]
        if self.evaluated is not None:
            return f"{', '.join(parts)}; figures added to {self.folder / EVALUATIONS}"
        return f"{', '.join(parts)}; model, card and logs in {self.folder}"


def train(
    model_args: ModelArguments,
    data_args: DataArguments,
    training_args: TrainingArguments,
    run_args: RunArguments,
) -> Outcome:
    """Train, evaluate, write samples, the model and its card; see the option groups for what each holds.

    With `do_train=False` the weights of `init_from`, or else those in the output folder, are evaluated and stay as they
    are: a line of figures is added to `logs/evaluations.jsonl`.

    Raises ValueError, in one line, for what cannot work, before the first step wherever that can be known.
    """
    arguments = Arguments(model_args, data_args, training_args, run_args)
    if not training_args.do_train:
        return _evaluate(arguments)
    resume = resume_choice(training_args.resume_from_checkpoint)
    refuse_missing(resume)
    refuse_destination(training_args)
    _refuse_metric(arguments)
    with contextlib.ExitStack() as held:
        held.enter_context(loudness(training_args))
        # to the end: the model, the card and the logs are written after training
        is_main = training_args.process_index == 0
        held.enter_context(lock_run_folder(arguments.folder, resume=resume is not False, is_main=is_main))
        set_seed(training_args.seed)
        tokenizer = load_tokenizer(data_args.tokenizer)
        model = _model(arguments, tokenizer)
        check_sample_length(run_args, tokenizer, model.config.n_positions)
        print_main(arguments, f"reading {data_args.source} ...")
        blocks = _blocks(arguments, tokenizer, n_positions=model.config.n_positions)
        # saved with the model, so that truncation=True cuts to what the model takes; the text itself is never cut
        tokenizer.model_max_length = model.config.n_positions
        trainer = _trainer(arguments, model, tokenizer, blocks)
        trainer.train(resume_from_checkpoint=resume)
        if training_args.do_eval and training_args.eval_strategy == IntervalStrategy.NO:
            trainer.evaluate()
        outcome = _finish(trainer, arguments, tokenizer, blocks)
    # what is pushed has its card now
    if training_args.push_to_hub:
        with loudness(training_args):
            pushed = trainer.push_to_hub()
        if pushed is not None:
            print_main(arguments, f"\non the Hub: {pushed.commit_url}")
    return outcome


def _evaluate(arguments: Arguments) -> Outcome:
    folder, is_main = arguments.folder, arguments.training.process_index == 0
    with loudness(arguments.training), lock_run_folder(folder, resume=True, is_main=is_main):
        arguments = arguments._replace(model=_weights_to_evaluate(arguments))
        tokenizer = load_tokenizer(arguments.data.tokenizer)
        model = _model(arguments, tokenizer)
        if is_main:
            warn_of_other_questions(arguments.model, model)
        print_main(arguments, f"reading {arguments.data.source} ...")
        blocks = _blocks(arguments, tokenizer, n_positions=model.config.n_positions)
        trainer = _trainer(arguments, model, tokenizer, blocks)
        metrics = {name: value for name, value in trainer.evaluate().items() if not name.endswith(_TIMES)}
        name = str(arguments.model.init_from)
        if is_main:
            asked = ("task", "layout", "given_sees", "mask")
            text = describe_text(blocks.validation, blocks.source)
            line = {"weights": name, **{one: getattr(arguments.model, one) for one in asked[:3]}}
            line |= {"mask": model.config.mask, **text, **metrics}
            (folder / EVALUATIONS).parent.mkdir(exist_ok=True)
            with (folder / EVALUATIONS).open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
    return _with_figures(Outcome(folder, 0, 0, evaluated=name), metrics, prefix="eval_")


def _with_figures(outcome: Outcome, found: Mapping[str, Any], *, prefix: str = "") -> Outcome:
    perplexity, bits = (found.get(f"{prefix}{name}") for name in ("perplexity", "bits_per_byte"))
    return dataclasses.replace(outcome, eval_loss=found.get("eval_loss"), perplexity=perplexity, bits_per_byte=bits)


def _weights_to_evaluate(arguments: Arguments) -> ModelArguments:
    """The options of the network to evaluate: that of `init_from`, or the one in the output folder."""
    if arguments.model.init_from is not None:
        return arguments.model
    try:
        check_source(arguments.folder)
    except ValueError as error:
        raise UsageError(f"do_train: without training, init_from or output_dir is evaluated; {error}") from error
    names = ("preset", "n_layer", "n_head", "n_embd", "n_positions", "initializer_range", "position_init")
    decided: dict[str, Any] = dict.fromkeys(names)
    return dataclasses.replace(arguments.model, init_from=str(arguments.folder), **decided)


def _refuse_metric(arguments: Arguments) -> None:
    layout = arguments.model.layout
    try:
        refuse_metric(arguments.training, modes=() if layout is None else modes_of_layout(layout))
    except ValueError as error:
        raise UsageError(str(error)) from error


def _model(arguments: Arguments, tokenizer: PreTrainedTokenizerFast) -> ArbProbForCausalLM:
    try:
        model = build_model(arguments.model, tokenizer)
        refuse_flex(model, arguments.training.device)
        return model
    except (ValueError, TypeError) as error:
        # all that it refuses is an option: the mask, the preset, a size, the weights to start from
        raise UsageError(str(error)) from error


def _blocks(arguments: Arguments, tokenizer: PreTrainedTokenizerFast, *, n_positions: int) -> Blocks:
    size = arguments.data.block_size or n_positions
    if size > n_positions:
        raise UsageError(f"block_size: expected at most the model's {n_positions} positions, got {size}")
    if arguments.data.streaming and arguments.training.max_steps <= 0 and arguments.training.do_train:
        raise UsageError("max_steps: a stream has no end, so training needs one; give a number of steps")
    process = arguments.training.process_index, arguments.training.world_size
    with arguments.training.main_process_first(desc="preparing the text"):
        blocks = load_blocks(arguments.data, tokenizer, block_size=size, seed=arguments.training.seed, process=process)
    found = sorted(set(gather_object([blocks.source])))
    if len(found) > 1:
        raise ValueError(
            f"source: processes found different texts, {' and '.join(f'{one:.80}' for one in found)}; start again when "
            "all can reach it, or give fallback: false"
        )
    return blocks


def _trainer(
    arguments: Arguments, model: ArbProbForCausalLM, tokenizer: PreTrainedTokenizerFast, blocks: Blocks
) -> ArbProbTrainer:
    is_main = arguments.training.process_index == 0
    data, title = build_run_data(arguments, blocks, tokenizer), short_title(arguments, model)
    if is_main:
        _warn_of_visible_answers(arguments, model, blocks.block_size)
    print_main(arguments, f"{title}; {blocks.amount} of {blocks.source}")
    if data.left_out:
        print_main(
            arguments, f"not evaluated, as the layout {arguments.model.layout} cannot: {', '.join(data.left_out)}"
        )
    trains, text = arguments.training.do_train, None
    if is_main and trains:
        text = {**describe_data(arguments, blocks, data), **starting_weights(arguments.model, model)}
    trainer = ArbProbTrainer(
        model=model,
        args=arguments.training,
        train_dataset=data.train,
        eval_dataset=data.validation,
        data_collator=data.collator,
        processing_class=tokenizer,
        callbacks=list(data.callbacks),
        # the main process compares and writes it; reading all of a large text takes a while
        text=text,
        summary=data.summary,
        bytes_per_token=data.bytes_per_token,
    )
    # after the trainer's own, which decide on a save that the log accompanies with a line
    if trains:
        log = CsvLogCallback(arguments.folder / "logs", bytes_per_token=data.bytes_per_token, title=title)
        trainer.add_callback(log)
    return trainer


def _warn_of_visible_answers(arguments: Arguments, model: ArbProbForCausalLM, block_size: int) -> None:
    # of a question, the layout decides who sees whom
    if arguments.model.task is not None:
        return
    try:
        warn_of_visible_answers(model, block_size)
    except ValueError as error:
        raise UsageError(f"{error}; blocks have block_size={block_size} tokens") from error


def _finish(
    trainer: ArbProbTrainer, arguments: Arguments, tokenizer: PreTrainedTokenizerFast, blocks: Blocks
) -> Outcome:
    # internal: no push yet
    trainer.save_model(_internal_call=True)
    folder, steps, saved = arguments.folder, trainer.state.global_step, saved_step(arguments.training, trainer.state)
    if not trainer.is_world_process_zero():
        return Outcome(folder, steps, saved)
    model = trainer.accelerator.unwrap_model(trainer.model)
    samples = _samples(arguments, model, tokenizer)
    if samples:
        with replacing(folder / "logs" / "samples.txt") as beside:
            beside.write_text(_SEPARATOR.join(samples) + "\n", encoding="utf-8")
    evaluation = _evaluation(folder / "logs" / "training_log.csv", saved)
    draw_mask(folder / MASK_PICTURE, arguments, model, blocks.block_size)
    start = {name: value for name, value in (trainer.text or {}).items() if name.startswith("init_")}
    facts = describe(arguments, model, blocks, trainer.state, evaluation=evaluation, samples=samples, start=start)
    write_card(folder, facts)
    if samples:
        print_main(arguments, "\n" + _SEPARATOR.join(samples))
    return _with_figures(Outcome(folder, steps, saved, samples=tuple(samples)), evaluation)


def _samples(arguments: Arguments, model: ArbProbForCausalLM, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    layout = arguments.model.layout
    if layout is not None and not continues_text(layout):
        print_main(arguments, f"no samples: a network of the layout {layout} does not continue texts by itself")
        return []
    return write_samples(model, tokenizer, arguments.run, seed=arguments.training.seed)


def _evaluation(log: Path, step: int) -> Row:
    """The line of the log that holds the evaluation of `step`; empty without one."""
    evaluated = [row for row in read_log(log) if row["eval_loss"] is not None and row["step"] == step]
    return evaluated[-1] if evaluated else {}


def print_main(arguments: Arguments, text: str) -> None:
    """Say `text` on the main process, where the run is not asked to be quiet."""
    if not is_quiet(arguments.training):
        say(text)


def check_sample_length(run_args: RunArguments, tokenizer: PreTrainedTokenizerBase, n_positions: int) -> None:
    """Raise UsageError when prompt and new tokens exceed `n_positions`: asked before hours of training."""
    prompt = len(_prompt_ids(run_args, tokenizer))
    if run_args.sample_count and prompt + run_args.sample_tokens > n_positions:
        raise UsageError(
            f"sample_tokens: {run_args.sample_tokens} after a prompt of {prompt} tokens exceed the model's "
            f"{n_positions} positions; expected at most {max(n_positions - prompt, 0)}"
        )


def write_samples(
    model: ArbProbForCausalLM, tokenizer: PreTrainedTokenizerBase, run_args: RunArguments, *, seed: int
) -> list[str]:
    """`sample_count` continuations of `sample_prompt`, prompt included; the same `seed` gives the same text.

    The prompt is read as the start of a document. Random state and train mode are left as they were.
    """
    if not run_args.sample_count:
        return []
    ids = torch.tensor([_prompt_ids(run_args, tokenizer)], device=model.device)  # (1, T)
    choice = {"do_sample": True, "temperature": run_args.sample_temperature, "top_k": 50}
    if run_args.sample_temperature == 0:
        choice = {"do_sample": False}
    with _evaluating(model), torch.random.fork_rng():
        torch.manual_seed(seed)
        written = model.generate(
            ids.expand(run_args.sample_count, -1),
            attention_mask=torch.ones_like(ids).expand(run_args.sample_count, -1),
            max_new_tokens=run_args.sample_tokens,
            pad_token_id=tokenizer.eos_token_id,
            **choice,
        )  # (sample_count, T + new)
    return [str(tokenizer.decode(row, skip_special_tokens=True)) for row in written]


def _prompt_ids(run_args: RunArguments, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    # every document of the training text starts with this token
    return [tokenizer.eos_token_id, *tokenizer.encode(run_args.sample_prompt, add_special_tokens=False)]


@contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
