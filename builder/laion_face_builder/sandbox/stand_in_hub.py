"""A stand-in for the Hugging Face Hub: as much of its HTTP interface as huggingface_hub needs for dataset repos.

Repo info, tree listings in pages, paths-info, and resolve, which answers small files itself and sends clients of LFS
files to another host name (as the Hub does, so that tokens and metadata take the same ways). `hub_writing` has the
routes that change something.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlencode

from laion_face_builder.sandbox.hub_repos import Refused, ServedFile, ServedRepo, json_answer, refusal
from laion_face_builder.sandbox.hub_writing import WRITING_ROUTES, Upload
from laion_face_builder.sandbox.serving import Answer, LoopbackServer, Request, ranged, redirect

_NO_ACCESS = "Access to dataset {} is restricted. Visit https://huggingface.co/datasets/{} to ask for access."


class Hub(LoopbackServer):
    """Serves `repos`; listings come in pages of `page_size`.

    `tokens` maps each known token to the gated or private repos that it may read, `writers` to the namespaces that it
    may write to, the user's own name first. LFS objects of more than `multipart_over` bytes are uploaded in parts.
    `renamed` maps the names that repos had before to those that they have: requests under an old name are redirected.
    """

    def __init__(self, page_size: int = 4, multipart_over: int = 16 << 20) -> None:
        super().__init__()
        self.repos: dict[str, ServedRepo] = {}
        self.tokens: dict[str, set[str]] = {}
        self.writers: dict[str, tuple[str, ...]] = {}
        self.renamed: dict[str, str] = {}
        self.page_size = page_size
        self.multipart_over = multipart_over
        self.uploads: dict[str, Upload] = {}
        self.writing = threading.Lock()

    def add_repo(self, repo_id: str, files: Mapping[str, bytes | Path], *, gated: bool = False) -> ServedRepo:
        """Add a new dataset repo with one commit on main."""
        self.repos[repo_id] = repo = ServedRepo(repo_id, gated)
        repo.commit(files)
        return repo

    def answer(self, request: Request) -> Answer:
        """Answer by the first route that fits."""
        if (place := self._new_place(request)) is not None:
            return Answer(307, f"Temporary Redirect. Redirecting to {place}".encode(), {"Location": place})
        for method, pattern, route in _ROUTES:
            if request.method in method.split() and (found := re.fullmatch(pattern, request.path)):
                try:
                    self.check_sight(request, found.groupdict().get("repo"))
                    return route(self, request, **found.groupdict())
                except Refused as refused:
                    return refused.answer
        return refusal(404, "NotFound", f"no such page: {request.path}")

    def _new_place(self, request: Request) -> str | None:
        """Say where a request for a renamed repo has to go: the same path and query under its new name, on this host.

        The Hub's own redirects are relative too, and huggingface_hub follows no others when it asks what a file is.
        """
        found = re.fullmatch(r"(/(?:api/)?datasets/)([^/?]+/[^/?]+)(.*)", request.target)
        if found is None or found[2] in self.repos or found[2] not in self.renamed:
            return None
        return f"{found[1]}{self.renamed[found[2]]}{found[3]}"

    def repo(self, repo_id: str) -> ServedRepo:
        """Return the repo; answer the client with 404 if there is none."""
        if repo_id not in self.repos:
            raise Refused(404, "RepoNotFound", "Repository not found")
        return self.repos[repo_id]

    def revision(self, repo_id: str, revision: str | None) -> tuple[ServedRepo, str]:
        """Return the repo and the commit's sha; answer the client with 404 if there is none."""
        repo = self.repo(repo_id)
        if (sha := repo.sha(revision or "main")) is None:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return repo, sha

    def check_access(self, repo: ServedRepo, request: Request) -> None:
        """Refuse with 401 without a known token, with 403 if it was not granted the repo. Listings are open to all."""
        is_own = repo.id.partition("/")[0] in self.writers.get(request.token, ())
        if repo.gated and not is_own and repo.id not in self.tokens.get(request.token, set()):
            status = 403 if self.knows(request.token) else 401
            raise Refused(status, "GatedRepo", _NO_ACCESS.format(repo.id, repo.id))

    def knows(self, token: str) -> bool:
        """Say whether the Hub knows the token."""
        return token in self.tokens or token in self.writers

    def check_sight(self, request: Request, repo_id: str | None) -> None:
        """Hide private repos: 401 without a known token, 404 with one that may not see them."""
        repo = self.repos.get(repo_id or "")
        if repo is None or not repo.private or request.path.startswith("/lfs/"):  # storage addresses are signed
            return
        may_write = repo.id.partition("/")[0] in self.writers.get(request.token, ())
        if not may_write and repo.id not in self.tokens.get(request.token, set()):
            message = "Repository not found" if request.token else "Invalid username or password."
            raise Refused(404 if self.knows(request.token) else 401, "RepoNotFound", message)

    def check_write(self, request: Request, namespace: str) -> None:
        """Refuse with 401 without a known token, with 403 if it may not write to `namespace`."""
        if not self.knows(request.token):
            message = (
                "Invalid credentials in Authorization header" if request.token else "Invalid username or password."
            )
            raise Refused(401, "Unauthorized", message)
        if namespace not in self.writers.get(request.token, ()):
            raise Refused(403, "Forbidden", f'You don\'t have the rights to write to the namespace "{namespace}"')


def _info(hub: Hub, request: Request, *, repo: str, revision: str | None) -> Answer:
    found, sha = hub.revision(repo, revision)
    files = [found.tree(sha)[path] for path in sorted(found.tree(sha))]
    siblings = [file.as_sibling() if request.query.get("blobs") else {"rfilename": file.path} for file in files]
    gated = "auto" if found.gated is True else found.gated
    about: dict[str, Any] = {"private": found.private, "gated": gated, "disabled": False, "tags": []}
    return json_answer(
        {"_id": sha[:24], "id": repo, "author": repo.partition("/")[0], "sha": sha, "siblings": siblings, **about}
    )


def _refs(hub: Hub, request: Request, *, repo: str) -> Answer:
    found = hub.repo(repo)

    def listed(kind: str, refs: Mapping[str, str]) -> list[dict[str, str]]:
        return [{"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": sha} for name, sha in sorted(refs.items())]

    named = {"branches": listed("heads", found.branches), "tags": listed("tags", found.tags)}
    named["converts"] = listed("convert", found.converts)
    return json_answer(
        {**named, **({"pullRequests": listed("pr", found.pulls)} if request.query.get("include_prs") else {})}
    )


def _tree(hub: Hub, request: Request, *, repo: str, revision: str, path: str | None) -> Answer:
    found, sha = hub.revision(repo, revision)
    recursive = request.query.get("recursive", "").lower() in ("true", "1")
    entries = list(_listing(found.tree(sha).values(), f"{path}/" if path else "", recursive))
    if path and not entries:
        raise Refused(404, "EntryNotFound", f"{path} does not exist on {revision}")
    start = int(request.query.get("cursor", 0))
    stop = start + hub.page_size
    if stop >= len(entries):
        return json_answer(entries[start:])
    target = f"{hub.url()}{request.split.path}?{urlencode({**request.query, 'cursor': stop})}"
    return json_answer(entries[start:stop], Link=f'<{target}>; rel="next"')


def _listing(files: Iterable[ServedFile], prefix: str, recursive: bool) -> Iterable[dict[str, Any]]:
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
    return json_answer([everything[path] for path in wanted if path in everything])


def _resolve(hub: Hub, request: Request, *, repo: str, revision: str, path: str) -> Answer:
    found, sha = hub.revision(repo, revision)
    hub.check_access(found, request)
    file = found.tree(sha).get(path)
    if file is None:
        raise Refused(404, "EntryNotFound", f"Entry not found: {path}")
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
    if not hub.knows(request.token):
        return refusal(401, "Unauthorized", "Invalid credentials in Authorization header")
    name, *organisations = hub.writers.get(request.token, ("sandbox-reader",))
    role = {"accessToken": {"role": "write" if request.token in hub.writers else "read"}}
    return json_answer({"type": "user", "name": name, "auth": role, "orgs": [{"name": org} for org in organisations]})


_REPO = r"(?P<repo>[^/]+/[^/]+)"
_Route = Callable[..., Answer]
_ROUTES: tuple[tuple[str, str, _Route], ...] = (
    ("GET", rf"/api/datasets/{_REPO}(?:/revision/(?P<revision>.+))?", _info),
    ("GET", rf"/api/datasets/{_REPO}/refs", _refs),
    ("GET", rf"/api/datasets/{_REPO}/tree/(?P<revision>[^/]+)(?:/(?P<path>.+))?", _tree),
    ("POST", rf"/api/datasets/{_REPO}/paths-info/(?P<revision>[^/]+)", _paths_info),
    ("GET HEAD", rf"/datasets/{_REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", _resolve),
    ("GET HEAD", rf"/lfs/{_REPO}/(?P<revision>[^/]+)/(?P<path>.+)", _lfs),
    ("GET", r"/api/whoami-v2", _whoami),
    *WRITING_ROUTES,
)
