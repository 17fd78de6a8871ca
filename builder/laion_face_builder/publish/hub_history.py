"""Say where else the Hub still serves what was taken down, and squash a branch's history so that it serves it no more.

A commit that takes a file away leaves it in every commit before, and in the Hub's storage even if no commit is left
that has it. Squashing makes one commit of a branch; then the files that no branch or tag has at its head are deleted
from the storage. Other branches, tags and pull requests are their owners' to delete: they are named.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from typing import Any

from laion_face_builder.publish.hub_target import HubDestination
from laion_face_builder.publish.manifest import is_ours


@dataclass(frozen=True)
class History:
    """What the Hub has beside the files of the branch.

    Attributes:
        repo, branch: of which the history is.
        is_squashed: whether the branch has one commit only.
        freed: how many files were deleted from the storage.
        elsewhere: branches, tags and pull requests that have other files of ours at their heads, as the Hub names them.
        copies: those of these that the Hub itself makes of the data, such as refs/convert/parquet.
    """

    repo: str
    branch: str
    is_squashed: bool
    freed: int
    elsewhere: tuple[str, ...]
    copies: tuple[str, ...]

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
        if self.elsewhere:
            said.append(
                f"{self.repo}: {', '.join(self.elsewhere)} may still serve it: delete them, or name a branch with "
                "--revision"
            )
        if self.copies:
            said.append(f"{self.repo}: the Hub makes {', '.join(self.copies)} anew by itself; look whether it has")
        return said


def rest_of_history(there: HubDestination, present: Collection[str], *, squash: bool) -> History:
    """Say what else than the branch's files the Hub serves, after having squashed it if that is asked for.

    Args:
        present: SHA-256s of the published files that are to stay.
        squash: one commit is made of the branch, and what no head has is deleted from the storage for good.

    Raises:
        PublishError: no answer, no access, or the Hub refuses.
    """
    api, repo, branch = there.api, there.repo, there.revision
    if squash:
        message = "Take down rows, and the commits that had them"
        there.asked(lambda: api.super_squash_history(repo, branch=branch, commit_message=message, repo_type="dataset"))
    refs = there.asked(lambda: api.list_repo_refs(repo, repo_type="dataset", include_pull_requests=True))
    kept, elsewhere = set(present), list[str]()
    for ref in [*refs.branches, *refs.tags, *(refs.pull_requests or ())]:
        files = there.asked(partial(_files_at, api, repo, ref.target_commit))
        kept |= {sha256 for _, sha256 in files}
        has_others = any(is_ours(name) and sha256 not in present for name, sha256 in files)
        if has_others and ref.ref != f"refs/heads/{branch}":
            elsewhere.append(ref.ref)
    freed = there.asked(lambda: _freed(api, repo, kept)) if squash else 0
    return History(repo, branch, squash, freed, tuple(elsewhere), tuple(ref.ref for ref in refs.converts))


def _files_at(api: Any, repo: str, commit: str) -> list[tuple[str, str]]:
    """List name and SHA-256 of each file of a commit that is in LFS."""
    tree = api.list_repo_tree(repo, recursive=True, revision=commit, repo_type="dataset")
    return [(file.path, file.lfs.sha256) for file in tree if getattr(file, "lfs", None)]


def _freed(api: Any, repo: str, kept: Collection[str]) -> int:
    """Delete the files of ours that no branch or tag has any more from the Hub's storage; return how many."""
    files = api.list_lfs_files(repo, repo_type="dataset")
    gone = [file for file in files if is_ours(file.filename) and file.file_oid not in kept]
    if gone:
        api.permanently_delete_lfs_files(repo, gone, repo_type="dataset")
    return len(gone)
