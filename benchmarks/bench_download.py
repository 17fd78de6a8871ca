"""`laion-face download` and its tars against img2dataset and webdataset: pictures/s, and CPU a picture, on loopback.

    python benchmarks/bench_download.py [--pictures 8000] [--latency 0] [--repeats 3]

One process and one shard each, 46 KB JPEGs of 64 hosts, rounds interleaved. CPU is user and system time of the command
and its children without what a run of 64 pictures takes, so without start-up; speed is that of the shard, by the times
in its `_stats.json`, which both write in the same way.

- bytes as they come: ours checks every picture and writes its sidecar; img2dataset does neither.
- resized to 256 pixels: ours against img2dataset, and against img2dataset's `Resizer` and writer alone, on bytes that
  are there, which is what no download is faster than.
- the tars of the first: read by our stream, undecoded, and by webdataset.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import picture_server
import pyarrow as pa
import pyarrow.parquet as pq
from bench_stream import Found, address, size_of, used, write_index
from measuring import measure, read_once

from laion_face_builder.files import digest, read_fingerprint, stamped
from laion_face_builder.index.reader import index_fingerprint_at
from laion_face_builder.layout import DataDir, row_group_bounds
from laion_face_builder.schema import INDEX, SIDECAR

_BYTES, _FEW = 46_000, 64
#: Of a part: enough for row groups in which opening one is nothing.
_REAL_ROWS = 400_000
_SIZE = 256


# The downloads: a command for so many addresses, and the folder of its shard.


def ours(folder: Path, urls: list[str], *, resized: bool) -> tuple[list[str], Path]:
    """Return the command of `laion-face download` and the folder of its shards, once the index is written."""
    write_index(folder, urls, size_of(picture_server.picture(_BYTES)))
    size = ("--resize-mode", "keep_ratio", "--image-size", str(_SIZE)) if resized else ()
    command = [
        *(sys.executable, "-m", "laion_face_builder", "download", "20M", "--parts", "0", "--data-dir", str(folder)),
        *("--allow-private-hosts", "--processes", "1", "--concurrency", "256", "--format", "quiet", *size),
    ]
    return command, folder / "images" / "part-00000"


def img2dataset(folder: Path, urls: list[str], *, resized: bool) -> tuple[list[str], Path]:
    """Return the command of img2dataset and the folder of its shards; 64 threads, as more made it slower here."""
    (folder / "urls.txt").write_text("\n".join(urls), encoding="utf-8")
    how: dict[str, Any] = {"resize_mode": "keep_ratio", "image_size": _SIZE}
    given = {
        **{"url_list": f"{folder}/urls.txt", "output_folder": f"{folder}/out", "output_format": "webdataset"},
        **{"processes_count": 1, "thread_count": 64, "enable_wandb": False},
        **(how if resized else {"disable_all_reencoding": True}),
    }
    return [sys.executable, "-c", f"import img2dataset; img2dataset.download(**{given!r})"], folder / "out"


def downloaded(
    client: Callable[..., tuple[list[str], Path]], port: int, pictures: int, folder: Path, *, resized: bool
) -> Found:
    """Measure one run of a client, without the CPU of its start."""
    few = run(client, port, _FEW, folder / "few", resized=resized)
    many = run(client, port, pictures, folder / "many", resized=resized)
    return Found(many.pictures - few.pictures, many.seconds * (1 - _FEW / pictures), many.cpu - few.cpu)


def run(
    client: Callable[..., tuple[list[str], Path]], port: int, pictures: int, folder: Path, *, resized: bool
) -> Found:
    """Measure one run of a client as it is."""
    folder.mkdir()
    command, shards = client(folder, [address(port, number) for number in range(pictures)], resized=resized)
    cpu = measure(command).cpu
    stats = [json.loads(file.read_text(encoding="utf-8")) for file in shards.glob("*_stats.json")]
    found = sum(shard["successes"] for shard in stats)
    if found != pictures:
        raise SystemExit(f"{client.__name__}: {found} of {pictures} pictures")
    return Found(found, sum(shard["end_time"] - shard["start_time"] for shard in stats), cpu)


def repeat(folder: Path, pictures: int) -> None:
    """Repeat index and sidecar to a real part's size: a small part's row groups have 62 rows, not 12,187."""
    data = DataDir.at(folder)
    made_with = read_fingerprint(data.sidecar(0)) or {}
    for path in (data.index(0), data.sidecar(0)):
        table = pa.concat_tables([pq.read_table(path)] * (_REAL_ROWS // pictures))
        table = table.set_column(0, "sample_id", pa.array(range(table.num_rows), pa.int64()))
        index = digest(index_fingerprint_at(data.index(0)))
        schema = INDEX if path == data.index(0) else stamped(SIDECAR, {**made_with, "index": index})
        with pq.ParquetWriter(path, schema, compression="zstd") as writer:
            for start, stop in row_group_bounds(table.num_rows):
                writer.write_table(table.slice(start, stop - start).cast(schema), row_group_size=stop - start)


# Without a network, and reading: in a child of its own each.


def resizer_alone(pictures: int, folder: str) -> Found:
    """Measure img2dataset's Resizer and writer on bytes that are there."""
    from img2dataset.resizer import Resizer
    from img2dataset.writer import WebDatasetSampleWriter

    data = picture_server.picture(_BYTES)
    resizer = Resizer(image_size=_SIZE, resize_mode="keep_ratio", resize_only_if_bigger=False)
    schema = pa.schema([("key", pa.string()), ("caption", pa.string())])
    writer = WebDatasetSampleWriter(0, folder, True, 5, schema, "jpg")

    def write() -> Iterator[bool]:
        for number in itertools.count():
            made = resizer(io.BytesIO(data))[0]
            writer.write(made, f"{number:09d}", "a portrait", {"key": f"{number:09d}", "caption": "a portrait"})
            yield True

    found = timed(write(), pictures)
    writer.close()
    return found


def our_stream(pictures: int, folder: str) -> Found:
    """Measure our stream over the tars in this DATA_DIR, undecoded."""
    import datasets

    import laion_face

    found = laion_face.load_dataset("20M", parts="0", data_dir=folder, split="train", streaming=True)
    found = (
        found.decode(False) if hasattr(found, "decode") else found.cast_column("image", datasets.Image(decode=False))
    )
    return timed(over_and_over(lambda: (bool(example["image"]["bytes"]) for example in found)), pictures)


def webdataset(pictures: int, folder: str) -> Found:
    """Measure webdataset over the same tars: key, jpg, txt and json as bytes."""
    import webdataset as wds  # type: ignore[import-untyped,unused-ignore]  # it has no types of its own

    tars = sorted(map(str, Path(folder, "images", "part-00000").glob("*.tar")))
    found = wds.WebDataset(tars, shardshuffle=False, empty_check=False)
    return timed(over_and_over(lambda: (bool(sample["jpg"]) for sample in found)), pictures)


def over_and_over(read: Callable[[], Iterator[bool]]) -> Iterator[bool]:
    """Yield from `read` epoch after epoch, without an end."""
    while True:
        yield from read()


def timed(pictures: Iterator[bool], count: int) -> Found:
    """Measure so many pictures, after some that warm the reader up."""
    for _ in itertools.islice(pictures, _FEW):
        pass
    cpu, began = used(), time.monotonic()
    done = sum(itertools.islice(pictures, count))
    return Found(done, time.monotonic() - began, used() - cpu)


ALONE: dict[str, Callable[[int, str], Found]] = {
    "Resizer and writer alone": resizer_alone,
    "our stream over tars": our_stream,
    "webdataset": webdataset,
}


def alone(name: str, pictures: int, folder: Path) -> Found:
    """Measure a reader or the resizer in a process of its own."""
    command = [sys.executable, __file__, "--alone", name, "--pictures", str(pictures), "--folder", str(folder)]
    environment = os.environ | {"NO_ALBUMENTATIONS_UPDATE": "1", "HF_HUB_OFFLINE": "1"}
    ran = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment)
    return Found(**json.loads(ran.stdout.splitlines()[-1]))


def rounds(given: argparse.Namespace) -> dict[str, list[Found]]:
    """Run all clients, interleaved, as often as asked."""
    found: dict[str, list[Found]] = {}

    def note(name: str, one: Found) -> None:
        found.setdefault(name, []).append(one)
        sys.stderr.write(f"{name}: {one.per_second:,.0f}/s, {one.cpu_us:,.0f} us\n")

    with picture_server.running(given.latency, _BYTES) as port:
        for _ in range(given.repeats):
            for name, client, resized in (
                ("ours, bytes as they come", ours, False),
                ("img2dataset, bytes as they come", img2dataset, False),
                ("ours, resized", ours, True),
                ("img2dataset, resized", img2dataset, True),
            ):
                with tempfile.TemporaryDirectory() as folder:
                    note(name, downloaded(client, port, given.pictures, Path(folder), resized=resized))
                    if client is ours and not resized:
                        kept = Path(folder, "many")
                        repeat(kept, given.pictures)
                        read_once(kept.rglob("*.tar"))
                        for reader in ("our stream over tars", "webdataset"):
                            note(reader, alone(reader, 4 * given.pictures, kept))
            with tempfile.TemporaryDirectory() as folder:
                note("Resizer and writer alone", alone("Resizer and writer alone", given.pictures, Path(folder)))
    return found


#: What is divided by what: pictures a CPU second of the first by those of the second.
_RATIOS = (
    ("ours, bytes as they come", "img2dataset, bytes as they come"),
    ("ours, resized", "img2dataset, resized"),
    ("ours, resized", "Resizer and writer alone"),
    ("our stream over tars", "webdataset"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pictures", type=int, default=8000)
    parser.add_argument("--latency", type=float, default=0.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--alone", choices=list(ALONE), help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.alone:
        sys.stdout.write(json.dumps(vars(ALONE[given.alone](given.pictures, given.folder))) + "\n")
        return
    found = rounds(given)
    sys.stdout.write("| client | pictures/s | CPU us/picture |\n| --- | ---: | ---: |\n")
    for name, ran in found.items():
        rate, cpu = (statistics.median(getattr(one, what) for one in ran) for what in ("per_second", "cpu_us"))
        sys.stdout.write(f"| {name} | {rate:,.0f} | {cpu:,.0f} |\n")
    sys.stdout.write("\n| ours against | pictures a CPU second | pictures/s |\n| --- | ---: | ---: |\n")
    for ours_, theirs in _RATIOS:
        pairs = list(zip(found[ours_], found[theirs], strict=True))
        by_cpu = statistics.median(other.cpu_us / one.cpu_us for one, other in pairs)
        by_wall = statistics.median(one.per_second / other.per_second for one, other in pairs)
        sys.stdout.write(f"| {ours_} : {theirs} | {by_cpu:.2f} | {by_wall:.2f} |\n")


if __name__ == "__main__":
    main()
