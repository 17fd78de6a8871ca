"""Serves git repositories over HTTP on loopback, by git's own `http-backend`: what a Hub dataset is to `git clone`.

As on the Hub, a Parquet file is a pointer there, whose content git-lfs asks for by the batch API.
"""

import hashlib
import json
import os
import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from laion_face_builder.sandbox.serving import Answer, LoopbackServer, Request

_LFS = "application/vnd.git-lfs+json"
_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize {}\n"
#: Nobody's settings: those of this machine may have git-lfs send what is pushed.
_UNSET = {
    "GIT_CONFIG_COUNT": "0",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_TERMINAL_PROMPT": "0",
}
_NOBODY = {"GIT_AUTHOR_NAME": "x", "GIT_AUTHOR_EMAIL": "x", "GIT_COMMITTER_NAME": "x", "GIT_COMMITTER_EMAIL": "x"}


@cache
def has_lfs() -> bool:
    """Say whether git and git-lfs are there."""
    try:
        return subprocess.run(["git", "lfs", "version"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


class GitServer(LoopbackServer):
    """Serves the repositories below `root` by their paths there."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.root = root
        self._large: dict[str, bytes] = {}

    def add_repo(self, name: str, files: Mapping[str, bytes], branch: str = "main") -> None:
        """Add a repository, or a branch to it, with one commit of these files."""
        place, tree = self.root / name, self.root / f"{name}-{branch}"
        if not place.exists():
            _git("init", "--quiet", "--bare", "--initial-branch=main", str(place))
        _git("init", "--quiet", f"--initial-branch={branch}", str(tree))
        for path, content in {".gitattributes": b"*.parquet filter=lfs diff=lfs merge=lfs -text\n", **files}.items():
            (tree / path).parent.mkdir(parents=True, exist_ok=True)
            (tree / path).write_bytes(self._pointer(content) if path.endswith(".parquet") else content)
        _git("-C", str(tree), "add", ".")
        _git("-C", str(tree), "commit", "--quiet", "--message=All of it")
        _git("-C", str(tree), "push", "--quiet", str(place), branch)

    def _pointer(self, content: bytes) -> bytes:
        """Keep the content for those who ask for it, and give what git has of it."""
        oid = hashlib.sha256(content).hexdigest()
        self._large[oid] = content
        return _POINTER.format(oid, len(content)).encode()

    def stands_in_for(self, address: str) -> dict[str, str]:
        """Return an environment in which git comes here for what begins with `address`.

        Of other settings it reads those alone that `git lfs install` writes.
        """
        settings = {
            f"url.{self.url()}/.insteadOf": address,
            "filter.lfs.process": "git-lfs filter-process",
            "filter.lfs.smudge": "git-lfs smudge -- %f",
            "filter.lfs.clean": "git-lfs clean -- %f",
            "filter.lfs.required": "true",
        }
        given = {"GIT_CONFIG_COUNT": str(len(settings))}
        for number, (key, value) in enumerate(settings.items()):
            given |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
        return {**_UNSET, **given}

    def answer(self, request: Request) -> Answer:
        """Answer git-lfs; hand all else to git as CGI has it."""
        if request.path.endswith(".git/info/lfs/objects/batch"):
            return self._batch(json.loads(request.body))
        if request.path.startswith("/large/"):
            return Answer(200, self._large[request.path.removeprefix("/large/")])
        return self._git(request)

    def _batch(self, asked: dict[str, Any]) -> Answer:
        """Say where the objects are."""
        objects = [
            {**one, "actions": {"download": {"href": f"{self.url()}/large/{one['oid']}"}}} for one in asked["objects"]
        ]
        text = json.dumps({"transfer": "basic", "objects": objects})
        return Answer(200, text.encode(), {"Content-Type": _LFS})

    def _git(self, request: Request) -> Answer:
        variables = {
            "GIT_PROJECT_ROOT": str(self.root),
            "GIT_HTTP_EXPORT_ALL": "1",
            "REQUEST_METHOD": request.method,
            "PATH_INFO": request.path,
            "QUERY_STRING": request.split.query,
            "CONTENT_TYPE": request.headers.get("content-type", ""),
            "HTTP_CONTENT_ENCODING": request.headers.get("content-encoding", ""),
            "GIT_PROTOCOL": request.headers.get("git-protocol", ""),
        }
        told = subprocess.run(
            ["git", "http-backend"],
            input=request.body,
            env={**os.environ, **variables},
            capture_output=True,
            check=True,
        )
        head, _, body = told.stdout.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().splitlines())
        status = int(headers.pop("Status", "200").split()[0])
        return Answer(status, body, headers)


def _git(*words: str) -> None:
    subprocess.run(["git", *words], env={**os.environ, **_UNSET, **_NOBODY}, check=True)
