"""The routes of the stand-in Hub that change something: repos, branches, LFS uploads and commits.

The way of a file, as huggingface_hub goes it: `preupload` says whether it is for LFS; the LFS `batch` gives addresses
on another host to PUT it to, at once or in parts, or says that the bytes are there already; `verify`; and one `commit`,
NDJSON, that names the objects and brings the small files along. It is as strict as the Hub: bytes that are not those
of their SHA-256 are not kept, and a commit that names an object which is not there is refused.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import math
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import yaml

from laion_face_builder.sandbox.hub_repos import Refused, ServedFile, ServedRepo, json_answer
from laion_face_builder.sandbox.serving import Answer, Request

if TYPE_CHECKING:
    from laion_face_builder.sandbox.stand_in_hub import Hub

#: Size from which the Hub wants a file in LFS, whatever its name.
_REGULAR_AT_MOST = 10 * 1000 * 1000
_GITATTRIBUTES = b"*.parquet filter=lfs diff=lfs merge=lfs -text\n"


@dataclass
class Upload:
    """An LFS object on its way: the bytes of each part that came, by number from 1; one part if it is not multipart."""

    repo: ServedRepo
    oid: str
    size: int
    chunk: int | None
    parts: dict[int, bytes] = field(default_factory=dict, repr=False)

    def keep(self, content: bytes) -> None:
        """Keep the bytes as an object of the repo, if they have the announced size and SHA-256."""
        if len(content) != self.size or hashlib.sha256(content).hexdigest() != self.oid:
            raise Refused(400, "BadDigest", f"The bytes are not those of object {self.oid}")
        self.repo.objects[self.oid] = content


def _create_repo(hub: Hub, request: Request) -> Answer:
    asked = json.loads(request.body)
    namespace = asked.get("organization") or next(iter(hub.writers.get(request.token, ())), "")
    hub.check_write(request, namespace)
    if asked.get("type") != "dataset":
        raise Refused(400, "BadRequest", "This stand-in has datasets only")
    repo_id = f"{namespace}/{asked['name']}"
    with hub.writing:
        taken = repo_id in hub.repos
        if not taken:
            private = bool(asked.get("private")) or asked.get("visibility") == "private"
            hub.repos[repo_id] = repo = ServedRepo(repo_id, private=private)
            repo.commit({".gitattributes": _GITATTRIBUTES})
    body = {"url": f"{hub.url()}/datasets/{repo_id}", "name": repo_id, "id": repo_id}
    if taken:
        return json_answer({**body, "error": "You already created this dataset repo"}, 409)
    return json_answer(body)


def _create_branch(hub: Hub, request: Request, *, repo: str, revision: str) -> Answer:
    found = _writable(hub, request, repo)
    start = found.sha(json.loads(request.body or b"{}").get("startingPoint") or "main")
    if revision in found.branches:
        raise Refused(409, "Conflict", f"Reference already exists: {revision}")
    if start is None:
        raise Refused(404, "RevisionNotFound", "Invalid rev id")
    found.branches[revision] = start
    return json_answer({}, 201)


def _change_settings(hub: Hub, request: Request, *, repo: str) -> Answer:
    found, asked = _writable(hub, request, repo), json.loads(request.body)
    if asked.keys() - {"gated", "private", "visibility"} or asked.get("gated", False) not in ("auto", "manual", False):
        raise Refused(400, "BadRequest", f"Invalid settings: {sorted(asked)}")
    found.gated = asked.get("gated", found.gated)
    found.private = asked.get("private", asked.get("visibility", "private" * found.private) == "private")
    return json_answer({"gated": found.gated, "private": found.private})


def _validate_yaml(hub: Hub, request: Request) -> Answer:
    _, _, rest = json.loads(request.body)["content"].partition("---\n")
    try:
        valid = isinstance(yaml.safe_load(rest.partition("\n---")[0]) or {}, dict)
    except yaml.YAMLError:
        valid = False
    errors = [] if valid else [{"message": "the metadata is not a YAML mapping"}]
    return json_answer({"errors": errors, "warnings": []}, 200 if valid else 400)


def _preupload(hub: Hub, request: Request, *, repo: str, revision: str) -> Answer:
    found = _writable(hub, request, repo)
    tree = found.tree(_branch(found, revision))

    def told(file: dict[str, Any]) -> dict[str, Any]:
        binary = b"\0" in base64.b64decode(file["sample"])
        lfs = binary or file["size"] > _REGULAR_AT_MOST or ServedFile(file["path"], b"").is_lfs
        held = tree.get(file["path"])
        oid = held and (held.sha256 if held.is_lfs else held.oid)
        return {"path": file["path"], "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False, "oid": oid}

    return json_answer({"files": [told(file) for file in json.loads(request.body)["files"]], "commitOid": ""})


def _batch(hub: Hub, request: Request, *, repo: str) -> Answer:
    found = _writable(hub, request, repo)
    asked = json.loads(request.body)
    if asked["operation"] != "upload" or asked["hash_algo"] != "sha256":
        raise Refused(400, "BadRequest", "Only uploads by SHA-256")
    return json_answer({"transfer": "basic", "objects": [_actions(hub, found, told) for told in asked["objects"]]})


def _actions(hub: Hub, repo: ServedRepo, told: dict[str, Any]) -> dict[str, Any]:
    """Say what to do with one object: nothing if its bytes are here, else where to PUT it and where to verify it."""
    entry = {"oid": told["oid"], "size": told["size"]}
    if told["oid"] in repo.objects:
        return entry
    chunk = hub.multipart_over if told["size"] > hub.multipart_over else None
    name = uuid.uuid4().hex
    hub.uploads[name] = Upload(repo, told["oid"], told["size"], chunk)
    storage = f"{hub.url('localhost')}/lfs-uploads/{name}"
    upload: dict[str, Any] = {"href": f"{storage}/1"}
    if chunk:
        parts = {f"{number:05}": f"{storage}/{number}" for number in range(1, math.ceil(told["size"] / chunk) + 1)}
        upload = {"href": f"{storage}/complete", "header": {"chunk_size": str(chunk), **parts}}
    verify = {"href": f"{hub.url()}/datasets/{repo.id}.git/info/lfs/objects/verify"}
    return {**entry, "authenticated": True, "actions": {"upload": upload, "verify": verify}}


def _put(hub: Hub, request: Request, *, name: str, number: str) -> Answer:
    upload = _upload(hub, name)
    if "content-length" not in request.headers:
        raise Refused(411, "MissingContentLength", "You must provide the Content-Length HTTP header")
    if upload.chunk is None:
        upload.keep(request.body)
    else:
        upload.parts[int(number)] = request.body
    return Answer(headers={"ETag": f'"{hashlib.md5(request.body, usedforsecurity=False).hexdigest()}"'})


def _complete(hub: Hub, request: Request, *, name: str) -> Answer:
    upload = _upload(hub, name)
    told = [(part["partNumber"], part["etag"].strip('"')) for part in json.loads(request.body)["parts"]]
    held = [(n, hashlib.md5(upload.parts[n], usedforsecurity=False).hexdigest()) for n in sorted(upload.parts)]
    if told != held:
        raise Refused(400, "InvalidPart", "The parts are not those that came")
    upload.keep(b"".join(upload.parts[number] for number, _ in held))
    return json_answer({"success": True})


def _verify(hub: Hub, request: Request, *, repo: str) -> Answer:
    told = json.loads(request.body)
    held = _writable(hub, request, repo).objects.get(told["oid"])
    if held is None or len(held) != told["size"]:
        raise Refused(404, "ObjectNotFound", f"Object {told['oid']} was not uploaded")
    return json_answer({"success": True})


def _commit(hub: Hub, request: Request, *, repo: str, revision: str) -> Answer:
    found = _writable(hub, request, repo)
    entries = [(line["key"], line["value"]) for line in map(json.loads, request.body.splitlines())]
    if not entries or entries[0][0] != "header" or not entries[0][1].get("summary"):
        raise Refused(400, "BadRequest", "A commit begins with a header that has a summary")
    with hub.writing:
        head = _branch(found, revision)
        if entries[0][1].get("parentCommit", head) != head:
            raise Refused(412, "PreconditionFailed", "A commit has happened since. Please refresh and try again.")
        files = [_committed(found, key, value) for key, value in entries[1:] if key in ("file", "lfsFile")]
        removed = list(_removed(found.tree(head), entries[1:]))
        sha = found.commit_files(files, removed, revision)
    found.messages[sha] = entries[0][1]["summary"]
    return json_answer({"success": True, "commitOid": sha, "commitUrl": f"{hub.url()}/datasets/{repo}/commit/{sha}"})


def _super_squash(hub: Hub, request: Request, *, repo: str, revision: str) -> Answer:
    found = _writable(hub, request, repo)
    with hub.writing:
        _branch(found, revision)
        sha = found.squash(revision, json.loads(request.body).get("message", ""))
    return json_answer({"success": True, "commitOid": sha})


def _lfs_files(hub: Hub, request: Request, *, repo: str) -> Answer:
    """List the LFS objects of a repo, in any commit or in none."""
    found = _writable(hub, request, repo)
    listed = [
        {
            "fileOid": sha,
            "oid": sha,
            "filename": found.pushed.get(sha, ""),
            "pushedAt": "2026-01-01T00:00:00.000Z",
            "ref": "main",
            "size": len(content),
        }
        for sha, content in sorted(found.objects.items())
    ]
    return json_answer(listed)


def _delete_lfs_files(hub: Hub, request: Request, *, repo: str) -> Answer:
    found = _writable(hub, request, repo)
    with hub.writing:
        found.delete_objects(json.loads(request.body)["deletions"]["sha"])
    return json_answer({"success": True})


def _committed(repo: ServedRepo, key: str, told: dict[str, Any]) -> ServedFile:
    if key == "lfsFile":
        content = repo.objects.get(told["oid"])
        if told["algo"] != "sha256" or content is None or told.get("size", len(content)) != len(content):
            raise Refused(400, "LfsObjectMissing", f"{told['path']}: LFS object {told['oid']} was not uploaded")
        repo.pushed[told["oid"]] = told["path"]
        return ServedFile(told["path"], content, lfs=True)
    try:
        content = base64.b64decode(told["content"], validate=True)
    except binascii.Error:
        raise Refused(400, "BadRequest", f"{told['path']}: not base64") from None
    if len(content) > _REGULAR_AT_MOST or (content and ServedFile(told["path"], b"").is_lfs):
        raise Refused(400, "BadRequest", f"{told['path']}: has to be in LFS")
    return ServedFile(told["path"], content, lfs=False)


def _removed(tree: dict[str, ServedFile], entries: list[tuple[str, dict[str, Any]]]) -> Iterator[str]:
    for key, value in entries:
        if key == "deletedFile" and value["path"] not in tree:
            raise Refused(404, "EntryNotFound", f"A file with this name doesn't exist: {value['path']}")
        if key == "deletedFile":
            yield value["path"]
        elif key == "deletedFolder":
            yield from (path for path in tree if path.startswith(value["path"].rstrip("/") + "/"))
        elif key not in ("file", "lfsFile"):
            raise Refused(400, "BadRequest", f"A commit cannot have {key!r}")


def _writable(hub: Hub, request: Request, repo_id: str) -> ServedRepo:
    """Return the repo, if the token may write to it."""
    repo = hub.repo(repo_id)
    hub.check_write(request, repo_id.partition("/")[0])
    return repo


def _branch(repo: ServedRepo, revision: str) -> str:
    """Return the commit that a branch is at; only branches can be written to."""
    if revision not in repo.branches:
        raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
    return repo.branches[revision]


def _upload(hub: Hub, name: str) -> Upload:
    if name not in hub.uploads:
        raise Refused(403, "AccessDenied", "The address is not signed")
    return hub.uploads[name]


_REPO = r"(?P<repo>[^/]+/[^/]+)"
_LFS = rf"/datasets/{_REPO}\.git/info/lfs/objects"
WRITING_ROUTES: tuple[tuple[str, str, Callable[..., Answer]], ...] = (
    ("POST", r"/api/repos/create", _create_repo),
    ("PUT", rf"/api/datasets/{_REPO}/settings", _change_settings),
    ("POST", r"/api/validate-yaml", _validate_yaml),
    ("POST", rf"/api/datasets/{_REPO}/branch/(?P<revision>.+)", _create_branch),
    ("POST", rf"/api/datasets/{_REPO}/preupload/(?P<revision>.+)", _preupload),
    ("POST", rf"{_LFS}/batch", _batch),
    ("POST", rf"{_LFS}/verify", _verify),
    ("PUT", r"/lfs-uploads/(?P<name>[0-9a-f]+)/(?P<number>\d+)", _put),
    ("POST", r"/lfs-uploads/(?P<name>[0-9a-f]+)/complete", _complete),
    ("POST", rf"/api/datasets/{_REPO}/commit/(?P<revision>.+)", _commit),
    ("POST", rf"/api/datasets/{_REPO}/super-squash/(?P<revision>.+)", _super_squash),
    ("GET", rf"/api/datasets/{_REPO}/lfs-files", _lfs_files),
    ("POST", rf"/api/datasets/{_REPO}/lfs-files/batch", _delete_lfs_files),
)
