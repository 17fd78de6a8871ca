"""Prepares a full-size part from local files and measures each stage: seconds and peak resident memory, as Markdown.

    python benchmarks/make_full_part.py FOLDER
    python benchmarks/bench_prepare.py FOLDER [--without-published]

The stages are those of `prepare`, without its downloads; each runs in a process of its own, then all of them in one.
Beside them the published way: `torch.load` of the detections, ids and a pandas merge with the metadata, which keeps the
rows and loses the faces. It unpickles without a check: only for files that were made here.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

STAGES = ("ids", "faces", "index", "all three")
PUBLISHED = ("torch.load of the detections", "torch.load of the ids and pandas merge")


def run_stage(stage: str, folder: Path, out: Path) -> None:
    """One stage, in this process."""
    from laion_face_builder.index.detections import write_faces
    from laion_face_builder.index.ids import write_ids
    from laion_face_builder.index.writer import IndexInputs, index_fingerprint, write_index
    from laion_face_builder.layout import DataDir

    data = DataDir.at(out)
    if stage in ("ids", "all three"):
        write_ids(folder / "laion_face_ids.pth", data, [0], stage)
    if stage in ("faces", "all three"):
        write_faces(folder / "sample2detect_0.pth", data, 0, stage)
    if stage in ("index", "all three"):
        metadata = next(folder.glob("part-00000-*.parquet"))
        fingerprint = index_fingerprint(0, ids=stage, faces=stage, metadata=stage)
        write_index(data.index(0), IndexInputs(0, data.ids(0), data.faces(0), metadata, fingerprint))


def run_published(stage: str, folder: Path) -> None:
    """What the published snippet and converter do."""
    import pandas as pd
    import torch

    if stage == PUBLISHED[0]:
        torch.load(folder / "sample2detect_0.pth", weights_only=False)  # our own file
        return
    ids = set(torch.load(folder / "laion_face_ids.pth", weights_only=False)[0])  # our own file
    metadata = pd.read_parquet(next(folder.glob("part-00000-*.parquet")))
    metadata.merge(pd.DataFrame({"SAMPLE_ID": list(ids)}), on="SAMPLE_ID")


def measure(stage: str, folder: Path, out: Path) -> tuple[float, float]:
    """Seconds and peak GB of a stage in a process of its own, imports included."""
    started = time.perf_counter()
    command = [sys.executable, __file__, str(folder), "--stage", stage, "--out", str(out)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return time.perf_counter() - started, int(done.stdout.split()[-1]) / 1e6


def peak_kilobytes() -> int:
    """The largest resident memory of this process so far; Linux counts in kB, macOS in bytes."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // 1024 if sys.platform == "darwin" else peak


def main() -> None:
    """Measures all stages and prints the table; with --stage runs one and prints its peak."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--without-published", action="store_true")
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.stage in PUBLISHED:
        run_published(args.stage, args.folder)
    elif args.stage:
        run_stage(args.stage, args.folder, args.out)
    if args.stage:
        print(peak_kilobytes())
        return
    print("| stage | seconds | peak memory, GB |\n|---|---:|---:|")
    results = {}
    with tempfile.TemporaryDirectory(dir=args.folder) as out:
        for stage in (*STAGES, *(() if args.without_published else PUBLISHED)):
            results[stage] = measure(stage, args.folder, Path(out) / ("all" if stage == "all three" else "one"))
            seconds, peak = results[stage]
            print(f"| {stage} | {seconds:.1f} | {peak:.2f} |", flush=True)
    if not args.without_published:
        seconds = sum(results[stage][0] for stage in PUBLISHED) / results["all three"][0]
        peak = max(results[stage][1] for stage in PUBLISHED) / results["all three"][1]
        print(f"| published way : ours | {seconds:.1f} | {peak:.1f} |")


if __name__ == "__main__":
    main()
