"""The clients of the web in a box, one a process: `python benchmarks/web_peers.py NAME SETTINGS` (by bench_web.py).

Each goes once through all rows, as its own documentation has it, and writes a line of JSON: the pictures that it has
as bytes that begin as a JPEG does, when it had finished (time.monotonic()), and what ended it early, if anything did.
What they share is what is in `Settings`; where a client has no such setting, it does without.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_JPEG = b"\xff\xd8"


@dataclass(frozen=True)
class Settings:
    """What a client is given.

    Attributes:
        folder: its own, empty.
        urls: a file with a URL a line.
        gettable: a file with those among them that lead to a picture.
        index: a DATA_DIR with an index of the same rows.
        in_flight: requests at a time.
        timeout: seconds for one picture.
        retries: further tries.
    """

    folder: str
    urls: str
    gettable: str
    index: str
    in_flight: int = 256
    timeout: float = 10.0
    retries: int = 2

    def listed(self, *, gettable: bool = False) -> list[str]:
        """Return the URLs, or only those that lead to a picture."""
        return Path(self.gettable if gettable else self.urls).read_text(encoding="utf-8").split()


@dataclass(frozen=True)
class Got:
    """Pictures that a client had in the end, and what ended it before its rows were at an end."""

    pictures: int
    ended_by: str = ""


def _count(bodies: Iterable[bytes | None]) -> Got:
    """Count the bodies that are JPEGs; an exception is how the client ended."""
    pictures = 0
    try:
        for body in bodies:
            pictures += body is not None and body[:2] == _JPEG
    except Exception as error:  # what a client does on a bad row is part of what is compared
        return Got(pictures, type(error).__name__)
    return Got(pictures)


# Ours.


def stream(settings: Settings, **more: Any) -> Got:
    """Fetch by our stream, in the index's order."""
    import datasets

    import laion_face

    found = laion_face.load_dataset(
        "20M",
        parts="0",
        index=f"{settings.index}/index",
        images="fetch",
        streaming=True,
        split="train",
        allow_private_hosts=True,
        concurrency=settings.in_flight,
        timeout=settings.timeout,
        retries=settings.retries,
        **more,
    )
    found = found.cast_column("image", datasets.Image(decode=False))
    return _count(example["image"] and example["image"]["bytes"] for example in found)


def arrival(settings: Settings) -> Got:
    """Fetch by our stream, as pictures come."""
    return stream(settings, order="arrival")


def robots(settings: Settings) -> Got:
    """Fetch by our stream, as pictures come, with every site's robots.txt asked for before."""
    return stream(settings, order="arrival", respect="robots")


def everything(settings: Settings) -> Got:
    """Fetch likewise, with tdmrep.json asked for too."""
    return stream(settings, order="arrival", respect="all")


def download(settings: Settings) -> Got:
    """Fetch by `laion-face download`, with a process a core."""
    command = [
        *(sys.executable, "-m", "laion_face_builder", "download", "20M", "--parts", "0", "--data-dir", settings.index),
        *("--allow-private-hosts", "--timeout", str(settings.timeout), "--retries", str(settings.retries)),
        *("--processes", str(os.cpu_count() or 1), "--concurrency", str(settings.in_flight)),
        *("--samples-per-shard", str(_shard(settings))),
    ]
    code = subprocess.run(command, stdout=sys.stderr, check=False).returncode
    return Got(_in_tars(Path(settings.index, "images")), f"exit code {code}" if code else "")


def _shard(settings: Settings) -> int:
    """Return the rows of a shard: every process has several, and none waits for the last for long."""
    return max(250, len(settings.listed()) // 8)


def _in_tars(folder: Path) -> int:
    pictures = 0
    for path in folder.rglob("*.tar"):
        with tarfile.open(path) as tar:
            for member in tar:
                file = tar.extractfile(member)
                pictures += file is not None and file.read(2) == _JPEG
    return pictures


# What people use instead.


def img2dataset(settings: Settings) -> Got:
    """Fetch by img2dataset, which keeps the bytes as they come, with a process a core."""
    from img2dataset import download  # type: ignore[import-untyped,unused-ignore]  # it has no types of its own

    processes = os.cpu_count() or 1
    download(
        url_list=settings.urls,
        input_format="txt",
        output_folder=f"{settings.folder}/out",
        output_format="webdataset",
        processes_count=processes,
        thread_count=max(1, settings.in_flight // processes),
        number_sample_per_shard=_shard(settings),
        timeout=settings.timeout,
        retries=settings.retries,
        disable_all_reencoding=True,
        enable_wandb=False,
    )
    return Got(_in_tars(Path(settings.folder, "out")))


def aiohttp(settings: Settings) -> Got:
    """Fetch by a plain aiohttp pool: so many tasks, one session, a body is kept if the status is 200."""
    return asyncio.run(_pool(settings))


async def _pool(settings: Settings) -> Got:
    import aiohttp

    urls, pictures = iter(settings.listed()), 0

    async def worker(session: aiohttp.ClientSession) -> None:
        nonlocal pictures
        for url in urls:
            try:
                async with session.get(url) as answer:
                    body = await answer.read()
                    pictures += answer.status == 200 and body[:2] == _JPEG
            except (aiohttp.ClientError, asyncio.TimeoutError):
                continue

    limits = aiohttp.TCPConnector(limit=settings.in_flight)
    async with aiohttp.ClientSession(
        connector=limits, timeout=aiohttp.ClientTimeout(total=settings.timeout)
    ) as session:
        await asyncio.gather(*(worker(session) for _ in range(settings.in_flight)))
    return Got(pictures)


def datasets(settings: Settings) -> Got:
    """Fetch by `datasets` alone, in 64 threads, on all rows."""
    return _datasets(settings.listed())


def datasets_told(settings: Settings) -> Got:
    """Fetch by `datasets` alone, only the rows that are known to lead to a picture."""
    return _datasets(settings.listed(gettable=True))


def _datasets(urls: list[str]) -> Got:
    from datasets import Dataset, Image

    rows = Dataset.from_dict({"image": urls}).cast_column("image", Image()).to_iterable_dataset()
    # It decodes as well: without, it does not fetch.
    return _count(_JPEG if example["image"] is not None else None for example in rows.decode(num_threads=64))


def daft(settings: Settings) -> Got:
    """Fetch by Daft's download of a column."""
    import daft  # type: ignore[import-not-found,unused-ignore]  # where it is installed

    rows = daft.from_pydict({"url": settings.listed()})
    fetched = daft.col("url").download(max_connections=settings.in_flight, on_error="null")
    return _count(row["body"] for row in rows.with_column("body", fetched).iter_rows())


def ray(settings: Settings) -> Got:
    """Fetch by Ray Data's download expression."""
    import ray  # type: ignore[import-not-found,unused-ignore]  # where it is installed
    from ray.data.expressions import download  # type: ignore[import-not-found,unused-ignore]  # likewise

    ray.init(num_cpus=os.cpu_count(), include_dashboard=False, log_to_driver=False)
    rows = ray.data.from_items([{"url": url} for url in settings.listed()])
    return _count(row["body"] for row in rows.with_column("body", download("url")).iter_rows())


#: The clients by name; what stands first in a table.
PEERS: dict[str, tuple[Callable[[Settings], Got], str]] = {
    "arrival": (arrival, "stream, as they come"),
    "robots": (robots, 'the same, `respect="robots"`'),
    "everything": (everything, 'the same, `respect="all"`'),
    "stream": (stream, "stream, in order"),
    "download": (download, "`laion-face download`"),
    "img2dataset": (img2dataset, "img2dataset, bytes as they come"),
    "aiohttp": (aiohttp, "aiohttp, a plain pool"),
    "datasets": (datasets, "`datasets`, 64 threads, decoded"),
    "datasets-told": (datasets_told, "the same, told which rows are good"),
    "daft": (daft, "Daft, `download`"),
    "ray": (ray, "Ray Data, `download`"),
}


def missing(name: str) -> str:
    """Say why a client cannot run under this interpreter; empty if it can."""
    import importlib.util

    if name == "arrival":
        from laion_face_builder.options import OptionFields

        if "order" not in {field.name for field in dataclasses.fields(OptionFields)}:
            return "there is no option order yet"
    if name in ("daft", "ray", "img2dataset", "aiohttp") and importlib.util.find_spec(name) is None:
        return f"{name} is not installed"
    return ""


def main() -> None:
    """Run one client, or say why it cannot run."""
    name, text = sys.argv[1:]
    if reason := missing(name):
        sys.stdout.write(json.dumps({"missing": reason}) + "\n")
        return
    # What clients print themselves goes elsewhere.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    got = PEERS[name][0](Settings(**json.loads(text)))
    out.write(json.dumps({"pictures": got.pictures, "ended_by": got.ended_by, "at": time.monotonic()}) + "\n")
    out.flush()
    out.close()
    os._exit(0)  # threads that still wait for a silent host are nobody's business any more


if __name__ == "__main__":
    main()
