"""Say where else the Hub still serves what was taken down, and squash a branch's history so that it serves it no more.

A commit that takes a file away leaves it in every commit before, and in the Hub's storage even if no commit is left
that has it. Squashing makes one commit of a branch; then the files that no branch, tag or pull request has at its head
are deleted from the storage. These others are their owners' to delete: those that have any of it are named.

Beside them the Hub keeps copies that it makes itself of what is at main (refs/convert/parquet, refs/convert/duckdb).
It makes them anew after a commit, when it comes to that; what they have of it until then is deleted from the storage.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from laion_face_builder.errors import LaionFaceError
from laion_face_builder.index.removed import Removed
from laion_face_builder.log import logger
from laion_face_builder.publish.hub_target import HubDestination
from laion_face_builder.publish.manifest import is_ours
from laion_face_builder.publish.targets import PublishedPlace
from laion_face_builder.shown import short
from laion_face_builder.sources.hub import HubRepo

#: The names under which the Hub keeps its own copies: CONFIG/SPLIT/0000.parquet, and an index of their words.
_OF_THE_HUB = re.compile(r"[^/]+/(partial-)?[^/]+/(\d{4,5}\.parquet|(partial-)?index\.duckdb)")


class Ref(NamedTuple):
    """A branch, tag, pull request or copy, as the Hub names it; how many of its rows are to be nowhere.

    `unread` files of it could not be looked through.
    """

    name: str
    rows: int
    unread: int

    def __str__(self) -> str:
        unread = f"{self.unread:,} files that cannot be read"
        has = " and ".join([f"{self.rows:,} rows of it"] * bool(self.rows) + [unread] * bool(self.unread))
        return f"{self.name} still has {has}"

    @property
    def way_out(self) -> str:
        """What its owner can do about it."""
        if self.name.startswith("refs/pr/"):
            return "close the pull request, and choose 'Delete ref' at the end of its page"
        if self.name.startswith("refs/heads/"):
            return f"delete the branch, or name it: --revision {self.name.removeprefix('refs/heads/')}"
        return "delete it"


@dataclass(frozen=True)
class History:
    """What the Hub has beside the files of the branch.

    Attributes:
        repo, branch: of which the history is.
        is_squashed: whether the branch has one commit only.
        freed: how many files were deleted from the storage.
        elsewhere: branches, tags and pull requests that have rows at their heads that are to be nowhere.
        copies: those of these that the Hub itself makes of the data, such as refs/convert/parquet, if it has them yet.
    """

    repo: str
    branch: str
    is_squashed: bool
    freed: int
    elsewhere: tuple[Ref, ...]
    copies: tuple[Ref, ...]

    @property
    def notes(self) -> list[str]:
        """What is left to be done, a line each; [] if nothing is."""
        said = []
        if not self.is_squashed:
            revision = "" if self.branch == "main" else f" --revision {self.branch}"
            said.append(
                f"{self.repo}: earlier commits of {self.branch} still serve what was taken down: `laion-face remove "
                f"--data-dir DATA_DIR --target {self.repo}{revision} --squash-history` deletes them"
            )
        said += [
            f"{self.repo}: {ref}: {ref.way_out}; then run it again with --squash-history" for ref in self.elsewhere
        ]
        said += [
            f"{self.repo}: {ref}: the Hub makes it by itself, anew after a commit, which may take hours; "
            "--squash-history deletes its files at once"
            for ref in self.copies
        ]
        return said


def rest_of_history(there: HubDestination, present: Collection[str], removed: Removed, *, squash: bool) -> History:
    """Say what else than the branch's files the Hub serves, after having squashed it if that is asked for.

    Args:
        present: SHA-256s of the published files that are to stay, which have none of it.
        removed: what is to be nowhere.
        squash: one commit is made of the branch, and what no head has is deleted from the storage for good.

    Raises:
        PublishError: no answer, no access, or the Hub refuses.
    """
    api, repo, branch = there.api, there.repo, there.revision
    stored: list[Any] = []
    if squash:
        message = "Take down rows, and the commits that had them"
        there.asked(lambda: api.super_squash_history(repo, branch=branch, commit_message=message, repo_type="dataset"))
        # Before the heads are looked at: what somebody publishes from now on is no candidate.
        stored = there.asked(lambda: list(api.list_lfs_files(repo, repo_type="dataset")))
    heads = _Heads(there, removed, dict.fromkeys(present, 0))
    refs = there.asked(lambda: api.list_repo_refs(repo, repo_type="dataset", include_pull_requests=True))
    named = [heads.look_at(ref) for ref in [*refs.branches, *refs.tags, *(refs.pull_requests or ())]]
    kept = {*present, *heads.seen}
    copies = [heads.look_at(ref) for ref in refs.converts]
    kept |= heads.without_rows
    gone = [file for file in stored if file.file_oid not in kept and _is_deletable(file.filename)]
    if gone:
        there.asked(lambda: api.permanently_delete_lfs_files(repo, gone, repo_type="dataset"))
    elsewhere = tuple(ref for ref in named if ref.rows + ref.unread and ref.name != f"refs/heads/{branch}")
    left = () if squash else tuple(ref for ref in copies if ref.rows + ref.unread)
    return History(repo, branch, squash, len(gone), elsewhere, left)


def _is_deletable(name: str | None) -> bool:
    """Say whether a file in the storage is of ours, of the Hub's own copies of it, or was never committed."""
    return not name or is_ours(name) or _OF_THE_HUB.fullmatch(name) is not None


@dataclass
class _Heads:
    """What the heads that were looked at have: `rows` that are to be nowhere, by the SHA-256 of each Parquet file.

    None is there for a file that could not be read. `seen` are all files in LFS.
    """

    there: HubDestination
    removed: Removed
    rows: dict[str, int | None]
    seen: set[str] = field(default_factory=set)

    @property
    def without_rows(self) -> set[str]:
        """The Parquet files that were found to have none of it."""
        return {sha256 for sha256, count in self.rows.items() if count == 0}

    def look_at(self, ref: Any) -> Ref:
        """Count the rows that a ref has at its head; a file that several have is read once."""
        api, repo = self.there.api, self.there.repo
        files = self.there.asked(partial(_files_at, api, repo, ref.target_commit))
        self.seen |= {sha256 for _, sha256 in files}
        place = PublishedPlace(None, HubRepo(repo, ref.target_commit, self.there.token))
        for name, sha256 in files:
            if name.endswith(".parquet") and sha256 not in self.rows:
                self.rows[sha256] = self._rows_in(place, name)
        counts = [self.rows[sha256] for _, sha256 in files if sha256 in self.rows]
        return Ref(ref.ref, sum(filter(None, counts)), counts.count(None))

    def _rows_in(self, place: PublishedPlace, name: str) -> int | None:
        try:
            with place.parquet(name) as file:
                return _named_in(file, self.removed)
        except (LaionFaceError, pa.ArrowException, OSError) as error:
            logger.warning("%s", short(error))
            return None


def _named_in(file: pq.ParquetFile, removed: Removed) -> int:
    if not {"sample_id", "url"} <= {*file.schema_arrow.names}:
        return 0
    groups = (file.read_row_group(group, columns=["sample_id", "url"]) for group in range(file.num_row_groups))
    return sum(int(removed.mask(group).sum()) for group in groups)


def _files_at(api: Any, repo: str, commit: str) -> list[tuple[str, str]]:
    """List name and SHA-256 of each file of a commit that is in LFS."""
    tree = api.list_repo_tree(repo, recursive=True, revision=commit, repo_type="dataset")
    return [(file.path, file.lfs.sha256) for file in tree if getattr(file, "lfs", None)]
