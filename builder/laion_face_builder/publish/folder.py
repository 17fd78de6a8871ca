"""Publish to a folder: copies of the files, each whole or not there.

FOLDER/
  README.md, data/part-00000.parquet, …   under the names of the `Outgoing`s
  .publish.lock                           two publishers never write here at once
  data/.part-00000.parquet.….partial      a copy that was going on when its process was killed; the next send removes it

A copy is hashed while it is made, synced and renamed: a file under its final name has the bytes that were to be sent.
"""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from laion_face_builder import progress
from laion_face_builder.errors import DiskError, PublishError
from laion_face_builder.files import locked, remove_partials, sha256_of, written_whole
from laion_face_builder.progress_base import Bar
from laion_face_builder.publish.destination import Held, Outgoing, missing, problems

_PIECE = 1 << 22


@dataclass(frozen=True)
class FolderDestination:
    """The folder `path`, made when something is sent."""

    path: Path

    def listing(self) -> dict[str, Held]:
        """List every file but hidden ones, with its size alone: to hash a whole published set takes a minute."""
        found = (file.relative_to(self.path) for file in sorted(self.path.rglob("*")) if file.is_file())
        shown = [name for name in found if not any(part.startswith(".") for part in name.parts)]
        return {name.as_posix(): Held((self.path / name).stat().st_size) for name in shown}

    def send(self, files: Sequence[Outgoing], message: str) -> int:
        """Copy what is not there yet, the README last, since it names the others.

        Raises:
            PublishError: the folder cannot be written, or its disk is full.
            BadFile: a file is no longer what it was when it was hashed.
        """
        with self._writing():
            for folder in {(self.path / file.name).parent for file in files}:
                remove_partials(folder)
            left = sorted(self.lacks(files), key=lambda file: file.name == "README.md")
            total = sum(file.size for file in left)
            with progress.bar(message, total, "B") as bar:
                for file in left:
                    self._copy(file, bar)
        return total

    def lacks(self, files: Sequence[Outgoing]) -> list[Outgoing]:
        """Give those that are not there, or have other bytes; files of the same name and size are read."""
        return missing(files, self._measured(files))

    def remove(self, names: Sequence[str], message: str) -> None:
        """Delete the files, and folders that are empty then.

        Raises:
            PublishError: the folder cannot be written.
        """
        with self._writing():
            for name in sorted(self.listing().keys() & set(names)):
                (self.path / name).unlink()
                for folder in (self.path / name).parents:
                    if folder == self.path or any(folder.iterdir()):
                        break
                    folder.rmdir()

    def check(self, files: Sequence[Outgoing]) -> list[str]:
        """List problems, one line each; every file is read again."""
        return problems(files, self._measured(files))

    def _measured(self, files: Sequence[Outgoing]) -> dict[str, Held]:
        """List what is there, with the SHA-256 of those of `files` whose size is right."""
        held = self.listing()
        same = [file.name for file in files if file.name in held and held[file.name].size == file.size]
        reading = progress.bar("check", len(same), "file").counting(same)
        return held | {name: Held(held[name].size, sha256_of(self.path / name)) for name in reading}

    def _copy(self, file: Outgoing, bar: Bar) -> None:
        hasher = hashlib.sha256()
        with written_whole(self.path / file.name) as partial:
            with file.path.open("rb") as source, partial.open("wb") as copy:
                while piece := source.read(_PIECE):
                    hasher.update(piece)
                    copy.write(piece)
                    bar.update(len(piece))
            if hasher.hexdigest() != file.sha256:
                raise file.changed(hasher.hexdigest())

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            with locked(self.path / "publish", f"another publish to {self.path} is going on; waiting for it"):
                yield
        except DiskError as error:
            raise PublishError(f"{error}; what was copied is kept") from error
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            way_out = "Free some space" if full else "Give a folder that can be written to"
            what = f"{error.strerror or error}: {error.filename or self.path}"
            raise PublishError(f"{self.path}: {what}. {way_out} and publish again: what was copied is kept.") from error
