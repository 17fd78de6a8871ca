"""Read huggingface_hub's own cache: what other programs have downloaded is used where it lies, and never deleted.

HF_HUB_CACHE/datasets--OWNER--NAME/
  refs/REVISION            the commit that a branch or tag was when it was last asked for
  snapshots/COMMIT/PATH    a link to the blob; a plain file where there are no links
  blobs/ETAG               SHA-256 of a file in LFS, git's SHA-1 of any other
  trees/COMMIT.json        the repo's listing, kept by snapshot_download since huggingface_hub 2

huggingface_hub does not check what it has downloaded: a blob's name is taken for its hash only once that is computed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from laion_face_builder.errors import ChecksumError, SourceError, SourceNotFound
from laion_face_builder.log import logger
from laion_face_builder.sources.copied_file import LocalFile
from laion_face_builder.sources.hashes import forget_sha256, git_hash, known_sha256

_COMMIT = re.compile(r"[0-9a-f]{40}")
#: Kinds of hash by the number of hex digits in a blob's name.
_KINDS = {64: "sha256", 40: "git"}


def is_offline() -> bool:
    """Tell whether HF_HUB_OFFLINE forbids to ask the Hub."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def cached_copy(repo: str) -> Path | None:
    """Return the folder in which the cache has files of a dataset repo; None if it has none."""
    folder = _folder_of(repo)
    return folder if any(folder.glob("blobs/*")) or any(folder.glob("snapshots/*/*")) else None


def cached_blob(repo: str, sha256: str, size: int | None) -> Path | None:
    """Return a dataset repo's file with this SHA-256, if the cache has one of its size; the bytes are not checked."""
    blob = _folder_of(repo) / "blobs" / sha256
    return blob if blob.is_file() and blob.stat().st_size == size else None


@dataclass(frozen=True)
class CachedFile(LocalFile):
    """A file in the cache; `version` is what its blob is called."""

    def fetch(self, folder: Path) -> Path:
        """Return the file where it lies, checked once.

        Raises:
            ChecksumError: its bytes are not what the Hub stated.
        """
        kind, _, stated = self.version.partition(":")
        if kind in ("sha256", "git"):
            found = known_sha256(self.path, folder) if kind == "sha256" else git_hash(self.path)
            if found != stated:
                raise ChecksumError(
                    f"{self.name}: the copy in the Hub's cache, {self.path}, has the {kind} hash {found}, the Hub "
                    f"stated {stated}. Remove it and its blob, and download it again without HF_HUB_OFFLINE."
                )
        return self.path

    def doubt(self, folder: Path) -> None:
        """Forget that it was ever good: `fetch` then says what is wrong with it."""
        forget_sha256(self.path, folder)

    def content(self, folder: Path, *, remember: bool = True) -> str:
        """Return the SHA-256 that the Hub stated, else that of the bytes, as for any local file."""
        return self.version if self.version.startswith("sha256:") else super().content(folder, remember=remember)


@dataclass(frozen=True)
class CachedRepo:
    """What the cache has of a dataset repo at a revision, for use with HF_HUB_OFFLINE.

    Args:
        repo: "owner/name".
        revision: branch, tag or commit; None means "main".
    """

    repo: str
    revision: str | None = None

    @cached_property
    def commit(self) -> str:
        """The commit that `revision` was when it was downloaded.

        Raises:
            SourceError: the cache does not have it.
        """
        if self.revision and _COMMIT.fullmatch(self.revision):
            return self.revision
        note = _folder_of(self.repo) / "refs" / (self.revision or "main")
        found = note.read_text(encoding="utf-8").strip() if note.is_file() else ""
        if not _COMMIT.fullmatch(found):
            raise SourceError(self._offline(f"has no revision {self.revision or 'main'!r} of it"))
        return found

    @cached_property
    def listing(self) -> dict[str, CachedFile]:
        """The files that are there, by their paths.

        Raises:
            SourceError: nothing of that commit is there.
        """
        snapshot = _folder_of(self.repo) / "snapshots" / self.commit
        if not snapshot.is_dir():
            raise SourceError(self._offline(f"has no files of commit {self.commit[:12]}"))
        paths = [path for path in snapshot.rglob("*") if path.is_file()]
        named = sorted((path.relative_to(snapshot).as_posix(), path) for path in paths)
        return {name: _cached_file(f"{self.repo}/{name}", path) for name, path in named}

    @cached_property
    def is_complete(self) -> bool:
        """Whether it is known which files the repo has: only newer versions of huggingface_hub write that down."""
        return self._stated is not None

    @property
    def files(self) -> tuple[str, ...]:
        """The paths of the repo's files if the cache knows them all, else of those that are there; sorted."""
        return tuple(sorted({*self.listing, *(self._stated or ())}))

    def file(self, path: str) -> CachedFile:
        """Return the file at `path`.

        Raises:
            SourceNotFound: it is not there.
        """
        if path not in self.listing:
            raise SourceNotFound(self._offline(f"does not have {path}"))
        return self.listing[path]

    def look_up(self, paths: Sequence[str]) -> tuple[CachedFile, ...]:
        """Return several files, which are taken for all of their kind.

        Raises:
            SourceNotFound: some are not there.
        """
        missing = [path for path in paths if path not in self.listing]
        if missing:
            some = ", ".join(missing[:4]) + (" …" if len(missing) > 4 else "")
            raise SourceNotFound(self._offline(f"lacks {len(missing)} of its {len(paths)} files: {some}"))
        if not self.is_complete:
            logger.warning(
                "Hub dataset %s: HF_HUB_OFFLINE is set, and the Hub's cache does not say which files the repo has: the "
                "%d found there are taken for all",
                self.repo,
                len(paths),
            )
        return tuple(self.listing[path] for path in paths)

    @cached_property
    def _stated(self) -> tuple[str, ...] | None:
        import huggingface_hub

        kept = getattr(huggingface_hub, "get_cached_repo_tree", None)
        if kept is None:
            return None
        try:
            tree = kept(self.repo, repo_type="dataset", revision=self.commit)
        except huggingface_hub.errors.CachedRepoTreeNotFoundError:
            return None
        return tuple(entry.path for entry in tree)

    def _offline(self, problem: str) -> str:
        revision = f" --revision {self.revision}" if self.revision else ""
        return (
            f"Hub dataset {self.repo}: HF_HUB_OFFLINE is set, so the Hub cannot be asked, and its cache "
            f"{_folder_of(self.repo)} {problem}. Unset it, or first run "
            f"`hf download --repo-type dataset {self.repo}{revision}`."
        )


def _folder_of(repo: str) -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).expanduser() / f"datasets--{repo.replace('/', '--')}"


def _cached_file(name: str, path: Path) -> CachedFile:
    status = path.stat()
    # One link on: the blob may itself be a link into a store that is shared between repos, under another hash.
    blob = Path(os.readlink(path)).name if path.is_symlink() else ""
    kind = _KINDS.get(len(blob)) if re.fullmatch("[0-9a-f]+", blob) else None
    version = f"{kind}:{blob}" if kind else f"modified:{status.st_mtime_ns};{status.st_size}"
    return CachedFile(name, status.st_size, version, path)
