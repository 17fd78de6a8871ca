"""Read a list to leave out or to keep from a column of a Parquet file, such as one that a filter of one's own wrote."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from laion_face_builder.errors import BadFile
from laion_face_builder.index.exclusion import (
    HEADERS,
    Exclusion,
    ExclusionEntry,
    Ids,
    entry_of,
    exclusion_named,
    say_what_is_named,
)
from laion_face_builder.index.metadata import as_text, is_text, parse_ids, plain
from laion_face_builder.shown import short

_ENDING = ".parquet"


def is_column(path: str) -> bool:
    """Say whether the list at `path` is a Parquet file."""
    return path.endswith(_ENDING)


def read_column(path: str, option: str) -> Exclusion:
    """Read the entries from the column whose name comes first in `exclusion.HEADERS`, and say what they name.

    Args:
        path: of the file; read again only once it has changed.
        option: which takes the list.

    Raises:
        BadFile: no Parquet, no such column, or an entry that has none of the known forms.
    """
    try:
        now = Path(path).stat()
    except OSError as error:
        raise _bad(path, short(error)) from error
    return _read(path, option, (now.st_mtime_ns, now.st_size, now.st_ino))


@functools.lru_cache(maxsize=4)
def _read(path: str, option: str, _version: tuple[int, ...]) -> Exclusion:
    ids: list[Ids] = [np.empty(0, np.int64)]
    entries: list[ExclusionEntry] = []
    try:
        with pq.ParquetFile(path) as file:
            known = {name.strip().casefold(): name for name in reversed(file.schema_arrow.names)}
            column = next((known[name] for name in HEADERS if name in known), None)
            if column is None:
                raise _bad(path, f"the columns {', '.join(file.schema_arrow.names)}")
            for number, batch in enumerate(file.iter_batches(columns=[column])):
                values, kind = plain(batch.column(0))
                if is_text(kind):
                    entries += _entries(path, column, as_text(values, path, column)[0])
                else:
                    ids.append(_ids(path, column, values, number))
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _bad(path, short(error, 200)) from error
    listed = exclusion_named(path, entries)
    found = Exclusion(
        path,
        np.unique(np.concatenate([listed.sample_ids, *ids])),
        listed.urls,
        listed.hosts,
        listed.sha256s,
        listed.md5s,
    )
    say_what_is_named(path, found, option)
    return found


def _ids(path: str, column: str, values: pa.Array, number: int) -> Ids:
    found = parse_ids(values, path)
    if not found.valid.all():
        raise _bad(path, f"a null in column {column}, in batch {number}")
    return found.values


def _entries(path: str, column: str, texts: pa.Array) -> list[ExclusionEntry]:
    found = [(text, entry_of(text.strip()) if text is not None else None) for text in texts.to_pylist()]
    wrong: list[Any] = [text for text, entry in found if entry is None]
    if wrong:
        raise _bad(path, f"{short(repr(wrong[0]), 80)} in column {column}")
    return [entry for _, entry in found if entry is not None]


def _bad(path: str, found: str) -> BadFile:
    return BadFile(
        path,
        found=found,
        expected=f"Parquet with a column {', '.join(HEADERS[:-1])} or {HEADERS[-1]} of ids, URLs, hosts or hashes",
        way_out="Rename the column, or give a file of lines.",
    )
