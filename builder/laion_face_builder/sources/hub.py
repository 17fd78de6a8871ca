"""Copy files of Hub dataset repos: looked up through huggingface_hub, checked against the hash that the Hub states.

huggingface_hub resolves revisions, finds the token and the endpoint, lists and names the errors. The bytes are copied
by `CopiedFile`: huggingface_hub does not go on after a kill, and does not notice a flipped bit in an LFS file.

What huggingface_hub raises becomes an error of ours: one that may pass, to be tried again, or another. Which library's
errors these are depends on the version of huggingface_hub: they are recognised by their attributes.

Tokens are checked before they are sent; huggingface_hub's rules and variables hold.
"""

from __future__ import annotations

import json
import re
import urllib.error
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from laion_face_builder.errors import GatedSource, LaionFaceError, OptionError, SourceError, SourceNotFound
from laion_face_builder.files import sha256_of
from laion_face_builder.log import logger
from laion_face_builder.shown import harmless, short, shown
from laion_face_builder.sources.copied_file import CopiedFile
from laion_face_builder.sources.hashes import forget_sha256, git_hash, known_sha256
from laion_face_builder.sources.hub_cache import CachedRepo, cached_blob, is_offline
from laion_face_builder.sources.retrying import TransientError, Unreachable, retried
from laion_face_builder.sources.url import PASSING_STATUS, open_url, ranged_pieces

#: The HTTP libraries under huggingface_hub, by version; the errors of the last two are not OSErrors.
_HTTP_LIBRARIES = frozenset({"requests", "httpx", "httpx2"})


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status of the answer that `error` is about; None if there was no answer."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def in_our_words(error: Exception, where: str) -> Exception:
    """Return a TransientError, with the pause asked for, or a SourceError if it will not pass; ours as they are."""
    if isinstance(error, LaionFaceError):
        return error
    status = status_of(error)
    if status in PASSING_STATUS:
        return TransientError(f"HTTP {status}", _wait_asked(getattr(error, "response").headers))  # noqa: B009 - varies
    library = type(error).__module__.partition(".")[0]
    if status is None and (isinstance(error, OSError) or library in _HTTP_LIBRARIES):
        from huggingface_hub import constants

        return Unreachable(f"it cannot be reached: no answer from {shown(constants.ENDPOINT)}, {_cause(error)}")
    if isinstance(error, json.JSONDecodeError):
        return TransientError("the answer is not JSON, as from a gateway that has no answer")
    return SourceError(f"{where}: {short(error)}")


def _cause(error: BaseException) -> str:
    """Return what the system says, such as "Connection refused", below the layers of HTTP libraries; else all text."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, OSError) and inner.strerror:
            return inner.strerror
        inner = inner.__cause__ or inner.__context__
    return short(error)


def _wait_asked(headers: Mapping[str, str]) -> float:
    """Return the seconds of Retry-After, or the `t` of the Hub's RateLimit, `"api";r=0;t=55`."""
    found = re.search(r"^\d+$", headers.get("Retry-After", "")) or re.search(
        r"(?<=;t=)\d+", headers.get("RateLimit", "")
    )
    return float(found[0]) if found else 0.0


#: Text: this token. None: that of HF_TOKEN or `hf auth login`, if any. False: none. True: as None, but required.
Token = str | bool | None
_GIVE = "`hf auth login`, the variable HF_TOKEN, or token=…"


def checked_token(token: object) -> Token:
    """Return the token without blanks around it.

    Raises:
        OptionError: nothing that could be one, or True and none is stored. It never says what was given.
    """
    if token is True:
        from huggingface_hub import get_token

        if get_token() is None:
            raise OptionError("token=True: there is no stored token; give one with `hf auth login` or HF_TOKEN")
    if token is None or isinstance(token, bool):
        return token
    if not isinstance(token, str):
        raise OptionError(f"token: found {type(token).__name__}, expected text, True, False or None")
    token = token.strip()
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        found = "blanks or letters that no token has" if token else "nothing"
        raise OptionError(f"token: found {found} in it, expected one such as hf_…: {_GIVE}")
    return token


def secret_headers(token: Token) -> dict[str, str]:
    """Return the headers of a request to the Hub itself; {} if no token is to be sent, or there is none."""
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # it is documented

    sent = build_hf_headers(token=token).get("authorization")
    return {"Authorization": sent} if sent else {}


T = TypeVar("T")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class HubRepo:
    """A dataset repo at a revision, which is resolved to a commit once.

    Args:
        repo: "owner/name".
        revision: branch, tag or commit; None means "main".
        token: None means the one that `hf auth login` or HF_TOKEN gave, False none.
    """

    repo: str
    revision: str | None = None
    token: Token = field(default=None, repr=False)

    @cached_property
    def commit(self) -> str:
        """The commit of `revision`.

        Raises:
            SourceError: no answer, no such repo or revision, or no access.
        """
        if self.revision and _COMMIT.fullmatch(self.revision):
            return self.revision
        from huggingface_hub import HfApi

        found = self._asked(lambda: HfApi(token=self.token).dataset_info(self.repo, revision=self.revision).sha)
        if not found:
            raise SourceError(
                f"Hub dataset {self.repo}: the Hub does not say which commit {self.revision or 'main'} is"
            )
        return str(found)

    @cached_property
    def listing(self) -> dict[str, HubFile]:
        """All files by their paths, as the Hub lists them: one request for some hundred. Open to all, gated or not.

        Raises:
            SourceError: as for `commit`.
        """
        from huggingface_hub import HfApi
        from huggingface_hub.hf_api import RepoFile

        def ask() -> list[RepoFile]:
            listing = HfApi(token=self.token).list_repo_tree(
                self.repo, recursive=True, revision=self.commit, repo_type="dataset"
            )
            return [entry for entry in listing if isinstance(entry, RepoFile)]

        return {
            entry.path: self._file(entry.path, entry.size, entry.lfs.sha256 if entry.lfs else entry.blob_id)
            for entry in sorted(self._asked(ask), key=lambda entry: entry.path)
        }

    @property
    def files(self) -> tuple[str, ...]:
        """The paths of all files, sorted.

        Raises:
            SourceError: as for `commit`.
        """
        return tuple(self.listing)

    def file(self, path: str) -> HubFile:
        """Look up the file at `path`, as the Hub states it.

        Raises:
            SourceNotFound, GatedSource, SourceError: it cannot be had.
        """
        from huggingface_hub import get_hf_file_metadata

        address = self._address(path, self.commit)
        stated = self._asked(lambda: get_hf_file_metadata(address, token=self.token), path)
        return self._file(path, stated.size, stated.etag or "")

    def look_up(self, paths: Sequence[str]) -> tuple[HubFile, ...]:
        """Look up files in the listing; the first is also asked for, since only that shows whether access is granted.

        Raises:
            SourceNotFound, GatedSource, SourceError: they cannot be had.
        """
        self.file(paths[0])
        return tuple(self.listing[path] for path in paths)

    def _file(self, path: str, size: int | None, stated: str) -> HubFile:
        if _SHA256.fullmatch(stated):
            version = f"sha256:{stated}"
        elif _COMMIT.fullmatch(stated):
            version = f"git:{stated}"
        else:
            raise SourceError(f"Hub dataset {self.repo}, file {path}: the Hub states no SHA-256 to check it against")
        return HubFile(f"{self.repo}/{path}", size, version, self, path)

    def locate(self, path: str) -> tuple[str, bool]:
        """Return (address of the file's bytes now, whether it is on the Hub itself and wants the token)."""
        from huggingface_hub import get_hf_file_metadata

        address = self._address(path, self.commit)
        location = self._once(lambda: get_hf_file_metadata(address, token=self.token).location, path)
        return location, urlsplit(location)[:2] == urlsplit(address)[:2]

    def _address(self, path: str, commit: str) -> str:
        from huggingface_hub import hf_hub_url

        return hf_hub_url(self.repo, path, repo_type="dataset", revision=commit)

    def _asked(self, ask: Callable[[], T], path: str = "") -> T:
        return retried(lambda: self._once(ask, path), f"Hub dataset {self.repo}" + (f", file {path}" if path else ""))

    def _once(self, ask: Callable[[], T], path: str = "") -> T:
        try:
            return ask()
        except Exception as error:  # Which library's errors these are depends on the version of huggingface_hub.
            raise self._translated(error, path) from harmless(error)

    def _translated(self, error: Exception, path: str) -> Exception:
        from huggingface_hub import errors as hub

        where = f"Hub dataset {self.repo}" + (f", file {path}" if path else "")
        status = status_of(error)
        if isinstance(error, hub.OfflineModeIsEnabled):
            return SourceError(
                f"{where}: HF_HUB_OFFLINE is set, so the Hub cannot be asked. Unset it, or name a folder."
            )
        if isinstance(error, hub.GatedRepoError) or (
            status in (401, 403) and not isinstance(error, hub.RepositoryNotFoundError)
        ):
            return self._gated(where, status)
        if isinstance(error, hub.RevisionNotFoundError):
            return SourceNotFound(f"{where}: there is no revision {self.revision or 'main'!r}")
        if isinstance(error, hub.RepositoryNotFoundError):
            return SourceNotFound(
                f"{where}: there is no such repo, or it is private and needs a token "
                "(`hf auth login`, the variable HF_TOKEN, or token=…)"
            )
        if isinstance(error, hub.EntryNotFoundError):
            return SourceNotFound(f"{where}: there is no such file at {self.revision or 'main'}")
        return in_our_words(error, where)

    def _gated(self, where: str, status: int | None) -> GatedSource:
        found = "the token that was given has no access" if status == 403 else "no valid token was given"
        return GatedSource(
            f"{where}: the repo is gated and {found}. Accept its terms at https://huggingface.co/datasets/{self.repo} "
            "and give the token of that account: `hf auth login`, the variable HF_TOKEN, or token=…"
        )


@dataclass(frozen=True)
class HubFile(CopiedFile):
    """A file of a dataset repo, at the repo's commit."""

    repo: HubRepo
    path: str

    def place(self, folder: Path) -> Path:
        """Return OWNER--NAME/PATH below `folder`."""
        return folder / self.repo.repo.replace("/", "--") / Path(*_safe_parts(self.path))

    def fetch(self, folder: Path) -> Path:
        """Return our own copy, or the one in huggingface_hub's cache if it is good; copy only if there is neither."""
        cached = self._cached
        if cached is None or self._is_checked(self.place(folder)):
            return super().fetch(folder)
        if f"sha256:{known_sha256(cached, folder)}" == self.version:
            return cached
        logger.warning("%s: the copy in the Hub's cache is damaged (%s); it is fetched anew", self.name, cached)
        return super().fetch(folder)

    def doubt(self, folder: Path) -> None:
        """Remove our copy if it has changed; forget that the one in huggingface_hub's cache was ever good."""
        super().doubt(folder)
        if (cached := self._cached) is not None:
            forget_sha256(cached, folder)

    def missing(self, folder: Path) -> int | None:
        """Return the bytes still to fetch: 0 if huggingface_hub's cache has the file."""
        return super().missing(folder) if self._cached is None else 0

    @property
    def _cached(self) -> Path | None:
        kind, _, sha256 = self.version.partition(":")
        return cached_blob(self.repo.repo, sha256, self.size) if kind == "sha256" else None

    def pieces(self, start: int) -> Iterator[tuple[int, bytes]]:
        """Yield the bytes from `start` on, from where the Hub says that they lie now: signed addresses expire."""
        location, on_hub = self.repo.locate(self.path)
        headers = {"Range": f"bytes={start}-"} if start else {}
        secret = secret_headers(self.repo.token) if on_hub else {}
        try:
            answer = open_url(location, headers, secret)
        except urllib.error.HTTPError as error:
            raise SourceError(f"{self.name}: HTTP {error.code}") from harmless(error)
        yield from ranged_pieces(answer, start)

    def mismatch(self, path: Path) -> str | None:
        """Say if size or hash are not what the Hub states; None if nothing is wrong."""
        size = path.stat().st_size
        if self.size is not None and size != self.size:
            return f"{size} bytes came, the Hub states {self.size}"
        kind, _, stated = self.version.partition(":")
        found = sha256_of(path) if kind == "sha256" else git_hash(path)
        return None if found == stated else f"its {kind} hash is {found}, the Hub states {stated}"


def _safe_parts(path: str) -> list[str]:
    parts = path.split("/")
    if any(part in ("", ".", "..") or "\\" in part for part in parts):
        raise SourceError(f"{path!r}: a file name of the repo leads out of its folder")
    return parts


def hub_repo(repo: str, revision: str | None = None, token: Token = None) -> HubRepo | CachedRepo:
    """Return the repo on the Hub, or with HF_HUB_OFFLINE in huggingface_hub's cache."""
    return CachedRepo(repo, revision) if is_offline() else HubRepo(repo, revision, token)
