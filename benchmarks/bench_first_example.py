"""Seconds from the start of a process to its first example, on the sandbox: imports, then everything else.

python benchmarks/bench_first_example.py [--runs 5]
USE_TORCH=0 python benchmarks/bench_first_example.py     # the same without torch, which datasets imports for a stream
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from laion_face_builder.sandbox import Sandbox, SandboxSpec

_CHILD = """
import time; started = time.monotonic()
import datasets
there = time.monotonic()
import laion_face
imported = time.monotonic()
ds = laion_face.load_dataset("20M", parts="0", split="train", streaming=True, allow_private_hosts=True, **{options})
next(iter(ds))
print(there - started, imported - there, time.monotonic() - imported, time.process_time())
"""


def run(command: list[str], box: Sandbox) -> str:
    """Run this Python with the sandbox's environment; return what it printed."""
    environment = {**os.environ, **box.environment}
    return subprocess.run(
        [sys.executable, *command], env=environment, check=True, stdout=subprocess.PIPE, text=True
    ).stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as folder, Sandbox.running(Path(folder) / "box", SandboxSpec(parts=(0,))) as box:
        data = str(Path(folder) / "data")
        run(["-m", "laion_face_builder", "prepare", "20M", "--parts", "0", "--data-dir", data], box)
        hub_index = {"index/part-00000.parquet": (Path(data) / "index" / "part-00000.parquet").read_bytes()}
        box.hub.add_repo("somebody/published", hub_index)
        modes = {
            "rows only": {"data_dir": data, "images": "none"},
            "fetched, index in a folder": {"index": f"{data}/index", "images": "fetch"},
            "fetched, index on the Hub": {"index": "somebody/published", "images": "fetch"},
            "nothing prepared, rows only": {"images": "none"},
        }
        print("| mode | `import datasets`, s | `import laion_face`, s | then, s | CPU of all, s |")
        print("|---|---:|---:|---:|---:|")
        for mode, options in modes.items():
            seconds = []
            for number in range(runs):
                fresh = {"data_dir": f"{folder}/{mode}-{number}", **options}
                seconds.append([float(value) for value in run(["-c", _CHILD.format(options=fresh)], box).split()])
            medians = [f"{statistics.median(column):.2f}" for column in zip(*seconds, strict=True)]
            print(f"| {mode} | {' | '.join(medians)} |", flush=True)


if __name__ == "__main__":
    main()
