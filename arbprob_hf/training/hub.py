"""What a run sends to the Hub: the model of its checkpoints while it trains, and all that is published at its end."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import HubStrategy
from transformers.utils import PushInProgress

from ..errors import UsageError
from ..publishing import publish
from ..publishing.files import CARD, about_files, model_files, refuse_secrets
from ..publishing.hub import CLIENT_ERRORS, check_destination, reason
from ..runs.checkpoints import PRIVATE_NAME

logger = logging.getLogger(__name__)

OUTGOING_NAME = "outgoing"
_SUBFOLDERS = (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS)


def refuse_hub_options(args: TrainingArguments) -> None:
    """Raise ValueError where the training state is to be pushed, but no checkpoint is."""
    if getattr(args, "hub_training_state", False) and args.hub_strategy not in _SUBFOLDERS:
        raise ValueError(
            f"hub_training_state: true has no effect with hub_strategy {HubStrategy(args.hub_strategy).value}, which "
            "pushes no checkpoint; add --hub_strategy checkpoint"
        )


def refuse_destination(args: TrainingArguments) -> None:
    """Raise UsageError where a run is to be pushed without a token, or to a name that cannot be. Nobody is asked."""
    if not args.push_to_hub:
        return
    try:
        check_destination(_repository(args), HfApi(token=args.hub_token))
    except ValueError as error:
        raise UsageError(f"push_to_hub: {error}") from error


def _repository(args: TrainingArguments) -> str:
    # as transformers names it
    return str(args.hub_model_id or Path(str(args.output_dir)).absolute().name)


class PublishingTrainer(Trainer):
    """A Trainer that sends models with their cards and logs to the Hub, and nothing else unless asked to.

    Not sent are optimizers, random states and options (pickles, with paths in them); `hub_training_state` asks for
    them. What is sent of a checkpoint is held by hard links, so the checkpoint may be deleted meanwhile.
    """

    push_in_progress: Any = None
    _client: HfApi | None = None

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """As Trainer's; a Hub that refuses is told of in one line, a ValueError."""
        try:
            super().init_hf_repo(token=token, private=private)
        except CLIENT_ERRORS as error:
            raise ValueError(
                f"{_repository(self.args)}: cannot be pushed to: {reason(error):.400}; give another hub_model_id or "
                "token, or push_to_hub: false"
            ) from error

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write transformers' draft of a card, unless a card is there: it is asked for with every push."""
        if not (Path(str(self.args.output_dir)) / CARD).exists():
            super().create_model_card(*args, **kwargs)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """As Trainer's, but what is sent is `publish`'s choice, after its checks; None on all but the main process."""
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        token = token or self.args.hub_token
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self.create_model_card(**kwargs)
        self._finish_current_push()
        api = HfApi(token=token)

        def work() -> CommitInfo:
            folder, name = Path(str(self.args.output_dir)), str(self.hub_model_id)
            branch = revision or self.args.hub_revision
            try:
                return publish(folder, name, revision=branch, message=commit_message, private=private, api=api).info
            except ValueError as error:
                options = " --private" if private or self.args.hub_private_repo else ""
                options += f" --revision {branch}" if branch else ""
                raise ValueError(
                    f"the run is complete, but not on the Hub ({error}): arbprob publish {folder} {name}{options} does "
                    "that"
                ) from error

        return work() if blocking else api.run_as_future(work)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Send a checkpoint's model and the logs in the background, as `hub_strategy` says.

        A push that fails is warned of, and the run goes on.
        """
        args, running = self.args, self.push_in_progress
        if not self.is_world_process_zero() or args.hub_strategy == HubStrategy.END:
            return
        under_way = [] if running is None else [job for job in running.jobs if not job.done()]
        if under_way and not args.hub_always_push:
            return
        self.callback_handler.on_push_begin(args, self.state, self.control)
        outgoing = _Outgoing(Path(checkpoint_folder), Path(str(args.output_dir)))
        try:
            files = _chosen(outgoing, args)
        except OSError as error:
            outgoing.give_up(error)
            return
        # one client for all: its pushes go one after the other
        self._client = self._client or HfApi(token=args.hub_token)
        job = self._client.run_as_future(
            _send,
            outgoing,
            files,
            args=args,
            repository=str(self.hub_model_id),
            message=f"Training in progress, step {self.state.global_step}",
        )
        self.push_in_progress = PushInProgress([*under_way, job])  # type: ignore[arg-type]


@dataclass(frozen=True)
class _Outgoing:
    """Files on their way, as hard links in a hidden folder of the run."""

    sealed: Path
    output_dir: Path

    @property
    def folder(self) -> Path:
        return self.output_dir / PRIVATE_NAME / OUTGOING_NAME / self.sealed.name

    def hold(self, files: Mapping[str, Path]) -> dict[str, Path]:
        """`files` by the same names, at places where they stay until `release`."""
        held = {name: self.folder / name for name in files}
        for name, path in files.items():
            held[name].parent.mkdir(parents=True, exist_ok=True)
            held[name].unlink(missing_ok=True)
            if self.sealed in path.parents:
                _link(path, held[name])
            else:
                # the logs are still being written
                shutil.copyfile(path, held[name])
        return held

    def give_up(self, error: BaseException) -> None:
        """Say that they are not sent, and let go of them."""
        logger.warning("%s was not pushed: %.300s; training goes on", self.sealed.name, reason(error))
        self.release()

    def release(self) -> None:
        """Let go of them."""
        shutil.rmtree(self.folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.folder.parent.rmdir()


def _chosen(outgoing: _Outgoing, args: TrainingArguments) -> dict[str, Path]:
    """What is sent of a checkpoint, held: the model for the top of the repository, and for a subfolder if asked to."""
    sealed = outgoing.sealed
    files = {**about_files(outgoing.output_dir), **model_files(sealed)}
    if args.hub_strategy in _SUBFOLDERS:
        inside = "last-checkpoint" if args.hub_strategy == HubStrategy.CHECKPOINT else sealed.name
        everything = {path.relative_to(sealed).as_posix(): path for path in sealed.rglob("*") if path.is_file()}
        found = everything if getattr(args, "hub_training_state", False) else model_files(sealed)
        files.update({f"{inside}/{name}": path for name, path in found.items()})
    return outgoing.hold(files)


def _link(path: Path, target: Path) -> None:
    try:
        os.link(path, target)
    except OSError:
        # a file system without hard links
        shutil.copyfile(path, target)


def _send(
    outgoing: _Outgoing, files: Mapping[str, Path], *, args: TrainingArguments, repository: str, message: str
) -> None:
    """Runs in the background; what the client raises is logged, as nobody would hear it."""
    api, revision = HfApi(token=args.hub_token), args.hub_revision
    try:
        state = [name for name in files if "/" in name and not name.startswith("logs/")]
        refuse_secrets(files, folder=outgoing.output_dir, token=args.hub_token, asked=state)
        if revision not in (None, "main"):
            api.create_branch(repository, branch=str(revision), exist_ok=True)
        operations: list[Any] = [CommitOperationAdd(name, path) for name, path in files.items()]
        api.create_commit(repository, operations, commit_message=message, revision=revision)
    except CLIENT_ERRORS as error:
        outgoing.give_up(error)
    else:
        outgoing.release()
