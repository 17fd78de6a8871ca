"""Read one file with rows of the index by row range, whether this project or another program wrote it.

Rows that another program saved last are turned into those of `schema.INDEX` again. Polars, DuckDB, pandas and
`datasets` keep the values, but write them as other types: wider numbers, dictionaries, lists of any kind where ours are
of a fixed size, null where a picture has no face. Nothing is guessed: what has no one meaning is refused with its row.

Faces are taken down to plain numbers and built anew, never cast: what pyarrow (21 to 26) casts a slice of lists to is a
fixed-size list of fixed-size lists that begins inside its parent's values, and `filter` and `take` of that give values
of other rows, without an error. In what is built here every inner array begins at 0, so a list column of it can be
sliced, filtered, taken and joined like any other.

Where a file has several parts, the column `part` tells a part's rows, mostly by the statistics of row groups.
"""

from __future__ import annotations

import bisect
import functools
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from laion_face_builder.files import FINGERPRINT_KEY, FORM_KEY, Fingerprint
from laion_face_builder.index.faces import FaceColumns, flat_columns
from laion_face_builder.index.joined_columns import OURS, as_plain, is_pandas_index, plain_kind
from laion_face_builder.index.metadata import LONGEST_TEXT, is_text
from laion_face_builder.index.parquet_at import Cursor, ParquetAt
from laion_face_builder.layout import row_group_bounds
from laion_face_builder.log import logger
from laion_face_builder.parquet_footer import ZSTD, OpenParquet
from laion_face_builder.schema import FACE, INDEX
from laion_face_builder.shown import short, shown
from laion_face_builder.sources.hub import Token

#: Of an index that others saved, so many columns of their own are read at most: every example would have them.
MOST_BESIDE = 1000
#: Columns that are worked out from `faces`: never read from a foreign file, which may have lost or changed it.
DERIVED = ("n_faces", "max_face_score", "max_face_size")
#: The columns that a file has to have.
REQUIRED = tuple(name for name in INDEX.names if name not in DERIVED)
#: Columns without which a row belongs nowhere.
_NEVER_NULL = ("sample_id", "part")
_SHAPES: dict[str, tuple[int, ...]] = {"box": (4,), "landmarks": (5, 2), "score": ()}


class Doubtful(ValueError):
    """Values that cannot be read in one way only; `row` is the row's place in what was given, if it is one row."""

    def __init__(self, found: str, row: int | None = None) -> None:
        self.found, self.row = found, row
        super().__init__(found)


class WrongType(Doubtful):
    """A column that cannot be read, whatever is in it."""


def stored_columns(names: Sequence[str]) -> list[str]:
    """Return the columns of a foreign file that are needed to have the index's columns `names`."""
    wanted = [name if name not in DERIVED else "faces" for name in names]
    return list(dict.fromkeys(wanted))


def as_index(batch: pa.RecordBatch, names: Sequence[str]) -> pa.RecordBatch:
    """Return the index's columns `names`, in its own types, of a foreign file's rows with `stored_columns(names)`.

    Raises:
        Doubtful: a value cannot be one of the index's, a face is not whole, or a row has no sample_id or part.
    """
    columns: dict[str, pa.Array] = {}
    for name in stored_columns(names):
        column = batch.column(batch.schema.get_field_index(name))
        columns[name] = faces_of(column) if name == "faces" else _cast(column, INDEX.field(name))
    if any(name in DERIVED for name in names):
        columns |= zip(DERIVED, flat_columns(columns["faces"]), strict=True)
    return pa.record_batch([columns[name] for name in names], schema=pa.schema([INDEX.field(name) for name in names]))


def as_written(batch: pa.RecordBatch, names: Sequence[str]) -> pa.RecordBatch:
    """Return the columns `names` of rows that are in the index's types; null faces are no faces.

    Raises:
        Doubtful: as for `as_index`.
    """
    batch = batch.select(names).replace_schema_metadata(None)
    for place, name in enumerate(names):
        if INDEX.field(name).type == pa.string():
            _refuse_texts(batch[name], name)
        elif name == "faces" and _has_nulls(batch[name]):
            batch = batch.set_column(place, name, faces_of(batch[name]))
    return batch


def as_far_as_can_be(batch: pa.RecordBatch, names: Sequence[str]) -> pa.RecordBatch:
    """Do as `as_index`, but let rows that it would refuse have null faces, and null in every column that is wrong.

    Raises:
        WrongType: a column cannot be read at all.
    """
    try:
        return as_index(batch, names)
    except WrongType:
        raise
    except Doubtful:
        if len(batch) == 1:
            return pa.record_batch([_what_is_right(batch, name) for name in names], names=list(names))
    half = len(batch) // 2
    return pa.concat_batches([as_far_as_can_be(piece, names) for piece in (batch[:half], batch[half:])])


def _what_is_right(row: pa.RecordBatch, name: str) -> pa.Array:
    try:
        if name != "faces" and name not in DERIVED:
            return as_index(row, [name])[name]
    except Doubtful:
        pass
    return pa.nulls(1, INDEX.field(name).type)


def _has_nulls(faces: pa.ListArray) -> bool:
    """Say whether a list, a face or a number in it is null."""
    flat = faces.flatten()
    box, landmarks, score = (flat.field(name) for name in _SHAPES)
    pairs = landmarks.flatten()
    return any(one.null_count for one in (faces, flat, box, box.flatten(), landmarks, pairs, pairs.flatten(), score))


def _refuse_texts(texts: pa.Array, name: str) -> None:
    """Raise Doubtful if a text is not UTF-8, which Arrow hands on as it was read, or longer than any is."""
    try:
        texts.validate(full=True)
    except pa.ArrowInvalid as error:
        raise Doubtful(f"a {name} that is not UTF-8", _first_bad(texts.cast(pa.binary()))) from error
    lengths = pc.binary_length(texts)
    longest = pc.max(lengths).as_py() or 0
    if longest > LONGEST_TEXT:
        raise Doubtful(f"a {name} of {longest} bytes", pc.index(lengths, longest).as_py())


def _first_bad(raw: pa.Array) -> int:
    for row, value in enumerate(raw):
        try:
            (value.as_py() or b"").decode()
        except UnicodeDecodeError:
            return row
    return 0


def faces_of(column: pa.Array) -> pa.ListArray:
    """Return lists of faces of any kind as `schema.FACES`, in arrays of their own; null is no faces.

    Raises:
        Doubtful: a face, or a number of it, is missing, or there are not as many as there have to be.
    """
    counts = _lengths(column)
    owners = np.cumsum(counts)

    def row_of(face: int) -> int:
        return int(np.searchsorted(owners, face, side="right"))

    if not len(owners) or not owners[-1]:
        numbers = {name: np.empty((0, *shape), np.float32) for name, shape in _SHAPES.items()}
    else:
        numbers = _numbers_of(column.flatten(), row_of)
    ids = np.zeros(len(counts), np.int64)
    faces: pa.ListArray = FaceColumns(ids, counts, numbers["box"], numbers["landmarks"], numbers["score"]).as_arrow()[1]
    return faces


def _numbers_of(faces: pa.Array, row_of: Callable[[int], int]) -> dict[str, npt.NDArray[np.float32]]:
    """Return box float32[m, 4], landmarks float32[m, 5, 2] and score float32[m] of m faces."""
    _refuse_null(faces, "face", 1, row_of)
    if not pa.types.is_struct(faces.type):
        raise WrongType(f"faces that are {faces.type}")
    missing = [field.name for field in FACE if faces.type.get_field_index(field.name) < 0]
    if missing:
        raise WrongType(f"faces without {', '.join(missing)}")
    return {name: _stacked(faces.field(name), name, row_of) for name in _SHAPES}


def _stacked(values: pa.Array, name: str, row_of: Callable[[int], int]) -> npt.NDArray[np.float32]:
    """Return the numbers `name` of m faces: float32[m, …]."""
    count, each = len(values), 1
    for size in _SHAPES[name]:
        _refuse_null(values, name, each, row_of)
        wrong = np.flatnonzero(_lengths(values) != size)
        if len(wrong):
            found = int(_lengths(values)[wrong[0]])
            raise Doubtful(f"{name} of {found} where {size} are needed", row_of(int(wrong[0]) // each))
        values, each = values.flatten(), each * size
    _refuse_null(values, name, each, row_of)
    numbers = np.asarray(_casted(values, pa.float32(), name).to_numpy(zero_copy_only=False))
    wrong = np.flatnonzero(~np.isfinite(numbers))
    if len(wrong):
        raise Doubtful(f"{name} with {numbers[wrong[0]]}", row_of(int(wrong[0]) // each))
    return numbers.reshape(count, *_SHAPES[name])


def _lengths(lists: pa.Array) -> npt.NDArray[np.int64]:
    """Return the length of each list, int64[n], 0 where there is no list."""
    if pa.types.is_null(lists.type):
        return np.zeros(len(lists), np.int64)
    try:
        lengths = pc.fill_null(pc.list_value_length(lists), 0)
    except pa.ArrowNotImplementedError as error:
        raise WrongType(f"{lists.type} where lists are needed") from error
    return np.asarray(lengths.to_numpy(zero_copy_only=False), np.int64)


def _refuse_null(values: pa.Array, name: str, each: int, row_of: Callable[[int], int]) -> None:
    """Raise Doubtful if a value is null; a face has `each` of the values."""
    if values.null_count:
        first = int(np.argmax(values.is_null().to_numpy(zero_copy_only=False)))
        raise Doubtful(
            "a face that is null" if name == "face" else f"a face whose {name} is null", row_of(first // each)
        )


def _cast(column: pa.Array, field: pa.Field) -> pa.Array:
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_floating(column.type) and pa.types.is_integer(field.type):
        # Whole numbers with nulls: pandas has them as floats with NaN.
        column = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
    if field.type == pa.string() and is_text(column.type):
        return _text(column, field.name)
    column = _casted(column, field.type, field.name)
    if field.name in _NEVER_NULL and column.null_count:
        raise Doubtful(f"no {field.name}", _first_null(column))
    return column


def _text(column: pa.Array, name: str) -> pa.Array:
    if column.type != pa.string():
        raw = column.cast(pa.binary())
        try:
            column = raw.cast(pa.string())
        except pa.ArrowInvalid as error:
            raise Doubtful(f"a {name} that is not UTF-8", _first_bad(raw)) from error
    _refuse_texts(column, name)
    return column


def _first_null(column: pa.Array) -> int:
    return int(np.argmax(column.is_null().to_numpy(zero_copy_only=False)))


def _casted(column: pa.Array, kind: pa.DataType, name: str) -> pa.Array:
    try:
        return column if column.type == kind else column.cast(kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        kind_of = Doubtful if isinstance(error, pa.ArrowInvalid) else WrongType
        raise kind_of(f"column {name} of type {column.type}: {short(error, 200)}") from error


#: int64[k, 2]: first row and the row after the last of runs of rows, ascending.
Spans = npt.NDArray[np.int64]
#: The least and the greatest part in a row group; None if its statistics do not say it for every row.
Known = tuple[int, int] | None


def known_parts(file: OpenParquet) -> list[Known]:
    """Return what the statistics say of the column `part` in each row group."""
    # Found by the schema's names, as what reads the column does: those in the row groups may differ.
    leaves = (file.schema.column(number).path for number in range(file.metadata.num_columns))
    place = next((number for number, path in enumerate(leaves) if path == "part"), None)
    if place is None or not pa.types.is_integer(file.schema_arrow.field("part").type):
        return [None] * file.num_row_groups
    return [None if group[place].nulls else group[place].bounds for group in file.chunks]


def may_hold(known: Iterable[Known], part: int) -> bool:
    """Tell whether a file with these row groups can have rows of the part."""
    return any(one is None or one[0] <= part <= one[1] for one in known)


def holds_only(known: Iterable[Known], part: int) -> bool:
    """Tell whether all rows of a file with these row groups are certainly the part's."""
    return all(one == (part, part) for one in known)


def spans_of(
    part: int,
    bounds: Sequence[tuple[int, int]],
    known: Sequence[Known],
    read: Callable[[int, int], npt.NDArray[np.int16]],
) -> Spans:
    """Find the runs of the part's rows.

    Args:
        bounds: first row and the row after the last of each row group.
        known: what the statistics say of each row group.
        read: (first row, row after the last) -> the column; asked for row groups of several parts only.
    """
    spans: list[Spans] = [np.empty((0, 2), np.int64)]
    for (start, stop), one in zip(bounds, known, strict=True):
        if not may_hold([one], part):
            continue
        spans.append(np.array([[start, stop]]) if one == (part, part) else start + _runs(read(start, stop) == part))
    return _merged(np.concatenate(spans))


def _runs(chosen: npt.NDArray[np.bool_]) -> Spans:
    edges = np.flatnonzero(np.diff(chosen.astype(np.int8), prepend=0, append=0))
    return edges.reshape(-1, 2).astype(np.int64)


def _merged(spans: Spans) -> Spans:
    """Join runs that touch, so that there are as few as can be."""
    if len(spans) < 2:
        return spans
    apart = spans[1:, 0] != spans[:-1, 1]
    starts, stops = spans[np.append(True, apart), 0], spans[np.append(apart, True), 1]
    return np.stack([starts, stops], axis=1)


#: Row groups of more rows are read in batches of so many.
ROWS_AT_ONCE = 1 << 14


@dataclass(frozen=True)
class _Layout:
    """What a file's footer says of its rows."""

    bounds: list[tuple[int, int]]
    known: list[Known]
    stamp: Fingerprint | None
    more: pa.Schema


class IndexFile:
    """A file of the index. Nothing is touched before it is asked for; see `ParquetAt`."""

    def __init__(self, address: str, token: Token = None) -> None:
        self.address = address
        self._file = ParquetAt(address, token)
        self._footer: _Layout | None = None
        self._cursor: tuple[tuple[object, ...], Cursor] | None = None

    @property
    def num_rows(self) -> int:
        """How many rows the file has."""
        return self.groups[-1][1] if self.groups else 0

    @property
    def groups(self) -> list[tuple[int, int]]:
        """First row and the row after the last of each row group."""
        return self._layout.bounds

    @property
    def group_bytes(self) -> list[int]:
        """Compressed bytes of each row group, all columns, as they lie in the file and as a client would fetch them."""
        return [sum(column.size for column in group) for group in self._file.asked(lambda: self._file.parquet.chunks)]

    @property
    def stamp(self) -> Fingerprint | None:
        """The fingerprint of the rows, if the file is as this project wrote it; None if another program did."""
        return self._layout.stamp

    @property
    def more(self) -> pa.Schema:
        """The columns that the file has beyond those of an index, in the types in which they are read."""
        return self._layout.more

    @property
    def known(self) -> list[Known]:
        """What the statistics of each row group say of the column `part`."""
        return self._layout.known

    def version(self) -> str:
        """Return a text that names the file's content."""
        return self._file.version()

    def spans(self, part: int) -> Spans:
        """Find the runs of the part's rows.

        Raises:
            BadFile: a row has no part.
        """

        def values(start: int, stop: int) -> npt.NDArray[np.int16]:
            return np.asarray(self.read(start, stop, ["part"])["part"].to_numpy(), np.int16)

        return spans_of(part, self.groups, self.known, values)

    def read(self, start: int, stop: int, names: Sequence[str], *, is_lenient: bool = False) -> pa.Table:
        """Read rows start … stop, which are in the file, as in `schema.INDEX` and `more`.

        The table may be sliced, filtered, taken from and joined with others: see the module.

        Args:
            is_lenient: a row that cannot be read has null faces, rather than that nothing is read.

        Raises:
            BadFile: not rows of an index; SourceError: a remote file does not answer.
        """
        if start == stop:
            return pa.schema([self.field(name) for name in names]).empty_table()
        return self._file.asked(lambda: self._read(start, stop, names, is_lenient))

    def field(self, name: str) -> pa.Field:
        """Return name and type of a column, of the index or one of `more`."""
        return INDEX.field(name) if name in INDEX.names else self.more.field(name)

    def close(self) -> None:
        """Close what is open; the next read opens it again."""
        self._footer, self._cursor = None, None
        self._file.close()

    def _read(self, start: int, stop: int, names: Sequence[str], is_lenient: bool) -> pa.Table:
        parquet, bounds = self._file.parquet, self.groups
        first = bisect.bisect_right(bounds, start, key=lambda bound: bound[0]) - 1
        last = bisect.bisect_left(bounds, stop, key=lambda bound: bound[0])
        touched = bounds[last - 1][1] - bounds[first][0]
        if touched > 2 * (stop - start) or any(end - begin > ROWS_AT_ONCE for begin, end in bounds[first:last]):
            return pa.Table.from_batches(self._cursor_in(parquet, names, is_lenient).read(start, stop))
        batches = parquet.read_row_groups(range(first, last), columns=self._stored(names)).to_batches()
        if sum(map(len, batches)) != touched:
            raise pa.ArrowInvalid(f"{sum(map(len, batches))} rows where its footer says {touched}")
        rows = itertools.accumulate(map(len, batches), initial=bounds[first][0])
        # Batches are converted whole, before they are cut.
        made = [self._made(names, is_lenient, row, batch) for row, batch in zip(rows, batches, strict=False)]
        return pa.Table.from_batches(made).slice(start - bounds[first][0], stop - start)

    def _cursor_in(self, parquet: pq.ParquetFile, names: Sequence[str], is_lenient: bool) -> Cursor:
        known = (parquet, is_lenient, *names)
        if self._cursor is None or self._cursor[0] != known:
            made = functools.partial(self._made, names, is_lenient)
            self._cursor = known, Cursor(parquet, self.groups, self._stored(names), ROWS_AT_ONCE, made)
        return self._cursor[1]

    def _stored(self, names: Sequence[str]) -> list[str]:
        return list(names) if self.stamp is not None else stored_columns(names)

    def _made(self, names: Sequence[str], is_lenient: bool, first: int, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Convert a batch, whose first row is `first`, to the index's types."""
        own = [name for name in names if name in INDEX.names]
        try:
            try:
                made = as_index(batch, own) if self.stamp is None else as_written(batch, own)
            except Doubtful:
                if not is_lenient:
                    raise
                made = as_far_as_can_be(batch, own)
            return made if len(own) == len(names) else self._with_more(made, batch, names)
        except Doubtful as error:
            where = f" in row {first + error.row}" if error.row is not None else ""
            raise self._file.bad(error.found + where) from error

    def _with_more(self, made: pa.RecordBatch, batch: pa.RecordBatch, names: Sequence[str]) -> pa.RecordBatch:
        fields = [self.field(name) for name in names]
        try:
            columns = [
                made[field.name] if field.name in INDEX.names else as_plain(batch[field.name], field.type)
                for field in fields
            ]
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise WrongType(short(error, 200)) from error
        return pa.record_batch(columns, schema=pa.schema(fields))

    @property
    def _layout(self) -> _Layout:
        if self._footer is None:
            self._footer = self._file.asked(self._read_footer)
        return self._footer

    def _read_footer(self) -> _Layout:
        parquet = self._file.parquet
        metadata, names = parquet.metadata, parquet.schema_arrow.names
        missing = [name for name in REQUIRED if name not in names]
        if missing:
            raise self._file.bad(f"no column {', '.join(missing)}")
        doubled = [name for name in INDEX.names if names.count(name) > 1]
        if doubled:
            raise self._file.bad(f"{names.count(doubled[0])} columns {doubled[0]}")
        stamp = self._stamp_in(metadata)
        if stamp.get("kind") == "examples" or "original_width" in names:
            # It has all the columns, but width, height and faces are those of the pictures in it.
            raise self._file.bad("examples with pictures, which `datasets.load_dataset` reads without any code")
        rows = (metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))
        stops = [0, *itertools.accumulate(rows)]
        known = known_parts(parquet)
        bounds = list(itertools.pairwise(stops))
        is_ours = stamp.get("kind") == "index" and _is_untouched(parquet, bounds, known, stamp.get("part"))
        more = pa.schema([]) if is_ours else _more_in(parquet.schema_arrow, self.address)
        return _Layout(bounds, known, stamp if is_ours else None, more)

    def _stamp_in(self, metadata: pq.FileMetaData) -> Fingerprint:
        try:
            stamp = json.loads((metadata.metadata or {}).get(FINGERPRINT_KEY, b"{}"))
        except (ValueError, RecursionError) as error:
            raise self._file.bad(f"a fingerprint that is no JSON ({type(error).__name__})") from error
        if not isinstance(stamp, dict):
            raise self._file.bad(f"a fingerprint that is a {type(stamp).__name__}")
        # In whatever form they are published, the rows are those of the prepared part.
        return {name: value for name, value in stamp.items() if name != FORM_KEY}


def _more_in(stored: pa.Schema, address: str) -> pa.Schema:
    """Return the columns beyond those of an index that can be read and yielded; say which cannot."""
    more, left = [], []
    counts = Counter(stored.names)
    if len(counts) > len(INDEX) + MOST_BESIDE:
        _say_what_is_left(shown(address), f"{len(counts) - len(INDEX):,} beyond those of an index")
        return pa.schema([])
    for field in stored:
        if field.name in INDEX.names or is_pandas_index(field.name):
            continue
        try:
            if field.name in OURS or counts[field.name] > 1:
                raise TypeError("a name that is taken")
            more.append(pa.field(field.name, plain_kind(field.type)))
        except TypeError as error:
            left.append(f"{field.name} ({error})")
    if left:
        _say_what_is_left(shown(address), short(", ".join(left), 500))
    return pa.schema(more)


@functools.lru_cache(maxsize=1024)
def _say_what_is_left(where: str, columns: str) -> None:
    """Warn, once a process and file, of columns that are not read."""
    logger.warning("%s: not read are its columns %s", where, columns)


def _is_untouched(parquet: OpenParquet, bounds: list[tuple[int, int]], known: list[Known], part: int | None) -> bool:
    """Tell whether a file with our stamp is as we wrote it: pyarrow hands the stamp on, whatever rows it saves."""
    if not parquet.schema_arrow.equals(INDEX) or any(one not in (None, (part, part)) for one in known):
        return False
    return all(group[0].codec == ZSTD for group in parquet.chunks) or bounds == row_group_bounds(bounds[-1][1])
