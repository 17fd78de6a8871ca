"""Export examples as files: shard by shard, each of them whole or not there, by one process or several.

A shard is a range of a part's rows, as `walk.Shard` has it; what it gives is one folder, tar, list or table. The ledger
says which are whole, so that an export that was killed goes on, and several jobs share one folder.

From the web one process streams through many shards, so that fetching runs ahead over their borders; from tars each
task is one shard.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from copy import deepcopy
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from laion_face_builder import distribute, progress
from laion_face_builder.download.part import Share
from laion_face_builder.errors import SourceError
from laion_face_builder.examples import parts
from laion_face_builder.examples.report import Report, Tally
from laion_face_builder.examples.walk import Fetched, Plan, Position, Shard, fetched, walk
from laion_face_builder.export.export_ledger import EXPORT_FORMAT, ExportCounts, Ledger, shard_name
from laion_face_builder.export.pieces import PieceMaker
from laion_face_builder.export.shard_sinks import line_of, open_sink
from laion_face_builder.export.side_lists import write_lists
from laion_face_builder.files import in_use, locked
from laion_face_builder.images.reasons import hint_on
from laion_face_builder.index.removals import STAMP, settled
from laion_face_builder.log import logger
from laion_face_builder.options import OptionFields, Options, refuse_unknown
from laion_face_builder.options.export_options import FILES, ExportOptions
from laion_face_builder.parallel import cores
from laion_face_builder.values import Range, folder

_MOST_PROCESSES = 16
#: Rows that are worth a process.
_ROWS_A_PROCESS = 2_000
#: Tasks for each process where pictures come from the web: at the end of each one nothing is fetched ahead.
_TASKS_A_PROCESS = 4


@dataclass(frozen=True)
class ExportRequest:
    """What is to be exported where.

    Attributes:
        options: which examples, and where their pictures come from; as `ExportOptions.read_with` gave them.
        how: what is written of them.
        out: the folder.
        shards: a share of all shards, such as "0/4"; None means all.
        processes: how many work; None means one from the web, else one for each core, at most 16.

    Raises:
        OptionError: no such share, or no such number of processes.
    """

    options: Options
    how: ExportOptions
    out: Path
    shards: str | None = None
    processes: int | None = None

    def __post_init__(self) -> None:
        if self.processes is not None:
            Range(int, 1, 1_000).check("processes", self.processes)
        _ = self.share

    @property
    def share(self) -> Share | None:
        """The share of the shards; None for all."""
        return None if self.shards is None else Share.parse(self.shards)

    @property
    def mine(self) -> list[Shard]:
        """The shards of the share, in the index's order."""
        everything = Plan(self.options, None).shards()
        share = self.share
        return [shard for number, shard in enumerate(everything) if share is None or number in share]

    def asked(self, adopted: parts.Adopted | None) -> dict[str, Any]:
        """Return what defines the result, for the ledger: no paths, no places, nothing about speed."""
        defining = {name: value for name, value in self.options.defining().items() if name not in ("parts", STAMP)}
        defining["filters"] = {name: value for name, value in defining["filters"].items() if name != STAMP}
        removed = settled(self.options.data).removed
        return {
            "format": EXPORT_FORMAT,
            "examples": {**defining, "shards_per_part": self.options.shards_per_part},
            "export": {"layout": self.how.layout, **self.how.as_dict()},
            "parts": {str(part): parts.identity(self.options, part, adopted) for part in self.options.parts},
            **({STAMP: removed.digest} if removed else {}),
        }


def call(name: str | None, out: Any, given: Mapping[str, Any]) -> ExportCounts:
    """Export what a call asks for: the body of `laion_face.export`."""
    own = {spec.name for spec in fields(ExportOptions)}
    others = {"data_dir", "token", "shards", "processes"}
    refuse_unknown(given, own | others)
    how = ExportOptions(**{key: value for key, value in given.items() if key in own and value is not None})
    options = OptionFields(**{key: value for key, value in given.items() if key not in own | others})
    chosen = Options.of(name or "", options, given.get("data_dir"), given.get("token"))
    if options.parts is None:
        chosen = parts.of_those_prepared(chosen)
    out = folder("out", out)
    return export(ExportRequest(how.read_with(chosen), how, out, given.get("shards"), given.get("processes")))


def export(request: ExportRequest) -> ExportCounts:
    """Export what is not there yet, write the lists and the manifest, and return the counts of all that is there.

    Raises:
        NotPrepared: a part has no index, or its pictures are not those that are asked for.
        StateConflict: the folder holds another export.
        SourceError, NetworkOutage: the network was lost; DiskError: no room. The same command goes on.
    """
    parts.require_prepared(request.options)
    parts.fit_pictures(request.options)
    adopted = parts.adopt(request.options)
    ledger = Ledger(request.out)
    waiting, run = f"{request.out}: in use; waiting", f"run-{(request.shards or 'all').replace('/', '-of-')}"
    with in_use(ledger.path("export"), waiting), locked(ledger.path(run), waiting):
        ledger.begin(request.asked(adopted))
        todo = [shard for shard in request.mine if ledger.counts_of(shard) is None]
        _run(request, adopted, todo)
        with locked(ledger.path("manifest.json")):
            total = ledger.write_manifest()
            write_lists(ledger, request.how, total)
    return total


def _workers(request: ExportRequest, sizes: Mapping[Shard, int], *, is_fetched: bool) -> int:
    """Return how many processes work: a few rows are read sooner than a process has started."""
    usual = 1 if is_fetched else min(cores(), _MOST_PROCESSES, sum(sizes.values()) // _ROWS_A_PROCESS)
    return max(1, min(request.processes or usual, len(sizes)))


def _run(request: ExportRequest, adopted: parts.Adopted, todo: Sequence[Shard]) -> None:
    rows, is_fetched = {}, False
    for part in {shard.part for shard in todo}:
        with parts.open_part(request.options, part, adopted) as opened:
            rows[part] = opened.index.num_rows
            is_fetched = is_fetched or opened.is_fetched
    sizes = {shard: _size(shard, rows) for shard in todo}
    workers = _workers(request, sizes, is_fetched=is_fetched)
    with progress.bar("export", sum(sizes.values()), "row") as bar:
        if workers == 1:
            for done in _exported(_Task(request, adopted, tuple(todo)), bar):
                logger.debug("%s is whole", shard_name(done))
            return
        tasks = _tasks(request, adopted, todo, workers if is_fetched else None)
        for finished in distribute.each(_export_task, tasks, workers=workers):
            for shard in finished.result():
                bar.update(sizes[shard])


def _size(shard: Shard, rows: Mapping[int, int]) -> int:
    start, stop = shard.bounds(rows[shard.part])
    return stop - start


@dataclass(frozen=True)
class _Task:
    """Shards for one worker, in the index's order."""

    request: ExportRequest
    adopted: parts.Adopted
    shards: tuple[Shard, ...]


def _tasks(
    request: ExportRequest, adopted: parts.Adopted, todo: Sequence[Shard], fetching: int | None
) -> Iterator[_Task]:
    """Yield the tasks: of one shard each, or, for so many workers that fetch, of runs of shards."""
    if fetching is not None:
        fetch = replace(request.options.fetch, concurrency=max(1, request.options.fetch.concurrency // fetching))
        request = replace(request, options=replace(request.options, fetch=fetch))
    length = 1 if fetching is None else -(-len(todo) // (fetching * _TASKS_A_PROCESS))
    for first in range(0, len(todo), length):
        yield _Task(request, adopted, tuple(todo[first : first + length]))


def _export_task(task: _Task) -> list[Shard]:
    import cv2

    cv2.setNumThreads(1)  # there is a process for each core
    return list(_exported(task, None))


def _exported(task: _Task, bar: Any) -> Iterator[Shard]:
    """Export the shards one after the other, and yield each once it is whole."""
    request = task.request
    plan = Plan(request.options, None, task.adopted)
    with (
        Tally(None) as tally,
        closing(walk(plan, task.shards, Position(), tally)) as rows,
        closing(fetched(plan, rows)) as steps,
    ):
        for shard, mine in _by_shard(steps, task.shards):
            _export_shard(request, shard, mine, tally, bar)
            yield shard


def _by_shard(steps: Iterator[Fetched], shards: Sequence[Shard]) -> Iterator[tuple[Shard, Iterator[Fetched]]]:
    """Yield each shard with its steps, which have to be taken before the next; a shard may have none."""
    ahead = next(steps, None)

    def mine(shard: Shard) -> Iterator[Fetched]:
        nonlocal ahead
        while ahead is not None:
            mark = ahead[0].mark
            if mark.part != shard.part or mark.row >= shard.bounds(mark.rows)[1]:
                return
            step, ahead = ahead, next(steps, None)
            yield step

    for shard in shards:
        yield shard, mine(shard)


def _export_shard(request: ExportRequest, shard: Shard, steps: Iterator[Fetched], tally: Tally, bar: Any) -> None:
    ledger, name = Ledger(request.out), shard_name(shard)
    before, maker, counts = deepcopy(tally.counts), PieceMaker(request.options, request.how), ExportCounts()
    listed: list[str] | None = [] if request.how.layout == FILES else None
    with open_sink(request.out, name, request.how, request.options) as sink:
        for step, picture in steps:
            example, batch = step.row.example(picture), step.row.batch
            if example is not None and batch is not None:
                is_any = False
                for piece in maker.pieces(example, batch[step.row.place]):
                    said = sink.add(piece)
                    if listed is not None:
                        listed.append(line_of(said))
                    counts.pieces += 1
                    counts.bytes += len(piece.picture or b"") + len(piece.condition or b"")
                    is_any = True
                counts.pictures += is_any
            if bar is not None:
                bar.update()
        if tally.lost_network:
            raise _lost(tally.counts)
    _count(counts, before, tally.counts, maker.failed)
    ledger.finish(shard, counts, listed)


def _count(counts: ExportCounts, before: Report, after: Report, failed: Counter[str]) -> None:
    counts.rows, counts.filtered = after.rows - before.rows, after.filtered - before.filtered
    counts.excluded = after.excluded - before.excluded
    counts.failed = (after.failed - before.failed) + failed


def _lost(counts: Report) -> SourceError:
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in counts.failed.most_common(5))
    hint = hint_on(counts.failed)
    found = "too many pictures failed" if hint else "the network was lost on the way"
    return SourceError(
        f"{found}: {counts.failures:,} of this process ({reasons}). Shards that were whole before are kept, this one "
        f"is not. {hint or 'Run the same command again once the network is back'}"
    )
