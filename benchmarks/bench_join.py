"""Measures what prepare does beside the fastest ways to do the same, as Markdown: seconds, CPU, memory, bytes on disk.

    python benchmarks/make_full_part.py PART --rows-from FILE
    python benchmarks/make_whole.py WHOLE --rows-from FILE
    python benchmarks/bench_join.py [--by-part PART] [--whole WHOLE [--curve]] [--runs 3] [--jobs …] [--engines …]

--by-part: the detections of a part against `torch.load` alone, all of a part against the published way, and the join of
a part against DuckDB and Polars. --whole: the join of all files and parts; with --curve of a quarter of the files, a
half, and so on, ours only. The published way unpickles without a check: only for files that were made here.

Each run is a process of its own, imports included; inputs are read once before, so that they are in the page cache.
Engines take turns, so that a busy moment hits all. Figures are those of the best run, seconds with the median in
brackets; CPU is user and system; memory the peak of the whole process tree. The first results are compared row by row.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
from join_check import Compared, compare
from join_engines import BY_PART, WHOLE, Engine, Join, Part
from measuring import Used, apart, measure, read_once
from published_way import ALL_OF_A_PART, DETECTIONS, Sources

from laion_face_builder.layout import DataDir

PARTS = 32


@dataclass(frozen=True)
class Job:
    """A row of the table.

    Attributes:
        engines: what each does in its process, given a folder for what it writes.
        reads: its inputs.
        index: the index parts that it writes, by the same folder.
    """

    name: str
    engines: Mapping[str, Callable[[Path], None]]
    reads: Sequence[Path]
    index: Callable[[Path], Sequence[Path]] = lambda _: ()


def jobs_of_a_part(folder: Path) -> Iterator[Job]:
    """Yield the jobs that need what make_full_part.py wrote."""
    sources = Sources.at(folder)
    yield Job("detections", {name: partial(run, sources) for name, run in DETECTIONS.items()}, [sources.detections])
    everything = [sources.ids, sources.detections, sources.metadata]
    yield Job("all of a part", {name: partial(run, sources) for name, run in ALL_OF_A_PART.items()}, everything)
    data = DataDir.at(folder)
    part = partial(_part, data, 0, rows=_rows(data.ids(0)))
    reads = [sources.metadata, data.ids(0), data.faces(0)]
    yield _join("by part", BY_PART, reads, lambda out: Join((sources.metadata,), (part(out),), out))


def job_whole(folder: Path, files: int | None = None) -> Job:
    """Return the job of all parts, from the first `files` of what make_whole.py wrote."""
    data, metadata = DataDir.at(folder), tuple(sorted(folder.glob("part-*.parquet")))[:files]
    # Of all rows one in eight has faces, of any part.
    rows = sum(map(_rows, metadata)) // 8 // PARTS

    def join(out: Path) -> Join:
        return Join(metadata, tuple(_part(data, number, out, rows=rows) for number in range(PARTS)), out)

    reads = [*metadata, *(data.ids(part) for part in range(PARTS)), *(data.faces(part) for part in range(PARTS))]
    return _join(f"whole, {len(metadata)} files", WHOLE, reads, join)


def _join(name: str, engines: Mapping[str, Engine], reads: Sequence[Path], join: Callable[[Path], Join]) -> Job:
    def run(engine: Engine, out: Path) -> None:
        engine(join(out))

    ways = {name: partial(run, engine) for name, engine in engines.items()}
    return Job(name, ways, reads, lambda out: [part.index for part in join(out).parts])


def _part(data: DataDir, number: int, out: Path, rows: int) -> Part:
    return Part(number, data.ids(number), data.faces(number), out / f"part-{number:05d}.parquet", rows)


def _rows(file: Path) -> int:
    return int(pq.read_metadata(file).num_rows)


@dataclass
class Result:
    """What an engine's runs used, and what became of its first."""

    used: list[Used]
    bytes_a_row: float = 0
    compared: Compared = Compared(0, 0, True)


def run_all(job: Job, names: Sequence[str], command: Sequence[str], runs: int) -> dict[str, Result]:
    """Run the engines in turns; compare the others' first results with that of the first engine."""
    results = {name: Result([]) for name in names}
    with tempfile.TemporaryDirectory(dir=job.reads[0].parent) as scratch:
        reference = Path(scratch) / "reference"
        reference.mkdir()
        for name in [*names] * runs:
            out, result = Path(scratch) / "out", results[name]
            out.mkdir()
            read_once(job.reads)
            result.used.append(measure([*command, "--job", job.name, "--engine", name, "--out", str(out)]))
            say(f"{job.name}, {name}: {result.used[-1]}")
            if len(result.used) == 1 and (index := job.index(out)):
                result.bytes_a_row = sum(path.stat().st_size for path in index) / sum(map(_rows, index))
                if name == names[0]:
                    for path in index:
                        path.rename(reference / path.name)
                else:
                    result.compared = apart(_compare_all, reference, index)
                    say(f"{name}: the same as {names[0]}: {result.compared}")
            shutil.rmtree(out)
    return results


def _compare_all(reference: Path, index: Sequence[Path]) -> Compared:
    return sum((compare(reference / path.name, path) for path in index), Compared(0, 0, True))


def table(job: Job, results: dict[str, Result]) -> Iterator[str]:
    """Yield a job's rows of the table; ratios are the first engine's figure by the others'."""
    first = next(iter(results.values()))
    for name, result in results.items():
        best, middle = _best(result), statistics.median(used.seconds for used in result.used)
        own = _best(first)
        ratios = [own.seconds / best.seconds, own.cpu / best.cpu, own.peak / best.peak]
        cells = [job.name, name, f"{best.seconds:.1f} ({middle:.1f})", f"{best.cpu:.1f}", f"{best.peak:.2f}"]
        cells += [f"{result.bytes_a_row:.0f}" if result.bytes_a_row else ""]
        cells += [""] * 3 if result is first or "ours" not in results else [f"{ratio:.2f}" for ratio in ratios]
        yield f"| {' | '.join(cells)} |"


def _best(result: Result) -> Used:
    columns = [(used.seconds, used.cpu, used.peak) for used in result.used]
    return Used(*map(min, zip(*columns, strict=True)))


def say(line: str) -> None:
    """Print to stderr, so that the table alone is on stdout."""
    print(line, file=sys.stderr, flush=True)


HEAD = """
| job | engine | s, best (median) | CPU, s | peak, GB | bytes a row | ours : it, s | CPU | peak |
|---|---|---:|---:|---:|---:|---:|---:|---:|"""


def main() -> None:
    """Print the table; with --job run one engine once, in this process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--by-part", type=Path, help="what make_full_part.py wrote")
    parser.add_argument("--whole", type=Path, help="what make_whole.py wrote")
    parser.add_argument("--curve", action="store_true", help="of --whole: ours, by the number of files")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--engines", help="only these, with commas between")
    parser.add_argument("--jobs", help="only these, with commas between")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    parser.add_argument("--engine", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.by_part and not args.job:
        apart(Sources.at(args.by_part).prepare)
    jobs = {job.name: job for job in _jobs(args)}
    if args.job:
        jobs[args.job].engines[args.engine](args.out)
        return
    command = [sys.executable, *sys.argv]
    print(HEAD)
    for job in jobs.values():
        names = [name for name in job.engines if name in _listed(args.engines, job.engines)]
        if job.name in _listed(args.jobs, jobs) and names:
            print("\n".join(table(job, run_all(job, names, command, args.runs))), flush=True)


def _jobs(args: argparse.Namespace) -> Iterator[Job]:
    if args.by_part:
        yield from jobs_of_a_part(args.by_part)
    if args.whole and args.curve:
        files = len(list(args.whole.glob("part-*.parquet")))
        for quarter in range(1, 5):
            job = job_whole(args.whole, files * quarter // 4)
            yield replace(job, engines={name: run for name, run in job.engines.items() if name == "ours"})
    elif args.whole:
        yield job_whole(args.whole)


def _listed(names: str | None, every: Iterable[str]) -> Iterable[str]:
    return names.split(",") if names else every


if __name__ == "__main__":
    main()
