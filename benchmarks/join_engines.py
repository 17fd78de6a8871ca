"""The join of prepare, as it is done here and as DuckDB and Polars do it: the same inputs, the same table.

By part: rows of one metadata file whose id is in the part's list, with their faces; ids do not repeat there. Whole:
rows of many files for all parts, first staged, then put together part by part; of rows that say the same one is kept.
Everywhere: the columns of `schema.INDEX`, rows in the metadata's order, zstd, about 128 row groups.

DuckDB and Polars are written to be fast, variants having been tried (README.md). They prove nothing about the join:
rows with one id and several addresses stay, swapped sizes stay swapped.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import polars as pl


@dataclass(frozen=True)
class Join:
    """What is joined: metadata files, and for each part its number, ids, faces and the index to write."""

    metadata: tuple[Path, ...]
    parts: tuple[Part, ...]
    scratch: Path


@dataclass(frozen=True)
class Part:
    """A part's files, the last to be written; about how many rows it will have."""

    number: int
    ids: Path
    faces: Path
    index: Path
    rows: int

    @property
    def group_rows(self) -> int:
        """Rows of a row group, for 128 of them."""
        return max(self.rows // 128, 1)


Engine = Callable[[Join], None]


def ours_by_part(join: Join) -> None:
    """Join one part by the functions that `prepare` calls."""
    from laion_face_builder.index.ids import PartIds
    from laion_face_builder.index.staged import rows_of_part
    from laion_face_builder.parallel import cores

    (part,), (metadata,) = join.parts, join.metadata
    ids = PartIds.read({part.number: part.ids})
    _ours_write(part, lambda: rows_of_part(metadata, ids, cores()))


def ours_whole(join: Join) -> None:
    """Join all parts as `prepare` does: one pass over all files, then part by part on all processors."""
    from laion_face_builder.index.staged import staged_rows
    from laion_face_builder.layout import DataDir
    from laion_face_builder.parallel import cores, in_order

    staged = _ours_stage(join)

    def write_one(part: Part) -> None:
        _ours_write(part, lambda: staged_rows(DataDir(join.scratch), staged, part.number))

    for _ in in_order(write_one, join.parts, cores()):
        pass


def _ours_stage(join: Join) -> list[Path]:
    from laion_face_builder.index.ids import PartIds
    from laion_face_builder.index.staged import stage, staged_fingerprint
    from laion_face_builder.parallel import cores, in_order

    ids = PartIds.read({part.number: part.ids for part in join.parts})

    def stage_one(metadata: Path) -> Path:
        target = join.scratch / metadata.name
        stage(target, metadata, ids, staged_fingerprint("made up", [], metadata.name))
        return target

    return list(in_order(stage_one, join.metadata, cores()))


def _ours_write(part: Part, rows: Callable[[], Any]) -> None:
    import numpy as np
    import pyarrow.parquet as pq

    from laion_face_builder.index.faces import FaceTable
    from laion_face_builder.index.join import join
    from laion_face_builder.index.writer import index_fingerprint, write_index

    fingerprint = index_fingerprint(part.number, ids="made up", faces="made up", metadata="made up")
    found = rows()
    faces = FaceTable.read(part.faces, wanted=np.unique(found["sample_id"].to_numpy()))
    joined = join(part.number, pq.read_metadata(part.ids).num_rows, found, faces)
    write_index(part.index, joined, fingerprint)


#: Index name: name in the metadata by part, and in whole metadata.
NAMES = {
    "sample_id": ("SAMPLE_ID", "key"),
    "url": ("URL", "url"),
    "caption": ("TEXT", "caption"),
    "width": ("WIDTH", "original_width"),
    "height": ("HEIGHT", "original_height"),
    "license": ("LICENSE", "LICENSE"),
    "nsfw": ("NSFW", "NSFW"),
}
_DUCKDB_TYPES = {"width": "::INT", "height": "::INT"}
_DUCKDB_FLAT = """
    len(faces)::INT AS n_faces,
    list_max(list_transform(faces, lambda f: f.score)) AS max_face_score,
    list_max(list_transform(faces, lambda f: least(f.box[3] - f.box[1], f.box[4] - f.box[2]))) AS max_face_size"""


def _duckdb_columns(form: int, part: str) -> str:
    named = {name: f'm."{own[form]}"{_DUCKDB_TYPES.get(name, "")}' for name, own in NAMES.items()}
    named = {"sample_id": named.pop("sample_id"), "part": f"{part}::SMALLINT", **named, "similarity": "m.similarity"}
    return ", ".join(f"{value} AS {name}" for name, value in named.items())


def _duckdb_copy(part: Part, rows: str, faces: str, order: str = "ORDER BY place") -> str:
    """Return the SQL that writes `rows`, sorted by `place` since joins keep no order, with `faces` (id, faces)."""
    return f"""
        COPY (
            SELECT * EXCLUDE place, {_DUCKDB_FLAT} FROM (
                SELECT r.* EXCLUDE place, coalesce(f.faces, []) AS faces, place
                FROM ({rows}) r LEFT JOIN ({faces}) f ON r.sample_id = f.id
            ) {order}
        ) TO '{part.index}' (FORMAT parquet, COMPRESSION zstd, COMPRESSION_LEVEL 1, ROW_GROUP_SIZE {part.group_rows})"""


def duckdb_by_part(join: Join, order: str = "ORDER BY place") -> None:
    """Join one part by DuckDB, in one statement."""
    import duckdb

    (part,), (metadata,) = join.parts, join.metadata
    rows = f"""
        SELECT {_duckdb_columns(0, str(part.number))}, m.file_row_number AS place
        FROM read_parquet('{metadata}', file_row_number = true) m
        SEMI JOIN '{part.ids}' i ON m.SAMPLE_ID = i.sample_id"""
    with duckdb.connect() as connection:
        connection.execute(_duckdb_copy(part, rows, f"SELECT sample_id AS id, faces FROM '{part.faces}'", order))


def duckdb_by_part_any_order(join: Join) -> None:
    """Join one part by DuckDB without the sort: not what is asked for, but it shows what the sort costs."""
    duckdb_by_part(join, order="")


def duckdb_whole(join: Join) -> None:
    """Join all parts by DuckDB: found ids, then their rows, in memory; then two statements a part for its faces alone.

    A join of the rows with all ids takes twice the memory: a hash table of 50 M ids.
    """
    import duckdb

    ids = " UNION ALL ".join(f"SELECT sample_id, {part.number} AS part FROM '{part.ids}'" for part in join.parts)
    files = [str(file) for file in join.metadata]
    with duckdb.connect() as connection:
        connection.execute(f"SET temp_directory = '{join.scratch}'")
        connection.execute(f"""
            CREATE TEMP TABLE there AS
            SELECT sample_id, part FROM ({ids}) i SEMI JOIN read_parquet({files}) m ON m.key = i.sample_id""")
        connection.execute(f"""
            CREATE TEMP TABLE staged AS
            SELECT {_duckdb_columns(1, "part")}, (m.file_index::BIGINT << 40) | m.file_row_number AS place
            FROM read_parquet({files}, file_row_number = true) m JOIN there t ON m.key = t.sample_id""")
        for part in join.parts:
            connection.execute(f"""
                CREATE OR REPLACE TEMP TABLE found AS SELECT * FROM staged WHERE part = {part.number}
                QUALIFY row_number() OVER (PARTITION BY sample_id, url, caption ORDER BY place) = 1""")
            faces = f"""
                SELECT sample_id AS id, faces FROM '{part.faces}'
                WHERE sample_id IN (SELECT sample_id FROM found)"""
            connection.execute(_duckdb_copy(part, "FROM found", faces))


def polars_by_part(join: Join) -> None:
    """Join one part by Polars in one streaming query; `is_in` is pushed into the scan, where a semi-join is not."""
    import polars as pl

    (part,), (metadata,) = join.parts, join.metadata
    ids = pl.read_parquet(part.ids)["sample_id"]
    rows = pl.scan_parquet(metadata).filter(pl.col("SAMPLE_ID").is_in(ids.implode()))
    _polars_write(_polars_columns(rows.with_columns(part=pl.lit(part.number, pl.Int16)), 0), part)


def polars_whole(join: Join) -> None:
    """Join all parts by Polars: found ids; their rows, staged in a file a part; then a streaming query a part.

    A join of the rows with all ids takes five times the memory. `is_in` again, since it is pushed into the scans.
    """
    import polars as pl

    ids = pl.concat(
        pl.scan_parquet(part.ids).select("sample_id", pl.lit(part.number, pl.Int16).alias("part"))
        for part in join.parts
    )
    metadata = pl.scan_parquet(list(join.metadata))
    there = ids.join(metadata.select("key"), left_on="sample_id", right_on="key", how="semi").collect(
        engine="streaming"
    )
    rows = metadata.filter(pl.col("key").is_in(there["sample_id"].implode())).join(
        there.lazy(), left_on="key", right_on="sample_id", how="inner", maintain_order="left"
    )
    target = pl.PartitionBy(join.scratch, key="part", include_key=True)
    _polars_columns(rows, 1).sink_parquet(target, compression="lz4", mkdir=True, engine="streaming")
    for part in join.parts:
        staged = pl.scan_parquet(join.scratch / f"part={part.number}" / "*.parquet", hive_partitioning=False)
        found = staged.select("sample_id").collect()["sample_id"]
        rows = staged.unique(["sample_id", "url", "caption"], keep="first", maintain_order=True)
        _polars_write(rows, part, pl.col("sample_id").is_in(found.implode()))


def _polars_columns(rows: pl.LazyFrame, form: int) -> pl.LazyFrame:
    import polars as pl

    own = {name: pl.col(names[form]).alias(name) for name, names in NAMES.items()}
    own |= {name: own[name].cast(pl.Int32) for name in ("width", "height")}
    return rows.select(own.pop("sample_id"), "part", *own.values(), "similarity")


def _polars_write(rows: pl.LazyFrame, part: Part, which: pl.Expr | bool = True) -> None:
    """Write `rows` with those of the part's faces that `which` selects."""
    import polars as pl

    faces, face = pl.col("faces"), pl.element()
    box = face.struct.field("box").arr
    short = pl.min_horizontal(box.get(2) - box.get(0), box.get(3) - box.get(1))
    of_rows = pl.scan_parquet(part.faces).filter(which)
    joined = rows.join(of_rows, on="sample_id", how="left", maintain_order="left").with_columns(
        faces.list.len().fill_null(0).cast(pl.Int32).alias("n_faces"),
        faces.list.eval(face.struct.field("score")).list.max().alias("max_face_score"),
        faces.list.eval(short).list.max().alias("max_face_size"),
    )
    how: dict[str, Any] = {"compression": "zstd", "compression_level": 1, "row_group_size": part.group_rows}
    joined.sink_parquet(part.index, engine="streaming", **how)


#: The engines of each job, the one that others are compared with first.
BY_PART: dict[str, Engine] = {
    "ours": ours_by_part,
    "DuckDB": duckdb_by_part,
    "DuckDB, rows in any order": duckdb_by_part_any_order,
    "Polars": polars_by_part,
}
WHOLE: dict[str, Engine] = {
    "ours": ours_whole,
    "DuckDB": duckdb_whole,
    "Polars": polars_whole,
}
