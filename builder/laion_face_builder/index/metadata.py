"""LAION-400M's metadata as it is found in the wild, read in batches under the index's names and types.

Copies differ: SAMPLE_ID is int64, float64 or a string, with nulls; names come in any case; TEXT is called caption; the
original converter leaked a pandas column. Accepted here, or refused with what was found and the ways out.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from laion_face_builder.errors import BadFile
from laion_face_builder.index.metadata_columns import SampleIds, as_floats, as_sizes, as_text, parse_ids
from laion_face_builder.schema import INDEX

logger = logging.getLogger("laion_face")

#: Rows a batch: some 20 MB of text.
BATCH_ROWS = 1 << 16
#: The names that each column goes by, in small letters.
ALIASES: dict[str, tuple[str, ...]] = {
    "sample_id": ("sample_id",),
    "url": ("url",),
    "caption": ("text", "caption"),
    "width": ("width",),
    "height": ("height",),
    "license": ("license",),
    "nsfw": ("nsfw",),
    "similarity": ("similarity",),
}
_TEXTS = ("url", "caption", "license", "nsfw")
_SIZES = ("width", "height")
_COLUMNS = tuple(name for name in ALIASES if name != "sample_id")
#: What `MetadataFile.batches` yields.
ROW_SCHEMA = pa.schema([INDEX.field(name) for name in _COLUMNS])

Wanted = Callable[[npt.NDArray[np.int64]], npt.NDArray[np.bool_]]


@dataclass(frozen=True)
class MetadataFile:
    """A metadata file with all that the index needs; `open_metadata` makes them.

    Attributes:
        num_rows: all of them, those without an id too.
        columns: index name -> name in the file; optional ones may be missing.
    """

    path: Path
    num_rows: int
    columns: Mapping[str, str]

    def sample_ids(self) -> Iterator[SampleIds]:
        """The ids of all rows in order, in batches of up to `BATCH_ROWS`.

        Raises:
            BadFile: ids that are none, or damaged pages.
        """
        for batch in self._raw(["sample_id"]):
            yield parse_ids(batch.column(0), str(self.path))

    def batches(self, wanted: Wanted | None = None) -> Iterator[tuple[npt.NDArray[np.int64], pa.RecordBatch]]:
        """(ids int64[n], the other columns as in `ROW_SCHEMA`) of the rows that have an id, in order.

        Args:
            wanted: int64[n] -> bool[n]; only these rows are converted.

        Raises:
            BadFile: ids that are none, columns of a wrong type, or damaged pages.
        """
        mended = 0
        for batch in self._raw(list(self.columns)):
            ids = parse_ids(batch.column(self.columns["sample_id"]), str(self.path))
            keep = ids.valid.copy()
            if wanted is not None:
                keep[keep] = wanted(ids.values[keep])
            rows, bad = self._converted(batch.filter(pa.array(keep)))
            mended += bad
            yield ids.values[keep], rows
        if mended:
            logger.warning("%s: %d texts were not UTF-8; their bad bytes are U+FFFD now", self.path, mended)

    def _raw(self, names: list[str]) -> Iterator[pa.RecordBatch]:
        # pre_buffer keeps the bytes of all row groups until the last is read: 1.8 GB.
        with _reading(self.path), pq.ParquetFile(self.path, buffer_size=1 << 20, pre_buffer=False) as file:
            yield from file.iter_batches(BATCH_ROWS, columns=[self.columns[name] for name in names])

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
    """The metadata file at `path`, its columns found.

    Raises:
        BadFile: not a whole Parquet file; no SAMPLE_ID or URL column; two columns for one.
    """
    with _reading(path), pq.ParquetFile(path) as file:
        names, rows = list(file.schema_arrow.names), file.metadata.num_rows
    columns = {name: own for name, aliases in ALIASES.items() if (own := _one_of(aliases, names, path)) is not None}
    for required in ("sample_id", "url"):
        if required not in columns:
            raise BadFile(
                path,
                found=f"the columns {', '.join(names) or '(none)'}",
                expected=f"a column {'SAMPLE_ID' if required == 'sample_id' else 'URL'} (any case)",
                way_out="Use another copy of the metadata, a folder of converted files (laion_face_part_000NN.parquet) "
                "with metadata=, or a published index with index=.",
            )
    return MetadataFile(path, rows, columns)


def _one_of(aliases: tuple[str, ...], names: list[str], path: Path) -> str | None:
    matching = [name for name in names if name.strip().lower() in aliases]
    if len(matching) > 1:
        raise BadFile(
            path,
            found=f"the columns {' and '.join(map(repr, matching))}",
            expected="one of them",
            way_out="Rewrite the file with only the right one.",
        )
    return matching[0] if matching else None


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Names the file when Parquet cannot be read."""
    try:
        yield
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise BadFile(
            path,
            found=" ".join(str(error).split())[:200],
            expected="a whole Parquet file",
            way_out="Remove it and fetch it again, or name another copy with metadata=.",
        ) from error
