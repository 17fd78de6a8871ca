"""Columns that people join: their names beside ours, and their Arrow types without what cannot be sliced or yielded.

A dictionary comes as its values, a large or viewed text as plain text, a list of any kind as a plain list, an extension
type as what it is stored as. Lists are taken down and built anew: what pyarrow (21 to 26) makes of slices of lists of a
fixed size gives values of other rows (see `index_file`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from laion_face_builder.errors import OptionError
from laion_face_builder.files import digest
from laion_face_builder.schema import BLURRED_COLUMN, EXAMPLE_COLUMNS, INDEX
from laion_face_builder.shown import ShownFields, shown

#: The column of a side table that is not theirs: whether theirs had a row for this row of the index.
MATCHED = "_matched"
#: Names that nothing that is joined may have.
OURS = frozenset({*EXAMPLE_COLUMNS, *INDEX.names, BLURRED_COLUMN, MATCHED})
#: By which of their columns a row is found, in any case; the first that is there.
KEYS = ("sample_id", "url")


@dataclass(frozen=True, repr=False)
class JoinSource(ShownFields):
    """A table that is joined: its place, and the name that stands before the names of its columns, if it has one."""

    place: str
    name: str | None = None

    def named(self, theirs: str) -> str:
        """Return what one of its columns is called in an example."""
        return f"{self.name}_{theirs}" if self.name else theirs

    @property
    def key(self) -> str:
        """A short text that names this source in DATA_DIR."""
        return digest([self.place, self.name])

    def __str__(self) -> str:
        return f"{self.name}={shown(self.place)}" if self.name else shown(self.place)


def key_in(names: Iterable[str]) -> str | None:
    """Return the column by which rows are found, as it is spelled there; None if there is none."""
    found = {name.strip().lower(): name for name in reversed(list(names))}
    return next((found[key] for key in KEYS if key in found), None)


def is_key(name: str) -> bool:
    """Say whether a column of this name is one of those by which rows are found."""
    return name.strip().lower() in KEYS


def is_pandas_index(name: str) -> bool:
    """Say whether pandas made this column of the row numbers that it had."""
    return name.startswith("__index_level_")


def refuse_clashes(source: JoinSource, theirs: Iterable[str], taken: Mapping[str, str]) -> None:
    """Check that no column of a source has the name of another.

    Args:
        theirs: the names of its columns, as they are there.
        taken: further names besides OURS, and whose they are.

    Raises:
        OptionError: one has; says how to rename it.
    """
    for column in theirs:
        name = source.named(column)
        if name in OURS or name in taken:
            raise OptionError(
                f"join={str(source)!r}: its column {column!r} would be {name!r}, which {taken.get(name, 'the index')} "
                f"has too. Give the table a name: join={{'mine': {shown(source.place)!r}}} makes it 'mine_{column}'"
            )


def plain_kind(kind: pa.DataType) -> pa.DataType:
    """Return the type in which a column of this type is yielded.

    Raises:
        TypeError: in none; the message names the type.
    """
    types = pa.types
    while isinstance(kind, pa.BaseExtensionType) or types.is_dictionary(kind):
        kind = kind.value_type if types.is_dictionary(kind) else kind.storage_type
    if types.is_large_string(kind) or types.is_string_view(kind):
        kind = pa.string()
    elif types.is_large_binary(kind) or types.is_binary_view(kind):
        kind = pa.binary()
    elif _is_list(kind):
        kind = pa.list_(plain_kind(kind.value_type))
    elif types.is_struct(kind):
        kind = pa.struct([(field.name, plain_kind(field.type)) for field in kind])
    elif types.is_nested(kind) or types.is_interval(kind):
        raise TypeError(str(kind))
    return kind


def _is_list(kind: pa.DataType) -> bool:
    types = pa.types
    return any(
        test(kind)
        for test in (
            types.is_list,
            types.is_large_list,
            types.is_fixed_size_list,
            types.is_list_view,
            types.is_large_list_view,
        )
    )


def as_plain(array: pa.Array, kind: pa.DataType) -> pa.Array:
    """Return the values in `kind`, which is `plain_kind` of their type, or a wider one.

    Raises:
        pa.ArrowInvalid: a value is none of that type; pa.ArrowNotImplementedError: none can be.
    """
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pa.types.is_list(kind) and _is_list(array.type):
        lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)
        stops = pa.array(np.append(0, np.cumsum(lengths, dtype=np.int64)).astype(np.int32))
        values = as_plain(array.flatten(), kind.value_type)
        return pa.ListArray.from_arrays(stops, values, type=kind, mask=array.is_null() if array.null_count else None)
    if pa.types.is_struct(kind) and pa.types.is_struct(array.type):
        values = dict(zip((field.name for field in array.type), array.flatten(), strict=True))
        made = [
            as_plain(values[field.name], field.type) if field.name in values else pa.nulls(len(array), field.type)
            for field in kind
        ]
        return pa.StructArray.from_arrays(made, fields=list(kind), mask=array.is_null() if array.null_count else None)
    return array if array.type == kind else array.cast(kind)
