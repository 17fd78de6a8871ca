"""What it costs to publish a prepared part to a folder, to verify it, and to read a first row of it.

python benchmarks/bench_publish.py DATA_DIR [--runs 3]

DATA_DIR is one that `laion-face prepare` made; its first part is used.
Every step runs in a process of its own.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

_TIMED = """
import resource, sys, time; started = time.monotonic()
{code}
print(time.monotonic() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6)
"""
_STEPS = {
    "publish to a folder": "from laion_face_builder import cli\n"
    "cli.main(['publish', '--parts', '{part}', '--data-dir', '{data}', '{out}/'])",
    "publish again, nothing new": "from laion_face_builder import cli\n"
    "cli.main(['publish', '--parts', '{part}', '--data-dir', '{data}', '{out}/'])",
    "verify what is published": "from laion_face_builder import cli\ncli.main(['verify', '{out}/'])",
    "verify what is prepared": "from laion_face_builder import cli\ncli.main(['verify', '{data}'])",
    "first row, datasets alone": "import datasets\n"
    "next(iter(datasets.load_dataset('{out}', '50M', split='train', streaming=True)))",
    "first row, laion_face with index=": "import laion_face\n"
    "next(iter(laion_face.load_dataset('50M', parts={part}, index='{out}', images='none', split='train', "
    "streaming=True)))",
}


def measure(code: str) -> tuple[float, float]:
    """Measure seconds and peak GB of `code` in a process of its own, imports included."""
    command = [sys.executable, "-c", _TIMED.format(code=code)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    seconds, peak = done.stdout.split()[-2:]
    return float(seconds), float(peak)


def main() -> None:
    """Print a table of medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--runs", type=int, default=3)
    given = parser.parse_args()
    index = min((given.data / "index").glob("part-*.parquet"))
    with tempfile.TemporaryDirectory() as folder:
        results: dict[str, list[tuple[float, float]]] = {step: [] for step in _STEPS}
        for _ in range(given.runs):
            shutil.rmtree(f"{folder}/out", ignore_errors=True)
            for step, code in _STEPS.items():
                named = code.format(part=int(index.stem[5:]), data=given.data.absolute(), out=f"{folder}/out")
                results[step].append(measure(named))
    print(f"index: {index.stat().st_size / 1e6:,.0f} MB\n\n| step | seconds | peak memory, GB |\n|---|---:|---:|")
    for step, figures in results.items():
        seconds, peak = (statistics.median(column) for column in zip(*figures, strict=True))
        print(f"| {step} | {seconds:.1f} | {peak:.2f} |")


if __name__ == "__main__":
    main()
