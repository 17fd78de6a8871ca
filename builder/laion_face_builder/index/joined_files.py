"""Find the files of a table that is joined, and read their rows in batches of bounded size.

    captions.parquet · captions.csv · folder/ · "captions/*.parquet" · owner/name[@revision] ·
    hf://datasets/owner/name[@revision]/data/*.parquet · https://…/captions.parquet · s3://bucket/captions/

In a folder all Parquet files are read, or all CSV files if there is no Parquet. Files elsewhere are copied below
DATA_DIR/sources, in resumable pieces, and removed once they are used.
"""

from __future__ import annotations

import fnmatch
import glob
import os
import posixpath
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from laion_face_builder.errors import BadFile, OptionError, SourceNotFound
from laion_face_builder.index.joined_columns import JoinSource, is_key, is_pandas_index, key_in, plain_kind
from laion_face_builder.shown import short
from laion_face_builder.sources.copied_file import RemoteFile, local_file
from laion_face_builder.sources.fsspec_folder import fsspec_files
from laion_face_builder.sources.http_folder import HttpPlace, linked
from laion_face_builder.sources.hub import Token, hub_repo
from laion_face_builder.sources.metadata_places import is_hub_id
from laion_face_builder.sources.url import UrlFile, check_address, look_up_url

_PARQUET = ".parquet"
#: Endings of text that is read, and what stands between its fields.
_TEXTS = {".csv": ",", ".csv.gz": ",", ".tsv": "\t", ".tsv.gz": "\t"}
#: How much is decoded at once, and the most rows of it.
_BATCH_BYTES, _MOST_ROWS, _FEWEST_ROWS = 16 << 20, 1 << 15, 16
#: Types of a CSV file's columns are found in so much of its beginning.
_BLOCK = 16 << 20
_HUB = "hf://datasets/"
_WAY_OUT = "Give join= another file, or write this one again as Parquet."


def find_joined(source: JoinSource, token: Token = None) -> tuple[RemoteFile, ...]:
    """List the files of a source, in the order of their names; nothing is copied yet.

    Raises:
        SourceError: there are none, or the place does not answer; OptionError: it is not to be understood.
    """
    place = source.place
    if place.startswith(("http://", "https://")):
        check_address(place, "join")
        return _of_http(place)
    if place.startswith(_HUB):
        owner, _, rest = place.removeprefix(_HUB).partition("/")
        name, _, below = rest.partition("/")
        return _of_hub(f"{owner}/{name}", below, place, token)
    if "://" in place:
        check_address(place, "join")
        return _of_fsspec(place, token)
    if not os.path.isabs(place):
        return _of_hub(place, "", place, token)
    return tuple(map(local_file, _local(place)))


def _local(place: str) -> list[Path]:
    path = Path(place)
    if path.is_file():
        return [path]
    if path.is_dir():
        names = [found.relative_to(path).as_posix() for found in path.rglob("*") if found.is_file()]
        return [path / name for name in _chosen(names, place)]
    found = sorted(one for one in glob.glob(place, recursive=True) if os.path.isfile(one))
    if not found:
        raise SourceNotFound(
            f"join={place!r}: found nothing there; expected a Parquet or CSV file, or a folder of them"
        )
    return list(map(Path, found))


def _of_hub(repo: str, below: str, place: str, token: Token) -> tuple[RemoteFile, ...]:
    name, _, revision = repo.partition("@")
    if not is_hub_id(name):
        raise OptionError(
            f'join={place!r}: expected a Parquet or CSV file or a folder that is there, a Hub dataset "owner/name", or '
            "an hf://, http(s):// or other fsspec address"
        )
    found = hub_repo(name, revision.replace("%2F", "/") or None, token)
    return tuple(found.look_up(_chosen(_within(found.files, below), place)))


def _of_http(place: str) -> tuple[RemoteFile, ...]:
    if place.partition("?")[0].endswith(_PARQUET):
        answer = look_up_url(place)
        if not isinstance(answer, UrlFile):
            raise HttpPlace(place).refusal("the file cannot be had", {posixpath.basename(place): answer})
        return (answer,)
    return HttpPlace(place).files(_chosen(list(linked(place)), place, is_parquet_only=True))


def _of_fsspec(place: str, token: Token) -> tuple[RemoteFile, ...]:
    folder, name = posixpath.split(place) if place.endswith(_PARQUET) else (place, "")
    while glob.has_magic(posixpath.basename(folder)):
        folder, last = posixpath.split(folder)
        name = posixpath.join(last, name)
    files = fsspec_files(folder, token)
    return tuple(files[found] for found in _chosen(_within(files, name), place, is_parquet_only=True))


def _within(names: Iterable[str], below: str) -> list[str]:
    """Return the names that are a file, are in a folder, or fit a pattern."""
    below = below.strip("/")
    if glob.has_magic(below):
        return [name for name in names if fnmatch.fnmatchcase(name, below)]
    return [name for name in names if not below or name == below or name.startswith(f"{below}/")]


def _chosen(names: Sequence[str], place: str, *, is_parquet_only: bool = False) -> list[str]:
    """Return the files of a folder that are read."""
    seen = [name for name in names if not any(part.startswith((".", "_")) for part in name.split("/"))]
    parquet = sorted(name for name in seen if name.endswith(_PARQUET))
    texts = [] if is_parquet_only else sorted(name for name in seen if name.endswith(tuple(_TEXTS)))
    if not parquet and not texts:
        raise SourceNotFound(
            f"join={place!r}: found {len(names)} files; expected one ending in .parquet"
            + ("" if is_parquet_only else f", {', '.join(_TEXTS)}")
        )
    return parquet or texts


class JoinedFile:
    """A file of a table that is joined, which lies on this machine.

    Args:
        path: of the file.
        name: what people call it; says by its ending what it is.

    Raises:
        BadFile: it cannot be read; it has no column of sample ids or addresses; one column is there twice, or is of a
            type that no example can have.
    """

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name
        self._separator = next((sign for ending, sign in _TEXTS.items() if name.endswith(ending)), None)
        self.stored = self._read_schema()
        names = self.stored.names
        if doubled := [name for name in names if names.count(name) > 1]:
            raise self._bad(f"{names.count(doubled[0])} columns {doubled[0]!r}", "each of them once")
        key = key_in(names)
        if key is None:
            raise self._bad(f"the columns {', '.join(names) or '(none)'}", "a column sample_id or url, in any case")
        #: The column by which rows are found.
        self.key: str = key
        #: What it brings, in the types of examples.
        self.schema = pa.schema([self._plain(field) for field in self.stored if self._is_brought(field.name)])

    @property
    def rows(self) -> int | None:
        """How many rows there are; None if only reading would tell."""
        if self._separator is not None:
            return None
        with self._reading():
            return int(pq.read_metadata(self.path).num_rows)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield the key and the columns of `schema`, as they are stored, in batches of some megabytes."""
        columns = [self.key, *self.schema.names]
        with self._reading():
            if self._separator is not None:
                with self._open_text() as reader:
                    for batch in reader:
                        yield batch.select(columns)
                return
            with pq.ParquetFile(self.path, buffer_size=1 << 20, pre_buffer=False) as file:
                rows = _rows_at_once(file.metadata)
                yield from file.iter_batches(rows, columns=columns, use_threads=False)

    def _is_brought(self, name: str) -> bool:
        return not is_key(name) and not is_pandas_index(name)

    def _plain(self, field: pa.Field) -> pa.Field:
        try:
            return pa.field(field.name, plain_kind(field.type))
        except TypeError as error:
            raise self._bad(f"column {field.name!r} of type {error}", "lists, structs, text, numbers, times") from error

    def _read_schema(self) -> pa.Schema:
        with self._reading():
            if self._separator is None:
                return pq.read_schema(self.path).remove_metadata()
            with self._open_text() as reader:
                return reader.schema

    def _open_text(self) -> pa_csv.CSVStreamingReader:
        # The copy in the Hub's cache has another name, without an ending.
        text = pa.input_stream(str(self.path), compression="gzip" if self.name.endswith(".gz") else None)
        return pa_csv.open_csv(
            text,
            pa_csv.ReadOptions(block_size=_BLOCK, use_threads=False),
            pa_csv.ParseOptions(delimiter=self._separator, newlines_in_values=True),
            # An empty field is a null, and a caption that says NA says NA.
            pa_csv.ConvertOptions(null_values=[""], strings_can_be_null=True, quoted_strings_can_be_null=False),
        )

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (pa.ArrowException, OSError, UnicodeDecodeError, MemoryError) as error:
            expected = (
                "a whole Parquet file" if self._separator is None else "a CSV file with a header, one type a column"
            )
            raise self._bad(short(error, 200), expected) from error

    def _bad(self, found: str, expected: str) -> BadFile:
        return BadFile(self.name, found=found, expected=expected, way_out=_WAY_OUT)


def _rows_at_once(metadata: pq.FileMetaData) -> int:
    """Return how many rows have some megabytes."""
    size = sum(metadata.row_group(number).total_byte_size for number in range(metadata.num_row_groups))
    rows: int = max(_FEWEST_ROWS, min(_MOST_ROWS, _BATCH_BYTES * max(metadata.num_rows, 1) // max(size, 1)))
    return rows
