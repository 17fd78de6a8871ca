"""Read pictures from img2dataset's tars in index order, through the sidecar that says where each lies.

Files are read at offsets (`pread`), never through a shared position, so a reader may be forked into workers; it may be
pickled to spawned ones. A tar that has vanished or changed since only gives its samples a status; reading goes on.

Every picture is compared with its checksum: xxHash, which costs next to nothing, and SHA-256 where a sidecar of an
earlier version has no other.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import xxhash

from laion_face_builder.download.adopt import adopted
from laion_face_builder.download.picture_tables import PictureTables
from laion_face_builder.download.sidecar import is_for
from laion_face_builder.errors import NotPrepared, PictureError, StateConflict
from laion_face_builder.files import FINGERPRINT_KEY, Fingerprint, digest, read_fingerprint
from laion_face_builder.images.geometry import Resizing, Size
from laion_face_builder.images.pictures import MAX_PIXELS, Picture
from laion_face_builder.images.reasons import Reason
from laion_face_builder.index.reader import IndexPart, index_fingerprint_at
from laion_face_builder.index.removals import as_made, lost_by
from laion_face_builder.layout import DataDir
from laion_face_builder.parquet_files import damaged, opened, rows_in
from laion_face_builder.parquet_footer import OpenParquet
from laion_face_builder.schema import SIDECAR_LATER

_COLUMNS = ("status", "tar", "offset", "length", "format", "width", "height", "orientation", "sha256")
_MOST_OPEN = 32
#: What lies between two pictures in a tar is their captions and metadata: cheaper to read than to jump over.
_GAP_BYTES = 64 << 10
_BATCH_BYTES = 32 << 20
_BATCH_ROWS = 1024

Row = dict[str, Any]


@dataclass(frozen=True)
class StoredPicture:
    """What lies on disk for one index row.

    Attributes:
        status: "ok", or why there is no picture, such as "http_404", "not_downloaded", "tar_changed".
        data: the stored bytes; None if there is no picture, or it was not wanted.
        format: Pillow's name of it; like all that follows, as in the defaults if there is no picture.
        width: of the stored pixels.
        height: likewise.
        orientation: EXIF's value, 1 to 8; 0 if it is broken. See `pictures.Picture`.
        sha256: of the stored bytes, in hex.
        fetched: width and height of what the host gave, before img2dataset encoded it again; None if not known.
        fetched_sha256: of the bytes that the host gave, "" if these are the stored ones, or not known.
    """

    status: str
    data: bytes | None = None
    format: str = ""
    width: int = 0
    height: int = 0
    orientation: int = 1
    sha256: str = ""
    fetched: Size | None = None
    fetched_sha256: str = ""

    @property
    def picture(self) -> Picture:
        """The picture.

        Raises:
            PictureError: there is none; the reason is `status`.
        """
        if self.data is None:
            raise PictureError(self.status)
        known = (self.sha256, self.fetched, self.fetched_sha256)
        return Picture(self.data, self.format, self.width, self.height, self.orientation, *known)


class PartPictures:
    """The pictures of one part. Opens files when they are needed; close it, or use it as a context manager.

    Args:
        folder: the part's folder, which the names of tars are relative to.
        sidecar: its sidecar.
    """

    def __init__(self, folder: Path, sidecar: Path) -> None:
        self.folder = folder
        self.sidecar = sidecar
        self._tars: OrderedDict[str, int] = OrderedDict()
        self._bounds: list[tuple[int, int]] | None = None
        self._numbered = ""
        self._window: tuple[int, list[Row]] = (0, [])
        self._cells = PictureTables()

    @classmethod
    def open(cls, data: DataDir, part: int, index: IndexPart | None = None) -> PartPictures:
        """Open the pictures that `download` got.

        Args:
            index: the part's index, if it does not lie in `data`.

        Raises:
            NotPrepared: the part has not been downloaded to its end.
            StateConflict: its pictures were downloaded for another index than the present one.
        """
        sidecar = data.sidecar(part)
        made_with = read_fingerprint(sidecar)
        if made_with is None:
            raise NotPrepared(f"{sidecar}: there is no such file. Run `laion-face download` with --parts {part} first.")
        now = index_fingerprint_at(data.index(part)) if index is None else index.fingerprint
        if now is not None and made_with.get("index") != digest(as_made(now)):
            raise StateConflict(
                f"{sidecar}: its pictures were downloaded for another index than {data.index(part)}. Prepare from the "
                f"sources that were used then, or use the pictures as they are with images={data.tars(part).parent}."
            )
        rows = index.num_rows if index is not None else rows_in(data.index(part) if now is not None else sidecar)
        if rows != rows_in(sidecar) or not is_for(made_with, lost_by(now or {})):
            raise StateConflict(
                f"{sidecar}: it speaks of {rows_in(sidecar):,} rows, and the index has {rows:,}, since some were taken "
                f"down from one of them. Run `laion-face download` with --parts {part} and the options that it had: "
                "nothing is fetched anew."
            )
        return cls(data.tars(part), sidecar)

    @classmethod
    def adopt(
        cls,
        folder: str | os.PathLike[str],
        data: DataDir,
        part: int,
        index: IndexPart | None = None,
        *,
        max_pixels: int = MAX_PIXELS,
        resizing: Resizing | None = None,
    ) -> PartPictures:
        """Open the pictures in a folder that somebody else's img2dataset made; see `adopt.adopted`."""
        return cls(*adopted(Path(folder), data, part, index, max_pixels=max_pixels, resizing=resizing or Resizing()))

    @property
    def num_rows(self) -> int:
        """Rows of the sidecar, and of the index."""
        return self._row_groups()[-1][1] if self._row_groups() else 0

    @property
    def fingerprint(self) -> Fingerprint:
        """What the sidecar was made from; names its pictures by their content."""
        return read_fingerprint(self.sidecar) or {}

    @cached_property
    def resizing(self) -> Resizing:
        """How img2dataset resized the pictures."""
        return Resizing.from_dict(self.fingerprint.get("resize"))

    @cached_property
    def are_blurred(self) -> bool:
        """Whether img2dataset blurred the faces."""
        return bool(self.fingerprint.get("blur_faces"))

    def get(self, row: int) -> StoredPicture:
        """Return the picture of one index row; its neighbours are then cheap."""
        found = self._rows(row)
        return self._stored(found, self._bytes(*_place(found)) if _ok(found) else None)

    def read(self, start: int, stop: int, wanted: Sequence[bool] | None = None) -> Iterator[StoredPicture]:
        """Yield the pictures of index rows start … stop, in order; the system reads megabytes ahead in the tars' order.

        Args:
            start: first row.
            stop: the row after the last.
            wanted: bool[stop - start]; the bytes of the others are not read. All if None.
        """
        if not 0 <= start <= stop <= self.num_rows:
            raise IndexError(f"{self.sidecar}: rows {start} to {stop} of {self.num_rows}")
        batch: list[tuple[Row, bool]] = []
        size = 0
        for row in range(start, stop):
            found = self._rows(row)
            needed = _ok(found) and (wanted is None or bool(wanted[row - start]))
            batch.append((found, needed))
            size += found["length"] if needed else 0
            if size >= _BATCH_BYTES or len(batch) >= _BATCH_ROWS:
                yield from self._batch(batch)
                batch, size = [], 0
        yield from self._batch(batch)

    def close(self) -> None:
        """Close all open tars; reading opens them again."""
        while self._tars:
            os.close(self._tars.popitem()[1])

    def __enter__(self) -> PartPictures:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        with suppress(AttributeError, OSError):
            self.close()

    def __reduce__(self) -> tuple[object, ...]:
        return (PartPictures, (self.folder, self.sidecar))

    def __repr__(self) -> str:
        return f"PartPictures({str(self.folder)!r}, {str(self.sidecar)!r})"

    def _row_groups(self) -> list[tuple[int, int]]:
        if self._bounds is None:
            bounds, start = [], 0
            with opened(self.sidecar) as file:
                for group in range(file.num_row_groups):
                    bounds.append((start, start := start + file.metadata.row_group(group).num_rows))
                self._numbered = _numbered(file)
            self._bounds = bounds
        return self._bounds

    def _rows(self, row: int) -> Row:
        start, rows = self._window
        if not start <= row < start + len(rows):
            bounds = self._row_groups()
            if not 0 <= row < self.num_rows:
                raise IndexError(f"{self.sidecar}: row {row} of {self.num_rows}")
            group = next(number for number, (_, stop) in enumerate(bounds) if row < stop)
            with opened(self.sidecar) as file:
                if _numbered(file) != self._numbered:
                    raise StateConflict(
                        f"{self.sidecar}: it was made again while it was read, for an index that has lost rows, and "
                        "what is read would be pictures of other rows. Load the dataset again."
                    )
                columns = [name for name in (*_COLUMNS, *SIDECAR_LATER) if name in file.schema_arrow.names]
                rows = file.read_row_group(group, columns=columns).to_pylist()
            start, stop = bounds[group]
            if len(rows) != stop - start or not {*_COLUMNS}.issubset(columns):
                raise damaged(self.sidecar, f"{len(rows)} rows of {stop - start}, columns {', '.join(columns)}")
            self._window = (start, rows)
        return rows[row - start]

    def _batch(self, batch: list[tuple[Row, bool]]) -> Iterator[StoredPicture]:
        for tar, start, stop in _runs(sorted(_place(row) for row, needed in batch if needed)):
            self._announce(tar, start, stop - start)
        for row, needed in batch:
            yield self._stored(row, self._bytes(*_place(row)) if needed else None)

    def _announce(self, tar: str, offset: int, length: int) -> None:
        """Have the system read ahead, in the tar's order, what will be asked for in the index's."""
        if hasattr(os, "posix_fadvise"):
            with suppress(OSError):  # whoever reads it will hear of it
                os.posix_fadvise(self._descriptor(tar), offset, length, os.POSIX_FADV_WILLNEED)

    def _stored(self, row: Row, data: bytes | str | None) -> StoredPicture:
        if row["status"] != Reason.OK:
            return StoredPicture(row["status"])
        if isinstance(data, str):
            return StoredPicture(data)
        if data is not None and len(data) < row["length"]:
            return StoredPicture(Reason.TAR_CUT)
        if data is not None and not _is_intact(row, data):
            return StoredPicture(Reason.TAR_CHANGED)
        width, height, fetched_sha256, _ = (row.get(name) for name in SIDECAR_LATER)
        fetched = (width, height) if width is not None and height is not None else None
        return StoredPicture(
            Reason.OK,
            data,
            row["format"],
            row["width"],
            row["height"],
            row["orientation"],
            row["sha256"],
            fetched,
            fetched_sha256 or "",
        )

    def _bytes(self, tar: str, offset: int, length: int) -> bytes | str:
        """Return the bytes there, fewer if the tar is shorter; the status of its samples if it cannot be read.

        Of a table of pictures `tar` is its name, a slash, and a column, and `offset` the row.
        """
        if (table := Path(tar).parent).suffix == ".parquet":
            return self._cells.get(self.folder / table, Path(tar).name, offset)
        try:
            return os.pread(self._descriptor(tar), length, offset)
        except FileNotFoundError:
            return Reason.TAR_MISSING
        except OSError:
            return Reason.TAR_UNREADABLE

    def _descriptor(self, tar: str) -> int:
        descriptor = self._tars.pop(tar, None)
        if descriptor is None:
            descriptor = os.open(self.folder / tar, os.O_RDONLY | os.O_CLOEXEC)
        self._tars[tar] = descriptor
        if len(self._tars) > _MOST_OPEN:
            os.close(self._tars.popitem(last=False)[1])
        return descriptor


def _numbered(file: OpenParquet) -> str:
    """Return what is equal for as long as a sidecar speaks of the same rows, whatever was downloaded since."""
    stamp = json.loads((file.schema_arrow.metadata or {}).get(FINGERPRINT_KEY, b"{}"))
    return digest([file.metadata.num_rows, *(stamp.get(name) for name in ("index", "lacks", "lost"))])


def _ok(row: Row) -> bool:
    return bool(row["status"] == Reason.OK)


def _is_intact(row: Row, data: bytes) -> bool:
    """Say whether these are the bytes that the sidecar speaks of."""
    if (stated := row.get("xxh3")) is not None:
        return bool(xxhash.xxh3_64_intdigest(data) == stated)
    return bool(hashlib.sha256(data).hexdigest() == row["sha256"])


def _place(row: Row) -> tuple[str, int, int]:
    return row["tar"], row["offset"], row["length"]


def _runs(places: list[tuple[str, int, int]]) -> Iterator[tuple[str, int, int]]:
    """Yield tar, start and stop of what lies close together, so that it is read in one go."""
    run: tuple[str, int, int] | None = None
    for tar, offset, length in places:
        if run is not None and run[0] == tar and offset - run[2] <= _GAP_BYTES:
            run = (tar, run[1], max(run[2], offset + length))
        else:
            if run is not None:
                yield run
            run = (tar, offset, offset + length)
    if run is not None:
        yield run
