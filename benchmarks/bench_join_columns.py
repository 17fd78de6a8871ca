"""Measures a table joined beside the index: seconds and memory of the joining, and of reading what was joined.

    python benchmarks/bench_join_columns.py [--rows 50000000] [--parts 32] [--bytes 1000] [--folder FOLDER]

The index has ROWS rows in so many parts, the table as many in another order, half of them of samples of the index, each
with a text of some BYTES bytes. Both are made first, and not measured. Beside the joining stands the plainest way to do
it: pandas' merge of one part, which has all of the table in memory. Disk: about five times as much as the table.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from measuring import apart, measure

from laion_face_builder.index.joined_columns import JoinSource
from laion_face_builder.index.joined_part import JoinedPart
from laion_face_builder.index.joining import Joining
from laion_face_builder.index.reader import IndexPart
from laion_face_builder.layout import DataDir
from laion_face_builder.schema import INDEX

_BATCH = 1 << 15


def _index_rows(part: int, first: int, rows: int, seed: int) -> Iterator[pa.Table]:
    """Yield index rows of a part with ids that are spread out, and in no order."""
    ids = np.random.default_rng(seed + part).permutation(np.arange(first, first + rows) * 2)
    for start in range(0, rows, _BATCH):
        some = ids[start : start + _BATCH]
        nothing = {field.name: pa.nulls(len(some), field.type) for field in INDEX}
        faces = pa.array([[]] * len(some), INDEX.field("faces").type)
        own = {"sample_id": pa.array(some), "part": pa.array(np.full(len(some), part, np.int16)), "faces": faces}
        yield pa.table({**nothing, **own, "n_faces": pa.array(np.zeros(len(some), np.int32))}, schema=INDEX)


def make(folder: Path, rows: int, parts: int, size: int) -> None:
    """Write the index and the table."""
    data, each = DataDir.at(folder), rows // parts
    for part in range(parts):
        data.index(part).parent.mkdir(parents=True, exist_ok=True)
        with pq.ParquetWriter(data.index(part), INDEX, compression="zstd") as writer:
            for table in _index_rows(part, part * each, each, 1):
                writer.write_table(table)
    ids = np.random.default_rng(7).permutation(rows) * 2
    ids[::2] += 1  # half of them are of no sample
    words = np.random.default_rng(8).integers(0, 1 << 62, (4096, max(1, size // 20)))
    texts = [" ".join(map(str, line)) for line in words.tolist()]
    with pq.ParquetWriter(
        folder / "table.parquet", pa.schema([("sample_id", pa.int64()), ("text", pa.string())])
    ) as out:
        for start in range(0, rows, _BATCH):
            some = ids[start : start + _BATCH]
            lines = [f"{one} {texts[one % 4096]}" for one in some.tolist()]
            out.write_table(pa.table({"sample_id": some, "text": lines}))


def run_join(folder: Path, parts: int) -> None:
    """Join the table."""
    data = DataDir.at(folder)
    source = JoinSource(str(folder / "table.parquet"))
    Joining(data, source, tuple(range(parts)), lambda part: IndexPart.open(data.index(part))).made()


def run_read(folder: Path, parts: int) -> None:
    """Read all that was joined, in order."""
    data = DataDir.at(folder)
    source = JoinSource(str(folder / "table.parquet"))
    table = Joining(data, source, tuple(range(parts)), lambda part: IndexPart.open(data.index(part))).there()
    for part in range(parts):
        with JoinedPart.beside(data.index(part), part, [table]) as index:
            for start, stop in index.row_groups:
                index.read(start, stop, ["sample_id", "text"])


def run_pandas(folder: Path, _parts: int) -> None:
    """Do the same for one part with pandas."""
    import pandas as pd

    index = pd.read_parquet(DataDir.at(folder).index(0), columns=["sample_id"])
    index.merge(pd.read_parquet(folder / "table.parquet"), on="sample_id", how="left").to_parquet(folder / "p.parquet")


_RUNS = {"pandas": run_pandas, "join": run_join, "read": run_read}


def main() -> None:
    """Make what is not there, measure, and print a line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=50_000_000)
    parser.add_argument("--parts", type=int, default=32)
    parser.add_argument("--bytes", type=int, default=1000)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--run", default=None, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.run is not None:
        return _RUNS[given.run](given.folder, given.parts)
    folder = given.folder or Path(tempfile.mkdtemp(prefix="join-columns-"))
    try:
        if not (folder / "table.parquet").exists():
            apart(make, folder, given.rows, given.parts, given.bytes)
        size = (folder / "table.parquet").stat().st_size
        print(f"{given.rows:,} rows in {given.parts} parts, a table of {size / 1e9:.2f} GB")
        for run in _RUNS:
            again = [sys.executable, __file__, "--run", run, "--folder", str(folder), "--parts", str(given.parts)]
            print(f"{run}: {measure(again)}", flush=True)
    finally:
        if given.folder is None:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
