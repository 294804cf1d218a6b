"""Publishes the folder of a run on the Hub: checked and proven, then in two commits, as often as it takes."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import (
    CommitInfo,
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    ModelCard,
    get_token,
)
from huggingface_hub.errors import HTTPError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import validate_repo_id

from ..errors import check_folder
from .card import addressed, pinned
from .files import CARD, is_of_a_model, refuse_foreign_code, refuse_secrets, run_files
from .load_test import prove

# a failed upload of a large file is a RuntimeError with the reason behind it
CLIENT_ERRORS = (HTTPError, OSError, ValueError, RuntimeError)


@dataclass(frozen=True)
class Published:
    """Where a model lies: `revision` is the branch, `commit` what to pin; `info` is the last commit's."""

    repository: str
    revision: str
    commit: str
    files: int
    info: CommitInfo

    def __str__(self) -> str:
        return f'{self.files} files in {self.repository}, branch {self.revision}; pin revision="{self.commit}"'


def publish(
    folder: Path,
    repository: str,
    *,
    revision: str | None = None,
    message: str | None = None,
    private: bool | None = None,
    also: Sequence[str] = (),
    api: HfApi | None = None,
) -> Published:
    """Upload the model, card and curves of the run in `folder`; nothing leaves before all of it was checked.

    Weights, code, tokenizer, configuration, logs and pictures go in one commit, and the card in a second one, as it
    names the first for `revision`. What is there already is not sent again, so an upload that broke off is made once
    more. Weights and code of an older model that this one does not have are deleted from the branch.

    Args:
        revision: a branch, made if need be; main if None.
        message: of the commits.
        private: whether only its owner sees the repository; None leaves one that is there as it is and makes a new
            one private.
        also: patterns of files to add, such as `evaluation/*`, which holds the text of the evaluation.
        api: the client; its token, else the user's own.

    Raises:
        ValueError: nothing to publish; no token, or a name that cannot be; a token or a path of this machine in it;
            code of another repository; a card that the Hub does not take; a folder that does not load without this
            package; a Hub that refuses. One line.
    """
    folder, api = Path(folder), api or HfApi()
    check_folder(folder, "name the output folder of a finished run")
    files = run_files(folder, also)
    token = check_destination(repository, api)
    plain = run_files(folder)
    refuse_secrets(files, folder=folder, token=token, may_hold_paths=[name for name in files if name not in plain])
    refuse_foreign_code(files["config.json"])
    with _hub_errors(repository):
        _validate(files[CARD])
    prove(folder)
    return upload(files, repository, revision=revision, message=message, private=private, api=api)


def check_destination(repository: str, api: HfApi) -> str:
    """The token that `api` sends to `repository` with.

    Raises ValueError, one line, where there is none, or the repository cannot have that name; the Hub is not asked.
    """
    token = api.token if isinstance(api.token, str) else get_token()
    if not token:
        raise ValueError(
            f"{repository}: not published: no Hub token here; log in with `hf auth login`, or set HF_TOKEN"
        )
    try:
        validate_repo_id(repository)
    except ValueError as error:
        raise ValueError(
            f"{repository:.100}: not published: {reason(error):.200}; give a name such as somebody/my-model"
        ) from error
    return token


def upload(
    files: Mapping[str, Path],
    repository: str,
    *,
    revision: str | None = None,
    message: str | None = None,
    private: bool | None = None,
    api: HfApi | None = None,
) -> Published:
    """The part of `publish` that sends: `files` by their names in the repository, a card among them, unchecked."""
    api = api or HfApi()
    with _hub_errors(repository):
        place = _prepare(api, repository, revision or "main", private=private)
        return _send(api, place, files, message or "Publish the model")


@dataclass(frozen=True)
class _Place:
    repository: str
    revision: str
    # to be shown to everybody once it is complete
    opens: bool


def reason(error: BaseException) -> str:
    """Why the client gave up, in one line."""
    behind = error.__cause__ if isinstance(error, RuntimeError) else None
    parts = [str(one) or type(one).__name__ for one in (error, behind) if one is not None]
    return " ".join(": ".join(parts).split())


@contextlib.contextmanager
def _hub_errors(repository: str) -> Iterator[None]:
    try:
        yield
    except CLIENT_ERRORS as error:
        raise ValueError(
            f"{repository}: not published: {reason(error):.400}; once that is solved, publish it again: "
            "what arrived is not sent a second time"
        ) from error


def _validate(card: Path) -> None:
    try:
        ModelCard.load(card).validate()
    except ValueError as error:
        raise ValueError(f"{card.name}: the Hub does not take its metadata: {error}") from error


def _prepare(api: HfApi, repository: str, revision: str, *, private: bool | None) -> _Place:
    created = api.create_repo(repository, private=private is not False, exist_ok=True).repo_id
    is_private = bool(api.model_info(created).private)
    if private and not is_private:
        api.update_repo_settings(created, private=True)
    if revision != "main":
        api.create_branch(created, branch=revision, exist_ok=True)
    return _Place(created, revision, opens=private is False and is_private)


def _send(api: HfApi, place: _Place, files: Mapping[str, Path], message: str) -> Published:
    there = api.list_repo_files(place.repository, revision=place.revision)
    gone = [name for name in there if is_of_a_model(name) and name not in files]
    added = [CommitOperationAdd(name, path) for name, path in files.items() if name != CARD]
    head = _commit(api, place, [*added, *map(CommitOperationDelete, gone)], message).oid
    text = files[CARD].read_text(encoding="utf-8")
    commit = _same_but_for_the_card(api, place, head) if CARD in there else head
    card = addressed(text, repository=place.repository, revision=commit)
    info = _commit(api, place, [CommitOperationAdd(CARD, card.encode())], f"{message}: the card")
    if place.opens:
        api.update_repo_settings(place.repository, private=False)
    return Published(place.repository, place.revision, commit, len(files), info)


def _commit(
    api: HfApi, place: _Place, operations: Sequence[CommitOperationAdd | CommitOperationDelete], message: str
) -> CommitInfo:
    # files that did not change are left out by the client, and so is a commit without any
    return api.create_commit(place.repository, list(operations), commit_message=message, revision=place.revision)


def _same_but_for_the_card(api: HfApi, place: _Place, head: str) -> str:
    """The commit that the card in the repository pins, where it holds what `head` holds; else `head`.

    So publishing the same once more changes nothing.
    """
    path = api.hf_hub_download(place.repository, CARD, revision=head)
    named = pinned(Path(path).read_text(encoding="utf-8"))
    if named is None or not api.revision_exists(place.repository, named):
        return head
    before, after = (
        {
            entry.path: entry.blob_id
            for entry in api.list_repo_tree(place.repository, revision=one, recursive=True)
            if isinstance(entry, RepoFile) and entry.path != CARD
        }
        for one in (named, head)
    )
    return named if before == after else head
