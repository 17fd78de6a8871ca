"""Memory over a long stream: undecoded examples through `load_dataset(images="fetch")`, resident memory on the way.

    python benchmarks/soak.py [--examples 200000] [--every 10000] [--bytes 8000] [--failing 0.05]

Pictures are small so that it takes minutes. The index has two parts, so that a part's end is passed as well. Linux: the
figures are VmRSS of /proc/self/status; the server is a process of its own.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
from pathlib import Path

import bench_stream
import picture_server


def resident_mb() -> float:
    """Return the resident memory of this process, MB."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
    assert found is not None, "no VmRSS: not Linux"
    return int(found[1]) / 1000


def soak(folder: str, examples: int, every: int) -> list[float]:
    """Stream so many examples; return the resident MB after each `every` of them."""
    sampled, begun, done = [], time.monotonic(), 0
    for example in bench_stream.stream(folder, parts="0,2"):
        done += example["image"] is not None
        if done % every == 0:
            sampled.append(resident_mb())
            sys.stdout.write(f"| {done:,} | {sampled[-1]:,.0f} | {done / (time.monotonic() - begun):,.0f} |\n")
            sys.stdout.flush()
        if done >= examples:
            break
    return sampled


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--examples", type=int, default=200_000)
    parser.add_argument("--every", type=int, default=10_000)
    parser.add_argument("--bytes", type=int, default=8_000, help="size of a picture")
    parser.add_argument("--failing", type=float, default=0.05, help="share of the addresses that are gone")
    given = parser.parse_args()
    size = bench_stream.size_of(picture_server.picture(given.bytes))
    # A little more than is asked for, so that the end is not the stream's own.
    rows = int(given.examples / (1 - given.failing) * 1.05) // 2 + 1
    with picture_server.running(0, given.bytes) as port, tempfile.TemporaryDirectory() as folder:
        for part, first in ((0, 0), (2, rows)):
            urls = [bench_stream.address(port, number, given.failing) for number in range(first, first + rows)]
            bench_stream.write_index(Path(folder), urls, size, part)
        del urls
        sys.stdout.write(f"before: {resident_mb():,.0f} MB\n\n| examples | VmRSS MB | examples/s |\n|---|---|---|\n")
        sampled = soak(folder, given.examples, given.every)
    sys.stdout.write(f"\nfirst {sampled[0]:,.0f} MB, largest {max(sampled):,.0f} MB, last {sampled[-1]:,.0f} MB\n")


if __name__ == "__main__":
    main()
