"""Turn rows of an index that another program saved last into those of `schema.INDEX` again.

Polars, DuckDB, pandas and `datasets` keep the values, but write them as other types: wider numbers, dictionaries, lists
of any kind where ours are of a fixed size, null where a picture has no face. Nothing is guessed: what has no one
meaning is refused with its row.

Faces are taken down to plain numbers and built anew, never cast: what pyarrow (21 to 26) casts a slice of lists to is a
fixed-size list of fixed-size lists that begins inside its parent's values, and `filter` and `take` of that give values
of other rows, without an error. In what is built here every inner array begins at 0, so a list column of it can be
sliced, filtered, taken and joined like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from laion_face_builder.index.face_columns import FaceColumns
from laion_face_builder.index.faces import flat_columns
from laion_face_builder.schema import FACE, INDEX

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
        raise Doubtful(f"faces that are {faces.type}")
    missing = [field.name for field in FACE if faces.type.get_field_index(field.name) < 0]
    if missing:
        raise Doubtful(f"faces without {', '.join(missing)}")
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
        raise Doubtful(f"{lists.type} where lists are needed") from error
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
    column = _casted(column, field.type, field.name)
    if field.name in _NEVER_NULL and column.null_count:
        raise Doubtful(f"no {field.name}", _first_null(column))
    return column


def _first_null(column: pa.Array) -> int:
    return int(np.argmax(column.is_null().to_numpy(zero_copy_only=False)))


def _casted(column: pa.Array, kind: pa.DataType, name: str) -> pa.Array:
    try:
        return column if column.type == kind else column.cast(kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise Doubtful(f"column {name} of type {column.type}: {' '.join(str(error).split())[:200]}") from error
