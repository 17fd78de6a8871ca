"""Make a shard in any worker: in its place, or in the worker's own folder, and then send it to the DATA_DIR's address.

At an address, as in a folder, the stats come last, and go first when a shard is made anew: whoever finds them finds
the tar that they speak of.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from laion_face_builder.download.run_shard import run_shard
from laion_face_builder.download.task import Report, ShardResult, ShardTask
from laion_face_builder.upstream import kept


def make_shard(task: ShardTask, report: Report = lambda _: None) -> ShardResult:
    """Make the shard with `run_shard`, whether the DATA_DIR is a folder or an address."""
    place = task.place
    with kept.at_work(place.part.data) as data:
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
            kept.brought(data, path)
    before = _stamp(files.tar)
    result = run_shard(task, report)
    if _stamp(files.tar) != before:
        kept.remove_afar(data, files.stats)
        for path in (files.tar, files.parquet):
            kept.send(data, path)
    kept.send(data, place.part.checked_tar(place.round, place.shard))
    kept.send(data, files.stats)
    return result


def _stamp(path: Path) -> int | None:
    return path.stat().st_mtime_ns if path.exists() else None
