"""Publish to a dataset repo on the Hub, through huggingface_hub.

Sending lists the repo, uploads what is not there file by file, and commits all of it at once. If it is killed in
between, the Hub keeps the uploaded files and does not take them again; the repo is as before until the commit. A commit
whose answer is lost may have been made: the repo is listed anew before it is tried again, on top of the listed commit.

If the Hub refuses what is published, the error says why and what to do about it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from laion_face_builder import progress
from laion_face_builder.errors import LaionFaceError, OptionError, PublishError, SourceError, StateConflict
from laion_face_builder.publish.manifest import MANIFEST
from laion_face_builder.publish.overtaken import Basis
from laion_face_builder.publish.targets import OutgoingFile, PublishedFile, missing, problems
from laion_face_builder.shown import harmless, short
from laion_face_builder.sources.hashes import git_hash
from laion_face_builder.sources.hub import Token, in_our_words, status_of
from laion_face_builder.sources.retrying import TransientError, retried

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_GIVE = "`hf auth login`, the variable HF_TOKEN, or --token"


def refused(error: Exception, where: str, repo: str, revision: str) -> Exception:
    """Make a PublishError that says what to do, or a TransientError if the cause may pass.

    Args:
        error: what huggingface_hub raised.
        where: the repo and what was being done.
        repo, revision: "owner/name" and the branch that was to be written.
    """
    error = root_of(error)
    said = short(getattr(error, "server_message", None) or error).removesuffix(".")
    status = status_of(error)
    if status in (409, 412):
        return TransientError(f"somebody else committed to {revision} in between ({said})")
    way_out = _way_out(error, status, repo.partition("/")[0], revision)
    return PublishError(f"{where}: {said}. {way_out}") if way_out else in_our_words(error, where)


def root_of(error: Exception) -> Exception:
    """Give the cause of the RuntimeError that huggingface_hub raises about one file of several, else the error."""
    cause = error.__cause__
    return cause if isinstance(error, RuntimeError) and isinstance(cause, Exception) else error


def _way_out(error: Exception, status: int | None, owner: str, revision: str) -> str | None:
    from huggingface_hub import errors as hub

    if isinstance(error, hub.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set: unset it to publish to the Hub"
    if isinstance(error, hub.RevisionNotFoundError):
        return f"There is no branch {revision!r}; --revision has to name a branch"
    if status == 401 or isinstance(error, hub.RepositoryNotFoundError):
        return f"No valid token was given, or it may not see the repo. Give one that may write to {owner}: {_GIVE}"
    if status == 403:
        return f"The token may not write to {owner}, or its storage is full. Make room, or give another: {_GIVE}"
    if status == 413:
        return f"That is too much for the Hub at once, or for {owner}'s storage. Make room, or publish fewer parts"
    return None


T = TypeVar("T")
_GATES: dict[str, Literal["auto", "manual", False]] = {"auto": "auto", "manual": "manual", "off": False}
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class _Head:
    """A branch at one moment: its commit and the files in it; None and {} where there is no such repo or branch.

    `gated` is the repo's setting, as the Hub says it: "auto", "manual", or False.
    """

    commit: str | None
    held: dict[str, PublishedFile]
    gated: str | bool = False


@dataclass(frozen=True)
class HubDestination:
    """The dataset `repo`, "owner/name", at the branch `revision`; both are made when something is sent.

    Args:
        private: a repo that is made is made private, and one that is public is refused.
        gated: the repo is made to let people in as they ask ("auto"), or as its owner says ("manual"), or all ("off"),
            before anything is sent; None leaves it as it is.
        token: None means the one that `hf auth login` or HF_TOKEN gave, False none.
    """

    repo: str
    private: bool = False
    gated: str | None = None
    revision: str = "main"
    token: Token = field(default=None, repr=False)

    def __post_init__(self) -> None:
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils._validators import validate_repo_id

        try:
            validate_repo_id(self.repo)
        except HFValidationError as error:
            raise OptionError(f"{self.repo!r} is no name of a Hub dataset: {short(error)}") from error
        if _COMMIT.fullmatch(self.revision):
            raise OptionError(
                f"--revision {self.revision} is a commit, which stays as it is; give the name of a branch"
            )

    def listing(self) -> dict[str, PublishedFile]:
        """List every file but hidden ones such as .gitattributes, which is the Hub's own.

        Raises:
            PublishError: no answer, or no access.
        """
        return self._head().held

    def send(self, files: Sequence[OutgoingFile], message: str, basis: Basis | None = None) -> int:
        """Upload and commit what is not there yet; no commit if all is. 429, 5xx and cut connections are retried.

        Returns:
            The bytes of the files that were committed, of which the Hub may have had some from a send that was killed.

        Raises:
            PublishError: no answer in the end, no access, or the Hub refuses.
            BadFile: a file is no longer what it was when it was hashed; nothing is committed.
            StateConflict: `private` is asked for, and the repo is public; or it is not `basis` any more.
        """
        head = self._made()
        if not (left := missing(files, self._stated(files, head))):
            return 0
        self._require(basis, head)
        from huggingface_hub import CommitOperationAdd

        with _without_bars():
            additions = {file.name: CommitOperationAdd(file.name, file.path) for file in left}
            self._upload(left, additions, message)
            self._commit(lambda held: [additions[file.name] for file in missing(left, held)], left, message, basis)
        return sum(file.size for file in left)

    def lacks(self, files: Sequence[OutgoingFile]) -> list[OutgoingFile]:
        """Give those that are not there, by the sizes and hashes that the Hub states.

        Raises:
            PublishError: no answer, or no access.
        """
        return missing(files, self._stated(files, self._head()))

    def remove(self, names: Sequence[str], message: str, basis: Basis | None = None) -> None:
        """Remove those of `names` that are there, in one commit.

        Raises:
            PublishError: no answer in the end, no access, or the Hub refuses.
            StateConflict: it is not `basis` any more.
        """
        from huggingface_hub import CommitOperationDelete

        def plan(held: dict[str, PublishedFile]) -> list[Any]:
            return [CommitOperationDelete(name, is_folder=False) for name in sorted(held.keys() & set(names))]

        self._commit(plan, (), message, basis)

    def check(self, files: Sequence[OutgoingFile]) -> list[str]:
        """List problems, one line each: list the repo again and compare sizes and the hashes that the Hub states.

        Raises:
            PublishError: no answer, or no access.
        """
        return problems(files, self._stated(files, self._head()))

    @cached_property
    def api(self) -> HfApi:
        """The Hub's client, with the token."""
        from huggingface_hub import HfApi

        return HfApi(token=self.token)

    def _head(self) -> _Head:
        from huggingface_hub import errors as hub

        try:
            return self.asked(self._look)
        except PublishError as error:
            cause = error.__cause__
            absent = isinstance(cause, (hub.RepositoryNotFoundError, hub.RevisionNotFoundError))
            if cause and absent and status_of(cause) == 404:  # a 401 can mean that we may not see it
                return _Head(None, {})
            raise

    def _look(self) -> _Head:
        """Read the branch as it is now: all of it at one commit, however many pages the listing has."""
        from huggingface_hub.hf_api import RepoFile

        about = self.api.dataset_info(self.repo, revision=self.revision)
        if self.private and not about.private:
            raise StateConflict(
                f"Hub dataset {self.repo}: --private is asked for, but the repo is public. Make it private in its "
                f"settings, or give another name"
            )
        tree = self.api.list_repo_tree(self.repo, recursive=True, revision=about.sha, repo_type="dataset")
        files = [entry for entry in tree if isinstance(entry, RepoFile) and not entry.path.startswith(".")]
        held = {
            file.path: PublishedFile(file.size, file.lfs.sha256 if file.lfs else None, file.blob_id) for file in files
        }
        return _Head(about.sha, held, about.gated or False)

    def _made(self) -> _Head:
        """Give the branch; make it, and the repo, if there is none; set the repo's gate as it is to be."""
        head = self._head()
        head = head if head.commit is not None else self._new()
        wanted = None if self.gated is None else _GATES[self.gated]
        if wanted is not None and head.gated != wanted:
            self.asked(lambda: self.api.update_repo_settings(self.repo, repo_type="dataset", gated=wanted), "settings")
        return head

    def _new(self) -> _Head:
        """Make the branch, and the repo if there is none."""
        self.asked(
            lambda: self.api.create_repo(self.repo, repo_type="dataset", private=self.private or None, exist_ok=True)
        )
        if self.revision != "main":
            self.asked(
                lambda: self.api.create_branch(self.repo, branch=self.revision, repo_type="dataset", exist_ok=True)
            )
        return self.asked(self._look)

    @staticmethod
    def _stated(files: Sequence[OutgoingFile], head: _Head) -> dict[str, PublishedFile]:
        """List what is there, with the SHA-256 of small files too if git's hash shows that they are ours."""
        held = dict(head.held)
        for file in files:
            there = held.get(file.name)
            comparable = there and there.sha256 is None and there.size == file.size and file.path.is_file()
            if there and comparable and there.git_sha1 == git_hash(file.path):
                held[file.name] = PublishedFile(there.size, file.sha256, there.git_sha1)
        return held

    def _upload(self, files: Sequence[OutgoingFile], additions: dict[str, Any], message: str) -> None:
        """Upload file by file, so that a failure costs one file only; small ones travel in the commit."""
        upload = partial(self.api.preupload_lfs_files, repo_type="dataset", revision=self.revision)
        total = sum(file.size for file in files)
        with progress.bar(message, total, "B") as bar:
            for file in files:
                self.asked(partial(upload, self.repo, [additions[file.name]]), file.name)
                if (sent := additions[file.name].upload_info.sha256.hex()) != file.sha256:
                    raise file.changed(sent)
                bar.update(file.size)

    def _require(self, basis: Basis | None, head: _Head) -> None:
        if basis is not None:
            there = head.held.get(MANIFEST)
            stated = None if there is None else (there.sha256, there.git_sha1)
            basis.require(f"Hub dataset {self.repo}", stated)

    def _commit(
        self,
        plan: Callable[[dict[str, PublishedFile]], list[Any]],
        files: Sequence[OutgoingFile],
        message: str,
        basis: Basis | None,
    ) -> None:
        """Commit what `plan` makes of what is there; a retry lists the repo and plans anew."""

        def once() -> None:
            head = self._head()
            if operations := plan(self._stated(files, head)):
                self._require(basis, head)
                self.api.create_commit(
                    self.repo,
                    operations,
                    commit_message=message,
                    repo_type="dataset",
                    revision=self.revision,
                    parent_commit=head.commit,
                )

        self.asked(once, "commit")

    def asked(self, ask: Callable[[], T], what: str = "") -> T:
        """Return what `ask`, which calls the client, gives; 429, 5xx and cut connections are retried.

        Raises:
            PublishError: no answer in the end, no access, or the Hub refuses.
        """
        where = f"Hub dataset {self.repo}" + (f", {what}" if what else "")

        def once() -> T:
            try:
                return ask()
            except LaionFaceError:
                raise
            except Exception as error:  # Which library's errors these are depends on the version of huggingface_hub.
                raise refused(error, where, self.repo, self.revision) from harmless(root_of(error))

        try:
            return retried(once, where)
        except SourceError as error:
            raise PublishError(f"{error} What was sent is kept: the same command goes on from there.") from error


@contextmanager
def _without_bars() -> Iterator[None]:
    """Switch off huggingface_hub's progress bars: they go to log files too, and at a terminal mix with ours."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    change = not are_progress_bars_disabled()
    if change:
        disable_progress_bars()
    try:
        yield
    finally:
        if change:
            enable_progress_bars()
