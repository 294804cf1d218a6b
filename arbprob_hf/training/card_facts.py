"""What a run's model card and its pictures say about it, gathered from the run."""

import platform
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import transformers
from transformers import TrainerState

from ..data import Blocks
from ..data.eval_sets import GAINS, MODES
from ..model.configuration_arbprob import ArbProbConfig
from ..model.masks.mask import Mask
from ..model.modeling_arbprob import ArbProbForCausalLM
from ..model.saved_patterns import RULES_LINE, carried_code
from ..publishing import CardFacts, ModeRow
from .arguments import Arguments, TrainingArguments
from .eval_modes import FIGURES
from .model_setup import masks_showing_answers
from .options.command_line import resume_choice
from .progress import duration

# from the run's folder
MASK_PICTURE = "logs/mask.png"
_UNITS = {
    "eval_loss": ("loss", "{:.3f} nats per token"),
    "perplexity": ("perplexity", "{:.1f}"),
    "bits_per_byte": ("bits per byte", "{:.3f}"),
}


def short_title(arguments: Arguments, model: ArbProbForCausalLM) -> str:
    """Name, size, and mask or task in one line; sizes that are not those of the preset are named."""
    name = Path(arguments.model.init_from).name if arguments.model.init_from else arguments.model.preset or "nano"
    parts = [name, *([] if arguments.model.init_from else _other_sizes(model.config, name))]
    task = arguments.model.task
    trained = f"mask: {_mask(model)}" if task is None else f"layout {arguments.model.layout}, task: {task}"
    return ", ".join([*parts, f"{_count(model.num_parameters())} parameters", trained])


def _other_sizes(config: ArbProbConfig, preset: str) -> list[str]:
    usual = ArbProbConfig.preset(preset)
    words = {
        "n_layer": _plural(config.n_layer, "layer"),
        "n_head": _plural(config.n_head, "head"),
        "n_embd": f"width {config.n_embd}",
        "n_positions": f"{config.n_positions} positions",
    }
    return [said for size, said in words.items() if getattr(config, size) != getattr(usual, size)]


def saved_step(args: TrainingArguments, state: TrainerState) -> int:
    """The step whose weights a finished run keeps: the best checkpoint's if that was asked for, else the last."""
    best = state.best_model_checkpoint if args.load_best_model_at_end else None
    return state.global_step if best is None else int(Path(best).name.rpartition("-")[2])


def describe(
    arguments: Arguments,
    model: ArbProbForCausalLM,
    blocks: Blocks,
    state: TrainerState,
    *,
    evaluation: Mapping[str, float | None],
    samples: Sequence[str],
    start: Mapping[str, str],
) -> CardFacts:
    """The facts of the model card.

    `evaluation` is the line of the training log with its figures, empty without one; `start` is `starting_weights`.
    """
    config, run, task = model.config, arguments.run, arguments.model.task
    figures = {name: value for name in _UNITS if (value := evaluation.get(name)) is not None}
    rows = {_UNITS[name][0]: _UNITS[name][1].format(value) for name, value in figures.items()}
    return CardFacts(
        title=run.model_name or arguments.folder.resolve().name,
        mask=_mask(model),
        parameters=_count(model.num_parameters()),
        shape=f"{_plural(config.n_layer, 'layer')}, {_plural(config.n_head, 'head')}, width {config.n_embd}",
        n_positions=config.n_positions,
        # what was held out of it stands above its figures
        source=_source(blocks),
        start="<|endoftext|>",
        prompt=run.sample_prompt,
        license=run.license,
        figures=rows or {"nothing": "this run made no evaluation"},
        results={_UNITS[name][0].replace(" ", "_"): value for name, value in figures.items()},
        training=_training_rows(arguments, blocks, state, start),
        samples="\n\n".join(samples),
        task=task,
        layout=arguments.model.layout,
        given_sees=arguments.model.given_sees,
        modes=_mode_rows(evaluation) if task and figures else (),
        gains=_gain_rows(evaluation) if task else {},
        mode_results=_mode_results(evaluation) if task else {},
        dataset=blocks.origin.dataset,
        dataset_commit=blocks.origin.commit,
        split=blocks.origin.split,
        held_out=blocks.origin.held_out,
        repository=arguments.training.hub_model_id,
        # a folder of this machine is no base model that others could find
        base_model=start["init_from"] if start.get("init_revision", "").startswith("commit ") else None,
        language=run.language or blocks.origin.language,
        picture=MASK_PICTURE,
        patterns=_patterns(model),
        shows_answers=task is None and bool(masks_showing_answers(model, blocks.block_size)),
        footprint=_footprint(arguments.training, state),
    )


def _footprint(args: TrainingArguments, state: TrainerState) -> str:
    """One sentence on what the run took, of what is known: energy is not measured."""
    if args.device.type == "cuda":
        hardware = f"{args.world_size} x {torch.cuda.get_device_name(args.device)}"
    else:
        kind = platform.machine() if args.device.type == "cpu" else args.device.type
        hardware = _plural(args.world_size * torch.get_num_threads(), f"{kind} {args.device.type.upper()} thread")
    seconds = next((row["train_runtime"] for row in reversed(state.log_history) if "train_runtime" in row), None)
    if seconds is None:
        return f"Trained on {hardware}; neither the time nor the energy that it took was measured."
    since = " since it was last started" if resume_choice(args.resume_from_checkpoint) is not False else ""
    took = f"{duration(seconds)}{since}, evaluations included"
    return f"Trained on {hardware} for {took}; the energy that it took was not measured."


def _mode_rows(evaluation: Mapping[str, float | None]) -> tuple[ModeRow, ...]:
    forms = [form.removesuffix(" nats per token") for _, form in _UNITS.values()]
    rows = []
    for mode, meaning in MODES.items():
        values = [evaluation.get(f"{mode}_{figure}") for figure in FIGURES]
        cells = ["" if value is None else form.format(value) for form, value in zip(forms, values, strict=True)]
        rows.append(ModeRow(meaning, *cells))
    return tuple(rows)


def _gain_rows(evaluation: Mapping[str, float | None]) -> dict[str, str]:
    """The look-ahead gains that are known, by what they are the difference of."""
    known = {name: value for name in GAINS if (value := evaluation.get(name)) is not None}
    numbers = {mode: number for number, mode in enumerate(MODES, 1)}
    return {
        "mode {} - mode {}".format(*(numbers[mode] for mode in GAINS[name])): f"{value:+.3f} nats per token"
        for name, value in known.items()
    }


def _mode_results(evaluation: Mapping[str, float | None]) -> dict[str, dict[str, float]]:
    found = {mode: {figure: evaluation.get(f"{mode}_{figure}") for figure in FIGURES} for mode in MODES}
    known = {mode: {name: v for name, v in values.items() if v is not None} for mode, values in found.items()}
    return {mode: values for mode, values in known.items() if values}


def _training_rows(
    arguments: Arguments, blocks: Blocks, state: TrainerState, start: Mapping[str, str]
) -> dict[str, str]:
    args = arguments.training
    batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    step = saved_step(args, state)
    # a question has slots beside the tokens it is about
    seen = "slots seen" if arguments.model.task else "tokens seen"
    seen += "" if arguments.data.packing or arguments.model.task else ", padding included"
    # a stream has no end that an epoch could be counted by
    epochs = "" if arguments.data.streaming else f" ({state.epoch:.2f} epochs)"
    best = f"; these weights are of step {step:,}, the best evaluation" if step != state.global_step else ""
    return {
        "text": _source(blocks),
        **({"commit of the text": blocks.origin.commit} if blocks.origin.commit else {}),
        **({"weights at the start": "{init_from}, {init_revision}".format(**start)} if start else {}),
        **({"positions at the start": "sinusoids"} if arguments.model.position_init == "sinusoidal" else {}),
        "blocks": f"{blocks.amount} of {blocks.block_size} tokens",
        "steps": f"{state.global_step:,}{epochs}{best}",
        seen: f"{state.num_input_tokens_seen:,}" if state.num_input_tokens_seen else "not counted",
        "blocks a step": f"{batch}",
        "optimizer": f"{_name(args.optim)}, weight decay {args.weight_decay:g}",
        "gradient norm": f"at most {args.max_grad_norm:g}",
        "learning rate": f"{args.learning_rate:g}, {_name(args.lr_scheduler_type)}, {_warmup(args)}",
        "precision": "bfloat16 autocast" if args.bf16 else "float16 autocast" if args.fp16 else "float32",
        "seed": f"{args.seed}",
        "software": f"transformers {transformers.__version__}, torch {torch.__version__.split('+')[0]}",
    }


def _name(choice: str) -> str:
    # transformers turns these texts into members of an enumeration
    return str(getattr(choice, "value", choice))


def _warmup(args: TrainingArguments) -> str:
    share = 0 < args.warmup_steps < 1
    return f"warm-up over {args.warmup_steps:.0%} of the steps" if share else f"{args.warmup_steps:g} warm-up steps"


# behind what a text was taken in place of, there is nothing
_VALIDATION = re.compile(r"; validation on .*?(?= \([^()]* was unavailable\)$|$)")


def _source(blocks: Blocks) -> str:
    return _VALIDATION.sub("", blocks.source)


def _patterns(model: ArbProbForCausalLM) -> str:
    """The functions of the custom patterns in the mask, as they stand in the file that goes with the model."""
    code = carried_code(map(Mask.parse, model.config.mask_texts))
    if code is None:
        return ""
    lines = code.partition(RULES_LINE)[2].splitlines()
    return re.sub(r"\n{4,}", "\n\n\n", "\n".join(line for line in lines if not line.startswith("RULES["))).strip()


def _mask(model: ArbProbForCausalLM) -> str:
    mask = model.config.mask
    return mask if isinstance(mask, str) else "; ".join(mask)


def _count(parameters: int) -> str:
    if parameters < 1e6:
        return f"{parameters:,}"
    return f"{parameters / 1e6:.1f}M" if parameters < 1e9 else f"{parameters / 1e9:.2f}B"


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' if count != 1 else ''}"
