"""Find the rows that a newer release of LAION's metadata no longer has: what LAION took down since.

LAION's key is address and caption, and ids repeat: a row is still there if the metadata have one of its address with
its id or with its caption. Captions that were written anew, or ids that were given anew, are then no removals.

One pass over all metadata; 29 bytes a row of the index are in memory, and what `index.joined_rows` takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from laion_face_builder import progress
from laion_face_builder.errors import NotPrepared, StateConflict
from laion_face_builder.index.exclusion import Ids, Mask
from laion_face_builder.index.join import COVERAGE
from laion_face_builder.index.joined_rows import KeyPlaces, Keys, keys_of_texts
from laion_face_builder.index.metadata import open_metadata
from laion_face_builder.index.reader import IndexPart
from laion_face_builder.layout import ALL_PARTS, DataDir
from laion_face_builder.log import logger
from laion_face_builder.sources.copied_file import RemoteFile
from laion_face_builder.sources.hub import Token
from laion_face_builder.sources.metadata_kinds import Whole
from laion_face_builder.sources.sources import DEFAULT_REPO, Upstream


@dataclass(frozen=True)
class NewerMetadata:
    """Metadata that say which rows are still there.

    Attributes:
        place: as `metadata=` takes it.
        most_gone: how large a share of the rows they may lack.
        token: for the Hub.
    """

    place: str
    most_gone: float
    token: Token = None

    def files(self, parts: Sequence[int]) -> tuple[RemoteFile, ...]:
        """Look up the files that the rows of these parts may be in.

        Raises:
            SourceError: they are not to be had.
        """
        source = Upstream(DEFAULT_REPO, None, self.place, self.token).metadata_source()
        return source.files if isinstance(source, Whole) else tuple(source.part(part) for part in parts)


def rows_gone_since(data: DataDir, newer: NewerMetadata) -> Ids:
    """Return the sample ids, int64[n] ascending, of the rows of all indexes that `newer` no longer has.

    Raises:
        NotPrepared: there is no index; StateConflict: more rows are lacking than may be.
        SourceError, BadFile: the metadata cannot be had, or read.
    """
    parts = [part for part in ALL_PARTS if data.index(part).exists()]
    if not parts:
        raise NotPrepared(f"{data.root}: no part has its index. Run `laion-face prepare` there first.")
    rows = _Rows.of(data, parts)
    files = newer.files(parts)
    with progress.bar("metadata", sum(file.size or 0 for file in files), "B") as bar:
        for file in files:
            for ids, batch in open_metadata(file.fetch(data.sources)).batches():
                rows.see(ids, batch)
            file.discard(data.sources)
            bar.update(file.size or 0)
    there, count = int(rows.is_seen.sum()), len(rows.is_seen)
    share = there / max(count, 1)
    said = f"{newer.place}: has {there:,} of the {count:,} rows that are prepared in {data.root} ({100 * share:.1f} %)"
    if share < COVERAGE[0] or 1 - share > newer.most_gone:
        raise StateConflict(
            f"{said}; at least {100 * max(COVERAGE[0], 1 - newer.most_gone):.1f} % are expected, since another release "
            "would take down everything that it has not. Name the newer metadata of the same release, or, if so much "
            f"was withdrawn indeed, say --most-gone {1 - share:.2f}"
        )
    logger.info("%s; the other %d are taken down", said, count - there)
    return np.unique(rows.ids[~rows.is_seen])


class _Rows:
    """The rows of some indexes, and which of them have been seen: int64[n], KeyPlaces, int64[n], bool[n]."""

    def __init__(self, count: int) -> None:
        self.ids: Ids = np.zeros(count, np.int64)
        self.is_seen: Mask = np.zeros(count, bool)
        self._captions: Keys = np.zeros(count, np.int64)
        self._places = KeyPlaces()

    @classmethod
    def of(cls, data: DataDir, parts: Sequence[int]) -> _Rows:
        """Read the indexes of some parts."""
        indexes = [IndexPart.open(data.index(part)) for part in parts]
        rows, first = cls(sum(index.num_rows for index in indexes)), 0
        for index in indexes:
            with index:
                for start, stop in index.row_groups:
                    table = index.read(start, stop, ["sample_id", "url", "caption"])
                    rows._add(table, first + start)
                first += index.num_rows
        rows._places.sort()
        return rows

    def _add(self, table: pa.Table, first: int) -> None:
        here = slice(first, first + table.num_rows)
        self.ids[here] = table["sample_id"].to_numpy()
        self._captions[here] = _keys(table["caption"].combine_chunks())
        self._places.add(_keys(table["url"].combine_chunks()), np.arange(here.start, here.stop, dtype=np.uint32))

    def see(self, ids: npt.NDArray[np.int64], batch: pa.RecordBatch) -> None:
        """Mark the rows that are among these of the metadata."""
        which, rows = self._places.find(_keys(batch.column("url")))
        is_same = self.ids[rows] == ids[which]
        asked, which = rows[~is_same], which[~is_same]
        captions = _keys(batch.column("caption").take(pa.array(which)))
        self.is_seen[rows[is_same]] = True
        self.is_seen[asked[self._captions[asked] == captions]] = True


def _keys(texts: pa.Array) -> Keys:
    return keys_of_texts(pc.fill_null(texts, ""))
