"""A stand-in for the Hugging Face Hub: enough of its HTTP interface for huggingface_hub to read dataset repos from.

Repo info, tree listings in pages, paths-info, and resolve, which answers small files itself and sends clients of LFS
files to another host name (as the Hub does, so that tokens and metadata take the same ways). Writing is not there; a
route more in `_ROUTES` and a commit more in `HubRepo` is all that it needs.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlencode

from laion_face_builder.sandbox.messages import Answer, Request, ranged, redirect
from laion_face_builder.sandbox.repos import HubFile, HubRepo
from laion_face_builder.sandbox.serving import LoopbackServer

_NO_ACCESS = "Access to dataset {} is restricted. Visit https://huggingface.co/datasets/{} to ask for access."


class Hub(LoopbackServer):
    """Serves `repos`. `tokens` maps each known token to the gated repos that it may read; listings have `page_size`."""

    def __init__(self, page_size: int = 4) -> None:
        super().__init__()
        self.repos: dict[str, HubRepo] = {}
        self.tokens: dict[str, set[str]] = {}
        self.page_size = page_size

    def add_repo(self, repo_id: str, files: Mapping[str, bytes | Path], *, gated: bool = False) -> HubRepo:
        """A new dataset repo with one commit on main."""
        self.repos[repo_id] = repo = HubRepo(repo_id, gated)
        repo.commit(files)
        return repo

    def answer(self, request: Request) -> Answer:
        """What the first fitting route says."""
        for method, pattern, route in _ROUTES:
            if request.method in method.split() and (found := re.fullmatch(pattern, request.path)):
                try:
                    return route(self, request, **found.groupdict())
                except _Refused as refused:
                    return refused.answer
        return _error(404, "NotFound", f"no such page: {request.path}")

    def repo(self, repo_id: str) -> HubRepo:
        """The repo; a 404 to the client if there is none."""
        if repo_id not in self.repos:
            raise _Refused(404, "RepoNotFound", "Repository not found")
        return self.repos[repo_id]

    def revision(self, repo_id: str, revision: str | None) -> tuple[HubRepo, str]:
        """The repo and the commit's sha; a 404 to the client if there is none."""
        repo = self.repo(repo_id)
        if (sha := repo.sha(revision or "main")) is None:
            raise _Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return repo, sha

    def check_access(self, repo: HubRepo, request: Request) -> None:
        """401 without a known token, 403 with one that was not granted the repo. Listings are open to all."""
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        if repo.gated and repo.id not in self.tokens.get(token, set()):
            status = 403 if token in self.tokens else 401
            raise _Refused(status, "GatedRepo", _NO_ACCESS.format(repo.id, repo.id))


class _Refused(Exception):
    def __init__(self, status: int, code: str, message: str) -> None:
        self.answer = _error(status, code, message)
        super().__init__(message)


def _error(status: int, code: str, message: str) -> Answer:
    headers = {"X-Error-Code": code, "X-Error-Message": message, "Content-Type": "application/json"}
    return Answer(status, json.dumps({"error": message}).encode(), headers)


def _json(value: object, **headers: str) -> Answer:
    return Answer(body=json.dumps(value).encode(), headers={"Content-Type": "application/json", **headers})


def _info(hub: Hub, request: Request, *, repo: str, revision: str | None) -> Answer:
    found, sha = hub.revision(repo, revision)
    files = [found.tree(sha)[path] for path in sorted(found.tree(sha))]
    siblings = [file.as_sibling() if request.query.get("blobs") else {"rfilename": file.path} for file in files]
    about: dict[str, Any] = {"private": False, "gated": "auto" if found.gated else False, "disabled": False, "tags": []}
    return _json(
        {"_id": sha[:24], "id": repo, "author": repo.partition("/")[0], "sha": sha, "siblings": siblings, **about}
    )


def _tree(hub: Hub, request: Request, *, repo: str, revision: str, path: str | None) -> Answer:
    found, sha = hub.revision(repo, revision)
    recursive = request.query.get("recursive", "").lower() in ("true", "1")
    entries = list(_listing(found.tree(sha).values(), f"{path}/" if path else "", recursive))
    if path and not entries:
        raise _Refused(404, "EntryNotFound", f"{path} does not exist on {revision}")
    start = int(request.query.get("cursor", 0))
    stop = start + hub.page_size
    if stop >= len(entries):
        return _json(entries[start:])
    target = f"{hub.url()}{request.split.path}?{urlencode({**request.query, 'cursor': stop})}"
    return _json(entries[start:stop], Link=f'<{target}>; rel="next"')


def _listing(files: Iterable[HubFile], prefix: str, recursive: bool) -> Iterable[dict[str, Any]]:
    folders: set[str] = set()
    for file in sorted(files, key=lambda file: file.path):
        if not file.path.startswith(prefix):
            continue
        names = file.path.removeprefix(prefix).split("/")
        for depth in range(1, len(names) if recursive else min(len(names), 2)):
            folder = prefix + "/".join(names[:depth])
            if folder not in folders:
                folders.add(folder)
                yield _folder_entry(folder)
        if recursive or len(names) == 1:
            yield file.as_json()


def _folder_entry(path: str) -> dict[str, Any]:
    oid = hashlib.sha1(path.encode(), usedforsecurity=False).hexdigest()
    return {"type": "directory", "path": path, "size": 0, "oid": oid}


def _paths_info(hub: Hub, request: Request, *, repo: str, revision: str) -> Answer:
    found, sha = hub.revision(repo, revision)
    if request.headers.get("content-type", "").startswith("application/json"):
        wanted = json.loads(request.body)["paths"]
    else:
        wanted = parse_qs(request.body.decode()).get("paths", [])
    everything = {entry["path"]: entry for entry in _listing(found.tree(sha).values(), "", recursive=True)}
    return _json([everything[path] for path in wanted if path in everything])


def _resolve(hub: Hub, request: Request, *, repo: str, revision: str, path: str) -> Answer:
    found, sha = hub.revision(repo, revision)
    hub.check_access(found, request)
    file = found.tree(sha).get(path)
    if file is None:
        raise _Refused(404, "EntryNotFound", f"Entry not found: {path}")
    headers = {"X-Repo-Commit": sha, "ETag": f'"{file.oid}"'}
    if not file.is_lfs:
        return ranged(Answer(body=file.content, headers=headers), request.headers.get("range"))
    headers |= {"X-Linked-ETag": f'"{file.sha256}"', "X-Linked-Size": str(file.data.whole)}
    place = redirect(f"{hub.url('localhost')}/lfs/{repo}/{sha}/{quote(path)}")
    return Answer(302, headers={**headers, **place.headers})


def _lfs(hub: Hub, request: Request, *, repo: str, revision: str, path: str) -> Answer:
    file = hub.repo(repo).tree(revision)[path]
    headers = {"ETag": f'"{file.sha256[:32]}"', "Content-Type": "application/octet-stream"}
    return ranged(Answer(body=file.content, headers=headers), request.headers.get("range"))


def _whoami(hub: Hub, request: Request) -> Answer:
    if request.headers.get("authorization", "").removeprefix("Bearer ") not in hub.tokens:
        return _error(401, "Unauthorized", "Invalid credentials in Authorization header")
    return _json({"type": "user", "name": "sandbox", "auth": {"accessToken": {"role": "write"}}, "orgs": []})


_REPO = r"(?P<repo>[^/]+/[^/]+)"
_Route = Callable[..., Answer]
_ROUTES: tuple[tuple[str, str, _Route], ...] = (
    ("GET", rf"/api/datasets/{_REPO}(?:/revision/(?P<revision>.+))?", _info),
    ("GET", rf"/api/datasets/{_REPO}/tree/(?P<revision>[^/]+)(?:/(?P<path>.+))?", _tree),
    ("POST", rf"/api/datasets/{_REPO}/paths-info/(?P<revision>[^/]+)", _paths_info),
    ("GET HEAD", rf"/datasets/{_REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", _resolve),
    ("GET HEAD", rf"/lfs/{_REPO}/(?P<revision>[^/]+)/(?P<path>.+)", _lfs),
    ("GET", r"/api/whoami-v2", _whoami),
)
