"""Columns beside ours: those of tables that are joined, and further ones of an index that the user named.

Which there are is found out when a dataset is loaded, and what is missing of them is made then (`index.joining`).
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pyarrow as pa

from laion_face_builder.errors import BadFile, OptionError
from laion_face_builder.examples import parts
from laion_face_builder.index.exclusion import Mask
from laion_face_builder.index.reader import IndexPart
from laion_face_builder.index.side_table import SideTable
from laion_face_builder.options import INNER, Options
from laion_face_builder.shown import short


def require_table(options: Options) -> None:
    """Check that the options name a table where they speak of one, and that it can be joined.

    Raises:
        OptionError: they do not, or it cannot.
    """
    if options.join is None and options.filters.join_how == INNER:
        raise OptionError("join_how='inner' says what becomes of samples that a table lacks: name the table with join=")
    if options.join is not None and options.data.address is not None:
        raise OptionError(f"join: {options.data.where} is an address, and tables are joined in a folder. Leave it out")


def with_columns(options: Options, *, is_made: bool = False) -> Options:
    """Join what is not joined yet, and return the options of a dataset with all columns; the indexes are there.

    Args:
        is_made: whether another process has joined; this one then makes nothing.

    Raises:
        OptionError: two columns have one name; SourceError, BadFile: a table cannot be had, or not be joined.
        NotPrepared: `is_made`, and it is not.
    """
    require_table(options)
    if options.join is None and options.index is None:
        return options
    options = replace(options, more=None, tables=())
    with parts.index_of(options, options.parts[0]) as index:
        more = list(index.more)
    taken = {field.name: "the index" for field in more}
    tables: list[SideTable] = []
    for source in options.join or ():
        from laion_face_builder.index.joining import Joining

        opened = partial(parts.index_of, options)
        joining = Joining(options.data, source, options.parts, opened, taken, options.upstream.token)
        table = joining.there() if is_made else joining.made()
        tables.append(table)
        more += table.schema
        taken |= dict.fromkeys(table.schema.names, str(source))
    return replace(options, more=pa.schema(more), tables=tuple(tables))


def with_more(kept: pa.Table, index: IndexPart, rows: tuple[int, int], keep: Mask, more: pa.Schema) -> pa.Table:
    """Add the columns `more` to rows of the index.

    Args:
        kept: those of `rows` that `keep` says, bool[n].
        rows: first row and the row after the last.
        more: those of all parts; null where this part has no such column.

    Raises:
        BadFile: a column is of another type in this part.
    """
    there = [name for name in more.names if name in index.more.names]
    found = index.read(*rows, there, is_lenient=True).filter(pa.array(keep)) if there else None
    for field in more:
        kept = kept.append_column(field, _column(found, field, kept.num_rows, index))
    return kept


def _column(found: pa.Table | None, field: pa.Field, rows: int, index: IndexPart) -> Any:
    if found is None or field.name not in found.column_names:
        return pa.nulls(rows, field.type)
    try:
        return found[field.name] if found[field.name].type == field.type else found[field.name].cast(field.type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise BadFile(
            index.address,
            found=f"column {field.name!r}: {short(error, 200)}",
            expected=f"{field.type}, as in the first part",
            way_out="Write all parts with one type a column, or load them one by one.",
        ) from error
