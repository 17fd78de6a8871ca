"""Read LAION-400M's metadata as it is found in the wild, in batches under the index's names and types.

Copies differ: the release of 2021 says SAMPLE_ID, URL, TEXT, WIDTH; that of today key, url, caption, original_width;
img2dataset's shards have a row number as key and the size of the resized picture beside the original one; ids are whole
numbers, floats or text, with nulls. Accepted here, by precedence, or refused with what was found and the ways out.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from laion_face_builder.errors import BadFile
from laion_face_builder.index.metadata_columns import as_floats, as_sizes, as_text, parse_ids, viewless
from laion_face_builder.parallel import in_order
from laion_face_builder.schema import INDEX

logger = logging.getLogger("laion_face")

#: Rows a batch: some 10 MB of text. With more, Arrow asks for new memory each time, which costs more than decoding.
BATCH_ROWS = 1 << 15
#: The names that each column goes by; the first that is there wins. Each is matched in any case, blanks around it
#: ignored; of names that differ by case only the spelling that comes first here wins, others come after it.
ALIASES: dict[str, tuple[str, ...]] = {
    "sample_id": ("SAMPLE_ID", "sample_id", "key", "id"),
    "url": ("URL", "url"),
    "caption": ("TEXT", "text", "caption"),
    # In img2dataset's shards width is that of the resized picture.
    "width": ("original_width", "WIDTH", "width"),
    "height": ("original_height", "HEIGHT", "height"),
    "license": ("LICENSE", "license"),
    "nsfw": ("NSFW", "nsfw"),
    "similarity": ("similarity",),
}
_TEXTS = ("url", "caption", "license", "nsfw")
_SIZES = ("width", "height")
_COLUMNS = tuple(name for name in ALIASES if name != "sample_id")
#: What `MetadataFile.batches` yields.
ROW_SCHEMA = pa.schema([INDEX.field(name) for name in _COLUMNS])

Wanted = Callable[[npt.NDArray[np.int64]], npt.NDArray[np.bool_]]
#: Ids, rows, and how many of their texts were mended.
_Converted = tuple[npt.NDArray[np.int64], pa.RecordBatch, int]


@dataclass(frozen=True)
class MetadataFile:
    """A metadata file with all that the index needs; `open_metadata` makes them.

    Attributes:
        num_rows: how many rows there are, those without an id too.
        columns: index name -> name in the file; optional ones may be missing.
        texts: those of these columns that Parquet holds as bytes.
    """

    path: Path
    num_rows: int
    num_row_groups: int
    columns: Mapping[str, str]
    texts: tuple[str, ...] = ()

    def batches(
        self, wanted: Wanted | None = None, threads: int = 1
    ) -> Iterator[tuple[npt.NDArray[np.int64], pa.RecordBatch]]:
        """Yield (ids int64[n], the other columns as in `ROW_SCHEMA`) of the rows that have an id, in order.

        Args:
            wanted: int64[n] -> bool[n]; only these rows are converted.
            threads: row groups read at the same time; the wanted rows of all of these are then in memory.

        Raises:
            BadFile: values that are no ids, columns of a wrong type, or damaged pages.
        """
        mended = 0
        for ids, rows, bad in self._read(wanted, threads):
            mended += bad
            yield ids, rows
        if mended:
            logger.warning("%s: %d texts were not UTF-8; their bad bytes are U+FFFD now", self.path, mended)

    def _read(self, wanted: Wanted | None, threads: int) -> Iterator[_Converted]:
        groups = range(self.num_row_groups)
        if threads == 1 or len(groups) < 2:
            return itertools.chain.from_iterable(self._group(group, wanted) for group in groups)
        whole = in_order(lambda group: list(self._group(group, wanted)), groups, threads)
        return itertools.chain.from_iterable(whole)

    def _group(self, group: int, wanted: Wanted | None) -> Iterator[_Converted]:
        """Yield the rows of one row group, and how many texts of each batch were mended."""
        # pre_buffer keeps the bytes of a row group until its last batch; one thread, since groups and files go side by
        # side; few values as dictionaries, which costs a fifth.
        columns = list(self.columns.values())
        few = [name for name in self.texts if name not in (self.columns["url"], self.columns.get("caption"))]
        how = {"buffer_size": 1 << 20, "pre_buffer": False, "read_dictionary": few}
        with _reading(self.path), pq.ParquetFile(self.path, **how) as file:
            for batch in file.iter_batches(BATCH_ROWS, row_groups=[group], columns=columns, use_threads=False):
                ids = parse_ids(batch.column(self.columns["sample_id"]), str(self.path))
                keep = ids.valid
                if wanted is not None:
                    keep = keep.copy()
                    keep[keep] = wanted(ids.values[keep])
                yield (ids.values[keep], *self._converted(viewless(batch).filter(pa.array(keep))))

    def _converted(self, batch: pa.RecordBatch) -> tuple[pa.RecordBatch, int]:
        bad = 0
        arrays: list[pa.Array] = []
        for name in _COLUMNS:
            if (own := self.columns.get(name)) is None:
                arrays.append(pa.nulls(batch.num_rows, ROW_SCHEMA.field(name).type))
            elif name in _TEXTS:
                text, wrong = as_text(batch.column(own), str(self.path), own)
                bad += wrong
                arrays.append(text)
            else:
                convert = as_sizes if name in _SIZES else as_floats
                arrays.append(convert(batch.column(own), str(self.path), own))
        return pa.RecordBatch.from_arrays(arrays, schema=ROW_SCHEMA), bad


def open_metadata(path: Path) -> MetadataFile:
    """Open the metadata file at `path` and find its columns, by the precedence of `ALIASES`.

    Raises:
        BadFile: not a whole Parquet file; no column of ids or URLs; a column that is needed is there twice.
    """
    with _reading(path), pq.ParquetFile(path) as file:
        names, about, texts = tuple(file.schema_arrow.names), file.metadata, _texts(file.schema)
    columns = _chosen(names)
    for required in ("sample_id", "url"):
        if required not in columns:
            raise _missing(path, names, required)
    for own in columns.values():
        if (times := names.count(own)) > 1:
            raise BadFile(
                path,
                found=f"{times} columns named {own!r}",
                expected="one of them",
                way_out="Rewrite the file with only the right one.",
            )
    read = tuple(own for own in columns.values() if own in texts)
    return MetadataFile(path, about.num_rows, about.num_row_groups, dict(columns), read)


def _texts(schema: pq.ParquetSchema) -> set[str]:
    """Return the columns of bytes that are no decimals."""
    columns = (schema.column(number) for number in range(len(schema)))
    return {c.path for c in columns if c.physical_type == "BYTE_ARRAY" and c.logical_type.type != "DECIMAL"}


@lru_cache(maxsize=64)
def _chosen(names: tuple[str, ...]) -> Mapping[str, str]:
    """Map index names to names in the file; remembered, so that 128 files of the same columns log a choice once."""
    columns, choices = {}, []
    for name, aliases in ALIASES.items():
        if found := _by_precedence(aliases, names):
            columns[name] = found[0]
        if len(found) > 1:
            choices.append(f"{name} from {found[0]!r}, not {' or '.join(map(repr, found[1:]))}")
    if choices:
        logger.info("metadata is read: %s", "; ".join(choices))
    return columns


def _by_precedence(aliases: tuple[str, ...], names: tuple[str, ...]) -> list[str]:
    order = [alias.lower() for alias in aliases]

    def rank(name: str) -> tuple[int, int]:
        return order.index(name.strip().lower()), aliases.index(name) if name in aliases else len(aliases)

    return sorted((name for name in dict.fromkeys(names) if name.strip().lower() in order), key=rank)


def _missing(path: Path, names: tuple[str, ...], required: str) -> BadFile:
    wanted = "SAMPLE_ID, key or id" if required == "sample_id" else "URL"
    return BadFile(
        path,
        found=f"the columns {', '.join(names) or '(none)'}",
        expected=f"a column {wanted} (any case)",
        way_out="Name another copy of the metadata with metadata= (laion/relaion400m, or a folder of converted files, "
        "laion_face_part_000NN.parquet); a published index goes to index=, pictures of img2dataset's to images=.",
    )


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Raise BadFile with the file's name when Parquet cannot be read."""
    try:
        yield
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise BadFile(
            path,
            found=" ".join(str(error).split())[:200],
            expected="a whole Parquet file",
            way_out="Remove it and fetch it again, or name another copy with metadata=.",
        ) from error
