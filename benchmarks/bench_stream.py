"""Streaming from the web against what people use instead: pictures/s and the client's CPU a picture, on loopback.

    python benchmarks/bench_stream.py [--seconds 5] [--repeats 3] [--only WORD …]

Compared are `laion_face.load_dataset(images="fetch", streaming=True)`, one `requests.get` after the other, 64 threads
of the same, img2dataset with one process, and the bare decoder (Pillow, one core, no network). All read the same
addresses: 46 KB JPEGs, or a 404, on 64 hosts (127.0.0.1 to .64), so that `per_host=8` allows twice what is in flight
and is not what is measured.

- Each case is a process of its own; CPU is user and system time of it and its children, never of the server.
- A stream is read for a while before the clock starts, so that its look-ahead ends as full as it began.
- img2dataset runs twice, with 64 addresses and with 8,000: CPU is the difference, so without its start-up; speed is
  that of its one shard, by its own figures.
- Figures are medians over the repeats. Pictures are those that arrive: a 404 costs time and is none.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import io
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import picture_server
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from laion_face_builder.layout import row_group_bounds
from laion_face_builder.schema import INDEX

HOSTS = 64
_BYTES = 46_000
#: Row groups as large as these cost what they cost in a full part (12,000 rows each) within a few percent.
_ROWS = 400_000
_LOOKAHEAD = 4096
_FEW, _MANY = 64, 8000
_FACE = {"box": [10.0, 10.0, 90.0, 110.0], "landmarks": [[30.0, 40.0]] * 5, "score": 0.97}


@dataclass(frozen=True)
class Case:
    """One line of the table."""

    client: str
    latency: float = 0.0
    failing: float = 0.0
    in_flight: int = 256
    port: int = 0
    index: str = ""
    seconds: float = 5.0
    addresses: int = _MANY


@dataclass(frozen=True)
class Found:
    """What was measured: pictures, wall seconds and CPU seconds."""

    pictures: int
    seconds: float
    cpu: float

    @property
    def per_second(self) -> float:
        """Pictures a second."""
        return self.pictures / max(self.seconds, 1e-9)

    @property
    def cpu_us(self) -> float:
        """Microseconds of CPU a picture."""
        return 1e6 * self.cpu / max(self.pictures, 1)


# The index and its addresses.


def address(port: int, number: int, failing: float = 0.0) -> str:
    """Return the `number`-th address; a share of `failing` of them, evenly spread, is gone."""
    is_gone = int((number + 1) * failing) > int(number * failing)
    return f"http://127.0.0.{1 + number % HOSTS}:{port}/{'gone' if is_gone else 'ok'}/{number}.jpg"


def write_index(folder: Path, urls: list[str], size: tuple[int, int], part: int = 0) -> None:
    """Write an index part as `prepare` would: one face a row, two in every fourth."""
    rows = len(urls)
    width, height = size
    columns: dict[str, Any] = {
        "sample_id": pa.array(range(rows), pa.int64()),
        "url": urls,
        "caption": [f"a portrait of a person in a garden, number {number}" for number in range(rows)],
        "faces": [[_FACE] * (2 if number % 4 == 0 else 1) for number in range(rows)],
        "n_faces": [2 if number % 4 == 0 else 1 for number in range(rows)],
    }
    same = {"part": part, "width": width, "height": height, "license": "?", "nsfw": "UNLIKELY", "similarity": 0.31}
    columns |= {name: [value] * rows for name, value in (same | {"max_face_score": 0.97, "max_face_size": 80}).items()}
    table = pa.table({name: pa.array(columns[name], INDEX.field(name).type) for name in INDEX.names}, schema=INDEX)
    (folder / "index").mkdir(parents=True, exist_ok=True)
    with pq.ParquetWriter(folder / "index" / f"part-{part:05d}.parquet", INDEX, compression="zstd") as writer:
        for start, stop in row_group_bounds(rows):
            writer.write_table(table.slice(start, stop - start), row_group_size=stop - start)


def size_of(data: bytes) -> tuple[int, int]:
    """Return width and height of a picture."""
    return Image.open(io.BytesIO(data)).size


@contextmanager
def served(latency: float, failing: float) -> Iterator[tuple[int, str]]:
    """Serve pictures and an index that leads to them; yield the port and the index's folder."""
    size = size_of(picture_server.picture(_BYTES))
    with picture_server.running(latency, _BYTES) as port, tempfile.TemporaryDirectory() as folder:
        write_index(Path(folder), [address(port, number, failing) for number in range(_ROWS)], size)
        yield port, folder


# The clients. Each runs in a child of its own.


def used() -> float:
    """Return the CPU seconds of this process and of its children that have ended."""
    mine, theirs = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return mine.ru_utime + mine.ru_stime + theirs.ru_utime + theirs.ru_stime


def counted(seconds: float, pictures: Iterator[bool]) -> Found:
    """Read `pictures` for a while and count the true ones."""
    before, begun, done = used(), time.monotonic(), 0
    until = begun + seconds
    for is_good in pictures:
        done += is_good
        if time.monotonic() >= until:
            break
    return Found(done, time.monotonic() - begun, used() - before)


def stream(index: str, in_flight: int = 256, *, decoded: bool = False, parts: str = "0") -> Any:
    """Open our stream over the index in this folder."""
    import datasets

    import laion_face

    found = laion_face.load_dataset(
        "20M",
        parts=parts,
        index=f"{index}/index",
        images="fetch",
        streaming=True,
        allow_private_hosts=True,
        concurrency=in_flight,
        lookahead=_LOOKAHEAD,
        split="train",
    )
    if decoded:
        return found
    return found.decode(False) if hasattr(found, "decode") else found.cast_column("image", datasets.Image(decode=False))


def ours(case: Case) -> Found:
    """Measure our stream, undecoded."""
    return _ours(case, decoded=False)


def ours_decoded(case: Case) -> Found:
    """Measure our stream, decoded."""
    return _ours(case, decoded=True)


def _ours(case: Case, *, decoded: bool) -> Found:
    examples = iter(stream(case.index, case.in_flight, decoded=decoded))
    for _ in range(min(_LOOKAHEAD, 16 * case.in_flight)):
        next(examples)
    return counted(case.seconds, (example["image"] is not None for example in examples))


def one_by_one(case: Case) -> Found:
    """Measure `requests.get` in a loop."""
    return counted(case.seconds, map(_got, _addresses(case)))


def threads(case: Case) -> Found:
    """Measure `requests.get` in a pool of threads; all wait for their last picture, which the time includes."""
    urls, until = _addresses(case), time.monotonic() + case.seconds

    def worker(_: int) -> int:
        done = 0
        while time.monotonic() < until:
            done += _got(next(urls))
        return done

    before, begun = used(), time.monotonic()
    with ThreadPoolExecutor(case.in_flight) as pool:
        done = sum(pool.map(worker, range(case.in_flight)))
    return Found(done, time.monotonic() - begun, used() - before)


def _addresses(case: Case) -> Iterator[str]:
    return (address(case.port, number, case.failing) for number in itertools.count())


def _got(url: str) -> bool:
    import requests

    answer = requests.get(url, timeout=30)
    return answer.status_code == 200 and bool(answer.content)


def img2dataset_as_is(case: Case) -> Found:
    """Measure img2dataset when it keeps the bytes as they came."""
    return _img2dataset(case, disable_all_reencoding=True)


def img2dataset_no_resize(case: Case) -> Found:
    """Measure img2dataset with resize_mode="no": it decodes each picture and encodes it anew."""
    return _img2dataset(case, resize_mode="no")


def _img2dataset(case: Case, **how: Any) -> Found:
    from img2dataset import download  # type: ignore[import-untyped,unused-ignore]  # it has no types of its own

    urls = list(itertools.islice(_addresses(case), case.addresses))
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(sys.stderr):
        pq.write_table(pa.table({"url": urls}), f"{folder}/urls.parquet")
        before = used()
        download(
            url_list=f"{folder}/urls.parquet",
            input_format="parquet",
            url_col="url",
            output_folder=f"{folder}/out",
            output_format="webdataset",
            processes_count=1,
            thread_count=case.in_flight,
            enable_wandb=False,
            **how,
        )
        cpu = used() - before
        shards = [json.loads(file.read_text(encoding="utf-8")) for file in Path(folder, "out").glob("*_stats.json")]
    successes = sum(shard["successes"] for shard in shards)
    # There is one shard: what it says of itself leaves out the start, which takes 4 to 10 s.
    return Found(successes, sum(shard["end_time"] - shard["start_time"] for shard in shards), cpu)


def bare_decoder(case: Case) -> Found:
    """Measure Pillow on the same bytes, as a stream's decoding does it, on one core."""
    data = picture_server.picture(_BYTES)

    def decoded() -> bool:
        Image.open(io.BytesIO(data)).load()
        return True

    return counted(case.seconds, iter(decoded, False))


#: The clients by name.
CLIENTS: dict[str, Callable[[Case], Found]] = {
    "stream, undecoded": ours,
    "stream, decoded": ours_decoded,
    "requests.get, one by one": one_by_one,
    "requests.get, threads": threads,
    "img2dataset, bytes as they come": img2dataset_as_is,
    "img2dataset, resize_mode=no": img2dataset_no_resize,
    "bare decoder": bare_decoder,
}


# Running them.


def in_child(case: Case) -> Found:
    """Run a case in a process of its own, so that none warms or burdens the next."""
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    environment |= {"NO_ALBUMENTATIONS_UPDATE": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, __file__, "--case", json.dumps(dataclasses.asdict(case))]
    ran = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    if ran.returncode:
        raise SystemExit(f"{case}: ended with {ran.returncode}\n{ran.stderr[-2000:]}")
    return Found(**json.loads(ran.stdout.splitlines()[-1]))


def measured(case: Case) -> Found:
    """Measure a case once; for img2dataset without the CPU of its start-up."""
    if not case.client.startswith("img2dataset"):
        return in_child(case)
    few, many = start_up(case), in_child(case)
    return dataclasses.replace(many, cpu=(many.cpu - few.cpu) * many.pictures / (many.pictures - few.pictures))


@functools.cache
def start_up(case: Case) -> Found:
    """Measure img2dataset for a handful of addresses; once for all repeats."""
    few = in_child(dataclasses.replace(case, addresses=_FEW))
    sys.stderr.write(f"{case.client}: {few.cpu:.1f} s of CPU for {_FEW} addresses alone\n")
    return few


def cases() -> list[Case]:
    """List all cases, grouped by what their server has to do."""
    found = [Case("bare decoder", in_flight=1)]
    for latency in (0.0, 0.1):
        found += [
            Case("stream, undecoded", latency),
            Case("stream, decoded", latency),
            Case("requests.get, one by one", latency, in_flight=1),
            Case("requests.get, threads", latency, in_flight=64),
            Case("img2dataset, bytes as they come", latency, in_flight=64),
            Case("img2dataset, bytes as they come", latency, in_flight=256),
            Case("img2dataset, resize_mode=no", latency, in_flight=64),
        ]
    found += [Case("stream, undecoded", 0.1, in_flight=in_flight) for in_flight in (16, 32, 64, 128)]
    for client, in_flight in (
        ("stream, undecoded", 256),
        ("requests.get, threads", 64),
        ("img2dataset, bytes as they come", 64),
    ):
        found.append(Case(client, 0.1, 0.3, in_flight))
    return found


def key_of(case: Case) -> tuple[float, float]:
    """Return the key of a case: cases with the same key share a server."""
    return case.latency, case.failing


def line(case: Case, found: list[Found]) -> str:
    """Format a line of the table: medians, and the spread of the speed."""
    speeds = sorted(one.per_second for one in found)
    cpu = statistics.median(one.cpu_us for one in found)
    ideal = (1 - case.failing) * case.in_flight / case.latency if case.latency else 0
    speed = statistics.median(speeds)
    share = f"{100 * speed / ideal:.0f} % of {ideal:,.0f}" if ideal else ""
    return (
        f"| {case.client} | {case.latency * 1000:.0f} | {case.failing * 100:.0f} | {case.in_flight} | {speed:,.0f} | "
        f"{speeds[0]:,.0f} to {speeds[-1]:,.0f} | {cpu:,.0f} | {share} |"
    )


def ratios(results: dict[Case, list[Found]]) -> Iterator[str]:
    """Yield what is aimed at: CPU a picture against img2dataset, and decoded against the bare decoder."""

    def median(client: str, latency: float, failing: float, of: Callable[[Found], float]) -> float | None:
        values = [
            statistics.median(map(of, found))
            for case, found in results.items()
            if (case.client, case.latency, case.failing) == (client, latency, failing)
            and (case.in_flight == 256 or not client.startswith("stream"))
        ]
        return min(values) if values and of is _cpu_us else max(values, default=None)

    for latency, failing in ((0.0, 0.0), (0.1, 0.0), (0.1, 0.3)):
        where = f"latency {latency * 1000:.0f} ms" + (f", {failing * 100:.0f} % failing" if failing else "")
        mine = median("stream, undecoded", latency, failing, _cpu_us)
        for client in ("img2dataset, bytes as they come", "img2dataset, resize_mode=no", "requests.get, threads"):
            theirs = median(client, latency, failing, _cpu_us)
            if mine and theirs:
                yield f"- {where}: {theirs / mine:.1f} times as many pictures per CPU second as {client}"
        speed = median("stream, decoded", latency, failing, _per_second)
        bare = median("bare decoder", 0.0, 0.0, _per_second)
        if speed and bare:
            yield f"- {where}: decoded at {100 * speed / bare:.0f} % of the bare decoder"


def _cpu_us(found: Found) -> float:
    return found.cpu_us


def _per_second(found: Found) -> float:
    return found.per_second


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=5.0, help="of each case")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=[], help="cases whose client's name contains one of these")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.case:
        case = Case(**json.loads(given.case))
        sys.stdout.write(json.dumps(dataclasses.asdict(CLIENTS[case.client](case))) + "\n")
        return
    results: dict[Case, list[Found]] = {}
    chosen = [case for case in cases() if not given.only or any(word in case.client for word in given.only)]
    sys.stdout.write(
        "| client | latency ms | failing % | in flight | pictures/s | from, to | CPU us/picture "
        "| of in flight/latency |\n"
        "|---|---|---|---|---|---|---|---|\n"
    )
    for key, group in itertools.groupby(sorted(chosen, key=key_of), key_of):
        with served(*key) as (port, index):
            for case in group:
                here = dataclasses.replace(case, port=port, index=index, seconds=given.seconds)
                results[case] = [measured(here) for _ in range(given.repeats)]
                sys.stdout.write(line(case, results[case]) + "\n")
                sys.stdout.flush()
    sys.stdout.write("\n" + "\n".join(ratios(results)) + "\n")


if __name__ == "__main__":
    main()
