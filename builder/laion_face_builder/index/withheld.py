"""Keep what was taken down out of what `prepare` makes: named rows are noted first, then left out.

By their ids rows are left out of every file from the start. Who is named by address shows only once the metadata are
read: then their ids are noted, and leave the ids and the faces too, which were made before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from laion_face_builder.files import Fingerprint, locked
from laion_face_builder.index.detections import rewrite_faces
from laion_face_builder.index.exclusion import Mask
from laion_face_builder.index.ids import rewrite_ids
from laion_face_builder.index.removals import Removals, noted, settled
from laion_face_builder.index.removed import Removed, hashes_of_ids
from laion_face_builder.layout import DataDir
from laion_face_builder.parquet_files import table_of


@dataclass(frozen=True)
class Withheld:
    """What of a part may not be written.

    Attributes:
        data: the DATA_DIR, a folder of this machine if anything was ever taken down from it.
        removed: all that was.
    """

    data: DataDir
    removed: Removed

    @classmethod
    def of(cls, data: DataDir) -> Withheld:
        """Read what was taken down from `data`.

        Raises:
            StateConflict: a removal was begun and is not finished; BadFile: its notes cannot be read.
        """
        return cls(data, settled(data).removed)

    def kept_ids(self, part: int, ids: np.ndarray) -> Mask:
        """Tell, bool[n], which ids of a part, int64[n], may be written; the others are noted."""
        named = self.removed.names_ids(pa.array(ids, pa.int64()))
        return self._without(part, ids, named)

    def kept_rows(self, part: int, rows: pa.Table) -> Mask:
        """Tell, bool[n], which rows of a part's index may be written; the others are noted.

        Args:
            rows: with `sample_id` and `url`.
        """
        return self._without(part, rows["sample_id"].to_numpy(), self.removed.mask(rows))

    def stamped(self, part: int, fingerprint: Fingerprint) -> Fingerprint:
        """Return the fingerprint of a part's index with what was left out of it, which has been noted."""
        return {**fingerprint, **Removals.of(self.data).stamp(part)} if self.removed else fingerprint

    def _without(self, part: int, ids: np.ndarray, named: Mask) -> Mask:
        if named.any():
            noted(self.data, {part: hashes_of_ids(ids[named].tolist())})
        return ~named


def named_ids(data: DataDir, part: int, removed: Removed) -> list[int]:
    """List the sample ids that are named and still are among a part's ids or faces."""
    found: set[int] = set()
    for path in (data.ids(part), data.faces(part)):
        if path.exists():
            ids = table_of(path, ["sample_id"])["sample_id"]
            found.update(ids.to_numpy()[removed.names_ids(ids)].tolist())
    return sorted(found)


def take_ids_out(data: DataDir, part: int, ids: np.ndarray) -> tuple[int, int]:
    """Write a part's ids and faces again without some ids; files that have none of them are left alone.

    Returns:
        How many ids, and how many samples with faces, were taken out.
    """
    with locked(data.root / "ids" / "id-list"):
        of_ids = _taken_out(data.ids(part), ids, rewrite_ids)
    return of_ids, _taken_out(data.faces(part), ids, rewrite_faces)


def _taken_out(path: Path, ids: np.ndarray, rewrite: Callable[[Path, np.ndarray], None]) -> int:
    if not path.exists():
        return 0
    keep = ~np.isin(table_of(path, ["sample_id"])["sample_id"].to_numpy(), ids)
    if not keep.all():
        rewrite(path, keep)
    return int((~keep).sum())
