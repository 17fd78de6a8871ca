"""Writes a part of LAION-Face in full size and in the true formats, to measure on: no network, made-up faces.

    python benchmarks/make_full_part.py FOLDER [--rows-from FILE] [--rows N] [--faces N] [--id-parts N]

FOLDER/part-00000-5b54c5d5-…-c000.snappy.parquet   12.9 M rows, row groups of 1 M
FOLDER/sample2detect_0.pth                         1.56 M samples with faces, 900 MB, a dict as torch.save writes it
FOLDER/laion_face_ids.pth                          32 lists of 1.56 M floats, 443 MB

The pickles are written opcode by opcode, as the object of a real torch.save would need 8 GB; a test compares the bytes
with Python's own pickler. `--rows-from` takes a Parquet file with columns URL and TEXT, repeated with a number added.
"""

from __future__ import annotations

import argparse
import struct
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

ROWS = 12_900_000
SAMPLES_WITH_FACES = 1_560_000
PARTS = 32
ROW_GROUP = 1_000_000
BATCH = 1000
#: Height and width, whatever the faces are. Few are too small for the faces of `faces_of_samples`, as upstream: wrongly
#: joined sizes are noticed by their faces.
SIDES = (500, 2000)
METADATA_NAME = "part-{part:05d}-5b54c5d5-bbcf-484d-a2ce-0d6f73df1a36-c000.snappy.parquet"
#: How many faces samples have, and how often: 2.0 on average gives the published size.
FACES_A_SAMPLE = ([1, 2, 3, 8], [0.6, 0.2, 0.12, 0.08])


def sample_ids(part: int, rows: np.ndarray) -> np.ndarray:
    """Return ids below 2**41 for row numbers below 2**24, int64, unique over all parts, in no visible order."""
    numbers = (np.int64(part) << 24) | rows.astype(np.int64)
    return (numbers * 1_000_003_579 + 7_919) & ((1 << 41) - 1)


def face_rows(part: int, rows: int, faces: int) -> np.ndarray:
    """Choose the rows that have faces: int64[faces], ascending."""
    return np.sort(np.random.default_rng(part).choice(rows, faces, replace=False))


@contextmanager
def torch_zip(path: Path) -> Iterator[IO[bytes]]:
    """Open the main pickle of a file like torch.save's, to be written piece by piece."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        with archive.open(f"{path.stem}/data.pkl", "w", force_zip64=True) as pickle:
            yield pickle
        archive.writestr(f"{path.stem}/byteorder", "little")
        archive.writestr(f"{path.stem}/version", "3\n")


def write_ids(path: Path, parts: Iterable[np.ndarray]) -> None:
    """Write a list of lists of Python floats, as pickle protocol 2 writes it."""
    with torch_zip(path) as out:
        out.write(b"\x80\x02]q\x00(")
        for index, ids in enumerate(parts):
            out.write(b"]q" + bytes([index + 1]))
            numbers = np.empty(len(ids), [("op", "S1"), ("value", ">f8")])
            numbers["op"], numbers["value"] = b"G", ids
            for start in range(0, len(ids), BATCH):
                out.write(b"(" + numbers[start : start + BATCH].tobytes() + b"e")
        out.write(b"e.")


class FacePickle:
    """The opcodes of {id: [(box, landmarks, score), …]}, NumPy arrays and scalars, in protocol 2, one sample at a time.

    The first face names everything; later ones refer to it by its place in the memo, where these places are fixed by
    the order in which the names appear.
    """

    def __init__(self) -> None:
        self._memo = 1
        core = np.float32(0).__reduce__()[0].__module__
        self._names = {
            "reconstruct": f"c{core}\n_reconstruct\n".encode(),
            "ndarray": b"cnumpy\nndarray\n",
            "encode": b"c_codecs\nencode\n",
            "latin1": b"X\x06\x00\x00\x00latin1",
            "scalar": f"c{core}\nscalar\n".encode(),
        }
        self._known: dict[str, bytes] = {}

    def sample(self, sample_id: int, faces: list[tuple[bytes, bytes, bytes]]) -> bytes:
        """Return one item of the dict; each face is given as the bytes of its box, landmarks and score."""
        many = len(faces) > 1
        out = [_int(sample_id), b"]", self._put(), b"(" if many else b""]
        for box, landmarks, score in faces:
            out += self._array(b"K\x04\x85", box)
            out += self._array(b"K\x05K\x02\x86", landmarks)
            out += self._scalar(score)
            out += (b"\x87", self._put())
        out.append(b"e" if many else b"a")
        return b"".join(out)

    def _put(self) -> bytes:
        index, self._memo = self._memo, self._memo + 1
        return b"q" + bytes([index]) if index < 256 else b"r" + struct.pack("<I", index)

    def _once(self, name: str, code: bytes) -> bytes:
        if name in self._known:
            return self._known[name]
        self._known[name] = b"h" + bytes([self._memo])
        return code + self._put()

    def _name(self, name: str) -> bytes:
        return self._once(name, self._names[name])

    def _raw(self, data: bytes) -> Iterator[bytes]:
        text = data.decode("latin1").encode()
        yield from (self._name("encode"), b"X", struct.pack("<I", len(text)), text, self._put())
        yield from (self._name("latin1"), b"\x86", self._put(), b"R", self._put())

    def _array(self, shape: bytes, data: bytes) -> Iterator[bytes]:
        yield from (self._name("reconstruct"), self._name("ndarray"), b"K\x00\x85", self._put())
        if "b" in self._known:
            yield self._known["b"]
        else:
            yield from (self._name("encode"), b"X\x01\x00\x00\x00b", self._put())
            yield from (self._name("latin1"), b"\x86", self._put(), b"R")
            yield self._once("b", b"")
        yield from (b"\x87", self._put(), b"R", self._put(), b"(K\x01", shape, self._put(), self._dtype(), b"\x89")
        yield from self._raw(data)
        yield from (b"t", self._put(), b"b")

    def _dtype(self) -> bytes:
        if "dtype" in self._known:
            return self._known["dtype"]
        out = [b"cnumpy\ndtype\n", self._put(), b"X\x02\x00\x00\x00f4", self._put(), b"\x89\x88\x87", self._put(), b"R"]
        out += [self._once("dtype", b""), b"(K\x03X\x01\x00\x00\x00<", self._put()]
        out += [b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00t", self._put(), b"b"]
        return b"".join(out)

    def _scalar(self, data: bytes) -> Iterator[bytes]:
        yield from (self._name("scalar"), self._dtype())
        yield from self._raw(data)
        yield from (b"\x86", self._put(), b"R", self._put())


def _int(number: int) -> bytes:
    if number < 1 << 31:
        return (
            b"K" + bytes([number])
            if number < 256
            else b"M" + struct.pack("<H", number)
            if number < 1 << 16
            else b"J" + struct.pack("<i", number)
        )
    raw = number.to_bytes(number.bit_length() // 8 + 1, "little")
    return b"\x8a" + bytes([len(raw)]) + raw


def faces_of_samples(count: int, seed: int) -> Iterator[list[tuple[bytes, bytes, bytes]]]:
    """Make up faces of `count` samples: boxes up to 600 pixels, landmarks inside, scores from 0.5 on, descending."""
    rng = np.random.default_rng(seed)
    per_sample = rng.choice(FACES_A_SAMPLE[0], count, p=FACES_A_SAMPLE[1])
    total = int(per_sample.sum())
    corner, size = rng.random((total, 2)) * 500 - 10, rng.random((total, 2)) * 200 + 10
    boxes = np.concatenate([corner, corner + size], axis=1).astype("<f4")
    landmarks = (corner[:, None] + rng.random((total, 5, 2)) * size[:, None]).astype("<f4")
    scores = (1 - rng.random(total) ** 2 / 2).astype("<f4")
    start = 0
    for n in per_sample:
        scores[start : start + n][::-1].sort()
        rows = range(start, start + n)
        yield [(boxes[i].tobytes(), landmarks[i].tobytes(), scores[i].tobytes()) for i in rows]
        start += n


def write_detections(path: Path, ids: np.ndarray, seed: int = 0) -> None:
    """Write {sample id: faces}, in batches of 1,000 items as Python's pickler writes dicts."""
    pickle = FacePickle()
    with torch_zip(path) as out:
        out.write(b"\x80\x02}q\x00")
        for start in range(0, len(ids), BATCH):
            batch = ids[start : start + BATCH].tolist()
            items = zip(batch, faces_of_samples(len(batch), seed * 1_000_003 + start), strict=True)
            out.write(b"(" + b"".join(pickle.sample(sample_id, faces) for sample_id, faces in items) + b"u")
        # A full last batch is followed by an empty one.
        out.write(b"(u." if len(ids) % BATCH == 0 else b".")


def write_metadata(path: Path, part: int, rows: int, source: Path | None) -> None:
    """Write LAION-400M's columns; URL and TEXT from `source`, made unique by the row's number."""
    urls, texts = rows_from(source)
    rng = np.random.default_rng(part)
    with pq.ParquetWriter(path, METADATA, compression="snappy") as writer:
        for start in range(0, rows, ROW_GROUP):
            numbers = np.arange(start, min(start + ROW_GROUP, rows))
            writer.write_table(_metadata(part, numbers, urls, texts, rng), row_group_size=ROW_GROUP)


METADATA = pa.schema(
    [
        ("SAMPLE_ID", pa.int64()),
        ("URL", pa.string()),
        ("TEXT", pa.string()),
        ("HEIGHT", pa.int64()),
        ("WIDTH", pa.int64()),
        ("LICENSE", pa.string()),
        ("NSFW", pa.string()),
        ("similarity", pa.float64()),
    ]
)


def _metadata(part: int, numbers: np.ndarray, urls: pa.Array, texts: pa.Array, rng: np.random.Generator) -> pa.Table:
    count = len(numbers)
    picks = pa.array(rng.integers(0, len(urls), count))
    names = pa.array(numbers).cast(pa.string())
    columns = [
        sample_ids(part, numbers),
        pc.binary_join_element_wise(urls.take(picks), names, "?row="),
        pc.binary_join_element_wise(texts.take(picks), names, " "),
        rng.integers(*SIDES, count),
        rng.integers(*SIDES, count),
        pa.array(["?", "cc-by"]).take(pa.array((rng.random(count) < 0.02).astype(np.int64))),
        pa.array(["UNLIKELY", "UNSURE", "NSFW"]).take(pa.array(rng.choice(3, count, p=[0.94, 0.04, 0.02]))),
        0.3 + rng.random(count) * 0.2,
    ]
    return pa.table(dict(zip(METADATA.names, columns, strict=True)), schema=METADATA)


def rows_from(source: Path | None) -> tuple[pa.Array, pa.Array]:
    """Return addresses and captions: those of `source`, or 10,000 made-up ones."""
    if source is None:
        numbers = range(10_000)
        urls = [f"https://host-{n % 700}.example/pictures/{n * 7919 % 10_007:05d}/a-picture-{n}.jpg" for n in numbers]
        return pa.array(urls), pa.array([f"A picture of somebody, number {n} of a long series" for n in numbers])
    table = pq.read_table(source, columns=["URL", "TEXT"])
    return table["URL"].combine_chunks(), table["TEXT"].combine_chunks()


def main() -> None:
    """Write the three files and say how long each took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows-from", type=Path, help="Parquet file with columns URL and TEXT")
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--faces", type=int, default=SAMPLES_WITH_FACES, help="samples with faces")
    parser.add_argument("--id-parts", type=int, default=PARTS, help="lists of ids that are filled, of 32")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    with_faces = [face_rows(part, args.rows, args.faces if part < args.id_parts else 0) for part in range(PARTS)]
    ids = [sample_ids(part, rows) for part, rows in enumerate(with_faces)]
    steps: dict[str, Callable[[Path], None]] = {
        "laion_face_ids.pth": partial(write_ids, parts=ids),
        "sample2detect_0.pth": partial(write_detections, ids=ids[0]),
        METADATA_NAME.format(part=0): partial(write_metadata, part=0, rows=args.rows, source=args.rows_from),
    }
    for name, write in steps.items():
        started = time.perf_counter()
        write(args.folder / name)
        size = (args.folder / name).stat().st_size / 1e6
        print(f"{name}: {size:,.0f} MB in {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
