"""From upstream to the index: ids, faces, rows by part, index.

Each file is written whole and carries what it was made from, so a run that was killed goes on with the first one that
is missing. Metadata by part is joined part by part. Whole metadata is read once for all parts (see `staged`), then the
parts are put together. One process works on a part, or on whole metadata, at a time; others wait and find it done.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from laion_face_builder import progress
from laion_face_builder.files import locked, locked_if_free, remove_partials
from laion_face_builder.index.costs import Costs
from laion_face_builder.index.detections import write_faces
from laion_face_builder.index.faces import FaceTable
from laion_face_builder.index.ids import write_ids
from laion_face_builder.index.join import join
from laion_face_builder.index.part_ids import PartIds
from laion_face_builder.index.plan import PartPlan, plan_parts
from laion_face_builder.index.staged import (
    is_staged,
    rows_of_part,
    stage,
    staged_file,
    staged_fingerprint,
    staged_rows,
    staging_folder,
    written_by_now,
)
from laion_face_builder.index.writer import proof_path, write_index
from laion_face_builder.layout import ALL_PARTS, DataDir
from laion_face_builder.parallel import cores, in_order
from laion_face_builder.upstream.source_files import RemoteFile
from laion_face_builder.upstream.sources import Upstream
from laion_face_builder.values import Range

logger = logging.getLogger("laion_face")

#: Files, and parts, worked on at the same time unless more are asked for.
MOST_AT_ONCE = 4
_PROCESSES = Range(int, 1, 1_000)


def prepare(
    data: DataDir,
    parts: Sequence[int],
    upstream: Upstream,
    *,
    discard_sources: bool = False,
    processes: int | None = None,
) -> None:
    """Make ids, faces and index of `parts`, as far as they are not there yet from these very sources.

    Says what it will fetch and read before it does. If upstream does not answer, a part that is there already is used
    as it is.

    Args:
        discard_sources: free each downloaded file once all that is made from it is written. Local files stay.
        processes: files, and parts, that are worked on at the same time, in threads; None means one a processor, at
            most `MOST_AT_ONCE`: a full part takes up to 1.3 GB of memory.

    Raises:
        OptionError: `processes` is no such number.
        SourceError: a source cannot be had; BadFile, UnsafePickle: it is not what it has to be.
        JoinRefused: the metadata's rows are not those that the faces were found in.
        StateConflict: pictures were downloaded for an index from other sources.
        LaionFaceError: the disk has no room.
    """
    run = _Run(data, discard_sources, at_once(processes))
    plans = plan_parts(data, parts, upstream)
    jobs = [plan for plan in plans if not plan.is_done]
    for job in jobs:
        job.refuse_conflict()
    if jobs:
        costs = Costs.of(jobs)
        costs.say(data)
        costs.check_room(data, discard_sources, run.processes)
        run.make_ids(jobs)
        run.make_parts(jobs)
    elif plans:
        logger.info("parts %s: prepared, nothing to do", ", ".join(str(plan.part) for plan in plans))
    run.free_staged()
    run.discard(file for plan in plans for file in (plan.id_list, plan.detections, *plan.metadata.files))


def at_once(processes: int | None) -> int:
    """How many files, and parts, are worked on at the same time.

    Raises:
        OptionError: `processes` is less than 1.
    """
    if processes is not None:
        _PROCESSES.check("processes", processes)
    return processes or min(cores(), MOST_AT_ONCE)


class _Run:
    """One call of `prepare`."""

    def __init__(self, data: DataDir, discard_sources: bool, processes: int) -> None:
        self._data = data
        self._discard_sources = discard_sources
        self.processes = processes

    def make_ids(self, jobs: Sequence[PartPlan]) -> None:
        """The ids of all 32 parts, whichever are asked for: the big pickle is fetched and read once only."""
        with locked(self._data.root / "ids" / "id-list"):
            if any(job.lacks_ids for job in jobs):
                path, content = self._read(jobs[0].id_list)
                asked = {job.part for job in jobs}
                # Those asked for come last: if they are there after a kill, the others are too.
                write_ids(path, self._data, sorted(ALL_PARTS, key=lambda part: part in asked), content)
            self.discard([jobs[0].id_list])

    def make_parts(self, jobs: Sequence[PartPlan]) -> None:
        """Faces and index of every part."""
        if jobs[0].metadata.is_whole:
            self._from_whole(jobs)
        else:
            threads = max(1, self.processes // len(jobs))
            self._side_by_side(jobs, lambda job: self._rows_by_part(job, threads))

    def discard(self, files: Iterable[RemoteFile]) -> None:
        """Frees the copies of `files` if that was asked for."""
        for file in files if self._discard_sources else ():
            file.discard(self._data.sources)

    def free_staged(self) -> None:
        """Removes what waits for parts that are all written; a pass for more parts can go on."""
        if not self._data.staging.exists():
            return
        with locked_if_free(self._data.staging) as is_ours:
            for folder in written_by_now(self._data.staging, self._is_written) if is_ours else ():
                shutil.rmtree(folder)

    def _is_written(self, part: int) -> bool:
        return self._data.index(part).exists()

    def _from_whole(self, jobs: Sequence[PartPlan]) -> None:
        with locked(self._data.staging, f"waiting for another run that reads the metadata into {self._data.root}"):
            if not any(job.lacks_index for job in jobs):  # It was there, or another run made it meanwhile.
                self._side_by_side(jobs, lambda job: pa.table({}))
                return
            folder, parts = staging_folder(
                self._data.staging, self._ids(jobs), [job.part for job in jobs if job.lacks_index]
            )
            staged = self._stage(jobs[0], folder, parts)
            for job in jobs:
                job.refuse_conflict()
            self._side_by_side(jobs, lambda job: staged_rows(staged, job.part))

    def _ids(self, jobs: Sequence[PartPlan]) -> str:
        """The content of the id list, which has been read by now."""
        return jobs[0].id_list.content(self._data.sources) or ""

    def _stage(self, job: PartPlan, folder: Path, parts: Sequence[int]) -> list[Path]:
        """The one pass over all metadata files; gives the staged files in their order."""
        ids = self._ids([job])
        lookup = PartIds.read({part: self._data.ids(part) for part in parts})
        files = job.metadata.files
        remove_partials(folder)

        def work(numbered: tuple[int, RemoteFile]) -> Path:
            number, file = numbered
            target = staged_file(folder, number)
            if not is_staged(target, ids, parts, lambda: file.content(self._data.sources)):
                with progress.nth("file", number + 1, len(files)):
                    path, content = self._read(file)
                stage(target, path, lookup, staged_fingerprint(ids, parts, content))
            self.discard([file])
            bar.update(file.size or 0)
            return target

        total = sum(file.size or 0 for file in files)
        with progress.bar("metadata", total, "B") as bar:
            return list(in_order(work, enumerate(files), self.processes))

    def _rows_by_part(self, job: PartPlan, threads: int) -> pa.Table:
        path, _ = self._read(job.metadata.files[0])
        job.refuse_conflict()
        return rows_of_part(path, PartIds.read({job.part: self._data.ids(job.part)}), threads)

    def _side_by_side(self, jobs: Sequence[PartPlan], rows_of: Callable[[PartPlan], pa.Table]) -> None:
        def work(numbered: tuple[int, PartPlan]) -> None:
            number, job = numbered
            with progress.nth("part", number, len(jobs)):
                self._make_part(job, rows_of)

        with progress.bar("prepare", len(jobs)) as bar:
            for _ in in_order(work, enumerate(jobs, 1), self.processes):
                bar.update()

    def _make_part(self, job: PartPlan, rows_of: Callable[[PartPlan], pa.Table]) -> None:
        part, data = job.part, self._data
        with locked(data.index(part)):
            if job.lacks_faces:
                path, content = self._read(job.detections)
                write_faces(path, data, part, content)
            self.discard([job.detections])
            if job.lacks_index:
                rows = rows_of(job)
                if job.lacks_index:  # What was fetched may turn out to be what the index was made from.
                    self._write_index(job, rows)
            if not job.metadata.is_whole:
                self.discard(job.metadata.files)

    def _write_index(self, job: PartPlan, rows: pa.Table) -> None:
        data, part, fingerprint = self._data, job.part, job.index_fingerprint
        assert fingerprint is not None, "all sources have been read"  # noqa: S101 - says it to the type checker
        remove_partials(data.index(part).parent, data.index(part).name)
        remove_partials(data.index(part).parent, proof_path(data.index(part)).name)
        faces = FaceTable.read(data.faces(part), wanted=np.unique(rows["sample_id"].to_numpy()))
        joined = join(part, pq.read_metadata(data.ids(part)).num_rows, rows, faces)
        joined.proof.refuse_wrong(job.metadata.where)
        write_index(data.index(part), joined, fingerprint)
        logger.info("%s", joined.proof)
        for doubt in joined.proof.warnings():
            logger.warning("%s", doubt)

    def _read(self, file: RemoteFile) -> tuple[Path, str]:
        """A file, fetched if need be, and what its bytes are."""
        path = file.fetch(self._data.sources)
        content = file.content(self._data.sources)
        assert content is not None, "known once it has been fetched"  # noqa: S101 - says it to the type checker
        return path, content
