"""Check a tar that another program wrote: somebody else's img2dataset, or an earlier version of this one.

img2dataset gives no sizes where it keeps every byte, and counts whatever a host sent as a success. Here every picture
is decoded once, by the same check as in fetching, and a small Parquet file says for every sample where its picture lies
or why there is none. A job whose tar is not whole gives no file. `shard_writer` writes that file along with its tar.

Where faces were to be blurred, and the host gave a picture of another aspect than the boxes are for, img2dataset has
blurred something else. Such a picture is a failure, and in our own tars its bytes are overwritten with zeros.
"""

from __future__ import annotations

import hashlib
import json
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
_ALSO_READ = ("original_width", "original_height", "sha256", "laion_width", "laion_height", BOXES_COLUMN)

Row = dict[str, Any]


@dataclass(frozen=True)
class CheckJob:
    """A tar to look through.

    Args:
        tar: its path.
        out: the file to write.
        id_column: the column that names a sample, in any case.
        samples: how many the shard must have; None where there need not be stats, as in adopted folders.
        max_pixels: larger pictures fail.
        fingerprint: goes into `out`.
    """

    tar: str
    out: str
    id_column: str
    samples: int | None
    max_pixels: int
    fingerprint: Mapping[str, Any]

    @property
    def is_done(self) -> bool:
        """Whether `out` is there, made by a job with the same fingerprint."""
        try:
            return read_fingerprint(Path(self.out)) == dict(self.fingerprint)
        except BadFile:
            return False

    def run(self, report: object = None) -> None:
        """Run `check_tar`; workers pass `report`, which is not used."""
        check_tar(self)


def check_tar(job: CheckJob) -> None:
    """Check every sample of the tar and write `job.out`.

    Raises:
        BadFile: the tar is not whole, or nothing in it says which samples it holds.
        OSError: the tar cannot be read.
    """
    path = Path(job.tar)
    members = read_members(path)
    if job.samples is not None:
        require_whole(ShardFiles(path.parent, int(path.stem)), job.samples, members)
    with path.open("rb") as tar:
        samples = _samples(path, tar.fileno(), members, job.id_column)
        if job.samples is not None:
            _require_proxy(path, samples)
        found = pictures_in(members)
        if job.samples is not None:
            _erase(path, [found[key] for key, sample in samples.items() if sample.is_lost and key in found])
        rows = [_row(tar.fileno(), sample, found.get(key), job.max_pixels) for key, sample in samples.items()]
    with written_whole(Path(job.out)) as partial:
        table = pa.Table.from_pylist(rows, schema=stamped(CHECKED, job.fingerprint))
        pq.write_table(table, partial, compression="zstd", write_page_checksum=True)


def _require_proxy(path: Path, samples: Mapping[str, _Sample]) -> None:
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


def _row(tar: int, sample: _Sample, picture: Member | None, max_pixels: int) -> Row:
    row: Row = {"id": sample.id}
    if picture is None:
        if sample.message is None:
            return row | {"status": "missing_in_tar", "detail": "a success without a picture"}
        return row | {"status": short_name(sample.message), "detail": sample.message[:DETAIL_CHARACTERS]}
    if sample.is_lost:
        return row | {"status": Reason.CANNOT_BLUR, "detail": f"boxes do not fit the fetched {sample.fetched}"}
    data = os.pread(tar, picture.length, picture.offset)
    row |= {"offset": picture.offset, "length": picture.length}
    row |= {"sha256": hashlib.sha256(data).hexdigest(), "xxh3": xxhash.xxh3_64_intdigest(data)}
    try:
        seen = pictures.inspect(data, max_pixels=max_pixels)
    except PictureError as error:
        return row | {"status": error.reason, "detail": error.detail[:DETAIL_CHARACTERS]}
    size = {"width": seen.width, "height": seen.height}
    row |= size | {"status": Reason.OK, "format": seen.format, "orientation": seen.orientation}
    return row | sample.fetched_columns(row["sha256"])


@dataclass(frozen=True)
class _Sample:
    """What img2dataset says of a sample.

    Args:
        id: see `CHECKED`.
        message: why it failed; None of a success.
        fetched: width and height of what the host gave; None if it was not decoded.
        sha256: of those bytes.
        is_lost: its faces were to be blurred, but nobody knows where in this picture they are.
    """

    id: int
    message: str | None = None
    fetched: geometry.Size | None = None
    sha256: str | None = None
    is_lost: bool = False

    @classmethod
    def of(cls, values: Mapping[str, Any], id_column: str) -> _Sample | None:
        """Make one from a row of the shard's parquet or a `.json`, names in lower case; None if it has no id."""
        number = whole_number(values.get(id_column.lower()))
        if number is None:
            return None
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


def _samples(path: Path, tar: int, members: list[Member], id_column: str) -> dict[str, _Sample]:
    """Return the samples by key: from the shard's parquet, and from the `.json` in the tar for those not in it."""
    samples = dict(_samples_of_table(path.with_suffix(".parquet"), id_column))
    documents = [member for member in members if member.extension == "json" and member.key not in samples]
    for member in documents:
        found = _of_document(os.pread(tar, member.length, member.offset), id_column)
        if found is not None:
            samples[member.key] = found
    if not samples and pictures_in(members):
        raise BadFile(
            path,
            found="pictures without sample ids",
            expected=f"a column {id_column} in the .json of its samples, or in the .parquet beside it",
            way_out="Download with --save_additional_columns that name SAMPLE_ID.",
        )
    return samples


def _samples_of_table(path: Path, id_column: str) -> Iterator[tuple[str, _Sample]]:
    try:
        names = {name.lower(): name for name in reversed(pq.read_schema(path).names)}
        columns = [names[name] for name in ("key", id_column.lower(), "error_message")]
        columns += [names[name] for name in _ALSO_READ if name in names]
        table = pq.read_table(path, columns=columns, page_checksum_verification=True).select(columns)
        rows = table.rename_columns([name.lower() for name in columns]).to_pylist()
    except (OSError, KeyError, pa.ArrowException, UnicodeDecodeError, MemoryError):
        return  # The tar's own .json files say the same of what is in it.
    for row in rows:
        sample = _Sample.of(row, id_column)
        if sample is not None and isinstance(row["key"], str):
            yield row["key"], sample


def _of_document(text: bytes, id_column: str) -> _Sample | None:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, dict):
        return None
    return _Sample.of({name.lower(): value for name, value in values.items()}, id_column)


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
