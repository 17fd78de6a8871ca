"""Reading the one table: a part of the index, local or remote, by row range. `index_writer` makes them."""

from __future__ import annotations

import bisect
import hashlib
import itertools
import json
import os
import posixpath
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from laion_face_builder.errors import BadFile, LaionFaceError, NotPrepared, SourceError, SourceNotFound
from laion_face_builder.files import FINGERPRINT_KEY, Fingerprint, make_fingerprint
from laion_face_builder.schema import INDEX
from laion_face_builder.upstream.retrying import TransientError, retried
from laion_face_builder.upstream.source_fsspec import filesystem_of, list_fsspec
from laion_face_builder.upstream.source_hub import HubRepo
from laion_face_builder.upstream.sources import hub_id

T = TypeVar("T")

_ROWS_AT_ONCE = 32


class IndexPart:
    """One part of the index; opened when it is first read, and again in every process that it travels to.

    Forked processes share file positions and connections with their parent, so nothing open is ever used in another
    process than the one that opened it. Close it, or use it as a context manager.
    """

    def __init__(self, address: str, token: str | None = None) -> None:
        self.address = address
        self._token = token
        self._opened: _Opened | None = None

    @classmethod
    def open(cls, path_or_address: str | os.PathLike[str], token: str | None = None) -> IndexPart:
        """The part at a local path or an fsspec address such as hf://datasets/OWNER/NAME/FILE; touches nothing yet.

        Args:
            token: for hf:// addresses; None means the one that `hf auth login` or HF_TOKEN gave.
        """
        return cls(os.fspath(path_or_address), token)

    @property
    def num_rows(self) -> int:
        """Rows of the part."""
        return int(self._parquet.metadata.num_rows)

    @property
    def fingerprint(self) -> Fingerprint:
        """What the part was made from; of a file without one, a hash over the places and statistics of its columns."""
        metadata = self._parquet.metadata
        stamp = (metadata.metadata or {}).get(FINGERPRINT_KEY)
        if stamp is not None:
            return dict(json.loads(stamp))
        return make_fingerprint("foreign index", sha256=hashlib.sha256(repr(metadata.to_dict()).encode()).hexdigest())

    @property
    def row_groups(self) -> list[tuple[int, int]]:
        """First row and the row after the last of each row group."""
        return list(self._here.bounds)

    @property
    def row_group_bytes(self) -> list[int]:
        """Compressed bytes of each row group, all columns, as they lie in the file and as a client would fetch them."""
        metadata = self._parquet.metadata
        groups = (metadata.row_group(group) for group in range(metadata.num_row_groups))
        return [sum(group.column(i).total_compressed_size for i in range(group.num_columns)) for group in groups]

    def read(self, start: int, stop: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Rows start … stop, as in `schema.INDEX`; only the row groups and columns that are needed are read.

        Args:
            columns: names of the index's columns, in the order wanted; None means all.

        Raises:
            IndexError: not rows of this part; BadFile: not an index; SourceError: a remote file does not answer.
        """
        names = list(INDEX.names) if columns is None else list(columns)
        schema = pa.schema([INDEX.field(name) for name in names])
        if not 0 <= start <= stop <= self.num_rows:
            raise IndexError(f"{self.address}: rows {start} to {stop} of {self.num_rows}")
        if start == stop:
            return schema.empty_table()
        bounds = self._here.bounds
        first = bisect.bisect_right(bounds, start, key=lambda bound: bound[0]) - 1
        last = bisect.bisect_left(bounds, stop, key=lambda bound: bound[0])
        table = self._asked(lambda: self._parquet.read_row_groups(range(first, last), columns=names))
        table = table.select(names).slice(start - bounds[first][0], stop - start)
        try:
            return table.replace_schema_metadata(None).cast(schema)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise self._bad(" ".join(str(error).split())[:200]) from error

    def close(self) -> None:
        """Closes what is open; the next read opens it again."""
        opened, self._opened = self._opened, None
        if opened is not None:
            opened.close()

    def __enter__(self) -> IndexPart:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[object, ...]:
        return (IndexPart, (self.address, self._token))

    def __repr__(self) -> str:
        return f"IndexPart({self.address!r})"

    @property
    def _parquet(self) -> pq.ParquetFile:
        return self._here.parquet

    @property
    def _here(self) -> _Opened:
        if self._opened is None or self._opened.process != os.getpid():
            self._opened = self._asked(self._open)
        return self._opened

    def _open(self) -> _Opened:
        handle: Any = None
        if self._is_remote:
            options = {"token": self._token} if self._token and self.address.startswith("hf://") else {}
            system, path = filesystem_of(self.address, **options)
            # Parquet asks for exactly what it needs, gathered by pre_buffer: another cache would only fetch more.
            handle = system.open(path, "rb", cache_type="none")
        parquet = pq.ParquetFile(handle or self.address, pre_buffer=True)
        missing = [name for name in INDEX.names if name not in parquet.schema_arrow.names]
        if missing:
            raise self._bad(f"no column {', '.join(missing)}")
        return _Opened(os.getpid(), handle, parquet, _bounds(parquet.metadata))

    @property
    def _is_remote(self) -> bool:
        return "://" in self.address

    def _asked(self, read: Callable[[], T]) -> T:
        return retried(lambda: self._attempt(read), self.address) if self._is_remote else self._attempt(read)

    def _attempt(self, read: Callable[[], T]) -> T:
        try:
            return read()
        except LaionFaceError:
            raise
        except FileNotFoundError as error:
            raise self._absent() from error
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise self._bad(" ".join(str(error).split())[:200]) from error
        except Exception as error:  # Every remote filesystem raises errors of its own libraries.
            if not (self._is_remote or isinstance(error, OSError)):
                raise
            self.close()
            found = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise TransientError(found) if self._is_remote else self._bad(found) from error

    def _absent(self) -> LaionFaceError:
        if self._is_remote:
            return SourceNotFound(f"{self.address}: there is no such file, or it is private and needs a token")
        return NotPrepared(f"{self.address}: there is no index there. Make it with `laion-face prepare`.")

    def _bad(self, found: str) -> BadFile:
        return BadFile(
            self.address,
            found=found,
            expected="an index part written by laion-face",
            way_out="Run `laion-face prepare` again, or name another index.",
        )


class RowBatch:
    """A few hundred index rows; their Python values are made, all at once, when those of the first one are asked for.

    Until then they are columns. Rows wait by the thousand for their pictures, and that many dicts, lists and floats
    would be walked again and again by Python's garbage collector: half of what a stream's consumer thread did.
    """

    __slots__ = ("_rows", "_table", "urls")

    def __init__(self, table: pa.Table) -> None:
        self._table, self._rows = table, list[dict[str, Any]]()
        #: The addresses, without the rest.
        self.urls: list[str | None] = table["url"].to_pylist()

    def __getitem__(self, place: int) -> dict[str, Any]:
        """One row as plain Python values."""
        if self._table is not None:
            self._rows, self._table = list(_as_dicts(self._table)), None
        return self._rows[place]

    def __len__(self) -> int:
        return len(self.urls)


def in_batches(table: pa.Table) -> Iterator[RowBatch]:
    """The rows of `table` (with at least the column `url`), a few hundred at a time: the first comes soon."""
    for start in range(0, table.num_rows, _ROWS_AT_ONCE):
        yield RowBatch(table.slice(start, _ROWS_AT_ONCE))


def _as_dicts(table: pa.Table) -> Iterator[dict[str, Any]]:
    """Faces go by way of NumPy, since Arrow makes every nested number an object of its own first."""
    for batch in table.to_batches():
        columns = [_faces(column) if name == "faces" else column.to_pylist() for name, column in _columns(batch)]
        for values in zip(*columns, strict=True):
            yield dict(zip(batch.schema.names, values, strict=True))


def _columns(batch: pa.RecordBatch) -> Iterator[tuple[str, pa.Array]]:
    return zip(batch.schema.names, batch.columns, strict=True)


def _faces(column: pa.ListArray) -> list[list[dict[str, Any]]]:
    flat = column.flatten()
    boxes = flat.field("box").flatten().to_numpy(zero_copy_only=False).reshape(-1, 4).tolist()
    landmarks = flat.field("landmarks").flatten().flatten().to_numpy(zero_copy_only=False).reshape(-1, 5, 2).tolist()
    scores = flat.field("score").to_numpy(zero_copy_only=False).tolist()
    named = zip(boxes, landmarks, scores, strict=True)
    faces = [{"box": box, "landmarks": points, "score": score} for box, points, score in named]
    stops = itertools.accumulate(pc.list_value_length(column).to_pylist(), initial=0)
    return [faces[start:stop] for start, stop in itertools.pairwise(stops)]


def find_published(place: str, part: int, token: str | None = None) -> str:
    """The path or address of a part in a published index, for `IndexPart.open`.

    Args:
        place: a local folder (a DATA_DIR too), a Hub dataset "owner/name" or "owner/name@revision", or an fsspec
            address. Its files are called part-000NN.parquet or part-000NN-….parquet, also in folders below.

    Raises:
        SourceNotFound: no such part there, or no such place; SourceError: several files of it, or no answer.
    """
    files = _published_files(place, token)
    name = re.compile(rf"part-{part:05d}(-.*)?\.parquet")
    matching = [file for file in files if name.fullmatch(posixpath.basename(file.replace(os.sep, "/")))]
    if len(matching) == 1:
        return matching[0]
    found = ", ".join(matching or files[:8]) or "no files"
    message = f"{place}: found {found}; expected one part-{part:05d}.parquet. Name a published index with index=."
    raise SourceError(message) if matching else SourceNotFound(message)


def _published_files(place: str, token: str | None) -> list[str]:
    folder = Path(place).expanduser()
    if "://" not in place and folder.is_dir():
        # A DATA_DIR has other files of the same names beside its index.
        folder = folder / "index" if (folder / "index").is_dir() else folder
        return sorted(map(str, folder.rglob("*.parquet")))
    if "://" in place:
        return list_fsspec(place)
    name, _, revision = place.partition("@")
    repo = HubRepo(hub_id(name, "index"), revision or None, token)
    return [f"hf://datasets/{name}@{repo.commit}/{file}" for file in repo.files if file.endswith(".parquet")]


@dataclass(frozen=True)
class _Opened:
    """What is open in one process."""

    process: int
    handle: Any
    parquet: pq.ParquetFile
    bounds: list[tuple[int, int]]

    def close(self) -> None:
        self.parquet.close(force=True)
        if self.handle is not None:
            self.handle.close()


def _bounds(metadata: pq.FileMetaData) -> list[tuple[int, int]]:
    stops = list(itertools.accumulate(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)))
    return list(zip([0, *stops][:-1], stops, strict=True))
