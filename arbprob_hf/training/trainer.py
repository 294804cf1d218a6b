"""The Trainer of Hugging Face made durable: sealed checkpoints, exact resume, clean stops, honest losses."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset
from transformers.trainer_utils import EvalLoopOutput, TrainOutput

from ..data import StreamedBlocks
from ..data.shares import StreamPosition
from ..runs.checkpoint_writer import CheckpointWriter, installed
from ..runs.checkpoints import choose_checkpoint, is_staged, quarantine_later, sealed_names, verify
from ..runs.lock import lock_run_folder
from ..runs.record import compare, describe_run, with_saved_start
from .callbacks import RisingRateCallback, StepBoundaryCallback, enter_states
from .dataloaders import isolate, stream_loader, whole_sets
from .early_stopping import EarlyStopping
from .eval_modes import loss_figures
from .finite import NonFiniteError, is_bad, refuse_bad_weights, step_error
from .hub import refuse_hub_options
from .options.command_line import resume_choice
from .options.validation import refuse_numbers, refuse_options, refuse_parts
from .positions import BlockCounter, EpochOrder, Lengths, Position, ReaderTracker, epoch_order, skipping_nothing
from .processes import cpu_without_index, from_main, largest, note_fingerprint, refuse_folders_apart
from .progress import use_progress_lines
from .search import SearchingTrainer
from .signals import StopSignal, deaths_deferred
from .token_loss import TokenLoss

__all__ = ["ArbProbTrainer", "NonFiniteError"]

logger = logging.getLogger(__name__)

T = TypeVar("T")
# of a checkpoint of an earlier version
_UNCOUNTED = "blocks of this epoch may come again or be left out"
# from the metrics of all evaluation sets, and the prefix of their names, to further ones
Summary = Callable[[Mapping[str, float], str], dict[str, float]]


class ArbProbTrainer(SearchingTrainer):
    """A `transformers.Trainer` whose runs survive kills, full disks, signals and bad numbers.

    Takes what Trainer takes, except `compute_loss_func`. What differs:

    - training makes no logits, and evaluation only where `compute_metrics` or `predict` reads them;
    - checkpoints are sealed (see `runs.checkpoints`), rotated once the new one is in place, and verified on resume;
    - `train` locks the output folder, refuses one that holds another run unless resuming, and ends with SystemExit
      (143 after SIGTERM, 130 after SIGINT) once the step is done and saved;
    - a loss or gradient norm that is not finite ends the run before the weights take it (NonFiniteError);
      `logging_nan_inf_filter`, which would hide it, is turned off;
    - `eval_loss` is the mean over all scored tokens of the set, each once, on any number of processes;
    - a resumed run gives bit for bit the weights of the uninterrupted one (same torch, CPU type, thread count);
    - perplexity is among the metrics, and with `bytes_per_token` (bytes of text per scored token of the set, or of each
      named set) bits per byte;
    - several named sets of evaluation may be summed up: `summary` makes `eval_loss` and the like of their metrics;
    - a checkpoint is only resumed as the run it is of: the same network, seed, optimizer and, where `text` says
      what it is (see `runs.record.describe_text`), text;
    - what is pushed is a model with its card and logs, and no pickle unless asked for (see `hub`).

    Raises ValueError for the options that contradict this.
    """

    # of the main process: what rotation needs once a push has ended
    _last_sealed: tuple[CheckpointWriter, str] | None = None

    def __init__(
        self,
        *args: Any,
        text: Mapping[str, Any] | None = None,
        summary: Summary | None = None,
        bytes_per_token: float | Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.text, self.summary, self.bytes_per_token = text, summary, bytes_per_token
        refuse_numbers(self.args)
        refuse_options(self.args)
        refuse_hub_options(self.args)
        refuse_parts(self)
        # the check before every step replaces it: the filter would log 0.0 or an average instead of NaN
        self.args.logging_nan_inf_filter = False
        self._stop = StopSignal()
        self._step_loss: torch.Tensor | None = None
        self._token_loss = TokenLoss()
        self._train_random = torch.Generator()
        use_progress_lines(self)
        self._counter = BlockCounter()
        self.add_callback(RisingRateCallback())
        self._tracker: ReaderTracker | None = None
        self.add_callback(StepBoundaryCallback(self._stop, self._train_random))
        patience = getattr(self.args, "early_stopping_patience", None)
        if patience is not None:
            self.add_callback(EarlyStopping(patience, getattr(self.args, "early_stopping_threshold", 0.0)))

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """Train, from the beginning or from a checkpoint: True for the newest that verifies, or a path.

        Raises ValueError when the output folder is refused or a named checkpoint does not verify, NonFiniteError
        and CheckpointError with the last good checkpoint intact, and SystemExit after a signal.
        """
        choice = resume_choice(resume_from_checkpoint)
        # each trial of a search has its own
        output_dir = Path(super()._get_output_dir(trial))
        with contextlib.ExitStack() as held:

            def begin() -> tuple[Path | None, Position | None, StreamPosition | None]:
                held.enter_context(lock_run_folder(output_dir, resume=choice is not False))
                found = choose_checkpoint(choice, output_dir)
                if found is not None:
                    compare(found, describe_run(self._own_model(), self.args, self.text))
                    self.text = with_saved_start(found, self.text)
                    quarantine_later(found, output_dir)
                if found is None or self.args.ignore_data_skip:
                    return found, None, None
                return found, Position.load(found), StreamPosition.load(found)

            source, position, readers = self._from_main(begin)
            refuse_folders_apart(output_dir, self.args)
            self._counter, self._tracker = BlockCounter(position), None
            if isinstance(self.train_dataset, StreamedBlocks):
                skips = source is not None and readers is None
                workers = self.args.dataloader_num_workers
                self._tracker = ReaderTracker(self.train_dataset, workers, readers, skips=skips)
            # however the run ends: what is on its way to the Hub is still in the folder
            held.callback(self._finish_current_push)
            held.enter_context(self._stop)
            self._step_loss = None
            if source is not None:
                self._warn_of_other_world(source, counted=position is not None or readers is not None)
            output = super().train(
                resume_from_checkpoint=None if source is None else str(source),
                trial=trial,
                ignore_keys_for_eval=ignore_keys_for_eval,
            )
            if self.args.save_total_limit == 1 and self._best():
                self._from_main(lambda: self._writer(trial).rotate(1, self._best()))
        if self._stop.number:
            logger.warning("the signal came after the last step: the training is complete, nothing was cut short")
        return output

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The training loader; it leaves the global random stream alone."""
        streams = isinstance(self.train_dataset, StreamedBlocks)
        tracks = self._tracker is not None
        loader = stream_loader(self, with_states=tracks) if streams else super().get_train_dataloader()
        order, args = epoch_order(loader), self.args
        if order is not None:
            self._counter.measure(
                loader, order, accumulation=args.gradient_accumulation_steps, drop_last=args.dataloader_drop_last
            )
            fills_up = args.world_size > 1 and not args.dataloader_drop_last
            order.together = self._counter.batch if fills_up else 1
        return isolate(loader, self._train_random, self._stop)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        sampler = super()._get_train_sampler(train_dataset)
        # one of batches says itself which process has which
        if sampler is None or self.args.train_sampling_strategy == "batch_rebalance":
            return sampler
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return EpochOrder(sampler, self._counter, seed=seed)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """The evaluation loader; over all processes it gives every row exactly once."""
        keeps_logits = self.compute_metrics is not None and not self.args.prediction_loss_only
        with whole_sets(self, keeps_logits=keeps_logits):
            loader = super().get_eval_dataloader(eval_dataset)
        if self.args.world_size > 1 and isinstance(loader.dataset, IterableDataset):
            raise ValueError(
                "eval_dataset must have a length when several processes evaluate, got a stream: "
                "rows would count twice; take the first rows of it as a list"
            )
        return isolate(loader, torch.Generator().manual_seed(self.args.seed), self._stop)

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader[Any]:
        """The loader of `predict`; it gives every row, too."""
        with whole_sets(self, keeps_logits=not self.args.prediction_loss_only):
            loader = super().get_test_dataloader(test_dataset)
        return isolate(loader, torch.Generator().manual_seed(self.args.seed), self._stop)

    def set_initial_training_values(self, args: Any, dataloader: DataLoader[Any]) -> Lengths:
        """The lengths of the run; of one that is resumed, from where it goes on."""
        usual: Lengths = super().set_initial_training_values(args, dataloader)
        return self._counter.lengths(usual, epochs=None if args.max_steps > 0 else args.num_train_epochs)

    def _init_training_state(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        epoch, batches = super()._init_training_state(*args, **kwargs)
        if self._tracker is not None and not self._tracker.is_resumed:
            self._tracker.skip(batches)
        if not self.state.global_step or not self._counter.counts:
            return epoch, batches
        self._counter.start_in_batches(epoch, batches, self.state.global_step)
        return self._counter.begun()

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # transformers looks whether the run is complete only after a step: it would train one more
        if self.control.should_training_stop:
            return
        if self.state.global_step < self.state.max_steps:
            self._run_rest_of_epoch(*args, **kwargs)
            return
        logger.warning("the run is complete with step %d: nothing was left to train", self.state.global_step)
        self.control.should_training_stop = True

    def _run_rest_of_epoch(self, *args: Any, **kwargs: Any) -> None:
        counter, epoch = self._counter, kwargs["epoch"]
        counter.start_epoch(epoch)
        is_counted = counter.counts and counter.is_resumed
        if not is_counted and (self._tracker is None or not self._tracker.is_resumed):
            super()._run_epoch(*args, **kwargs)
            return
        if is_counted and epoch == counter.begun()[0]:
            kwargs["steps_in_epoch"], kwargs["num_update_steps_per_epoch"] = counter.epoch_lengths()
        with skipping_nothing():
            super()._run_epoch(*args, **kwargs)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[Any], Any]:
        """The micro-batches of the next step, which are counted, and how many tokens they score."""
        batches, scored = super().get_batch_samples(*args, **kwargs)
        self._counter.add(len(batches))
        if self._tracker is not None:
            for batch in batches:
                self._tracker.take(batch)
        return batches, scored

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """One micro-batch forward and backward; its loss is kept on the device for the check before the update."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._step_loss = loss if self._step_loss is None else self._step_loss + loss
        return loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The model's own loss, made without logits where the outputs are not asked for."""
        self._set_signature_columns_if_needed()
        if not return_outputs and "return_logits" in (self._signature_columns or ()):
            inputs = {"return_logits": False, **inputs}
        # in evaluation the mean of a batch is wanted, on every process and in every release of transformers
        items = num_items_in_batch if model.training else None
        return super().compute_loss(model, inputs, return_outputs, items)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        # the one place between the gradients and the update that knows both loss and norm
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        self._agree_to_update(norm)
        return norm

    def _agree_to_update(self, norm: Any) -> None:
        """Stop before the update if any process has a number that is not finite; agree on signals.

        One device-to-host copy a step, in place of the Trainer's own two a micro-batch.
        """
        loss, self._step_loss = self._step_loss, None
        # a gradient scaler (fp16) meets infinite gradients as a matter of course and skips those steps itself
        scaled = getattr(self.accelerator, "scaler", None) is not None
        device = self.args.device
        number = torch.tensor(float(self._stop.number), device=device)
        flags = torch.stack([is_bad(loss, device), is_bad(None if scaled else norm, device), number])
        bad_loss, bad_norm, signal_number = largest(flags, self.args)
        if bad_loss or bad_norm:
            raise step_error(loss, is_loss=bool(bad_loss), step=self.state.global_step, output_dir=self.args.output_dir)
        self._stop.agreed = int(signal_number)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Evaluate. Over several named sets, `summary` adds metrics, and a last on_evaluate has those of all sets."""
        metrics: dict[str, float] = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        sets = self.eval_dataset if eval_dataset is None else eval_dataset
        if self.summary is not None and isinstance(sets, dict):
            further = self.summary(metrics, metric_key_prefix)
            metrics.update(further)
            self.log(further)
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        if self.is_in_train and eval_dataset is None:
            self._refuse_unknown_metric(metrics, metric_key_prefix)
        return metrics

    def _refuse_unknown_metric(self, metrics: Mapping[str, float], prefix: str) -> None:
        name = self.args.metric_for_best_model
        if name is not None and f"eval_{name.removeprefix('eval_')}" not in metrics:
            known = ", ".join(one.removeprefix(f"{prefix}_") for one in metrics if one.startswith(prefix))
            raise ValueError(f"metric_for_best_model: expected a figure of the evaluations ({known}), got {name!r:.60}")

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[torch.Tensor | None, Any, Any]:
        """Score one batch; the sum over its scored tokens is noted. For a loss only, nothing is gathered."""
        inputs = self._prepare_inputs(inputs)
        if not prediction_loss_only:
            step = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys=ignore_keys)
            if step[0] is not None:
                self._token_loss.add(step[0], inputs)
            return step
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = self.compute_loss(model, inputs)
            assert isinstance(loss, torch.Tensor), "outputs were not asked for"
        self._token_loss.add(loss, inputs)
        return None, None, None

    def evaluation_loop(
        self,
        dataloader: DataLoader[Any],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Evaluate; the loss is the sum over all scored tokens divided by their number, which is reported too.

        Gives `<prefix>_loss` (nats per token), `<prefix>_perplexity` and `<prefix>_scored_tokens` where the rows have
        labels, and `<prefix>_bits_per_byte` where `bytes_per_token` is known.
        """
        loss_only = self.args.prediction_loss_only if prediction_loss_only is None else prediction_loss_only
        self._token_loss = TokenLoss()
        output = super().evaluation_loop(dataloader, description, loss_only, ignore_keys, metric_key_prefix)
        if not loss_only and f"{metric_key_prefix}_loss" not in (output.metrics or {}):
            return output
        scored, size = self._token_loss.metrics(metric_key_prefix), self.bytes_per_token
        if isinstance(size, Mapping):
            size = size.get(metric_key_prefix.partition("_")[2])
        loss = scored[f"{metric_key_prefix}_loss"]
        figures = loss_figures(loss, metric_key_prefix, bytes_per_token=size)
        return output._replace(metrics={**(output.metrics or {}), **figures, **scored})

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        # save_strategy "best" saves only where this is true; a run that stops must save whatever the metric
        return super()._determine_best_metric(metrics, trial) or bool(self._stop.agreed)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write a checkpoint into the stage, seal it, and only then let old ones go."""
        with deaths_deferred():
            self._save_sealed(model, trial)

    def _save_sealed(self, model: nn.Module, trial: Any) -> None:
        self._refuse_bad_weights()
        writer, name = self._writer(trial), f"checkpoint-{self.state.global_step}"
        self._from_main(writer.clear)
        enter_states(self.state, self.callback_handler.callbacks)
        try:
            super()._save_checkpoint(model, trial)
            self._name_best(writer.output_dir)
            self.accelerator.wait_for_everyone()
            readers = None if self._tracker is None else self._tracker.position()
            sealed = self._from_main(lambda: self._seal(writer, name, readers))
        except Exception as error:
            if self.is_world_process_zero():
                writer.clear()
            raise writer.failure(name, error) from error
        if self.args.push_to_hub:
            self.push_checkpoint(sealed)

    def _writer(self, trial: Any) -> CheckpointWriter:
        return CheckpointWriter(Path(super()._get_output_dir(trial)))

    def _get_output_dir(self, trial: Any) -> str:
        # where transformers writes and deletes checkpoints: those in place are ours
        return str(self._writer(trial).stage)

    def _name_best(self, output_dir: Path) -> None:
        """Name the best checkpoint as it will be called, not by its staging path."""
        best = self.state.best_global_step
        if best and (best == self.state.global_step or (output_dir / f"checkpoint-{best}").is_dir()):
            self.state.best_model_checkpoint = str(output_dir / f"checkpoint-{best}")

    def _seal(self, writer: CheckpointWriter, name: str, readers: StreamPosition | None) -> Path:
        self.state.save_to_json(str(writer.stage / name / "trainer_state.json"))
        if self._counter.counts:
            self._counter.position(self.state.global_step).save(writer.stage / name)
        if readers is not None:
            readers.save(writer.stage / name)
        sealed = writer.seal(name, describe_run(self._own_model(), self.args, self.text))
        self._last_sealed = writer, name
        self._rotate()
        return sealed

    def _rotate(self) -> None:
        if self._last_sealed is not None:
            writer, name = self._last_sealed
            writer.rotate(self.args.save_total_limit, {name, *self._best()}, in_use=self.being_pushed())

    def _finish_current_push(self) -> None:
        super()._finish_current_push()
        # what was kept while it was on its way
        self._rotate()

    def _best(self) -> set[str]:
        best = self.state.best_model_checkpoint
        return {Path(best).name} if best else set()

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Write weights, config, tokenizer and arguments; outside a checkpoint through a stage, file by whole file."""
        folder = Path(str(self.args.output_dir if output_dir is None else output_dir))
        if not self.args.should_save or is_staged(folder):
            with self._without_token():
                super()._save(output_dir, state_dict)
            note_fingerprint(self, folder)
            return
        self._refuse_bad_weights()
        with installed(folder) as stage, self._without_token():
            super()._save(str(stage), state_dict)
            note_fingerprint(self, stage)

    @contextlib.contextmanager
    def _without_token(self) -> Iterator[None]:
        """The arguments are saved beside the weights and travel with them: a Hub token must not."""
        token, self.args.hub_token = self.args.hub_token, None
        try:
            yield
        finally:
            self.args.hub_token = token

    def _own_model(self) -> nn.Module:
        assert self.model is not None, "a trainer has a model once it trains or saves"
        return self.model

    def _refuse_bad_weights(self) -> None:
        refuse_bad_weights(self._own_model(), step=self.state.global_step, output_dir=self.args.output_dir)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with cpu_without_index(self.args):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        # tied weights are saved once, under one name: the other is not missing
        tied = getattr(self.model, "all_tied_weights_keys", {})
        missing = [name for name in load_result.missing_keys if name not in tied]
        super()._issue_warnings_after_load(load_result._replace(missing_keys=missing))

    def _load_best_model(self) -> None:
        best = Path(str(self.state.best_model_checkpoint))
        problem = self._from_main(lambda: verify(best))
        if problem is not None:
            raise ValueError(
                f"the best checkpoint {best} does not verify: {problem}; name another metric, or train without "
                "load_best_model_at_end (the later checkpoints are as they were)"
            )
        super()._load_best_model()

    def _warn_of_other_world(self, source: Path, *, counted: bool) -> None:
        size, index = self.args.world_size, self.args.process_index
        wanted = "rng_state.pth" if size <= 1 else f"rng_state_{index}.pth"
        if wanted not in sealed_names(source):
            logger.warning(
                "%s was saved by another number of processes: the run goes on, but not bit for bit: %s; the global "
                "batch is now %s",
                source.name,
                "each block of this epoch still comes once" if counted else _UNCOUNTED,
                self.args.train_batch_size * self.args.gradient_accumulation_steps * size,
            )
        if self._tracker is not None and self._tracker.is_changed and self.is_world_process_zero():
            logger.warning(
                "%s goes on with other readers of the stream: they share the rest of this reading, none comes twice",
                source.name,
            )

    def _from_main(self, work: Callable[[], T]) -> T:
        return from_main(work, self.args)
