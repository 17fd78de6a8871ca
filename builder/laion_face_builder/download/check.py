"""Check a tar that img2dataset wrote for an earlier version of this one. Those of other people: `foreign`.

img2dataset gives no sizes where it keeps every byte, and counts whatever a host sent as a success. Here every picture
is decoded once, by the same check as in fetching, and a small Parquet file says for every sample where its picture lies
or why there is none. A job whose tar is not whole gives no file. `shard_writer` writes that file along with its tar.

Where faces were to be blurred, and the host gave a picture of another aspect than the boxes are for, img2dataset has
blurred something else. Such a picture is a failure, and in our own tars its bytes are overwritten with zeros.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from laion_face_builder.download.blur import BOXES_COLUMN
from laion_face_builder.download.shard_files import Member, ShardFiles, pictures_in, read_members, require_whole
from laion_face_builder.errors import BadFile, PictureError
from laion_face_builder.files import read_fingerprint, stamped, written_whole
from laion_face_builder.images import geometry, pictures
from laion_face_builder.images.reasons import Reason, proxy_was_gone, short_name
from laion_face_builder.shown import short

#: One sample of a tar. `id` is the index row in our own downloads, the sample id in adopted ones.
CHECKED = pa.schema(
    [
        ("id", pa.int64()),
        ("status", pa.string()),
        ("detail", pa.string()),
        ("offset", pa.int64()),
        ("length", pa.int64()),
        ("format", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("orientation", pa.int8()),
        ("sha256", pa.string()),
        ("fetched_width", pa.int32()),
        ("fetched_height", pa.int32()),
        ("fetched_sha256", pa.string()),
        ("xxh3", pa.uint64()),
    ]
)
DETAIL_CHARACTERS = 200
#: Columns of a shard's parquet that are read if they are there.
ALSO_READ = ("original_width", "original_height", "sha256", "laion_width", "laion_height", BOXES_COLUMN)

Row = dict[str, Any]


@dataclass(frozen=True)
class CheckJob:
    """A tar to look through.

    Args:
        tar: its path.
        out: the file to write.
        id_column: the column that names a sample, in any case.
        samples: how many the shard must have.
        max_pixels: larger pictures fail.
        fingerprint: goes into `out`.
    """

    tar: str
    out: str
    id_column: str
    samples: int
    max_pixels: int
    fingerprint: Mapping[str, Any]

    @property
    def is_done(self) -> bool:
        """Whether `out` is there, made by a job with the same fingerprint."""
        return is_made(self.out, self.fingerprint)

    def run(self, report: object = None) -> None:
        """Run `check_tar`; workers pass `report`, which is not used."""
        check_tar(self)


def is_made(out: str, fingerprint: Mapping[str, Any]) -> bool:
    """Say whether a file is there that a job with this fingerprint made."""
    try:
        return read_fingerprint(Path(out)) == dict(fingerprint)
    except BadFile:
        return False


def check_tar(job: CheckJob) -> None:
    """Check every sample of the tar and write `job.out`.

    Raises:
        BadFile: the tar is not whole, or nothing in it says which samples it holds.
        OSError: the tar cannot be read.
    """
    path = Path(job.tar)
    members = read_members(path)
    require_whole(ShardFiles(path.parent, int(path.stem)), job.samples, members)
    samples = dict(_samples_of_table(path.with_suffix(".parquet"), job.id_column))
    _require_proxy(path, samples)
    found = pictures_in(members)
    with path.open("rb") as tar:
        _erase(path, [found[key] for key, sample in samples.items() if sample.is_lost and key in found])
        rows = [
            checked_row(sample, place := found.get(key), _data(tar.fileno(), place), job.max_pixels)
            for key, sample in samples.items()
        ]
    with written_whole(Path(job.out)) as partial:
        table = pa.Table.from_pylist(rows, schema=stamped(CHECKED, job.fingerprint))
        pq.write_table(table, partial, compression="zstd", write_page_checksum=True)


def _require_proxy(path: Path, samples: Mapping[str, Sample]) -> None:
    """Raise BadFile if the shard has failures that only the missing guarding proxy explains.

    Earlier versions fetched through a proxy, which a kill ended a moment before img2dataset.
    """
    if any(proxy_was_gone(sample.message) for sample in samples.values()):
        raise BadFile(
            path,
            found="failures without the guarding proxy",
            expected="answers from hosts",
            way_out="The shard is downloaded again.",
        )


def _erase(path: Path, members: list[Member]) -> None:
    if not members:
        return
    with path.open("r+b") as tar:
        for member in members:
            tar.seek(member.offset)
            tar.write(bytes(member.length))
        tar.flush()
        os.fsync(tar.fileno())


def _data(tar: int, place: Member | None) -> bytes | None:
    return None if place is None else os.pread(tar, place.length, place.offset)


def checked_row(sample: Sample, place: Member | None, data: bytes | None, max_pixels: int) -> Row:
    """Return the row of `CHECKED` on one sample, whose picture has these bytes and lies there; None without one."""
    row: Row = {"id": sample.id}
    if place is None or data is None:
        if sample.message is None:
            return row | {"status": "missing_in_tar", "detail": "a success without a picture"}
        return row | {"status": short_name(sample.message), "detail": sample.message[:DETAIL_CHARACTERS]}
    if sample.is_lost:
        return row | {"status": Reason.CANNOT_BLUR, "detail": f"boxes do not fit the fetched {sample.fetched}"}
    row |= {"offset": place.offset, "length": place.length}
    row |= {"sha256": hashlib.sha256(data).hexdigest(), "xxh3": xxhash.xxh3_64_intdigest(data)}
    try:
        seen = pictures.inspect(data, max_pixels=max_pixels)
    except PictureError as error:
        return row | {"status": error.reason, "detail": error.detail[:DETAIL_CHARACTERS]}
    size = {"width": seen.width, "height": seen.height}
    row |= size | {"status": Reason.OK, "format": seen.format, "orientation": seen.orientation}
    return row | sample.fetched_columns(row["sha256"])


@dataclass(frozen=True)
class Sample:
    """What img2dataset says of a sample.

    Args:
        id: see `CHECKED`; None if it has none, or one that is no whole number.
        message: why it failed; None of a success.
        fetched: width and height of what the host gave; None if it was not decoded.
        sha256: of those bytes.
        is_lost: its faces were to be blurred, but nobody knows where in this picture they are.
    """

    id: int | None
    message: str | None = None
    fetched: geometry.Size | None = None
    sha256: str | None = None
    is_lost: bool = False

    @classmethod
    def of(cls, values: Mapping[str, Any], id_column: str) -> Sample:
        """Make one from a row of the shard's parquet or a `.json`, names in lower case."""
        number = whole_number(values.get(id_column.lower()))
        fetched, original = _size(values, "original_"), _size(values, "laion_")
        fits = fetched is not None and original is not None and geometry.rescaled(original, fetched) is not None
        lost = bool(values.get(BOXES_COLUMN)) and not fits
        return cls(number, _text(values.get("error_message")), fetched, _text(values.get("sha256")), lost)

    def fetched_columns(self, stored_sha256: str) -> Row:
        """Return the sidecar's columns on the fetched picture if the stored one is another; else none."""
        if self.fetched is None or self.sha256 == stored_sha256:
            return {}
        return {"fetched_width": self.fetched[0], "fetched_height": self.fetched[1], "fetched_sha256": self.sha256}


def _size(values: Mapping[str, Any], prefix: str) -> geometry.Size | None:
    width, height = (whole_number(values.get(prefix + name)) for name in ("width", "height"))
    return (width, height) if width and height and 0 < min(width, height) <= max(width, height) < 1 << 31 else None


def _text(value: object) -> str | None:
    """Return `value` if it is text, as far as that can be written."""
    return value.encode(errors="replace").decode() if isinstance(value, str) else None


def _samples_of_table(path: Path, id_column: str) -> Iterator[tuple[str, Sample]]:
    try:
        names = {name.lower(): name for name in reversed(pq.read_schema(path).names)}
        columns = [names[name] for name in ("key", id_column.lower(), "error_message")]
        columns += [names[name] for name in ALSO_READ if name in names]
        table = pq.read_table(path, columns=columns, page_checksum_verification=True).select(columns)
        rows = table.rename_columns([name.lower() for name in columns]).to_pylist()
    except (OSError, KeyError, pa.ArrowException, UnicodeDecodeError, MemoryError) as error:
        found = f"no readable table ({short(error, 200)})"
        expected = f"columns key, {id_column}, error_message"
        raise BadFile(path, found=found, expected=expected, way_out="The shard is downloaded again.") from error
    for row in rows:
        sample = Sample.of(row, id_column)
        if sample.id is not None and isinstance(row["key"], str):
            yield row["key"], sample


def whole_number(value: object) -> int | None:
    """Return `value` as an int of 64 bits, be it an int, a whole float or a string of one; else None."""
    if isinstance(value, str):
        try:
            value = int(value)
        except ValueError:
            with suppress(ValueError):
                value = float(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        return None
    return value if -(1 << 63) <= value < 1 << 63 else None
