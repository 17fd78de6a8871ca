"""Serves git repositories over HTTP on loopback, by git's own `http-backend`: what a Hub dataset is to `git clone`."""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from laion_face_builder.sandbox.serving import Answer, LoopbackServer, Request

_NOBODY = {"GIT_AUTHOR_NAME": "x", "GIT_AUTHOR_EMAIL": "x", "GIT_COMMITTER_NAME": "x", "GIT_COMMITTER_EMAIL": "x"}


class GitServer(LoopbackServer):
    """Serves the repositories below `root` by their paths there."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.root = root

    def add_repo(self, name: str, files: Mapping[str, bytes], branch: str = "main") -> None:
        """Add a repository, or a branch to it, with one commit of these files."""
        place, tree = self.root / name, self.root / f"{name}-{branch}"
        if not place.exists():
            _git("init", "--quiet", "--bare", "--initial-branch=main", str(place))
        _git("init", "--quiet", f"--initial-branch={branch}", str(tree))
        for path, content in files.items():
            (tree / path).parent.mkdir(parents=True, exist_ok=True)
            (tree / path).write_bytes(content)
        _git("-C", str(tree), "add", ".")
        _git("-C", str(tree), "commit", "--quiet", "--message=All of it")
        _git("-C", str(tree), "push", "--quiet", str(place), branch)

    def stands_in_for(self, address: str) -> dict[str, str]:
        """Return an environment in which git comes here for what begins with `address`, and reads no other settings."""
        key = f"url.{self.url()}/.insteadOf"
        setting = {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": key, "GIT_CONFIG_VALUE_0": address}
        return {**setting, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1", "GIT_TERMINAL_PROMPT": "0"}

    def answer(self, request: Request) -> Answer:
        """Hand the request to git as CGI has it."""
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
    subprocess.run(["git", *words], env={**os.environ, **_NOBODY}, check=True)
