"""Keep the dataset repos of the stand-in Hub, with their files, commits and branches.

It answers in JSON, or with a refusal in the headers that huggingface_hub makes its errors from.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from laion_face_builder.sandbox.serving import Answer

#: File names that a new dataset repo on the Hub keeps in LFS (its default .gitattributes).
_LFS_SUFFIXES = (".bin", ".jpg", ".parquet", ".png", ".pt", ".pth", ".tar", ".webp", ".zip")


@dataclass(frozen=True)
class ServedFile:
    """One file of a commit. `lfs`: whether the commit said that it is in LFS; None means as its name says."""

    path: str
    content: bytes | Path
    lfs: bool | None = None

    @property
    def is_lfs(self) -> bool:
        """Whether git holds only a pointer to it."""
        return self.path.endswith(_LFS_SUFFIXES) if self.lfs is None else self.lfs

    @cached_property
    def data(self) -> Answer:
        """The bytes, ready to be sent."""
        return Answer(body=self.content)

    @cached_property
    def sha256(self) -> str:
        """The SHA-256 of the bytes, by which LFS names the file."""
        return _hash_of("sha256", self.data)

    @cached_property
    def oid(self) -> str:
        """The bytes' id as a git blob; for an LFS file real git takes the id of its pointer."""
        return _hash_of("sha1", self.data, f"blob {self.data.whole}\0".encode())

    def as_json(self) -> dict[str, Any]:
        """Return the entry in a listing."""
        entry: dict[str, Any] = {"type": "file", "path": self.path, "size": self.data.whole, "oid": self.oid}
        if self.is_lfs:
            entry["lfs"] = {"oid": self.sha256, "size": self.data.whole, "pointerSize": 134}
        return entry

    def as_sibling(self) -> dict[str, Any]:
        """Return the entry in the repo's info, where the Hub uses other names for the same."""
        entry = {"rfilename": self.path, "size": self.data.whole, "blobId": self.oid}
        lfs = {"sha256": self.sha256, "size": self.data.whole, "pointerSize": 134}
        return {**entry, "lfs": lfs} if self.is_lfs else entry


@dataclass
class ServedRepo:
    """A dataset repo: commits by their sha, and branches that point to them. `gated` may say how: "auto" or "manual".

    `objects` are the LFS objects that were uploaded, by SHA-256, committed or not; `messages` those of its commits.
    """

    id: str
    gated: bool | str = False
    private: bool = False
    objects: dict[str, bytes] = field(default_factory=dict, repr=False)
    commits: dict[str, dict[str, ServedFile]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    messages: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    #: The names under which LFS objects were committed.
    pushed: dict[str, str] = field(default_factory=dict)
    #: Of each commit the one before; what no branch, tag, pull request or copy leads to is served no more.
    parents: dict[str, str] = field(default_factory=dict)
    #: The heads of pull requests by their numbers, and of the copies that the Hub makes: refs/convert/parquet.
    pulls: dict[str, str] = field(default_factory=dict)
    converts: dict[str, str] = field(default_factory=dict)

    def commit(self, files: Mapping[str, bytes | Path], branch: str = "main") -> str:
        """Add or replace files on top of `branch`; return the new commit's sha."""
        return self.commit_files([ServedFile(path, content) for path, content in files.items()], (), branch)

    def commit_files(self, files: Iterable[ServedFile], removed: Iterable[str], branch: str) -> str:
        """Take the `removed` paths out of `branch`, add or replace `files`; return the new commit's sha."""
        removed = set(removed)
        before = self.commits.get(self.branches.get(branch, ""), {})
        tree = {path: file for path, file in before.items() if path not in removed}
        tree.update({file.path: file for file in files})
        text = "\n".join([self.branches.get(branch, ""), *(f"{path} {tree[path].oid}" for path in sorted(tree))])
        sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
        self.commits[sha] = tree
        self.parents[sha] = self.branches.get(branch, "")
        self.branches[branch] = sha
        return sha

    def squash(self, branch: str, message: str) -> str:
        """Make one commit of a branch; the others are gone if nothing else leads to them. Return the new sha."""
        tree = self.commits[self.branches[branch]]
        text = f"squashed {self.branches[branch]}"
        sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
        self.commits[sha], self.branches[branch] = tree, sha
        self.messages[sha] = message
        known = set(self._reachable())
        self.commits = {sha: tree for sha, tree in self.commits.items() if sha in known}
        return sha

    def _reachable(self) -> Iterator[str]:
        for refs in (self.branches, self.tags, self.pulls, self.converts):
            for head in refs.values():
                sha = head
                while sha:
                    yield sha
                    sha = self.parents.get(sha, "")

    def delete_objects(self, shas: Iterable[str]) -> None:
        """Delete LFS objects for good, and the files of whatever commit that have them."""
        gone = set(shas)
        self.objects = {sha: content for sha, content in self.objects.items() if sha not in gone}
        for commit, tree in self.commits.items():
            self.commits[commit] = {
                path: file for path, file in tree.items() if not (file.is_lfs and file.sha256 in gone)
            }

    def sha(self, revision: str) -> str | None:
        """Return the commit that a branch, a tag or a sha means."""
        named = self.branches.get(revision) or self.tags.get(revision)
        return named or (revision if revision in self.commits else None)

    def tree(self, revision: str) -> dict[str, ServedFile]:
        """Return the files of a revision by path."""
        return self.commits[self.sha(revision) or ""]


def _hash_of(algorithm: str, answer: Answer, start: bytes = b"") -> str:
    hasher = hashlib.new(algorithm, start, usedforsecurity=False)
    for piece in answer.pieces():
        hasher.update(piece)
    return hasher.hexdigest()


class Refused(Exception):
    """Ends a request with a refusal."""

    def __init__(self, status: int, code: str, message: str) -> None:
        self.answer = refusal(status, code, message)
        super().__init__(message)


def refusal(status: int, code: str, message: str) -> Answer:
    """Return an error as the Hub says it: a status, a code for machines and a message for people."""
    headers = {"X-Error-Code": code, "X-Error-Message": message, "Content-Type": "application/json"}
    return Answer(status, json.dumps({"error": message}).encode(), headers)


def json_answer(value: object, status: int = 200, **headers: str) -> Answer:
    """Return `value` as a JSON answer."""
    return Answer(status, json.dumps(value).encode(), {"Content-Type": "application/json", **headers})
