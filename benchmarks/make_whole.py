"""Writes whole metadata in the Hub's form of today and the ids and faces of all parts, to measure on: made-up faces.

    python benchmarks/make_whole.py FOLDER [--rows-from FILE] [--files N] [--rows N] [--faces N]

FOLDER/part-000NN-4227e361-….parquet   N rows each, row groups of 1 M; one row in eight has faces, of any part
FOLDER/ids/part-000NN.parquet          32 of them, --faces ids each
FOLDER/faces/part-000NN.parquet        32 of them, two faces a sample on average, as `prepare` writes them

What a row says follows from its id, so that faces fit their pictures without a table of sizes. Of the rows with faces
one in a hundred comes twice, one in 200 comes again with another address and size, and one in 100 has width and height
swapped; one face in 33 lies outside. `--rows-from` takes a Parquet file with columns URL and TEXT. 11 GB in all, 1.5 GB
of memory.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from make_full_part import (
    FACES_A_SAMPLE,
    PARTS,
    ROW_GROUP,
    ROWS,
    SAMPLES_WITH_FACES,
    face_rows,
    rows_from,
    sample_ids,
)

from laion_face_builder.files import stamped
from laion_face_builder.index.detections import ROWS_A_GROUP, faces_fingerprint
from laion_face_builder.index.faces import FaceColumns
from laion_face_builder.index.ids import ids_fingerprint
from laion_face_builder.layout import DataDir
from laion_face_builder.schema import DETECTIONS, IDS

FILES, FILE_ROWS = 12, 2_800_000
METADATA_NAME = "part-{file:05d}-4227e361-38e7-40d5-8822-c6db46ea077c-c000.snappy.parquet"
METADATA = pa.schema(
    [
        ("NSFW", pa.string()),
        ("similarity", pa.float64()),
        ("LICENSE", pa.string()),
        ("caption", pa.string()),
        ("url", pa.string()),
        ("key", pa.int64()),
        ("original_width", pa.int64()),
        ("original_height", pa.int64()),
    ]
)
#: Of all rows, those with faces; of those, those that come again as they are, with another address, and turned.
WITH_FACES, AGAIN, ELSEWHERE, SWAPPED = 0.12, 0.01, 0.005, 0.01
#: Of all faces, those outside of their picture.
OUTSIDE = 0.03

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Rows:
    """Rows of metadata.

    Attributes:
        ids: int64[n].
        other: bool[n], whether address and size are those of another picture.
        swapped: bool[n], whether width and height are.
    """

    ids: Ints
    other: npt.NDArray[np.bool_]
    swapped: npt.NDArray[np.bool_]

    def __getitem__(self, which: Any) -> Rows:
        return Rows(self.ids[which], self.other[which], self.swapped[which])


def mixed(ids: Ints, salt: int) -> npt.NDArray[np.uint64]:
    """Hash the ids to numbers that look random, by the finaliser of splitmix64."""
    x = ids.astype(np.uint64) + np.uint64((salt * 0x9E3779B97F4A7C15) % (1 << 64))
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: npt.NDArray[np.uint64] = x ^ (x >> np.uint64(31))
    return mixed


def sizes(ids: Ints, other: npt.NDArray[np.bool_] | bool = False) -> Ints:
    """Return width and height of the ids' pictures, or of `other` ones with the same ids: int64[n, 2]."""
    salt = np.where(other, 2, 0).astype(np.int64)
    sides = [mixed(ids + (salt << 50), side) % np.uint64(1800) + np.uint64(200) for side in range(2)]
    return np.stack(sides, axis=1).astype(np.int64)


def rows_of_file(file: int, rows: int, faces: list[Ints]) -> Rows:
    """Return the rows that a file has, in its order."""
    rng = np.random.default_rng(1_000_000 + file)
    share = int(rows * WITH_FACES) // PARTS
    own = np.concatenate([ids[file * share : (file + 1) * share] for ids in faces])
    # Half of these are rows of this file, half of the next.
    nearby = np.concatenate([ids[file * share + share // 2 : (file + 1) * share + share // 2] for ids in faces])
    again = rng.choice(nearby, int(len(own) * AGAIN), replace=False)
    elsewhere = rng.choice(own, int(len(own) * ELSEWHERE), replace=False)
    # No row number from ROWS on has faces.
    numbers = np.arange(file * rows, file * rows + rows - len(own) - len(again) - len(elsewhere))
    without = sample_ids(0, ((numbers % PARTS) << 24) + ROWS + numbers // PARTS)
    ids = np.concatenate([own, again, elsewhere, without])
    other = np.zeros(len(ids), np.bool_)
    other[len(own) + len(again) :][: len(elsewhere)] = True
    order = rng.permutation(len(ids))
    return Rows(ids[order], other[order], (mixed(ids, 3) % np.uint64(1000) < np.uint64(1000 * SWAPPED))[order])


def write_metadata(path: Path, rows: Rows, source: Path | None) -> None:
    """Write a metadata file of the Hub's form."""
    urls, texts = rows_from(source)
    with pq.ParquetWriter(path, METADATA, compression="snappy") as writer:
        for start in range(0, len(rows.ids), ROW_GROUP):
            table = _metadata(rows[start : start + ROW_GROUP], urls, texts)
            writer.write_table(table, row_group_size=ROW_GROUP)


def _metadata(rows: Rows, urls: pa.Array, texts: pa.Array) -> pa.Table:
    picks = pa.array(mixed(rows.ids, 4) % np.uint64(len(urls)))
    names = pa.array(rows.ids).cast(pa.string())
    queries = pa.array(["?row=", "?copy="]).take(pa.array(rows.other.astype(np.int8)))
    of_hundred = mixed(rows.ids, 5) % np.uint64(100)
    width, height = np.where(rows.swapped[:, None], sizes(rows.ids, rows.other)[:, ::-1], sizes(rows.ids, rows.other)).T
    columns = [
        pa.array(["UNLIKELY", "UNSURE", "NSFW"]).take(pa.array(np.digitize(of_hundred, [94, 98]))),
        0.3 + (mixed(rows.ids, 6) >> np.uint64(11)).astype(np.float64) * 2.0**-53 * 0.2,
        pa.array(["?", "cc-by"]).take(pa.array((of_hundred % np.uint64(50) == 0).astype(np.int8))),
        pc.binary_join_element_wise(texts.take(picks), names, " "),
        pc.binary_join_element_wise(urls.take(picks), queries, names, ""),
        rows.ids,
        width,
        height,
    ]
    return pa.table(dict(zip(METADATA.names, columns, strict=True)), schema=METADATA)


@dataclass(frozen=True)
class FaceBlock:
    """Faces of n samples, m in all, in pictures of size 1 x 1; the same for each part, stretched to other sizes."""

    counts: Ints
    centres: npt.NDArray[np.float32]
    sides: npt.NDArray[np.float32]
    landmarks: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]

    @classmethod
    def random(cls, samples: int) -> FaceBlock:
        """Make up faces: scores from 0.5 on, descending in each sample; `OUTSIDE` of the centres beyond the picture."""
        rng = np.random.default_rng(0)
        counts = rng.choice(FACES_A_SAMPLE[0], samples, p=FACES_A_SAMPLE[1])
        total = int(counts.sum())
        centres = rng.random((total, 2), np.float32)
        centres[rng.random(total) < OUTSIDE] += 12  # more than the longest side is of the shortest
        scores = (1 - rng.random(total) ** 2 / 2).astype(np.float32)
        scores = scores[np.lexsort((-scores, np.repeat(np.arange(samples), counts)))]
        sides = 0.05 + 0.35 * rng.random((total, 2), np.float32)
        return cls(counts, centres, sides, rng.random((total, 5, 2), np.float32) - np.float32(0.5), scores)

    def of(self, ids: Ints) -> FaceColumns:
        """Return the faces of these samples, in pixels of their pictures."""
        size = np.repeat(sizes(ids).astype(np.float32), self.counts, axis=0)
        centres, sides = self.centres * size, self.sides * size
        boxes = np.concatenate([centres - sides / 2, centres + sides / 2], axis=1)
        landmarks = centres[:, None] + self.landmarks * sides[:, None]
        return FaceColumns(ids, self.counts, boxes, landmarks, self.scores)


def write_part(data: DataDir, part: int, ids: Ints, block: FaceBlock) -> None:
    """Write the ids and faces of a part, as `prepare` leaves them."""
    how: dict[str, Any] = {"compression": "zstd", "use_dictionary": False, "write_page_checksum": True}
    table = pa.table([pa.array(ids)], schema=stamped(IDS, ids_fingerprint(part, "made up")))
    pq.write_table(table, data.ids(part), column_encoding={"sample_id": "DELTA_BINARY_PACKED"}, **how)
    table = pa.table(block.of(ids).as_arrow(), schema=stamped(DETECTIONS, faces_fingerprint(part, "made up")))
    pq.write_table(table, data.faces(part), row_group_size=ROWS_A_GROUP, write_page_index=True, **how)


def steps(args: argparse.Namespace) -> Iterator[tuple[str, Callable[[], None]]]:
    """Yield what is written, and how; first the metadata."""
    ids = [sample_ids(part, face_rows(part, ROWS, args.faces)) for part in range(PARTS)]
    for some in ids:
        np.random.default_rng(0).shuffle(some)
    for file in range(args.files):
        path = args.folder / METADATA_NAME.format(file=file)
        yield path.name, partial(write_metadata, path, rows_of_file(file, args.rows, ids), args.rows_from)
    data, block = DataDir.at(args.folder), FaceBlock.random(args.faces)
    for path in (data.ids(0), data.faces(0)):
        path.parent.mkdir(exist_ok=True)
    for part in range(PARTS):
        yield f"part {part}", partial(write_part, data, part, np.sort(ids[part]), block)


def main() -> None:
    """Write all files and say how long each took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows-from", type=Path, help="Parquet file with columns URL and TEXT")
    parser.add_argument("--files", type=int, default=FILES)
    parser.add_argument("--rows", type=int, default=FILE_ROWS, help="of each file")
    parser.add_argument("--faces", type=int, default=SAMPLES_WITH_FACES, help="samples with faces of each part")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    for name, write in steps(args):
        started = time.perf_counter()
        write()
        print(f"{name}: {time.perf_counter() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
