"""Aligned faces exported a CPU second, against the loop that one writes by hand with webdataset and OpenCV.

    python benchmarks/bench_export.py [--pictures 1300] [--repeats 3] [--size 512]

Made pictures in tars as img2dataset writes them, 1024 x 768, three faces each. Both read the tars, decode, align every
face to ArcFace's template, encode JPEG of quality 95, and write tars with captions and JSON. One process, one thread;
CPU seconds, user and system; the best of the repeats. The pixels are compared before encoding, by way of PNG.

- By hand: webdataset's reader, imdecode, least squares by NumPy, warpAffine, imencode, webdataset's TarWriter. Without
  filters, EXIF, frames of resized pictures, counts of failures, and files that are whole or not there.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tarfile
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import webdataset

import laion_face
from laion_face_builder.download.shard_files import ShardTar
from laion_face_builder.schema import INDEX
from laion_face_builder.transforms.alignment import ARCFACE_112

_WIDTH, _HEIGHT, _FACES, _SIDE = 1024, 768, 3, 220
_IN_A_TAR = 500
#: Pictures that differ, and those of which the pixels are compared.
_DISTINCT, _COMPARED = 40, 20


def make(folder: Path, pictures: int) -> None:
    """Write an index with faces, and tars of its pictures."""
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    drawn = [picture(rng) for _ in range(min(pictures, _DISTINCT))]
    (folder / "images" / "part-00000").mkdir(parents=True)
    for first in range(0, pictures, _IN_A_TAR):
        tar = ShardTar(folder / "images" / "part-00000" / f"{first // _IN_A_TAR:05d}.tar", "jpg", 0)
        for number in range(first, min(first + _IN_A_TAR, pictures)):
            faces, data, caption = [face(rng) for _ in range(_FACES)], drawn[number % len(drawn)], f"picture {number}"
            values = {"sample_id": number, "url": f"http://host.example/{number}.jpg", "caption": caption}
            tar.write(f"{number:09d}", data, {**values, "faces": faces}, caption)
            flat = {"n_faces": _FACES, "max_face_score": 0.9, "max_face_size": float(_SIDE)}
            more = {"part": 0, "width": _WIDTH, "height": _HEIGHT, "nsfw": "UNLIKELY", "similarity": 0.3}
            rows.append({**values, **more, **flat, "license": "?", "faces": faces})
        tar.finish()
    (folder / "index").mkdir()
    pq.write_table(pa.Table.from_pylist(rows, schema=INDEX), folder / "index" / "part-00000.parquet")


def picture(rng: np.random.Generator) -> bytes:
    """Make a picture, as JPEG."""
    noise = cv2.GaussianBlur(rng.integers(0, 256, (_HEIGHT, _WIDTH, 3), np.uint8), (0, 0), 1.5)
    return bytes(cv2.imencode(".jpg", noise, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes())


def face(rng: np.random.Generator) -> dict[str, Any]:
    """Make a face somewhere in the picture."""
    x, y = rng.uniform(0, _WIDTH - _SIDE), rng.uniform(0, _HEIGHT - _SIDE)
    points = (ARCFACE_112 / 112 + rng.normal(0, 0.01, (5, 2))) * _SIDE + (x, y)
    exact = np.array([*points.ravel(), x, y, x + _SIDE, y + _SIDE], np.float32).tolist()
    landmarks = [exact[at : at + 2] for at in range(0, 10, 2)]
    return {"box": exact[10:], "landmarks": landmarks, "score": 0.9}


def ours(folder: Path, out: Path, size: int, extension: str) -> None:
    """Export by `laion_face.export`."""
    how = {"index": folder / "index", "images": folder / "images", "parts": "0", "data_dir": folder / "data"}
    made = {"layout": "webdataset", "align": "arcface", "size": size, "crop_format": extension}
    laion_face.export("20M", out, **how, **made, shards_per_part=3, processes=1)


def by_hand(folder: Path, out: Path, size: int, extension: str) -> None:
    """Export by a loop that one writes in an evening."""
    tars = sorted(map(str, folder.glob("images/part-00000/*.tar")))
    out.mkdir()
    quality = [cv2.IMWRITE_JPEG_QUALITY, 95] if extension == "jpg" else []
    target = np.column_stack([ARCFACE_112 * (size / 112)])
    for number, name in enumerate(tars):
        with webdataset.TarWriter(str(out / f"{number:05d}.tar")) as sink:
            for sample in webdataset.WebDataset(name, shardshuffle=False):
                picture = cv2.imdecode(np.frombuffer(sample["jpg"], np.uint8), cv2.IMREAD_COLOR)
                values = json.loads(sample["json"])
                for place, one in enumerate(values["faces"]):
                    matrix = fitted(np.asarray(one["landmarks"]), target)
                    cut = cv2.warpAffine(picture, matrix, (size, size))
                    data = cv2.imencode(f".{extension}", cut, quality)[1].tobytes()
                    made = {"__key__": f"{values['sample_id']}-{place}", extension: data, "txt": sample["txt"]}
                    sink.write({**made, "json": {**values, "faces": [one]}})


def fitted(source: Any, target: Any) -> Any:
    """Fit a similarity by least squares."""
    rows = np.zeros((10, 4))
    rows[0::2], rows[1::2] = (
        np.column_stack([source[:, 0], -source[:, 1], np.ones(5), np.zeros(5)]),
        np.column_stack([source[:, 1], source[:, 0], np.zeros(5), np.ones(5)]),
    )
    a, b, right, down = np.linalg.lstsq(rows, target.ravel(), rcond=None)[0]
    return np.array([[a, -b, right], [b, a, down]])


def pictures_in(out: Path) -> dict[str, Any]:
    """Return the pixels in all tars, by name."""
    found = {}
    for path in sorted(out.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith((".jpg", ".png")):
                    # A picture is a regular file, of which extractfile gives one.
                    data = np.frombuffer(tar.extractfile(member).read(), np.uint8)  # type: ignore[union-attr]  # it is a file
                    found[member.name] = cv2.imdecode(data, cv2.IMREAD_COLOR)
    return found


def seconds(export: Callable[[], None], out: Path, repeats: int) -> float:
    """Return the CPU seconds of the best of the repeats."""
    taken = []
    for _ in range(repeats):
        shutil.rmtree(out, ignore_errors=True)
        started = time.process_time()
        export()
        taken.append(time.process_time() - started)
    return min(taken)


def main() -> None:
    """Print a line for each way, their ratio, and how far their pixels are apart."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=1300)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--size", type=int, default=512)
    given = parser.parse_args()
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder, given.pictures)
        make(folder / "few", _COMPARED)
        ways = {"laion_face.export": ours, "webdataset and OpenCV by hand": by_hand}
        for number, way in enumerate(ways.values()):
            way(folder / "few", folder / f"png-{number}", given.size, "png")
        ours(folder, folder / "first", 16, "jpg")  # the folder is looked through, once
        first, second = (pictures_in(folder / f"png-{number}") for number in range(2))
        assert first.keys() == second.keys()
        away = max(int(np.abs(first[key].astype(int) - second[key]).max()) for key in first)
        found = {}
        for title, way in ways.items():
            out = folder / "out"
            found[title] = seconds(partial(way, folder, out, given.size, "jpg"), out, given.repeats)
            print(f"{title}: {given.pictures * _FACES / found[title]:,.0f} faces of {given.size} pixels a CPU second")
        hand, mine = found["webdataset and OpenCV by hand"], found["laion_face.export"]
        print(f"ours : by hand, CPU: {mine / hand:.2f}; pixels at most {away} of 255 apart")


if __name__ == "__main__":
    main()
