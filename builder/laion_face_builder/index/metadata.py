"""Read LAION-400M's metadata as it is found in the wild, in batches under the index's names and types.

Copies differ: the release of 2021 says SAMPLE_ID, URL, TEXT, WIDTH; that of today key, url, caption, original_width;
img2dataset's shards have a row number as key and the size of the resized picture beside the original one; ids are whole
numbers, floats or text, with nulls. Accepted here, by precedence, or refused with what was found and the ways out.

Columns of whatever type are converted to the index's (ids, texts, sizes, numbers), all values at once.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from laion_face_builder.errors import BadFile
from laion_face_builder.files import require_readable
from laion_face_builder.log import logger
from laion_face_builder.parallel import in_order
from laion_face_builder.schema import INDEX
from laion_face_builder.shown import short

#: From here on a float64 cannot tell neighbours apart, so no id of LAION's can be that large.
ID_LIMIT = 2**53
#: The same limit for narrower floats.
_EXACT_BELOW = {pa.float16(): 2**11, pa.float32(): 2**24}
#: Bytes of a text: no address is longer that a host would take, nor any caption of a picture.
LONGEST_TEXT = 1 << 20
_NO_ID = ("", "nan", "none", "null", "<na>")
_PLAIN_ID = r"^[+-]?[0-9]{1,16}(\.0*)?$"
_NUMBER = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$"


class SampleIds(NamedTuple):
    """Ids of some rows: values int64[n], valid bool[n]; a value that is not valid (null, NaN) means nothing."""

    values: npt.NDArray[np.int64]
    valid: npt.NDArray[np.bool_]


def parse_ids(array: pa.Array, file: str) -> SampleIds:
    """Read ids from whole numbers, floats, decimals or text of either; null, NaN, "", "None" and the like are no id.

    Raises:
        BadFile: an id with a fraction or of 2**53 and up, a float too narrow for its ids, or a column of another type.
    """
    array, kind = plain(array)
    if pa.types.is_null(kind):
        return SampleIds(np.zeros(len(array), np.int64), np.zeros(len(array), np.bool_))
    if is_text(kind):
        return _ids_of_texts(as_text(array, file, "SAMPLE_ID")[0], file)
    if pa.types.is_floating(kind):
        floats = array.to_numpy(zero_copy_only=False)
        _refuse_rounded(floats, kind, file)
        return _ids_of_floats(floats.astype(np.float64, copy=False), file)
    if pa.types.is_integer(kind):
        return _ids_of_integers(array, file)
    if pa.types.is_decimal(kind):
        return _ids_of_texts(array.cast(pa.string()), file)
    raise BadFile(
        file,
        found=f"sample ids of type {kind}",
        expected="whole numbers, floats, decimals or text",
        way_out="Use another copy of the metadata.",
    )


def _refuse_rounded(floats: npt.NDArray[Any], kind: pa.DataType, file: str) -> None:
    limit = _EXACT_BELOW.get(kind)
    if limit is not None and (rounded := floats[np.isfinite(floats) & (np.abs(floats) >= limit)]).size:
        raise BadFile(
            file,
            found=f"sample ids of type {kind}, such as {rounded[0].item():.0f}",
            expected="int64, float64 or text",
            way_out=f"From {limit} on this type has lost digits: use another copy of the metadata.",
        )


def _ids_of_integers(array: pa.Array, file: str) -> SampleIds:
    valid = array.is_valid().to_numpy(zero_copy_only=False)
    values = pc.fill_null(array, 0).to_numpy(zero_copy_only=False)
    _refuse(values[(values >= ID_LIMIT) | (values <= -ID_LIMIT)], file)
    return SampleIds(values.astype(np.int64, copy=False), valid)


def _ids_of_floats(floats: npt.NDArray[np.float64], file: str) -> SampleIds:
    valid = ~np.isnan(floats)
    values = np.where(valid, floats, 0.0)
    _refuse(values[(np.abs(values) >= ID_LIMIT) | (np.floor(values) != values)], file)
    return SampleIds(values.astype(np.int64), valid)


def _ids_of_texts(texts: pa.Array, file: str) -> SampleIds:
    texts = pc.utf8_trim_whitespace(texts)
    absent = pc.or_(texts.is_null(), pc.is_in(pc.utf8_lower(texts), pa.array(_NO_ID)))
    valid = pc.invert(absent).to_numpy(zero_copy_only=False)
    texts = pc.if_else(absent, "0", texts)
    plainly = pc.match_substring_regex(texts, _PLAIN_ID)
    digits = pc.replace_substring_regex(pc.if_else(plainly, texts, "0"), r"^\+|\.0*$", "")
    values = digits.cast(pa.int64()).to_numpy(zero_copy_only=False).copy()
    for row in np.flatnonzero(~plainly.to_numpy(zero_copy_only=False)):
        values[row] = _id_of_text(texts[int(row)].as_py(), file)
    _refuse(values[np.abs(values) >= ID_LIMIT], file)
    return SampleIds(values, valid)


def _id_of_text(text: str, file: str) -> int:
    """Read an id such as "1.5e12"; anything else is refused."""
    try:
        number = Decimal(text)
        if abs(number) < ID_LIMIT and number == number.to_integral_value():
            return int(number)
    except (InvalidOperation, ValueError):
        pass
    raise _bad_id(text, file)


def _refuse(wrong: npt.NDArray[Any], file: str) -> None:
    if len(wrong):
        raise _bad_id(wrong[0].item(), file)


def _bad_id(value: object, file: str) -> BadFile:
    return BadFile(
        file,
        found=f"the sample id {value!r:.80}",
        expected="whole numbers below 2**53",
        way_out="Use another copy of the metadata.",
    )


def as_text(array: pa.Array, file: str, column: str) -> tuple[pa.Array, int]:
    """Return (string array, number of values that were not UTF-8 and have U+FFFD in their places now).

    Raises:
        BadFile: the column is not of text.
    """
    array, kind = plain(array)
    if pa.types.is_null(kind):
        return pa.nulls(len(array), pa.string()), 0
    if not is_text(kind):
        raise _bad_type(file, column, kind, "text")
    raw = array.cast(pa.binary())
    try:
        return raw.cast(pa.string()), 0
    except pa.ArrowInvalid:  # One bad caption in thirteen million must not end the part.
        return _mended(raw)


def without_long(texts: pa.Array) -> tuple[pa.Array, int]:
    """Return the texts with null for those of more than `LONGEST_TEXT` bytes, and how many these are."""
    lengths = pc.binary_length(texts)
    if (pc.max(lengths).as_py() or 0) <= LONGEST_TEXT:
        return texts, 0
    long = pc.fill_null(pc.greater(lengths, LONGEST_TEXT), False)
    return pc.if_else(long, None, texts), pc.sum(long).as_py()


def _mended(raw: pa.Array) -> tuple[pa.Array, int]:
    values = raw.to_pylist()
    texts = [None if value is None else value.decode("utf-8", "replace") for value in values]
    bad = sum(1 for value, text in zip(values, texts, strict=True) if text is not None and text.encode() != value)
    return pa.array(texts, pa.string()), bad


def as_sizes(array: pa.Array, file: str, column: str) -> pa.Array:
    """Read pixels as int32; a value that no picture can have is unknown, so null.

    Such values are 0, a negative number, a fraction, NaN, 2**31 and up, and text that is no number.

    Raises:
        BadFile: the column is neither of numbers nor of text.
    """
    values = _floats(array, file, column)
    with np.errstate(invalid="ignore"):
        possible = (values >= 1) & (values < 2**31) & (np.floor(values) == values)
    return pa.array(np.where(possible, values, 0).astype(np.int32), mask=~possible)


def as_floats(array: pa.Array, file: str, column: str) -> pa.Array:
    """Read numbers as float64; NaN, infinity and text that is no number are null.

    Raises:
        BadFile: the column is neither of numbers nor of text.
    """
    values = _floats(array, file, column)
    return pa.array(values, mask=~np.isfinite(values))


def _floats(array: pa.Array, file: str, column: str) -> npt.NDArray[np.float64]:
    """Return the numbers, NaN where there is none."""
    array, kind = plain(array)
    if is_text(kind):
        array = _numbers_of_texts(as_text(array, file, column)[0])
    elif pa.types.is_decimal(kind):
        array = array.cast(pa.string())  # Arrow's own way to float64 is off by a bit for a quarter of all values.
    elif not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_null(kind)):
        raise _bad_type(file, column, kind, "numbers")
    return np.asarray(array.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False))


def _numbers_of_texts(texts: pa.Array) -> pa.Array:
    texts = pc.utf8_trim_whitespace(texts)
    return pc.if_else(pc.match_substring_regex(texts, _NUMBER), texts, None)


def plain(array: pa.Array) -> tuple[pa.Array, pa.DataType]:
    """Return the array without a dictionary or views, and its type."""
    if pa.types.is_dictionary(array.type):
        if _is_view(array.type.value_type):
            array = pa.DictionaryArray.from_arrays(array.indices, _viewless(array.dictionary))
        array = array.dictionary_decode()
    array = _viewless(array)
    return array, array.type


def viewless(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return the batch with string views (of Polars and newer tools) as bytes: Arrow cannot filter or take views."""
    if not any(map(_is_view, batch.schema.types)):
        return batch
    return pa.RecordBatch.from_arrays([_viewless(array) for array in batch.columns], batch.schema.names)


def _viewless(array: pa.Array) -> pa.Array:
    return array.cast(pa.binary()) if _is_view(array.type) else array


def _is_view(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string_view(kind) or pa.types.is_binary_view(kind))


def is_text(kind: pa.DataType) -> bool:
    """Tell whether `kind` is one of Arrow's types of text or bytes."""
    tests = (
        pa.types.is_string,
        pa.types.is_large_string,
        pa.types.is_string_view,
        pa.types.is_binary,
        pa.types.is_large_binary,
        pa.types.is_binary_view,
    )
    return any(test(kind) for test in tests)


def _bad_type(file: str, column: str, kind: pa.DataType, expected: str) -> BadFile:
    return BadFile(
        file,
        found=f"column {column} of type {kind}",
        expected=expected,
        way_out="Use another copy of the metadata, or one converted with the original types.",
    )


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
#: Ids, rows, and how many of their texts were mended, and left out.
_Converted = tuple[npt.NDArray[np.int64], pa.RecordBatch, int, int]


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
        mended = left_out = 0
        for ids, rows, bad, long in self._read(wanted, threads):
            mended, left_out = mended + bad, left_out + long
            yield ids, rows
        if mended:
            logger.warning("%s: %d texts were not UTF-8; their bad bytes are U+FFFD now", self.path, mended)
        if left_out:
            logger.warning("%s: %d texts were of more than %d bytes; left out", self.path, left_out, LONGEST_TEXT)

    def _read(self, wanted: Wanted | None, threads: int) -> Iterator[_Converted]:
        groups = range(self.num_row_groups)
        if threads == 1 or len(groups) < 2:
            return itertools.chain.from_iterable(self._group(group, wanted) for group in groups)
        whole = in_order(lambda group: list(self._group(group, wanted)), groups, threads)
        return itertools.chain.from_iterable(whole)

    def _group(self, group: int, wanted: Wanted | None) -> Iterator[_Converted]:
        """Yield the rows of one row group, and how many texts of each batch were mended, and left out."""
        # pre_buffer keeps the bytes of a row group until its last batch; one thread, since groups and files go side by
        # side; few values as dictionaries, which costs a fifth.
        columns = list(self.columns.values())
        few = [name for name in self.texts if name not in (self.columns["url"], self.columns.get("caption"))]
        how = {"buffer_size": 1 << 20, "pre_buffer": False, "read_dictionary": few, "page_checksum_verification": True}
        with _reading(self.path), pq.ParquetFile(self.path, **how) as file:
            for batch in file.iter_batches(BATCH_ROWS, row_groups=[group], columns=columns, use_threads=False):
                ids = parse_ids(batch.column(self.columns["sample_id"]), str(self.path))
                keep = ids.valid
                if wanted is not None:
                    keep = keep.copy()
                    keep[keep] = wanted(ids.values[keep])
                yield (ids.values[keep], *self._converted(viewless(batch).filter(pa.array(keep))))

    def _converted(self, batch: pa.RecordBatch) -> tuple[pa.RecordBatch, int, int]:
        bad = left_out = 0
        arrays: list[pa.Array] = []
        for name in _COLUMNS:
            if (own := self.columns.get(name)) is None:
                arrays.append(pa.nulls(batch.num_rows, ROW_SCHEMA.field(name).type))
            elif name in _TEXTS:
                text, wrong = as_text(batch.column(own), str(self.path), own)
                text, long = without_long(text)
                bad, left_out = bad + wrong, left_out + long
                arrays.append(text)
            else:
                convert = as_sizes if name in _SIZES else as_floats
                arrays.append(convert(batch.column(own), str(self.path), own))
        return pa.RecordBatch.from_arrays(arrays, schema=ROW_SCHEMA), bad, left_out


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
    except (pa.ArrowException, OSError, UnicodeDecodeError, MemoryError) as error:
        require_readable(path, error)
        raise BadFile(
            path,
            found=short(error, 200),
            expected="a whole Parquet file",
            way_out="Remove it and fetch it again, or name another copy with metadata=.",
        ) from error
