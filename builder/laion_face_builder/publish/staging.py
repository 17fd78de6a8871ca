"""Keep what a publish has made and not yet sent, so that one that was killed goes on where it was.

DATA_DIR/publish/NAME/            NAME stands for the target; all of it is gone after the last step
  laion_face_manifest.json        what has been made so far: the ledger, in the manifest's own form
  data/part-000NN-000KK.parquet   made and not yet sent; freed once it is
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from laion_face_builder.files import digest, locked, remove_partials, written_whole
from laion_face_builder.layout import DataDir
from laion_face_builder.publish.manifest import MANIFEST, Entry, Kind, Manifest


class Staging:
    """The staging folder of one publish.

    Args:
        known: what is published already: not made again if it was made from the same data.
    """

    def __init__(self, root: Path, kind: Kind, known: Manifest | None) -> None:
        self.root, self._kind = root, kind
        self._made = dict(self._read().entries)
        self._known = {**(known.entries if known is not None else {}), **self._made}

    @classmethod
    @contextmanager
    def at(cls, data: DataDir, target: str, kind: Kind, known: Manifest | None) -> Iterator[Staging]:
        """Open the folder for `target`, locked against other processes until the block ends."""
        root = _folder(data, target, kind)
        with locked(root, waiting=f"waiting for another publish to {target}"):
            for folder in (root, root / "data", root / "preview"):
                remove_partials(folder)
            yield cls(root, kind, known)

    @classmethod
    def seen(cls, data: DataDir, target: str, kind: Kind, known: Manifest | None) -> Staging:
        """Give the folder for `target` as it is now, only to be read."""
        return cls(_folder(data, target, kind), kind, known)

    def path(self, name: str) -> Path:
        """Give the path where a file is made."""
        return self.root / name

    def known(self, name: str) -> Entry | None:
        """Give the entry of what was made under this name, now or in an earlier publish; None if nothing was."""
        return self._known.get(name)

    def note(self, entry: Entry) -> None:
        """Note in the ledger that a file is whole."""
        self._made[entry.name] = self._known[entry.name] = entry
        with written_whole(self.root / MANIFEST) as partial:
            partial.write_text(Manifest(self._kind, self._made).as_text(), encoding="utf-8")

    def free(self, name: str) -> None:
        """Delete a file that has been sent."""
        self.path(name).unlink(missing_ok=True)

    def finish(self) -> None:
        """Delete the folder: from now on the published manifest tells what there is."""
        shutil.rmtree(self.root, ignore_errors=True)

    def _read(self) -> Manifest:
        ledger = self.root / MANIFEST
        return Manifest.from_text(ledger.read_bytes(), str(self.root)) if ledger.exists() else Manifest(self._kind)


def _folder(data: DataDir, target: str, kind: Kind) -> Path:
    return data.root / "publish" / f"{kind}-{digest(target)}"
