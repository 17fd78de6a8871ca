"""`download` by processes, Ray and Spark, as many workers each, on the same shards: pictures/s, and their ratio.

    python benchmarks/bench_engines.py [--pictures 80000] [--shard 10000] [--workers 2] [--latency 0.05] [--repeats 3]

It needs `pip install 'laion-face[spark,ray]'` and Java 17; an engine that is not there is left out, and named. Every
run is a command of its own, whose engine starts and ends with it: so there are also the seconds of one that has a
single picture to fetch, and what is left without them.
"""

from __future__ import annotations

import argparse
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import picture_server
from bench_stream import size_of, write_index
from measuring import Used, measure

ENGINES = ("processes", "ray", "pyspark")
_BYTES = 46_000


@dataclass(frozen=True)
class Found:
    """A run, and how long the command takes for one picture."""

    pictures: int
    used: Used
    start: Used

    @property
    def rate(self) -> float:
        """Pictures/s without the start."""
        return self.pictures / (self.used.seconds - self.start.seconds)


def command(folder: Path, engine: str, given: argparse.Namespace) -> list[str]:
    """Return the command that downloads part 0; with every engine all workers together have as much in flight."""
    in_flight = given.in_flight if engine == "processes" else -(-given.in_flight // given.workers)
    return [
        *(sys.executable, "-m", "laion_face_builder", "download", "20M", "--parts", "0", "--data-dir", str(folder)),
        *("--distributor", engine, "--processes", str(given.workers), "--concurrency", str(in_flight)),
        *("--samples-per-shard", str(given.shard), "--allow-private-hosts", "--format", "quiet"),
    ]


def run(engine: str, urls: Sequence[str], given: argparse.Namespace) -> Used:
    """Download these URLs into a folder that is gone afterwards.

    Raises:
        SystemExit: it failed, or a picture is missing.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_index(folder, list(urls), size_of(picture_server.picture(_BYTES)))
        used = measure(command(folder, engine, given))
        pictures = sum(_pictures(tar) for tar in folder.glob("images/part-00000/*.tar"))
        if pictures != len(urls):
            raise SystemExit(f"{engine}: {pictures} of {len(urls)} pictures")
    return used


def _pictures(tar: Path) -> int:
    with tarfile.open(tar) as members:
        return sum(member.name.endswith(".jpg") for member in members)


def bench(given: argparse.Namespace) -> dict[str, list[Found]]:
    """Run each engine in turn, so many times."""
    found: dict[str, list[Found]] = {engine: [] for engine in given.engines}
    with picture_server.running(given.latency, _BYTES) as port:
        urls = picture_server.addresses(port, given.pictures)
        for _ in range(given.repeats):
            for engine in given.engines:
                start, used = run(engine, urls[:1], given), run(engine, urls, given)
                found[engine].append(Found(len(urls), used, start))
                print(f"{engine}: {used}; for one picture {start}", file=sys.stderr)
    return found


def report(found: dict[str, list[Found]]) -> None:
    """Print a table; the overhead is against the first engine, run by run, the median of all."""
    base = next(iter(found))
    print(f"| distributor | s | s for one picture | pictures/s between | CPU, s | time : {base} | whole command |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for engine, runs in found.items():
        pairs = list(zip(runs, found[base], strict=True))
        between = median(other.rate / own.rate for own, other in pairs)
        whole = median(own.used.seconds / other.used.seconds for own, other in pairs)
        seconds, start = (
            median(used.seconds for used in of) for of in zip(*((r.used, r.start) for r in runs), strict=True)
        )
        rate, cpu = median(r.rate for r in runs), median(r.used.cpu for r in runs)
        print(f"| {engine} | {seconds:.1f} | {start:.1f} | {rate:,.0f} | {cpu:.1f} | {between:.2f} | {whole:.2f} |")


def _installed(engine: str) -> bool:
    try:
        __import__(engine if engine != "processes" else "sys")
        return True
    except ImportError:
        print(f"{engine} is not installed: left out", file=sys.stderr)
        return False


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=80_000)
    parser.add_argument("--shard", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--in-flight", type=int, default=256)
    parser.add_argument("--latency", type=float, default=0.05)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    given = parser.parse_args()
    given.engines = [engine for engine in given.engines if _installed(engine)]
    report(bench(given))


if __name__ == "__main__":
    main()
