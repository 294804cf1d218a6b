"""What a run sends to the Hub: the model of its checkpoints while it trains, and all that is published at its end."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi, ModelCard, run_as_future
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import HubStrategy
from transformers.utils import PushInProgress

from ..errors import UsageError
from ..publishing import publish
from ..publishing.files import CARD, about_files, model_files, refuse_secrets
from ..publishing.hub import CLIENT_ERRORS, check_destination, reason

logger = logging.getLogger(__name__)

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
    them.
    """

    push_in_progress: Any = None
    _pushed = ""

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """As Trainer's; a Hub that refuses is a ValueError of one line."""
        try:
            super().init_hf_repo(token=token, private=private)
        except CLIENT_ERRORS as error:
            raise ValueError(
                f"{_repository(self.args)}: cannot be pushed to: {reason(error):.400}; give another hub_model_id or "
                "token, or push_to_hub: false"
            ) from error

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write transformers' draft of a card, unless a card is there: it is asked for with every push.

        A license stands in it where one is given: transformers takes that of the weights a run started from.
        """
        path = Path(str(self.args.output_dir)) / CARD
        if path.exists() or not self.is_world_process_zero():
            return
        super().create_model_card(*args, **kwargs)
        # the second argument, if not by its name
        if kwargs.get("license") is None and not args[1:]:
            card = ModelCard.load(path)
            card.data.license = None
            card.save(path)

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
        branch, is_private = revision or self.args.hub_revision, private or self.args.hub_private_repo
        options = f"{' --private' if is_private else ''}{f' --revision {branch}' if branch else ''}"
        folder, name, api = Path(str(self.args.output_dir)), str(self.hub_model_id), HfApi(token=token)

        def work() -> CommitInfo:
            try:
                return publish(folder, name, revision=branch, message=commit_message, private=private, api=api).info
            except ValueError as error:
                raise ValueError(
                    f"the run is complete, but not on the Hub ({error}): arbprob publish {folder} {name}{options} does "
                    "that"
                ) from error

        return work() if blocking else run_as_future(work)

    def push_checkpoint(self, sealed: Path) -> None:
        """Send the model of a sealed checkpoint and the logs, as `hub_strategy` says, while training goes on.

        One is sent at a time: what is saved meanwhile is left out, or with `hub_always_push` waits until the one
        before has arrived. A push that fails is warned of, and the run goes on.
        """
        args = self.args
        if not self.is_world_process_zero() or args.hub_strategy == HubStrategy.END:
            return
        if self.being_pushed() and not args.hub_always_push:
            return
        self._finish_current_push()
        self.callback_handler.on_push_begin(args, self.state, self.control)
        push = _Push(
            sealed,
            Path(str(args.output_dir)),
            args=args,
            # of now: the arguments lose their token while they are saved
            token=args.hub_token,
            repository=str(self.hub_model_id),
            message=f"Training in progress, step {self.state.global_step}",
        )
        self._pushed = sealed.name
        self.push_in_progress = PushInProgress([run_as_future(push.send)])  # type: ignore[arg-type]

    def being_pushed(self) -> set[str]:
        """The name of the checkpoint that is on its way, whose files must stay; empty without one."""
        is_done = self.push_in_progress is None or self.push_in_progress.is_done()
        return set() if is_done else {self._pushed}

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        # transformers asks for it before the checkpoint is sealed: see `push_checkpoint`
        pass


@dataclass(frozen=True)
class _Push:
    """One checkpoint on its way to the Hub. Its files are read where they lie, as nothing changes a sealed one."""

    sealed: Path
    output_dir: Path
    args: TrainingArguments
    token: str | None
    repository: str
    message: str

    def send(self) -> None:
        """Runs in the background; what the client raises is logged, as nobody would hear it."""
        api, revision = HfApi(token=self.token), self.args.hub_revision
        try:
            operations = [CommitOperationAdd(name, content) for name, content in self._contents().items()]
            if revision not in (None, "main"):
                api.create_branch(self.repository, branch=str(revision), exist_ok=True)
            api.create_commit(self.repository, operations, commit_message=self.message, revision=revision)
        except CLIENT_ERRORS as error:
            logger.warning("%s was not pushed: %.300s; training goes on", self.sealed.name, reason(error))

    def _contents(self) -> dict[str, Path | bytes]:
        """What is sent, by name: the model at the top of the repository, and a subfolder where one is asked for."""
        about, model, inside = about_files(self.output_dir), model_files(self.sealed), self._subfolder()
        refuse_secrets({**about, **model, **inside}, folder=self.output_dir, token=self.token, may_hold_paths=[*inside])
        # the logs go on being written: they are read at once
        return {**{name: path.read_bytes() for name, path in about.items()}, **model, **inside}

    def _subfolder(self) -> dict[str, Path]:
        if self.args.hub_strategy not in _SUBFOLDERS:
            return {}
        name = "last-checkpoint" if self.args.hub_strategy == HubStrategy.CHECKPOINT else self.sealed.name
        files = model_files(self.sealed)
        if getattr(self.args, "hub_training_state", False):
            everything = [path for path in self.sealed.rglob("*") if path.is_file()]
            files = {path.relative_to(self.sealed).as_posix(): path for path in everything}
        return {f"{name}/{inner}": path for inner, path in files.items()}
