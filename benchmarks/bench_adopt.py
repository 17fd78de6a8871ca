"""Measures the adoption of tars that others have: seconds and memory until the first example, and once more.

    python benchmarks/bench_adopt.py [--pictures 1000000] [--bytes 2000] [--folder FOLDER]

The tars are as img2dataset writes them for LAION-400M: url and caption, no SAMPLE_ID, 10,000 samples each. One sample
in eight is in the index, as of the faces in LAION-400M. Index and tars are made first, and not measured. What a user
would do without it is to download the pictures again.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from measuring import apart, measure

from laion_face_builder.download.shard_files import ShardTar
from laion_face_builder.schema import INDEX

_IN_A_TAR, _ONE_IN, _DISTINCT = 10_000, 8, 200
_SIDE = 64


def make(folder: Path, pictures: int, size: int) -> None:
    """Write an index part and the tars."""
    rng = np.random.default_rng(0)
    drawn = [_picture(rng, size) for _ in range(_DISTINCT)]
    for first in range(0, pictures, _IN_A_TAR):
        (folder / "tars").mkdir(parents=True, exist_ok=True)
        tar = ShardTar(folder / "tars" / f"{first // _IN_A_TAR:05d}.tar", "jpg", 0)
        for number in range(first, min(first + _IN_A_TAR, pictures)):
            caption = f"picture number {number}"
            tar.write(f"{number:09d}", drawn[number % _DISTINCT], {"url": _url(number), "caption": caption}, caption)
        tar.finish()
    (folder / "data" / "index").mkdir(parents=True)
    with pq.ParquetWriter(folder / "data" / "index" / "part-00000.parquet", INDEX, compression="zstd") as writer:
        numbers = np.random.default_rng(1).permutation(np.arange(0, pictures, _ONE_IN))
        for start in range(0, len(numbers), 12_000):
            writer.write_table(_rows(numbers[start : start + 12_000].tolist()))


def _url(number: int) -> str:
    return f"https://host-{number % 977}.example/pictures/{number}.jpg"


def _picture(rng: np.random.Generator, size: int) -> bytes:
    noise = rng.integers(0, 256, (_SIDE, _SIDE, 3), np.uint8)
    data = cv2.imencode(".jpg", noise, [cv2.IMWRITE_JPEG_QUALITY, 40])[1].tobytes()
    comment = bytes(max(0, size - len(data) - 4))  # up to the size that is asked for
    return data[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + data[2:]


def _rows(numbers: list[int]) -> pa.Table:
    rows: list[dict[str, Any]] = [
        {"sample_id": number, "part": 0, "url": _url(number), "caption": f"picture number {number}", "faces": []}
        for number in numbers
    ]
    return pa.Table.from_pylist([{"width": _SIDE, "height": _SIDE, "n_faces": 0, **row} for row in rows], schema=INDEX)


def run(folder: Path) -> None:
    """Load the folder, and read one example."""
    import laion_face

    how = {"data_dir": str(folder / "data"), "images": str(folder / "tars"), "parts": "0", "streaming": True}
    example = next(iter(laion_face.load_dataset("20M", split="train", **how)))
    assert example["image"] is not None


def main() -> None:
    """Make what is not there, measure, and print a line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=1_000_000)
    parser.add_argument("--bytes", type=int, default=2000)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--run", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.run:
        return run(given.folder)
    folder = given.folder or Path(tempfile.mkdtemp(prefix="adopt-"))
    try:
        if not (folder / "data").exists():
            apart(make, folder, given.pictures, given.bytes)
        size = sum(path.stat().st_size for path in (folder / "tars").iterdir())
        print(f"{given.pictures:,} pictures in tars of {size / 1e9:.1f} GB, one in {_ONE_IN} in the index")
        command = [sys.executable, __file__, "--folder", str(folder), "--run"]
        for name in ("first time", "once more"):
            print(f"{name:12}", measure(command))
    finally:
        if given.folder is None:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
