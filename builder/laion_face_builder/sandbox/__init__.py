"""A miniature of LAION-Face's sources (Hub, metadata, picture hosts) on loopback: the demo and the tests run on it.

    with Sandbox.running(folder, spec=SandboxSpec(rows=300)) as box:
        subprocess.run([...], env={**os.environ, **box.environment})

FOLDER/
  laion-face/          laion_face_ids.pth, sample2detect_i.pth: what the stand-in Hub has as `box.repo`
  metadata/            the Parquet files: the gated `box.metadata_repo`, and plain files at `box.metadata_url`
  not-to-be-read.png   what some file:// URLs name
  home/                where `box.environment` sends every cache

`spec` says what it is made of and what is known of each row; `cartoons` draws; `content` makes the rows of 2021 and the
hosts' answers; `today` makes today's metadata of those rows; `plain_join` says what the indexes are; `upstream` writes
the files; `stand_in_hub` serves `hub_repos` and `picture_hosts` the rest, by way of `serving`; `demo` runs it all.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from laion_face_builder.sandbox.cartoons import draw, encode, find_landmarks, plan
from laion_face_builder.sandbox.content import Content, make_content
from laion_face_builder.sandbox.picture_hosts import FolderHost, PictureHost
from laion_face_builder.sandbox.serving import Answer, Request, redirect
from laion_face_builder.sandbox.spec import FAILURES, RELEASES, TWISTS, Face, PickleStyle, Release, SandboxSpec, Truth
from laion_face_builder.sandbox.stand_in_hub import Hub
from laion_face_builder.sandbox.upstream import write_upstream

__all__ = [
    "FAILURES",
    "RELEASES",
    "STRANGER",
    "TOKEN",
    "TWISTS",
    "WRITER",
    "Answer",
    "Content",
    "Face",
    "FolderHost",
    "Hub",
    "PickleStyle",
    "PictureHost",
    "Release",
    "Request",
    "Sandbox",
    "SandboxSpec",
    "Truth",
    "environment_for",
    "find_landmarks",
    "make_content",
    "redirect",
    "write_upstream",
]

#: The token that may read the gated metadata, and write to the namespace WRITER.
TOKEN = "hf_sandbox"  # noqa: S105 - it opens nothing but the sandbox
WRITER = "sandbox"
#: A token that the Hub knows, but that was not granted anything.
STRANGER = "hf_stranger"


@dataclass(frozen=True)
class Sandbox:
    """A running sandbox.

    Args:
        folder: where its files lie.
        content: its rows and what is true of them.
        hub, pictures, metadata: the servers; each counts its requests and can be made to fail.
        repo, metadata_repo: the names on the Hub. The metadata's former name redirects, in today's world.
    """

    folder: Path
    content: Content
    hub: Hub
    pictures: PictureHost
    metadata: FolderHost
    repo: str
    metadata_repo: str

    @classmethod
    @contextmanager
    def running(
        cls, folder: Path, spec: SandboxSpec | None = None, *, hub: Hub | None = None, namespace: str | None = None
    ) -> Iterator[Sandbox]:
        """Make a sandbox in `folder` and serve it until the block ends.

        Args:
            hub: a running stand-in that takes the repos in; None starts one for this sandbox alone.
            namespace: takes the place of the two owners' names, so that several sandboxes can share a Hub.
        """
        folder = folder.absolute()
        folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            pictures = stack.enter_context(PictureHost())
            forbidden = _forbidden_file(folder)
            hosts = (pictures.url(), pictures.url("localhost"))
            content = make_content(spec or SandboxSpec(), hosts, str(forbidden))
            pictures.answers.update(content.answers)
            write_upstream(content, folder)
            metadata = stack.enter_context(FolderHost(folder / "metadata"))
            hub = hub or stack.enter_context(Hub())
            repo = f"{namespace or 'FacePerceiver'}/laion-face"
            owner, release = namespace or "laion", RELEASES[content.spec.world]
            metadata_repo = f"{owner}/{release.repo}"
            hub.add_repo(repo, _files(folder / "laion-face"))
            hub.add_repo(metadata_repo, _files(folder / "metadata"), gated=True)
            if release.former is not None:
                hub.renamed[f"{owner}/{release.former}"] = metadata_repo
            hub.tokens.setdefault(TOKEN, set()).add(metadata_repo)
            hub.tokens.setdefault(STRANGER, set())
            hub.writers.setdefault(TOKEN, (WRITER,))
            yield cls(folder, content, hub, pictures, metadata, repo, metadata_repo)

    @property
    def truth(self) -> list[Truth]:
        """The rows of every index, by part and row."""
        return list(self.content.truth)

    def truth_of(self, part: int) -> list[Truth]:
        """Return the rows of a part's index: entry r is row r."""
        return [truth for truth in self.content.truth if truth.part == part]

    @property
    def metadata_url(self) -> str:
        """The metadata as a plain folder over http."""
        return self.metadata.url()

    @property
    def metadata_folder(self) -> Path:
        """The metadata as a local folder."""
        return self.folder / "metadata"

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables, to be laid over the present ones, under which this Hub is the Hub."""
        return environment_for(self.hub, self.folder / "home")

    def without_failures(self) -> list[Truth]:
        """Return the index rows whose picture can be fetched."""
        return [truth for truth in self.content.truth if truth.ok]


def environment_for(hub: Hub, home: Path) -> dict[str, str]:
    """Return variables that lead huggingface_hub and datasets to `hub`, and all that they and we write into `home`."""
    return {
        "HF_ENDPOINT": hub.url(),
        "HF_TOKEN": TOKEN,
        "HF_HOME": str(home / "huggingface"),
        "HF_HUB_CACHE": str(home / "huggingface" / "hub"),
        "HF_DATASETS_CACHE": str(home / "huggingface" / "datasets"),
        "HF_MODULES_CACHE": str(home / "huggingface" / "modules"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "LAION_FACE_DATA_DIR": str(home / "data"),
        "XDG_CACHE_HOME": str(home / "cache"),
        "NO_PROXY": "127.0.0.1,localhost",
        "no_proxy": "127.0.0.1,localhost",
    }


def _files(folder: Path) -> dict[str, bytes | Path]:
    files: dict[str, bytes | Path] = {path.name: path for path in sorted(folder.iterdir())}
    return {"README.md": f"# {folder.name}\n".encode(), **files}


def _forbidden_file(folder: Path) -> Path:
    """Write a good picture for file:// URLs to name: a client that followed one would take it for a success."""
    path = folder / "not-to-be-read.png"
    path.write_bytes(encode(draw(plan(random.Random(0), 1)), "png"))  # noqa: S311 - a drawing, no secret
    return path
