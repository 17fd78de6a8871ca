"""Write an index part: the join of a part -> index/part-000NN.parquet, and beside it part-000NN.json, its proof."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from laion_face_builder.errors import BadFile
from laion_face_builder.files import Fingerprint, make_fingerprint, stamped, written_whole
from laion_face_builder.index.exclusion import Mask
from laion_face_builder.index.join import Join, Proof
from laion_face_builder.index.reader import IndexPart
from laion_face_builder.layout import row_group_bounds
from laion_face_builder.parallel import in_order
from laion_face_builder.schema import INDEX
from laion_face_builder.shown import short

#: The rules that decide which rows there are: 1 kept every row of a repeated id, 2 is `index.join`.
JOIN_VERSION = 2
#: Columns with few values; a dictionary of the others would only be thrown away again.
_FEW_VALUES = ("part", "width", "height", "license", "nsfw", "n_faces")
_FLOATS = (
    "similarity",
    "max_face_score",
    "max_face_size",
    "faces.list.element.box.list.element",
    "faces.list.element.landmarks.list.element.list.element",
    "faces.list.element.score",
)


def index_fingerprint(part: int, *, ids: str, faces: str, metadata: str) -> Fingerprint:
    """Name what an index part is made from: the contents of the upstream files, and the rules of the join."""
    return make_fingerprint("index", part=part, ids=ids, faces=faces, metadata=metadata, join=JOIN_VERSION)


def write_index(target: Path, joined: Join, fingerprint: Fingerprint) -> None:
    """Write an index part to `target`, and its proof beside it; the proof first, so that no part is without one."""
    schema = stamped(INDEX, fingerprint)
    bounds = row_group_bounds(joined.table.num_rows)
    with written_whole(target) as partial:
        with open_writer(partial, schema) as writer:
            # The next row groups are put together while one is encoded.
            for table in in_order(lambda bound: _group(joined, *bound).cast(schema), bounds or [(0, 0)], 2):
                writer.write_table(table, row_group_size=max(table.num_rows, 1))
        _write_proof(proof_path(target), joined.proof, fingerprint)


def write_kept(target: Path, tables: Iterator[pa.Table], rows: int, fingerprint: Fingerprint) -> None:
    """Write rows of another index part, or of this one, in the form of `write_index`; a row group is in memory.

    Args:
        tables: the rows, as in `schema.INDEX`, in pieces of whatever size.
        rows: how many there are.
    """
    schema = stamped(INDEX, fingerprint)
    with written_whole(target) as partial, open_writer(partial, schema) as writer:
        for table in _cut(tables, row_group_bounds(rows) or [(0, 0)]):
            writer.write_table(table.cast(schema), row_group_size=max(table.num_rows, 1))


def _cut(tables: Iterator[pa.Table], bounds: list[tuple[int, int]]) -> Iterator[pa.Table]:
    held = INDEX.empty_table()
    for start, stop in bounds:
        while held.num_rows < stop - start:
            held = pa.concat_tables([held, next(tables).replace_schema_metadata(None)])
        yield held.slice(0, stop - start).combine_chunks()
        held = held.slice(stop - start)


def kept_rows(index: IndexPart, keep: Mask, passed: Callable[[int], object] = lambda _: None) -> Iterator[pa.Table]:
    """Yield the rows of an index part, bool[n], that are kept.

    Args:
        passed: is told how many rows were read.
    """
    for start, stop in index.row_groups:
        rows = index.read(start, stop)
        yield rows if keep[start:stop].all() else rows.filter(pa.array(keep[start:stop]))
        passed(stop - start)


def rewrite_proof(index: Path, rows: int, ids: int, fingerprint: Fingerprint) -> None:
    """Let the proof of an index part be that of the part without some rows; done once, however often it is called.

    Args:
        rows: how many rows leave the part.
        ids: how many ids leave the part's list.
        fingerprint: of the part without them.
    """
    path = proof_path(index)
    if not path.exists() or (about := _read_proof(path)).get("made_from") == fingerprint:
        return
    known = {spec.name: about[spec.name] for spec in fields(Proof)}
    _write_proof(path, Proof(**known).without(rows, ids), fingerprint)


def _read_proof(path: Path) -> dict[str, Any]:
    try:
        about = dict(json.loads(path.read_text(encoding="utf-8")))
        if missing := [spec.name for spec in fields(Proof) if not isinstance(about.get(spec.name), int)]:
            raise ValueError(f"no {missing[0]}")
        return about
    except (ValueError, TypeError) as error:
        raise BadFile(
            path,
            found=short(f"{type(error).__name__}: {error}", 200),
            expected="the proof that prepare wrote",
            way_out="Move it and the index beside it away, and run `laion-face prepare` again.",
        ) from error


def proof_path(index: Path) -> Path:
    """Return where the proof of an index part lies."""
    return index.with_suffix(".json")


def open_writer(path: Path, schema: pa.Schema, chunks: Mapping[str, int] | bool = True) -> pq.ParquetWriter:
    """Open a Parquet file for rows of `schema.INDEX`, and of columns beside it.

    Floats split into their bytes and compressed once take two thirds of the room, at half the processor time, of
    dictionaries that fill up and are given up.
    """
    return pq.ParquetWriter(
        path,
        schema,
        compression="zstd",
        compression_level=1,
        use_dictionary=list(_FEW_VALUES),
        column_encoding=dict.fromkeys(_FLOATS, "BYTE_STREAM_SPLIT"),
        write_page_index=True,
        use_content_defined_chunking=chunks,
        write_page_checksum=True,
    )


def _group(joined: Join, start: int, stop: int) -> pa.Table:
    rows = joined.table.slice(start, stop - start).combine_chunks()
    columns = {name: rows[name] for name in rows.column_names}
    columns["part"] = pa.array(np.full(stop - start, joined.proof.part, np.int16))
    faces = joined.faces.columns(start, stop)
    columns |= zip(("faces", "n_faces", "max_face_score", "max_face_size"), faces, strict=True)
    return pa.table({name: columns[name] for name in INDEX.names})


def _write_proof(path: Path, proof: Proof, fingerprint: Fingerprint) -> None:
    with written_whole(path) as partial:
        about = {**proof.as_dict(), "made_from": fingerprint}
        partial.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
