"""Make a shard in one process and one pass: fetch, check, maybe encode again, and write it with its sidecar rows.

It is made in its place or, if the DATA_DIR is an address, in the worker's own folder, and then sent. At an address, as
in a folder, the stats come last, and go first when a shard is made anew: whoever finds them finds the tar that they
speak of.

One process may run two shards in two threads. They share one engine, and take turns: the second asks for its first
picture when the first has asked for its last, so that nobody waits idly for the last slow hosts of a shard.
"""

from __future__ import annotations

import ipaddress
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from laion_face_builder.download.blur import ENCODER
from laion_face_builder.download.check import check_tar
from laion_face_builder.download.download_options import DownloadOptions
from laion_face_builder.download.numbering import (
    NOWHERE,
    Numbering,
    blank,
    ids_of_download,
    listed_rows,
    without_removed,
)
from laion_face_builder.download.plan import rows_of_round
from laion_face_builder.download.reencoding import Stored, stored
from laion_face_builder.download.shard_writer import ShardWriter
from laion_face_builder.download.task import Report, ShardResult, ShardTask
from laion_face_builder.errors import BadFile, NetworkOutage, PictureError
from laion_face_builder.fetch.fetch_in_order import arriving
from laion_face_builder.fetch.fetcher import Fetcher
from laion_face_builder.fetch.limits import FetchLimits
from laion_face_builder.images.pictures import Picture
from laion_face_builder.images.reasons import Reason
from laion_face_builder.index.removals import Removals
from laion_face_builder.index.removed import Removed
from laion_face_builder.sources import data_store

#: Bounds for each shard: bytes of pictures that wait to be written, and rows asked for ahead of the last one written.
_BUFFER_BYTES = 128 << 20
_LOOKAHEAD = 4096
_ROWS_AT_ONCE = 256
_REPORT_SECONDS = 1.0
#: Held while the engine is made, so that two threads make only one.
_MAKING = threading.Lock()
#: If no host answered for any of at least so many samples, the network is at fault.
_ENOUGH = 8
_HELD, _GONE = PictureError(Reason.IN_ANOTHER_ROUND), PictureError(Reason.TAKEN_DOWN)
_NOT_ASKED = (Reason.IN_ANOTHER_ROUND, Reason.TAKEN_DOWN)
Sample = tuple[int, dict[str, Any]]


def run_shard(task: ShardTask, report: Report = lambda _: None) -> ShardResult:
    """Make the shard and its rows of the sidecar; if its files are there and whole, only check them.

    Args:
        task: which shard, and how.
        report: told about once a second what has become of the samples so far.

    Raises:
        NetworkOutage: no host answered; nothing is written, so that the samples are asked for again.
        OSError: the shard cannot be written.
    """
    found = None if task.probe or task.left_out else _looked_through(task)
    return found or _downloaded(task, report)


def _looked_through(task: ShardTask) -> ShardResult | None:
    """Check the shard's files and return its result; None if they are not all there and whole."""
    job = task.place.check_job()
    if job is None:
        return None
    try:
        if not job.is_done:
            check_tar(job)
        return task.place.result()
    except BadFile:
        return None


def _downloaded(task: ShardTask, report: Report) -> ShardResult:
    tally, held = _Tally(report), frozenset(task.held)
    rows = rows_of_round(task.place.part, task.place.round)
    rows = rows[task.place.start : task.place.start + task.place.samples]
    removed = Removals.of(task.place.part.data).removed
    with task.index as index:
        numbering = Numbering.lacking(ids_of_download(task.place.part), task.lacks)
        table, is_gone = without_removed(listed_rows(index, numbering, rows, task.options.blur_faces), removed)
    gone = frozenset(np.flatnonzero(is_gone | (numbering.rows_of(rows) == NOWHERE)).tolist())
    if task.options.encodes_again:
        ENCODER.start()  # before the first request: importing img2dataset takes seconds
    writer = None if task.probe else ShardWriter(task, table.schema)
    try:
        for (position, values), found in _fetched(task, _samples(table), {*task.left_out, *held, *gone}):
            end = _HELD if position in held else _end_of(found, values, task.options)
            is_removed = position in gone or _is_named(removed, found, end)
            end = _GONE if is_removed else end
            tally.count(end, values["url"])
            if writer is not None:
                writer.write(position, blank(values) if is_removed else values, end)
        tally.require_a_network()
        if writer is not None:
            writer.finish()
        return tally.result
    finally:
        if writer is not None:
            writer.close()


def _samples(table: Any) -> Iterator[Sample]:
    rows = (row for batch in table.to_batches(max_chunksize=_ROWS_AT_ONCE) for row in batch.to_pylist())
    return enumerate(rows)


def _fetched(
    task: ShardTask, samples: Iterator[Sample], left_out: Collection[int]
) -> Iterator[tuple[Sample, Picture | PictureError | None]]:
    with _MAKING:
        engine = _engine(task.limits)
    if task.probe is not None:
        samples = (sample for sample in samples if task.probe[0] <= sample[0] < task.probe[1])

    def asked() -> Iterator[Sample]:
        with engine.turn:
            yield from samples

    return arriving(
        asked(),
        engine.fetcher,
        url_of=lambda sample: None if sample[0] in left_out else sample[1]["url"],
        lookahead=_LOOKAHEAD,
        max_buffer_bytes=_BUFFER_BYTES,
    )


def _is_named(removed: Removed, found: Picture | PictureError | None, end: Stored | PictureError) -> bool:
    """Say whether a picture that would be kept was taken down, by what came or by what is kept of it."""
    if not isinstance(found, Picture) or not isinstance(end, Stored):
        return False
    return removed.names_picture(found.data, (end.sha256, end.fetched_sha256))


def _end_of(
    found: Picture | PictureError | None, values: dict[str, Any], options: DownloadOptions
) -> Stored | PictureError:
    if found is None:
        return PictureError(Reason.CRASHED_DECODER, "ended the process each time it was looked at")
    if isinstance(found, PictureError):
        return found
    try:
        return stored(found, values, options)
    except PictureError as error:
        return error.with_traceback(None)


@dataclass(frozen=True)
class _Engine:
    """What the shards of a process share: the fetcher, and the turn to ask it for pictures."""

    fetcher: Fetcher
    turn: threading.Lock = field(default_factory=threading.Lock)


@lru_cache(maxsize=1)
def _engine(limits: FetchLimits) -> _Engine:
    return _Engine(Fetcher(limits))


class _Tally:
    """Counts what becomes of samples, tells it now and then, and notices when no host answers."""

    def __init__(self, report: Report) -> None:
        self.result = ShardResult()
        self._report = report
        self._told = time.monotonic()
        self._unanswered: Counter[str] = Counter()

    def count(self, end: Stored | PictureError, url: str) -> None:
        """Count a sample and what became of it."""
        reason = end.reason if isinstance(end, PictureError) else Reason.OK
        self.result.statuses[reason] += 1
        size = len(end.data) if isinstance(end, Stored) else 0
        self.result = ShardResult(self.result.statuses, self.result.bytes + size)
        if _is_unanswered(reason, url):
            self._unanswered[reason] += 1
        if (now := time.monotonic()) - self._told >= _REPORT_SECONDS:
            self._told = now
            self._report(self.result)

    def require_a_network(self) -> None:
        """Raise NetworkOutage if there are enough samples to tell, and no host answered for any.

        The engine itself waits for a network that falls silent; this is about a resolver that gives wrong answers.
        """
        asked = self.result.samples - sum(self.result.statuses[reason] for reason in _NOT_ASKED)
        if self._unanswered.total() == asked >= _ENOUGH:
            said = ", ".join(f"{reason} {count:,}" for reason, count in self._unanswered.most_common())
            raise NetworkOutage(
                f"the network cannot be reached: none of {asked:,} pictures was answered ({said}). "
                "They do not count as failed: run the same command once it is there."
            )


def _is_unanswered(reason: str, url: str) -> bool:
    """Say whether no host answered: wrong DNS, as before a hotel's login page, gives private addresses."""
    if reason == Reason.PRIVATE_ADDRESS:
        return not _is_address(urlsplit(url).hostname or "")
    return reason in (Reason.DNS, Reason.UNREACHABLE)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def make_shard(task: ShardTask, report: Report = lambda _: None) -> ShardResult:
    """Make the shard with `run_shard`, whether the DATA_DIR is a folder or an address."""
    place = task.place
    with data_store.at_work(place.part.data) as data:
        here = replace(task, place=replace(place, part=replace(place.part, data=data)))
        if data.address is None or task.probe is not None:
            return run_shard(here, report)
        return _sent(here, report)


def _sent(task: ShardTask, report: Report) -> ShardResult:
    place, files, data = task.place, task.place.files, task.place.part.data
    if place.is_finished:  # A worker that died when it had sent all of it; its answer was lost.
        return place.result()
    if not task.left_out and place.check_job() is not None:  # It is to be checked.
        for path in (files.tar, files.parquet):
            data_store.brought(data, path)
    before = _stamp(files.tar)
    result = run_shard(task, report)
    if _stamp(files.tar) != before:
        data_store.remove_afar(data, files.stats)
        for path in (files.tar, files.parquet):
            data_store.send(data, path)
    data_store.send(data, place.part.checked_tar(place.round, place.shard))
    data_store.send(data, files.stats)
    return result


def _stamp(path: Path) -> int | None:
    return path.stat().st_mtime_ns if path.exists() else None
